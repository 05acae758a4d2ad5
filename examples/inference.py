"""Three questions about shipped scenes: no future, four world steps, and a number of steps chosen at the call.

    python examples/inference.py                       # the shipped model, offline
    python examples/inference.py --model FOLDER_OR_ID  # any other

Each prints the question, the answer and the truth, and writes what the model imagined into outputs/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from theworld import TheWorld
from theworld.datasets.physics import Clip, Question, make_clip, next_questions, now_questions
from theworld.media.export import save_rollout

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano (default), a model folder, or a Hub id")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for pictures (default: outputs)")
    parser.add_argument("--device", help="cpu, cuda, …; a GPU if there is one")
    arguments = parser.parse_args()

    print(f"Loading {arguments.model} …", flush=True)
    # two world steps are what this model imagines from here on, unless a call says otherwise
    try:
        model = TheWorld.from_pretrained(arguments.model, num_world_steps=2, device=arguments.device)
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from error
    if not model.projector_is_trained:
        raise SystemExit(f"{arguments.model} has no trained projector; train one with `theworld train` first.")
    if arguments.model == "nano":
        print("Note: nano knows only the scenes it ships with; about any other picture its answers mean nothing.")

    # 1. No future: the world model only encodes the picture of now.
    clip = make_clip("drop", "test", 0)
    question = next(question for question in now_questions(clip, frame=0) if question.topic == "count")
    show(model, "1. No future", clip, question, 0, arguments.output / "1-now.gif")

    # 2. Four world steps: sixteen frames of future are imagined, and the model reads them.
    question = next_questions(clip)[0]
    show(model, "2. Four world steps", clip, question, 4, arguments.output / "2-four-steps.gif")

    # 3. A runtime override: the same question at the model's own two steps, and at four.
    clip = make_clip("tower", "test", 1)
    question = next_questions(clip)[0]
    show(model, "3. The model's own two world steps", clip, question, None, arguments.output / "3-two-steps.gif")
    show(model, "   … and four, for this call alone", clip, question, 4, arguments.output / "3-four-steps.gif")


def show(model: TheWorld, title: str, clip: Clip, question: Question, num_world_steps: int | None, path: Path) -> None:
    """Imagines, writes what was imagined beside what happened, asks, and prints all of it."""
    image = clip.frames[0]
    latents = model.imagine(image, num_world_steps, seed=SEED)  # (1, C, T, h, w)
    imagined = model.decode(latents)[0]  # (F, H, W, 3), F = 1 + 4·(T - 1)
    side_by_side = np.concatenate([resize_to(imagined, clip.frames), clip.frames[: len(imagined)]], axis=2)
    save_rollout(side_by_side, path)
    print(f"\n{title}\n  imagined | what happens:  {path}", flush=True)

    answer = model.generate(image, question.text, max_new_tokens=16, num_world_steps=num_world_steps, seed=SEED)
    print(f"  question: {question.text}")
    print(f"  answer:   {answer}")
    print(f"  truth:    {question.answer}", flush=True)


def resize_to(frames: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Frames (F, H, W, 3) at the height and width of `like`, for a model that sees pictures of another size."""
    from PIL import Image

    height, width = like.shape[1:3]
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


if __name__ == "__main__":
    main()
