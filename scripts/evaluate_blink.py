"""Evaluates a model on BLINK, with settings from flags or a JSON file.

python scripts/evaluate_blink.py --task Relative_Depth --model username/theworld-datacomp --num_world_steps 0,4
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from theworld.datasets.blink import HUB, TASKS
from theworld.evaluation import Results, evaluate
from theworld.evaluation.run_folder import RESULTS
from theworld.model.spec import resolve_model
from theworld.storage.files import read_json_file, write_text

DEFAULTS: dict[str, Any] = {
    "task": "all",
    "model": "nano",
    "data": HUB,
    "split": "val",
    "arms": None,
    "num_world_steps": None,
    "num_samples": None,
    "batch_size": 8,
    "max_new_tokens": 64,
    "seed": 0,
    "device": None,
    "dtype": None,
    "output": None,
}


def main(arguments: list[str] | None = None) -> int:
    try:
        settings, given = read_settings(arguments)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    output = Path(settings["output"] or Path("runs") / "blink" / str(settings["model"]).strip("/").replace("/", "--"))
    file = None
    if output.suffix == ".json":  # the source document's form: one file of results
        file, output = output, output.with_suffix("")
    if given.verbose:
        print(json.dumps(settings, indent=2))
    try:
        results = evaluate(**arguments_of(settings), output=output, progress=progress)
        if file is not None:
            results.to_json(file)
        errors = save_errors(results, output) if given.save_errors else None
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(results.to_markdown())
    if errors is not None:
        print(f"{errors}: questions answered wrongly")
    print(f"{output / RESULTS}: results; theworld compare {output} -o report creates a page")
    return 0


def read_settings(arguments: list[str] | None) -> tuple[dict[str, Any], argparse.Namespace]:
    """Defaults < JSON file < command line; an unknown key of the file is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings as JSON; configs/eval_blink.json is one")
    parser.add_argument("--task", "--tasks", help=f"all, or a comma-separated list of {', '.join(TASKS)}")
    parser.add_argument(
        "--model", help="nano, a folder, or a Hub id; a Gemma 3 is evaluated on its own (default: nano)"
    )
    parser.add_argument("--data", help=f"a folder with the layout of the Hub dataset, or a Hub id (default: {HUB})")
    parser.add_argument("--split", choices=("val", "test"), help="test writes a submission file (default: val)")
    parser.add_argument("--arms", help="arms of `theworld eval` (default: fused and no-world; gemma for a Gemma 3)")
    parser.add_argument("--num_world_steps", help="such as 0,4 (default: the model's own number)")
    parser.add_argument("--num_samples", type=int, help="maximum number of questions (default: all)")
    parser.add_argument("--batch_size", type=int, help="questions per batch (default: 8)")
    parser.add_argument("--max_new_tokens", type=int, help="maximum length of an answer, in tokens (default: 64)")
    parser.add_argument("--seed", type=int, help="random seed of the rollouts (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="bfloat16, float32 or float16 (default: what suits the device)")
    parser.add_argument(
        "--output", help="folder of the run, or a .json file for its results (default: runs/blink/MODEL)"
    )
    parser.add_argument("--save_errors", action="store_true", help="write wrongly answered questions to errors.jsonl")
    parser.add_argument("--verbose", action="store_true", help="print the settings")
    given = parser.parse_args(arguments)
    written: list[str] = []  # the file as flags, so that both are checked in one way
    if given.config is not None:
        if not given.config.is_file():
            raise ValueError(
                f"There is no file {given.config}: name one with --config, such as configs/eval_blink.json."
            )
        content = read_json_file(given.config, "correct it")
        unknown = sorted(content.keys() - DEFAULTS.keys())
        if unknown:
            parser.error(f"{given.config} has a key {unknown[0]!r}; known are {', '.join(DEFAULTS)}")
        written = [f"--{name}={value}" for name, value in content.items() if value is not None]
    given = parser.parse_args([*written, *(sys.argv[1:] if arguments is None else arguments)])
    return {
        name: default if vars(given)[name] is None else vars(given)[name] for name, default in DEFAULTS.items()
    }, given


def arguments_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `evaluate`."""
    steps = settings["num_world_steps"]
    spec = resolve_model(settings["model"])
    return {
        "model": settings["model"],
        "benchmark": "blink",
        "arms": settings["arms"] or ("fused,no-world" if spec.is_fused else "gemma"),
        "num_world_steps": None if steps is None else read_steps(steps),
        "limit": settings["num_samples"],
        "split": settings["split"],
        "tasks": [] if settings["task"] == "all" else settings["task"].split(","),
        **{name: settings[name] for name in ("data", "batch_size", "max_new_tokens", "seed", "device", "dtype")},
    }


def read_steps(text: str) -> list[int]:
    """Numbers of world steps, such as 0,4."""
    if not all(number.strip().isdecimal() for number in text.split(",")):
        raise ValueError(
            f"num_world_steps is {text!r}: write one integer, or several separated by commas, such as 0,4."
        )
    return [int(number) for number in text.split(",")]


def progress(description: str, done: int, total: int) -> None:
    """One line on stderr that is redrawn, for terminals only."""
    if sys.stderr.isatty():
        print(f"\r{description}: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def save_errors(results: Results, output: Path) -> Path:
    """Writes the questions that an arm answered wrongly, one per line, and returns the file."""
    lines = []
    for row in results.predictions():
        wrong = {
            name: {"text": row["predictions"][name], "read": read}
            for name, read in row["read"].items()
            if read != row["answer"]
        }
        if wrong:
            lines.append({"id": row["id"], "question": row["question"], "answer": row["answer"], "wrong": wrong})
    path = output / "errors.jsonl"
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


if __name__ == "__main__":
    sys.exit(main())
