"""Ask a model about six shipped scenes without a world model, with the present only, and with an imagined future.

    python examples/inference.py                       # the shipped model, offline
    python examples/inference.py --model FOLDER_OR_ID  # any other trained model

Prints a table of questions, answers and truths, and writes what the model imagined next to what happens into outputs/.
Every answer comes from the same weights; three ways to choose the number of world steps are shown:

- single-step: `num_world_steps=0`, the world model encodes the present only;
- multi-step: the model's own default, here `num_world_steps=4`, which imagines 16 frames;
- runtime override: `num_world_steps=2` for one call.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from theworld import TheWorld
from theworld.datasets.physics import make_clip, next_questions
from theworld.media.export import save_rollout
from theworld.model.call_plan import UNTRAINED

SEED = 0
STEPS = 4
# Chosen by hand among the first 30 test scenes of each family, so that the three ways differ on some of them.
SCENES = (("drop", 0), ("drop", 8), ("contact", 11), ("contact", 20), ("tower", 17), ("tower", 15))
SCALE = 4  # a scene has 64 × 64 pixels
CHOICE = (
    "The six scenes were chosen by hand from the first 30 test scenes of each family: one that nano answers correctly "
    "without the world model (drop 0), one for which the present is enough (drop 8), three that need the future "
    "(contact 11, contact 20, tower 15), and one that it imagines well but answers wrongly (tower 17). "
    "They illustrate; the complete test split measures:"
)
RESULTS = Path(__file__).parents[1] / "docs" / "nano" / "physics_test.json"
ARMS = {
    "fused": "4 world steps",
    "fused-0": "0 world steps: the present only",
    "matched-control": "trained without world tokens",
    "wrong-future": "the future of another scene",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano (default), a model folder, or a Hub id")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for the GIFs (default: outputs)")
    parser.add_argument("--device", help="cpu, cuda, …; by default a GPU if there is one")
    parser.add_argument("--dtype", help="bfloat16, float32 or float16 (default: what suits the device)")
    arguments = parser.parse_args()
    console = Console()

    console.print(f"Loading {arguments.model} …")
    try:
        model = TheWorld.from_pretrained(
            arguments.model, num_world_steps=STEPS, device=arguments.device, dtype=arguments.dtype
        )
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from error
    if not model.projector_is_trained:
        raise SystemExit(f"{UNTRAINED} Train the projector of {arguments.model} with `theworld train` first.")

    table = Table("scene", "question", "off", "0 steps", f"{STEPS} steps", "truth", show_lines=True)
    table.title = f"Answers with the world model off, with 0 and with {STEPS} world steps"
    for family, index in SCENES:
        clip = make_clip(family, "test", index)
        image, question = clip.frames[0], next_questions(clip)[0]
        latents = model.imagine(image, seed=SEED)  # (1, C, 1 + STEPS, h, w)
        answers = [
            model.generate(image, question.text, max_new_tokens=16, enable_world=False),
            model.generate(image, question.text, max_new_tokens=16, num_world_steps=0),
            model.generate(image, question.text, max_new_tokens=16, world_latents=latents),  # as with num_world_steps=4
        ]
        cells = [Text(answer, "green" if answer == question.answer else "red") for answer in answers]
        table.add_row(f"{family} {index}", question.text, *cells, question.answer)
        save_next_to_truth(model.decode(latents)[0], clip.frames, arguments.output / f"{family}-{index}.gif")
        console.print(f"{family} {index}: done")
    console.print(table)

    # the last scene once more: a number of steps for this call alone
    answer = model.generate(image, question.text, max_new_tokens=16, num_world_steps=2, seed=SEED)
    console.print(f"Runtime override, {family} {index} with 2 world steps instead of {STEPS}: {answer}")
    console.print(f"GIFs, imagined (left) and true (right): {arguments.output}{os.sep}\n")
    if arguments.model == "nano":
        console.print(CHOICE)
        show_test_split(console)


def show_test_split(console: Console) -> None:
    """Prints the accuracies on the complete test split, which were measured before (docs/nano.md)."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    table = Table("arm", "world tokens", "correct", "95 %")
    table.title = f"Test split, {results['limit']} scenes, one question per scene"
    for arm, meaning in ARMS.items():
        score = results["arms"][arm]
        low, high = (100 * bound for bound in score["interval_95"])
        table.add_row(arm, meaning, f"{100 * score['accuracy']:.1f} %", f"{low:.1f}–{high:.1f}")
    console.print(table)


def save_next_to_truth(imagined: np.ndarray, truth: np.ndarray, path: Path) -> None:
    """Writes imagined frames next to the true ones; both are (F, H, W, 3) uint8, of any height and width."""
    height, width = truth.shape[1:3]
    resized = np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in imagined])
    gap = np.full((len(imagined), height, 1, 3), 255, np.uint8)
    pairs = np.concatenate([resized, gap, truth[: len(imagined)]], axis=2)
    save_rollout(pairs.repeat(SCALE, axis=1).repeat(SCALE, axis=2), path)


if __name__ == "__main__":
    main()
