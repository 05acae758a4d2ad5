"""Steps through a benchmark in the terminal: the image, the imagined frames, the answer and the true answer.

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
from theworld.evaluation.disagreements import hstack_images
from theworld.evaluation.scoring import read_answer
from theworld.evaluation.tasks import BENCHMARKS, Item, Request, load_benchmark

HELP = "n next, p previous, NUMBER jump, s N world steps, any other text asks your own question, q quit"


class Demo:
    """The current question and number of world steps.

    Args:
        folder: where the strip of each question is written at full resolution.
    """

    def __init__(self, model: TheWorld, items: list[Item], steps: int, folder: Path, console: Console) -> None:
        self.model, self.items, self.steps, self.folder, self.console = model, items, steps, folder, console
        self.index = 0

    def run(self, lines: TextIO) -> None:
        """Shows the first question and executes one command per line, up to `q` or the end of input."""
        self.console.print(HELP, style="dim")
        self.show()
        for line in lines:
            command = line.strip()
            if command == "q":
                return
            self.execute(command)

    def execute(self, command: str) -> None:
        if command in ("", "n", "p"):
            self.index = (self.index + (-1 if command == "p" else 1)) % len(self.items)
        elif command.isdigit():
            self.index = min(max(1, int(command)), len(self.items)) - 1
        elif command.startswith("s ") and command[2:].strip().isdigit():
            try:
                self.steps = self.model.config.check_world_steps(int(command[2:]))
            except ValueError as error:
                self.console.print(str(error), style="red")
                return
        else:
            self.show(command)
            return
        self.show()

    def show(self, own_question: str | None = None) -> None:
        item = self.items[self.index]
        question = own_question or item.question
        latents = self.model.imagine(item.world_images(use_all=False), self.steps)
        images = [np.asarray(image) for image in item.images()]
        factor = self.model.config.world_config.temporal_factor
        imagined = list(self.model.decode(latents)[0][factor::factor]) if self.steps else []
        strip = hstack_images([*images, *imagined])
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.index + 1:04d}.png"
        strip.save(path)
        answer = self.model.generate(
            [item.images()], [question], max_new_tokens=64, world_latents=latents, mode="tokens"
        )[0]
        self.console.rule(f"{self.index + 1} of {len(self.items)} · {item.family} · {self.steps} world steps")
        self.console.print(in_terminal(strip, self.console.width))
        self.console.print(f"input: {len(images)}, imagined: {len(imagined)}, {path}", style="dim")
        self.console.print(question, markup=False)
        if own_question is not None:
            self.console.print(f"→ {answer}", markup=False, style="bold")
            return
        read = read_answer(item, answer)
        right = read is not None and read == item.answer
        truth = item.answer or "not published"
        self.console.print(f"→ {answer}", markup=False, style="bold green" if right else "bold")
        self.console.print(f"read as {read}, correct: {truth}", style="dim")


def in_terminal(image: Image.Image, columns: int) -> Text:
    """An image as coloured half blocks, two rows of pixels per line."""
    width = min(columns, 96, image.width)
    height = max(2, round(image.height * width / image.width) // 2 * 2)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BOX))
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
    parser.add_argument("--data", help="file, folder or Hub id with the questions; default: the benchmark's own")
    parser.add_argument("--split", help="default: the benchmark's own")
    parser.add_argument("--num_world_steps", type=int, help="default: the model's own number")
    parser.add_argument("--num_samples", type=int, default=30, help="questions to choose from")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="where strips are written")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="bfloat16, float32 or float16 (default: what suits the device)")
    options = parser.parse_args(arguments)
    benchmark = options.benchmark or ("blink" if options.task in TASKS else "physics")
    tasks = () if options.task is None else (options.task,)
    request = Request(data=options.data, split=options.split, tasks=tasks, limit=options.num_samples)
    try:
        items = load_benchmark(benchmark, request)
        model = TheWorld.from_pretrained(
            options.model, num_world_steps=options.num_world_steps, device=options.device, dtype=options.dtype
        )
        Demo(model, items, model.config.num_world_steps, options.output, Console()).run(lines)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
