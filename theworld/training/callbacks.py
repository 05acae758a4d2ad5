"""What happens beside training: ending it when asked to, and showing what the model answers and what it imagined."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from theworld.datasets.collator import ChatCollator
from theworld.datasets.samples import Sample
from theworld.model.modeling import TheWorldForConditionalGeneration
from theworld.training.trainer import EvaluationStopped, TheWorldTrainer

logger = logging.getLogger(__name__)

LOGS = "logs"  # inside output_dir
MAX_NEW_TOKENS = 64  # of an answer that is shown


class StopWhenAsked(TrainerCallback):
    """On SIGTERM the run saves and ends with exit code 0: after the step it is in, or at once before there is one."""

    def __init__(self) -> None:
        self.asked = False
        self.training = False
        self._before: Any = None

    def __enter__(self) -> StopWhenAsked:
        self._before = signal.signal(signal.SIGTERM, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self.training:
            logger.warning("stopped before the first step; there is nothing to save")
            raise SystemExit(0)
        logger.warning("asked to stop: saving after this step")

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        self.training = True

    def on_train_end(self, *arguments: Any, **keywords: Any) -> None:
        self.training = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **keywords: Any
    ) -> None:
        if self.asked:
            control.should_evaluate = False  # it might take longer than whoever asked will wait
            control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **keywords: Any
    ) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True
            raise EvaluationStopped


class LogLines(TrainerCallback):
    """Figures as lines of the log, where there is no terminal to draw a bar on."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **keywords: Any,
    ) -> None:
        if state.is_world_process_zero:
            figures = " ".join(f"{name} {value:.5g}" for name, value in logs.items())
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, figures)


class ShownSamples(TrainerCallback):
    """Writes, at each evaluation, what the model answers to some samples beside their truth and their imagined future.

    Args:
        trainer: gives batches and latents.
        samples: the ones shown.
        strips: a picture file of each one's imagined future, or None where it cannot be shown.
        folder: `step-N.jsonl` goes here.
    """

    def __init__(
        self, trainer: TheWorldTrainer, samples: Sequence[Sample], strips: Sequence[Path | None], folder: Path
    ) -> None:
        self.trainer = trainer
        self.samples = samples
        self.strips = strips
        self.folder = folder

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: TheWorldForConditionalGeneration,
        **keywords: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        collator = self.trainer.data_collator
        assert isinstance(collator, ChatCollator)
        answers = self.answers(model, collator)
        lines = [
            {
                "origin": sample.origin,
                "question": last_question(sample),
                "truth": sample.answers()[-1],
                "answer": answer,
                "strip": None if strip is None else strip.name,
            }
            for sample, answer, strip in zip(self.samples, answers, self.strips, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (self.folder / f"step-{state.global_step}.jsonl").write_text(text, encoding="utf-8")
        self._to_tensorboard(args, state.global_step, lines)
        self._to_wandb(args, state.global_step, lines)

    @torch.no_grad()
    def answers(self, model: TheWorldForConditionalGeneration, collator: ChatCollator) -> list[str]:
        """Greedy answers, one a sample, each asked alone."""
        texts = []
        for sample in self.samples:
            inputs = self.trainer._prepare_inputs(collator.prompts([sample]))
            ids = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            new = ids[0, inputs["input_ids"].shape[1] :]
            texts.append(str(collator.processor.tokenizer.decode(new, skip_special_tokens=True)).strip())
        return texts

    def _to_tensorboard(self, args: TrainingArguments, step: int, lines: Sequence[dict[str, Any]]) -> None:
        if "tensorboard" not in args.report_to:
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(log_dir=str(Path(args.output_dir) / LOGS)) as writer:
            for number, (line, strip) in enumerate(zip(lines, self.strips, strict=True)):
                words = f"{line['question']}\n\nanswer: {line['answer']}\n\ntruth: {line['truth']}"
                writer.add_text(f"samples/{number}", words, step)
                if strip is not None:
                    writer.add_image(f"imagined/{number}", np.asarray(Image.open(strip)), step, dataformats="HWC")

    def _to_wandb(self, args: TrainingArguments, step: int, lines: Sequence[dict[str, Any]]) -> None:
        if "wandb" not in args.report_to:
            return
        import wandb

        columns = ["origin", "question", "answer", "truth", "imagined"]
        rows = [
            [*(line[name] for name in columns[:-1]), None if strip is None else wandb.Image(str(strip))]
            for line, strip in zip(lines, self.strips, strict=True)
        ]
        wandb.log({"samples": wandb.Table(columns=[*columns], data=rows), "train/global_step": step})


def last_question(sample: Sample) -> str:
    """The words of a sample's last question."""
    asked = [message for message in sample.messages if message["role"] == "user"][-1]
    return " ".join(part["text"] for part in asked["content"] if part["type"] == "text")
