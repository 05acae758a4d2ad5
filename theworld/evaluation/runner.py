"""Asks every item in every arm: one model in memory at a time, batches, greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from theworld.evaluation.arms import Arm, Batch, Imagination
from theworld.evaluation.items import Item, other_pictures

if TYPE_CHECKING:
    from theworld.api import TheWorld

MAX_NEW_TOKENS = 8  # answers are a word or a letter

Progress = Callable[[str, int, int], None]


def run_arms(
    items: Sequence[Item],
    arms: Mapping[str, Arm],
    load: Callable[[str | None], TheWorld],
    *,
    num_world_steps: int,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> dict[str, list[str]]:
    """Answers of every arm, in the order of `items`.

    Args:
        items: what is asked.
        arms: name -> arm; those of the same weights run one after the other on one loaded model.
        load: from the name of a trained control (None: the model under test) to the model.
        num_world_steps: N of every arm that does not fix its own.
        seed: of the rollouts, and of which picture is another's in `shuffled`.
        progress: called with (arm, questions answered in it, of how many).

    Raises:
        ValueError: an arm that cannot be run on these items, or a model whose projector was never trained.
    """
    others = other_pictures(items, seed) if len(items) > 1 else [item.image for item in items]
    answers: dict[str, list[str]] = {}
    for weights in dict.fromkeys(arm.weights for arm in arms.values()):
        own_arms = {name: arm for name, arm in arms.items() if arm.weights == weights}
        model = load(weights)
        check_projector(model, own_arms)
        imagination = Imagination(model)
        for name, arm in own_arms.items():
            answers[name] = []
            for start in range(0, len(items), batch_size):
                chosen = slice(start, start + batch_size)
                records = list(items[chosen])
                batch = Batch(
                    images=[item.image for item in records],
                    questions=[item.question for item in records],
                    num_world_steps=num_world_steps,
                    seed=seed,
                    enable_world=True,
                    world_latents=None,
                    records=records,
                    others=others[chosen],
                    imagination=imagination,
                )
                answers[name] += ask(model, arm.change(batch), max_new_tokens)
                if progress is not None:
                    progress(name, len(answers[name]), len(items))
        del model, imagination  # before the next weights come into memory
    return {name: answers[name] for name in arms}


def ask(model: TheWorld, batch: Batch, max_new_tokens: int) -> list[str]:
    """Greedy answers to one batch."""
    answers: list[str] = model.generate(
        batch.images,
        batch.questions,
        max_new_tokens=max_new_tokens,
        num_world_steps=batch.num_world_steps,
        seed=batch.seed,
        enable_world=batch.enable_world,
        world_latents=batch.world_latents,
    )
    return answers


def check_projector(model: TheWorld, arms: Mapping[str, Arm]) -> None:
    """Raises a ValueError when world tokens would go through a projector that never learned."""
    readers = [name for name, arm in arms.items() if arm.reads_tokens]
    if readers and not model.projector_is_trained:
        raise ValueError(
            f"the projector of this model is untrained, so {', '.join(readers)} would read noise; train it with "
            "`theworld train`, or leave these arms out."
        )
