"""Evaluation: arms, benchmarks, scores and the statistics between them.

    from theworld.evaluation import compare, evaluate

    results = evaluate("nano", "physics", arms=["fused", "fused-0"], num_world_steps=4, limit=60, output="runs/nano")
    print(results.to_markdown())
    compare(["runs/nano", "runs/other"], output="report")

The public names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

# public name -> the module that holds it
_PUBLIC = {
    "ARMS": "theworld.evaluation.arms",
    "BENCHMARKS": "theworld.evaluation.tasks",
    "Results": "theworld.evaluation.results",
    "compare": "theworld.evaluation.results",
    "evaluate": "theworld.evaluation.evaluator",
}

__all__ = ["ARMS", "BENCHMARKS", "Results", "compare", "evaluate"]

if TYPE_CHECKING:
    from theworld.evaluation.arms import ARMS
    from theworld.evaluation.evaluator import evaluate
    from theworld.evaluation.results import Results, compare
    from theworld.evaluation.tasks import BENCHMARKS


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'theworld.evaluation' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
