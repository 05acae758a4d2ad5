"""Callbacks of a run: stopping after a step, log lines and progress, and sample answers with their imagined futures."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from theworld.datasets.samples import Sample
from theworld.messages import TaskProgress
from theworld.training.distributed import any_process
from theworld.training.hf_arguments import LOGS
from theworld.training.stopping import ENDING, Stop
from theworld.training.trainer import EvaluationStopped, TheWorldTrainer

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 64  # of an answer that is shown


class StopAfterStep(TrainerCallback):
    """Saves a checkpoint and ends the run after the current step, once a stop is requested; evaluations are aborted.

    Where several processes train together, a signal reaches them in different steps, or only one of them: they decide
    together.
    """

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def requested(self) -> bool:
        """Whether one of the processes was asked to stop."""
        self.stop.requested = any_process(self.stop.requested)
        return self.stop.requested

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        self.stop.begin()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **keywords: Any) -> None:
        if state.global_step + 1 >= state.max_steps:
            self.stop.phase = ENDING  # a stop during this step leaves nothing to resume

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **keywords: Any) -> None:
        if self.requested():
            control.should_evaluate = False  # it may take longer than the grace period after SIGTERM
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **keywords: Any) -> None:
        if self.requested():  # while the checkpoint was written
            control.should_training_stop = True

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **keywords: Any) -> None:
        if self.requested():
            control.should_save = control.should_training_stop = True
            raise EvaluationStopped

    def on_train_end(self, *arguments: Any, **keywords: Any) -> None:
        if not self.stop.requested:
            self.stop.phase = ENDING


class Report(TrainerCallback):
    """Writes metrics to the log and reports the progress of training and of each evaluation."""

    def __init__(self, progress: TaskProgress) -> None:
        self.progress = progress
        self.evaluated = 0  # batches of the current evaluation

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **keywords: Any) -> None:
        if state.is_world_process_zero:
            metrics = " ".join(f"{name} {value:.5g}" for name, value in logs.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, metrics)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **keywords: Any) -> None:
        if state.is_world_process_zero:
            self.progress("Training", state.global_step, state.max_steps)

    on_step_end = on_train_begin

    def on_prediction_step(self, args: Any, state: TrainerState, control: TrainerControl, **keywords: Any) -> None:
        if state.is_world_process_zero:
            self.evaluated += 1
            self.progress("Evaluation", self.evaluated, len(keywords["eval_dataloader"]))

    def on_evaluate(self, *arguments: Any, **keywords: Any) -> None:
        self.evaluated = 0


class ShownSamples(TrainerCallback):
    """Writes the model's answers to some samples at each evaluation, with the true answers and the imagined futures.

    Args:
        trainer: makes batches and latents.
        strips: an image file with the imagined future of each sample; None if it cannot be shown.
        folder: for `step-N.jsonl`.
    """

    def __init__(
        self, trainer: TheWorldTrainer, samples: Sequence[Sample], strips: Sequence[Path | None], folder: Path
    ) -> None:
        self.trainer = trainer
        self.samples = samples
        self.strips = strips
        self.folder = folder

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: Any, model: PreTrainedModel, **keywords: Any
    ) -> None:
        if not (state.is_world_process_zero or self.trainer.sharded):  # whose forward pass needs all processes
            return
        lines = [
            {
                "origin": sample.origin,
                "question": last_question(sample),
                "truth": sample.answers()[-1],
                "answer": self.answer(model, sample),
                "strip": strip and strip.name,
            }
            for sample, strip in zip(self.samples, self.strips, strict=True)
        ]
        if not state.is_world_process_zero:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (self.folder / f"step-{state.global_step}.jsonl").write_text(text, encoding="utf-8")
        self._to_tensorboard(args, state.global_step, lines)
        self._to_wandb(args, state.global_step, lines)

    @torch.no_grad()
    def answer(self, model: PreTrainedModel, sample: Sample) -> str:
        """The greedy answer to a sample's last question."""
        collator = self.trainer.data_collator
        inputs = self.trainer._prepare_inputs(collator.prompts([sample]))
        ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        return str(collator.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def _to_tensorboard(self, args: TrainingArguments, step: int, lines: Sequence[dict[str, Any]]) -> None:
        if "tensorboard" not in args.report_to:
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=str(Path(args.output_dir) / LOGS)) as writer:
            for index, (line, strip) in enumerate(zip(lines, self.strips, strict=True)):
                text = f"{line['question']}\n\nanswer: {line['answer']}\n\ntruth: {line['truth']}"
                writer.add_text(f"samples/{index}", text, step)
                if strip is not None:
                    writer.add_image(f"imagined/{index}", np.asarray(Image.open(strip)), step, dataformats="HWC")

    def _to_wandb(self, args: TrainingArguments, step: int, lines: Sequence[dict[str, Any]]) -> None:
        if "wandb" not in args.report_to:
            return
        import wandb

        columns = ["origin", "question", "answer", "truth", "imagined"]
        rows = [
            [*(line[name] for name in columns[:-1]), strip and wandb.Image(str(strip))]
            for line, strip in zip(lines, self.strips, strict=True)
        ]
        wandb.log({"samples": wandb.Table(columns=[*columns], data=rows), "train/global_step": step})


def last_question(sample: Sample) -> str:
    """The text of a sample's last question."""
    message = [message for message in sample.messages if message["role"] == "user"][-1]
    return " ".join(part["text"] for part in message["content"] if part["type"] == "text")
