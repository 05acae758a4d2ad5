"""Time saved by sharing rollouts: four arms in one run against four runs of one arm each, on the same questions.

python scripts/arms_cost.py --model nano --limit 48
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

from theworld.evaluation import evaluate
from theworld.inspection.provenance import versions

ARMS = "fused,shuffled,wrong-future,random-projection"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--arms", default=ARMS)
    parser.add_argument("--limit", type=int, default=48, help="questions of the physics benchmark")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device")
    options = parser.parse_args()
    devices: set[str] = set()

    def measured(arms: Sequence[str]) -> tuple[float, dict[str, list[str]]]:
        """Seconds of a complete run (scenes, loading, answers, scores), and the answers."""
        started = time.perf_counter()
        results = evaluate(
            options.model,
            "physics",
            arms=arms,
            limit=options.limit,
            num_world_steps=options.steps,
            batch_size=options.batch_size,
            device=options.device,
        )
        devices.add(results.content["device"])
        texts = {name: [answer.text for answer in answers] for name, answers in results.answers.items()}
        return time.perf_counter() - started, texts

    arms = options.arms.split(",")
    measured(arms[:1])  # the first run also imports and compiles, which would distort the comparison
    alone = {name: measured([name]) for name in arms}
    together, texts = measured(arms)
    apart = sum(seconds for seconds, _ in alone.values())
    found = {
        "separate_seconds": {name: round(seconds, 2) for name, (seconds, _) in alone.items()},
        "separate_seconds_in_all": round(apart, 2),
        "together_seconds": round(together, 2),
        "ratio": round(together / apart, 3),
        "equal_predictions": all(texts[name] == single[name] for name, (_, single) in alone.items()),
        "questions": options.limit,
        "device": devices.pop(),
        "versions": versions(),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
