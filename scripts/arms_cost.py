"""What sharing is worth: four arms in one run against four runs of one arm each, on the same questions.

python scripts/arms_cost.py --model nano --limit 48
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence

import torch

from theworld import TheWorld
from theworld.evaluation.answering import ModelAnswerer
from theworld.evaluation.arms import choose
from theworld.evaluation.physics import pick
from theworld.evaluation.runner import run_arms

ARMS = "fused,shuffled,wrong-future,random-projection"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--limit", type=int, default=48, help="questions of the physics benchmark")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device")
    given = parser.parse_args()

    def measured(arms: Sequence[str]) -> tuple[float, dict[str, list[str]]]:
        """Seconds of a whole run (scenes, loading, answering), and what was said."""
        started = time.perf_counter()
        items = pick("test", given.limit)
        answers = run_arms(
            items,
            choose(arms),
            lambda weights: ModelAnswerer(TheWorld.from_pretrained(given.model, device=given.device)),
            num_world_steps=given.steps,
            batch_size=given.batch_size,
        )
        said = {name: [answer.text for answer in own] for name, own in answers.items()}
        return time.perf_counter() - started, said

    arms = given.arms.split(",")
    measured(arms[:1])  # the first run also imports and compiles what all others find ready
    alone = {name: measured([name]) for name in arms}
    together, said = measured(arms)
    apart = sum(seconds for seconds, _ in alone.values())
    found = {
        "separate_seconds": {name: round(seconds, 2) for name, (seconds, _) in alone.items()},
        "separate_seconds_in_all": round(apart, 2),
        "together_seconds": round(together, 2),
        "ratio": round(together / apart, 3),
        "equal_predictions": all(said[name] == own[name] for name, (_, own) in alone.items()),
        "questions": given.limit,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() and given.device != "cpu" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
