"""Train on two samples, upload, and check what was uploaded: the whole way of a run, in at most three minutes.

With HF_TOKEN: Gemma 3 and Cosmos-Predict2 on two samples of DataComp, in a private repository of yours. Without: nano
on two images of this repository, uploaded over HTTP to a local hub that ends with the script.

    python scripts/smoke_test.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = {
    REPOSITORY / "benchmarks" / "grace_hopper.jpg": "A portrait of a woman in uniform.",
    REPOSITORY / "docs" / "physics.png": "Frames of simulated scenes.",
}
NAME = "theworld-smoke-test"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("checkpoints/smoke-test"))
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    shutil.rmtree(given.output_dir, ignore_errors=True)
    with ExitStack() as stack:
        token = os.environ.get("HF_TOKEN")
        if token is None:
            sys.path.insert(0, str(REPOSITORY))
            from tests.loopback_hub import ACCEPTED, LoopbackHub

            hub = stack.enter_context(LoopbackHub({}))
            os.environ |= hub.environment(given.output_dir / "cache", ACCEPTED)  # before huggingface_hub reads it
            print(f"No HF_TOKEN: nano on two images of this repository, with a local hub at {hub.url}", flush=True)
        else:
            print("HF_TOKEN is set: Gemma 3 and Cosmos-Predict2 on two samples of DataComp, on the Hub", flush=True)
        from huggingface_hub import HfApi

        repository = f"{HfApi().whoami()['name']}/{NAME}"
        options = {
            "push_to_hub": "true",
            "hub_model_id": repository,
            "hub_private_repo": "true",
            "hub_strategy": "checkpoint",
            "output_dir": str(given.output_dir),
            "num_samples": "2",
            "max_steps": "2",
            "save_steps": "2",
        }
        if token is None:
            given.output_dir.mkdir(parents=True, exist_ok=True)
            data = given.output_dir / "two.jsonl"
            rows = [
                {"image": str(path), "text": "Describe this image.", "label": text} for path, text in IMAGES.items()
            ]
            data.write_text("".join(json.dumps(row) + "\n" for row in rows))
            options |= {"dataset_name": str(data), "eval_dataset_path": str(data)}
        config = "smoke_test.json" if token is None else "datacomp_test.json"
        if train(config, options) != 0:
            return 1
        check(repository, given.output_dir)
    kind = "a local hub" if token is None else "the Hub"
    print(f"Passed with {kind} in {time.perf_counter() - started:.0f} s: trained, uploaded, checked and loaded again.")
    return 0


def train(config: str, options: dict[str, str]) -> int:
    """Runs scripts/train_hf.py with a config and options; the exit code."""
    from theworld.training import command_line, dataset_loading

    arguments = ["--config", str(REPOSITORY / "configs" / config)]
    for name, value in options.items():
        arguments += [f"--{name}", value]
    return command_line.main(dataset_loading.load_datasets, "", config, arguments)


def check(repository: str, output_dir: Path) -> None:
    """Compares the repository with the run: card, model, checkpoint, privacy; then loads the model from it."""
    from huggingface_hub import HfApi, ModelCard, hf_hub_download

    from theworld import TheWorld

    require(HfApi().model_info(repository).private is True, f"{repository} is public")
    files = set(HfApi().list_repo_files(repository))
    missing = {"README.md", "config.json", "model.safetensors", "last-checkpoint/trainer_state.json"} - files
    require(not missing, f"{repository} has no {', '.join(sorted(missing))}")
    require(ModelCard.load(repository).data.library_name == "theworld", "the model card is not ours")
    uploaded, own = Path(hf_hub_download(repository, "model.safetensors")), output_dir / "model.safetensors"
    require(digest(uploaded) == digest(own), "the uploaded weights differ from those of the run")
    model = TheWorld.from_pretrained(repository)
    print(f"{repository} answers:", model.generate(str(next(iter(IMAGES))), "What is this?", 8))


def require(condition: bool, otherwise: str) -> None:
    """Ends the script with one sentence unless a condition holds."""
    if not condition:
        sys.exit(f"The smoke test failed: {otherwise}.")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
