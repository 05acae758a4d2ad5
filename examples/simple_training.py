"""A single training step: forward, backward, one step of the optimiser, and a table of the tensors that changed.

    python examples/simple_training.py                       # the shipped model, offline
    python examples/simple_training.py --model FOLDER_OR_ID  # any other
    python examples/simple_training.py --unfreeze vision     # let another part learn as well

For training as such, see scripts/train_hf.py.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table

from theworld import TheWorld
from theworld.datasets.physics import make_clip, next_questions
from theworld.model import freezing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="nano (default), a model folder, or a Hub id")
    parser.add_argument("--steps", type=int, default=1, help="world steps to imagine (default: 1)")
    parser.add_argument(
        "--unfreeze", choices=("vision", "language"), help="a part to train in addition to the projector"
    )
    parser.add_argument("--device", help="cpu, cuda, …; a GPU if there is one")
    arguments = parser.parse_args()

    print(f"Loading {arguments.model} …", flush=True)
    model = TheWorld.from_pretrained(
        arguments.model,
        device=arguments.device,
        dtype=torch.float32,
        freeze_gemma_vision=arguments.unfreeze != "vision",
        freeze_gemma_language=arguments.unfreeze != "language",
    ).train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4, weight_decay=0.0)
    trainable, total, percentage = model.get_trainable_parameters()
    print(f"Trainable: {trainable:,} / {total:,} ({percentage:.4f} %)")

    # one scene, one question, and the answer that is to be learned
    clip = make_clip("drop", "train", 0)
    question = next_questions(clip)[0]
    print(f"{question.text}  →  {question.answer}")
    latents = model.imagine(clip.frames[0], arguments.steps)  # what forward will imagine, too: same image, same future
    print(f"imagine:  latents {tuple(latents.shape)}: images, channels, moments, rows, columns")
    before = {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}

    loss = model.forward(clip.frames[0], question.text, labels=question.answer, num_world_steps=arguments.steps).loss
    print(f"forward:  loss {loss.item():.4f} (mean over the answer's tokens)")
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
    print(f"backward: gradient of norm {norm.item():.4f}")
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        after = model.forward(clip.frames[0], question.text, labels=question.answer, num_world_steps=arguments.steps)
    print(f"step:     loss {after.loss.item():.4f} on the same question\n")

    show_what_moved(model, before)


def show_what_moved(model: TheWorld, before: dict[str, torch.Tensor]) -> None:
    """One row per part: its number of tensors, how many of them changed, and the largest change."""
    moved: dict[str, list[float]] = {}
    for name, parameter in model.model.named_parameters():
        change = (parameter.detach() - before[name]).abs().max().item()
        moved.setdefault(freezing.part_of(name), []).append(change)
    table = Table("part", "parameters", "learns", "tensors", "moved", "largest change", box=None)
    for row in model.parameter_table():
        changes = moved[row.part]
        count = sum(change > 0 for change in changes)
        learns = "yes" if row.trainable else "no"
        largest = f"{max(changes):.2e}" if count else "–"
        table.add_row(row.part, f"{row.total:,}", learns, str(len(changes)), str(count), largest)
    Console(width=100, highlight=False).print(table)


if __name__ == "__main__":
    main()
