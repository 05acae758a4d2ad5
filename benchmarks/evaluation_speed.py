"""Measures evaluations: questions per second in one arm and in four, by `evaluate` and question by question.

    python -m benchmarks.evaluation_speed --output eval.json                  # shapes of 4B + 2B, on a GPU
    python -m benchmarks.evaluation_speed --size tiny --output eval.json      # a rehearsal on a CPU

`ours` is `theworld.evaluation.evaluate` as users call it, files read and images decoded included. `stock` asks the same
model the same questions on the plain path, by transformers' `generate` and diffusers' modules, from the image file on
for each arm; `stock, with likelihoods` also runs one pass per option, which `evaluate` does not need. A row's
`equal_texts` is the share of answers that stock gave too, and `max_error` the largest distance of the options'
log-probabilities. Weights are random, each question has an image of its own, and an answer has at most 8 tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_weights import SIZES
from benchmarks.rows import BANDWIDTH, FLOPS, Rows
from benchmarks.training_throughput import make
from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.evaluation.arms import ARMS, Arm, Batch, Imagination
from theworld.evaluation.evaluator import evaluate
from theworld.evaluation.results import Results
from theworld.evaluation.runner import MAX_NEW_TOKENS
from theworld.evaluation.tasks import Item, Request, load_benchmark, other_images
from theworld.inference.pipeline import TheWorld
from theworld.inference.scored_answers import Reply

FOUR_ARMS = ("fused", "zero", "shuffled", "no-world")
OPTIONS = ("the red one", "the green one", "the blue one", "none of them")
QUESTIONS = {"full": {16: 48, 1: 12}, "tiny": {1: 2, 2: 4}}  # by batch size; of stock a quarter
# seconds per image by arithmetic, see docs/performance.md: the vision tower, the VAE, and a rollout of 4 steps
VISION_FLOOR, ENCODE_FLOOR, ROLLOUT_FLOOR = 6.9e-3, 0.43e-3, 9 * 79e-3 / 8


def prepare(folder: Path, size: str, device: str) -> Path:
    """Writes what is missing of the base models and photos, and questions, and returns the file of questions."""
    make(folder, size, device)
    file = folder / "questions.jsonl"
    with file.open("w") as lines:
        for number in range(max(QUESTIONS[size].values())):
            question = f"Which of these moves first{', and which one last' * (number % 4)}?"
            row = {"id": str(number), "image": f"photos/{number}.jpg", "question": question}
            lines.write(json.dumps({**row, "choices": OPTIONS, "answer": "B"}) + "\n")
    return file


class Bench(Rows):
    """A model with random weights, its questions, and the rows that were measured."""

    def __init__(self, folder: Path, size: str, output: Path, device: str) -> None:
        super().__init__("benchmarks.evaluation_speed", output, device, 1)
        self.size, self.questions = size, prepare(folder, size, device)
        side = {"world_image_size": 64} if size == "tiny" else {}
        self.model = TheWorld(str(folder / "gemma"), 4, str(folder / "cosmos"), device=device, **side)
        self.model.config.reads_world_tokens = True  # as if the projector had been trained
        self.items = load_benchmark("mcq", Request(data=str(self.questions)))
        self.others = other_images(self.items, seed=0, config=self.model.config)
        self.replies: dict[tuple[str, int, str], Reply] = {}  # of stock, by arm, world steps and question

    def measure(self, arms: Sequence[str], steps: int, batch: int) -> None:
        """All rows of one evaluation."""
        what = f"evaluation in {len(arms)} arm{'s' * (len(arms) > 1)}"
        row = partial(self.row, what, batch=batch, steps=steps, unit="questions/s")
        count = QUESTIONS[self.size][batch]
        few = max(count // 4, batch)
        floor = self.floor(arms, steps, batch)
        self.model.model.use_fast_path("off")
        row("stock", floor=None, measure=lambda: self.stock(arms, steps, batch, few))
        if len(arms) == 1:
            scored = "stock, with likelihoods"
            row(scored, floor=None, measure=lambda: self.stock(arms, steps, batch, few, likelihoods=True))
        if self.on_gpu:
            row("ours, plain path", floor=floor, measure=lambda: self.ours(arms, steps, batch, few))
        self.model.model.use_fast_path("auto")
        row("ours", floor=floor, measure=lambda: self.ours(arms, steps, batch, count, warm_up=2 * batch))

    def ours(
        self, arms: Sequence[str], steps: int, batch: int, count: int, warm_up: int = 0
    ) -> tuple[float, dict[str, Any]]:
        run: Callable[[int], Results] = lambda limit: evaluate(  # noqa: E731
            self.model, "mcq", data=self.questions, arms=arms, num_world_steps=steps, limit=limit,
            batch_size=batch, max_new_tokens=MAX_NEW_TOKENS, device=self.device,
        )  # fmt: skip
        first = round(self.timed(lambda: run(warm_up))[0], 2) if warm_up else None
        seconds, results = self.timed(lambda: run(count))
        return count / seconds, {"warm_up_s": first, **self.distance(results, steps)}

    def distance(self, results: Results, steps: int) -> dict[str, Any]:
        """How the answers differ from those of stock; other images depend on the questions that are asked."""
        same: list[bool] = []
        errors: list[float] = []
        for name, answers in results.answers.items():
            for mine in () if ARMS[name].reads_others else answers:
                if (theirs := self.replies.get((name, steps, mine.id))) is not None:
                    same.append(mine.text == theirs.text)
                    pairs = zip(mine.logprobs or (), theirs.option_logprobs or (), strict=False)
                    errors += [abs(one - other) for one, other in pairs]
        share = sum(same) / len(same) if same else None
        return {"equal_texts": share, "max_error": max(errors, default=None), "compared": len(errors)}

    def stock(self, arms: Sequence[str], steps: int, batch: int, count: int, likelihoods: bool = False) -> float:
        """Questions per second where each batch in each arm starts from the files."""
        answerer = ModelAnswerer(self.model)

        def run(count: int, arms: Sequence[str]) -> None:
            for name in arms:
                for start in range(0, count, batch):
                    rows = slice(start, start + batch)
                    found = alone(answerer, self.items[rows], self.others[rows], ARMS[name], steps, likelihoods)
                    for item, reply in zip(self.items[rows], found, strict=True):
                        self.replies[name, steps, item.id] = reply

        if not likelihoods:
            run(min(batch, 4), arms[:1])  # the first calls of kernels
        return count / self.timed(lambda: run(count, arms))[0]

    def floor(self, arms: Sequence[str], steps: int, batch: int) -> float | None:
        """Questions per second if only matrix products and the reading of weights took time, everything shared."""
        if self.size != "full":
            return None
        layers = list(self.model.model.language_model.layers.parameters())
        head = self.model.model.get_output_embeddings().weight
        answer = MAX_NEW_TOKENS * (sum(weight.nbytes for weight in layers) + head.nbytes) / BANDWIDTH / batch
        config = self.model.config
        image = 20 + config.vlm_config.mm_tokens_per_image
        lengths = [image + ARMS[name].needs_world * config.world_token_count(steps) for name in arms]
        prompts = 2 * sum(weight.numel() for weight in layers) * sum(lengths) / FLOPS
        world = (ROLLOUT_FLOOR if steps else ENCODE_FLOOR) if any(ARMS[name].needs_world for name in arms) else 0.0
        return 1 / (VISION_FLOOR + world + prompts + len(arms) * answer)


def alone(
    answerer: ModelAnswerer,
    items: Sequence[Item],
    others: Sequence[list[Any]],
    arm: Arm,
    steps: int,
    likelihoods: bool,
) -> list[Reply]:
    """Answers of one arm to a few questions, from their files on, with nothing that another arm has computed."""
    images = [item.images(answerer.config) for item in items]
    batch = Batch(
        images=images,
        questions=[item.asked for item in items],
        num_world_steps=steps,
        seed=0,
        items=list(items),
        world_images=[item.world_images(False, entry) for item, entry in zip(items, images, strict=True)],
        other_images=list(others),
        imagination=Imagination(answerer),
    )
    changed = arm.change(batch)
    inputs = ReplyInputs(
        changed.num_world_steps, changed.seed, changed.enable_world, changed.world_latents, changed.world_tokens
    )
    options = [item.options for item in items]
    replies = answerer.reply(changed.images, changed.questions, options, MAX_NEW_TOKENS, inputs)
    for answers in zip(*options, strict=True) if likelihoods else ():
        answerer.answer_logprobs(changed.images, changed.questions, answers, inputs)
    return replies


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; rows are added to it")
    parser.add_argument("--folder", type=Path, help="where weights and photos are kept; default a temporary folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes; default 1 and 16, of tiny 1 and 2")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--arms", type=int, nargs="+", choices=(1, 4), default=[1, 4])
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        bench = Bench(folder, chosen.size, chosen.output, chosen.device)
        print(f"model after {time.perf_counter() - started:.0f} s", flush=True)
        for batch in chosen.batches or QUESTIONS[chosen.size]:
            for steps in chosen.steps:
                for arms in chosen.arms:
                    bench.measure(FOUR_ARMS[:arms], steps, batch)
    print(f"all after {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
