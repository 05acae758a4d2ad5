"""A loop in the terminal over a benchmark's questions: the picture, what is imagined, the answer and the truth.

python scripts/inference_demo.py --model nano --task drop
python scripts/inference_demo.py --model username/theworld-datacomp --benchmark blink --task Relative_Depth
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from theworld import TheWorld
from theworld.datasets.blink import TASKS
from theworld.evaluation.benchmarks import BENCHMARKS, Request, load_benchmark
from theworld.evaluation.disagreements import beside
from theworld.evaluation.items import Item
from theworld.evaluation.scoring import read_answer

HELP = "n next, p previous, NUMBER jump, s N world steps, any other text is a question of your own, q quit"


class Demo:
    """Where one is among the questions, and how far the model looks ahead.

    Args:
        folder: where the strip of each question is written, for eyes that want more than a terminal shows.
    """

    def __init__(self, model: TheWorld, items: list[Item], steps: int, folder: Path, console: Console) -> None:
        self.model, self.items, self.steps, self.folder, self.console = model, items, steps, folder, console
        self.place = 0

    def run(self, lines: TextIO) -> None:
        """Shows the first question and follows what is typed, a line at a time, to the end or to `q`."""
        self.console.print(HELP, style="dim")
        self.show()
        for line in lines:
            typed = line.strip()
            if typed == "q":
                return
            self.follow(typed)

    def follow(self, typed: str) -> None:
        if typed in ("", "n", "p"):
            self.place = (self.place + (-1 if typed == "p" else 1)) % len(self.items)
        elif typed.isdigit():
            self.place = min(max(1, int(typed)), len(self.items)) - 1
        elif typed.startswith("s ") and typed[2:].strip().isdigit():
            try:
                self.steps = self.model.config.check_world_steps(int(typed[2:]))
            except ValueError as error:
                self.console.print(str(error), style="red")
                return
        else:
            self.show(typed)
            return
        self.show()

    def show(self, own_question: str | None = None) -> None:
        item = self.items[self.place]
        question = own_question or item.question
        latents = self.model.imagine(item.looks_from(every=False), self.steps)
        pictures = [np.asarray(picture) for picture in map(to_rgb, item.pictures())]
        factor = self.model.config.world_config.temporal_factor
        imagined = list(self.model.decode(latents)[0][factor::factor]) if self.steps else []
        strip = beside([*pictures, *imagined])
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"{self.place + 1:04d}.png"
        strip.save(place)
        answer = self.model.generate(
            [item.pictures()], [question], max_new_tokens=64, world_latents=latents, mode="tokens"
        )[0]
        self.console.rule(f"{self.place + 1} of {len(self.items)} · {item.family} · {self.steps} world steps")
        self.console.print(in_terminal(strip, self.console.width))
        self.console.print(f"seen: {len(pictures)}, imagined: {len(imagined)}, {place}", style="dim")
        self.console.print(question, markup=False)
        if own_question is not None:
            self.console.print(f"→ {answer}", markup=False, style="bold")
            return
        read = read_answer(item, answer)
        right = read is not None and read == item.answer
        truth = item.answer or "not published"
        self.console.print(f"→ {answer}", markup=False, style="bold green" if right else "bold")
        self.console.print(f"read as {read}, truth: {truth}", style="dim")


def to_rgb(picture: object) -> Image.Image:
    from theworld.media.images import load_image

    return load_image(picture)  # type: ignore[arg-type]  # what is no picture is refused there


def in_terminal(picture: Image.Image, columns: int) -> Text:
    """A picture as coloured half blocks, two rows of pixels a line."""
    width = min(columns, 96, picture.width)
    height = max(2, round(picture.height * width / picture.width) // 2 * 2)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", style=f"rgb({above[0]},{above[1]},{above[2]}) on rgb({below[0]},{below[1]},{below[2]})")
        text.append("\n")
    return text


def main(arguments: list[str] | None = None, lines: TextIO = sys.stdin) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano, a folder, or a Hub id")
    parser.add_argument("--benchmark", choices=BENCHMARKS, help="default: blink for a task of BLINK, else physics")
    parser.add_argument("--task", help="a sub-task or family; default: all")
    parser.add_argument("--data", help="where the questions are, if not at the benchmark's own place")
    parser.add_argument("--split", help="default: the benchmark's own")
    parser.add_argument("--num_world_steps", type=int, help="default: the model's own")
    parser.add_argument("--num_samples", type=int, default=30, help="questions to choose from")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="where strips are written")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    given = parser.parse_args(arguments)
    benchmark = given.benchmark or ("blink" if given.task in TASKS else "physics")
    tasks = () if given.task is None else (given.task,)
    request = Request(data=given.data, split=given.split, tasks=tasks, limit=given.num_samples)
    try:
        items = load_benchmark(benchmark, request)
        model = TheWorld.from_pretrained(given.model, num_world_steps=given.num_world_steps, device=given.device)
        Demo(model, items, model.config.num_world_steps, given.output, Console()).run(lines)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
