"""A model on BLINK: `theworld eval blink` behind the flags of the source document, with settings from a JSON file.

python scripts/evaluate_blink.py --task Relative_Depth --model username/theworld-datacomp --num_world_steps 0,4
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from theworld.cli import app
from theworld.datasets.blink import HUB, TASKS
from theworld.evaluation.run_folder import RESULTS, read_run
from theworld.evaluation.scoring import read_answer
from theworld.model.spec import resolve_model

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
    "output": None,
}


def main(arguments: list[str] | None = None) -> int:
    settings, given = read_settings(arguments)
    output = Path(settings["output"] or Path("runs") / "blink" / str(settings["model"]).strip("/").replace("/", "--"))
    file = None
    if output.suffix == ".json":  # the source document's form: one file of results
        file, output = output, output.with_suffix("")
    command = command_of(settings, output, file)
    if given.verbose:
        print("theworld " + shlex.join(command))
    app(command, standalone_mode=False)
    if given.save_errors:
        print(f"{save_errors(output)}: questions answered wrongly")
    print(f"{output / RESULTS}: results; theworld compare {output} -o report makes a page of them")
    return 0


def read_settings(arguments: list[str] | None) -> tuple[dict[str, Any], argparse.Namespace]:
    """Defaults < JSON file < command line; an unknown key of the file is an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings as JSON; configs/eval_blink.json is one")
    parser.add_argument("--task", "--tasks", help=f"all, or some of {', '.join(TASKS)}, with commas between")
    parser.add_argument("--model", help="nano, a folder, or a Hub id; a plain Gemma is asked as it is (default: nano)")
    parser.add_argument("--data", help=f"a folder as the dataset lies on the Hub, or a Hub id (default: {HUB})")
    parser.add_argument("--split", choices=("val", "test"), help="test writes what can be handed in (default: val)")
    parser.add_argument("--arms", help="arms of `theworld eval` (default: fused and no-world; gemma for a plain Gemma)")
    parser.add_argument("--num_world_steps", help="such as 0,4 (default: the model's own)")
    parser.add_argument("--num_samples", type=int, help="questions in all, the tasks in turn (default: every one)")
    parser.add_argument("--batch_size", type=int, help="questions answered at once (default: 8)")
    parser.add_argument("--max_new_tokens", type=int, help="longest answer (default: 64)")
    parser.add_argument("--seed", type=int, help="of the rollouts' noise (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    parser.add_argument("--output", help="folder of the run, or a .json beside it (default: runs/blink/MODEL)")
    parser.add_argument(
        "--save_errors", action="store_true", help="write the wrongly answered questions to errors.jsonl"
    )
    parser.add_argument("--verbose", action="store_true", help="say which command is run")
    given = parser.parse_args(arguments)
    settings = dict(DEFAULTS)
    if given.config is not None:
        content = json.loads(given.config.read_text(encoding="utf-8"))
        unknown = sorted(content.keys() - DEFAULTS.keys())
        if unknown:
            parser.error(f"{given.config} has a key {unknown[0]!r}; known are {', '.join(DEFAULTS)}")
        settings.update(content)
    settings.update({name: value for name, value in vars(given).items() if name in DEFAULTS and value is not None})
    return settings, given


def command_of(settings: dict[str, Any], output: Path, file: Path | None) -> list[str]:
    """The arguments of `theworld` that do it."""
    arms = settings["arms"] or ("gemma" if is_plain_gemma(str(settings["model"])) else "fused,no-world")
    command = ["eval", "blink", "--model", settings["model"], "--arms", arms, "--data", settings["data"]]
    command += ["--split", settings["split"], "--output", str(output), "--seed", settings["seed"]]
    command += ["--batch-size", settings["batch_size"], "--max-new-tokens", settings["max_new_tokens"]]
    if settings["task"] != "all":
        command += ["--tasks", settings["task"]]
    for option, value in (
        ("--steps", settings["num_world_steps"]),
        ("--limit", settings["num_samples"]),
        ("--device", settings["device"]),
        ("--json", file),
    ):
        if value is not None:
            command += [option, value]
    return [str(part) for part in command]


def is_plain_gemma(model: str) -> bool:
    """Whether a model is Gemma itself, which has no world to look ahead with."""
    return not resolve_model(model).is_fused


def save_errors(output: Path) -> Path:
    """Writes what was answered wrongly in any arm, a question a line, and returns the file."""
    run = read_run(output)
    lines = []
    for row, item in enumerate(run.items):
        wrong = {
            name: {"text": answers[row].text, "read": read_answer(item, answers[row].text)}
            for name, answers in run.answers.items()
            if read_answer(item, answers[row].text) != item.answer
        }
        if wrong:
            lines.append({"id": item.id, "question": item.question, "answer": item.answer, "wrong": wrong})
    place = output / "errors.jsonl"
    place.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return place


if __name__ == "__main__":
    sys.exit(main())
