"""Caches the base models of TheWorld from the Hugging Face Hub: what each weighs, what is free, then the download.

An interrupted download resumes where it stopped. Run by scripts/setup.sh when there is a token; by hand:

    python scripts/cache_models.py [REPOSITORY ...]
"""

import argparse
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE

from theworld.storage.hub import TransportError, explain_hub_error

# What TheWorld reads of each repository; Cosmos' also holds the original checkpoints, a second copy of everything.
BASE_MODELS = {
    "google/gemma-3-4b-it": ["*.safetensors", "*.json", "*.model", "*.jinja"],
    "nvidia/Cosmos-Predict2-2B-Video2World": [
        "model_index.json",
        *(f"{part}/*" for part in ("vae", "transformer", "scheduler", "text_encoder", "tokenizer")),
    ],
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cache the base models of TheWorld from the Hugging Face Hub.")
    parser.add_argument("repositories", nargs="*", default=list(BASE_MODELS), help="by default: %(default)s")
    repositories = parser.parse_args(arguments).repositories
    cache = Path(HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    failures = 0
    for repository in repositories:
        try:
            cache_model(repository, cache)
        except (OSError, TransportError) as error:
            print(f"  {repository}: {explain(error, repository)}", file=sys.stderr)
            failures += 1
    return 1 if failures else 0


def cache_model(repository: str, cache: Path) -> None:
    """Download what is missing of one repository; OSError if it does not fit on the disk."""
    patterns = BASE_MODELS.get(repository, ["*"])
    files = HfApi().model_info(repository, files_metadata=True).siblings or []
    sizes = {file.rfilename: file.size or 0 for file in files}
    needed = sum(size for name, size in sizes.items() if any(fnmatch(name, pattern) for pattern in patterns))
    stored = sum(file.stat().st_size for file in (cache / f"models--{repository.replace('/', '--')}").glob("blobs/*"))
    missing, free = max(0, needed - stored), shutil.disk_usage(cache).free
    print(
        f"  {repository}: {needed / 1e9:.1f} GB of {sum(sizes.values()) / 1e9:.1f} GB are needed, "
        f"{missing / 1e9:.1f} GB are missing, {free / 1e9:.1f} GB are free in {cache}",
        flush=True,
    )
    if missing > free:
        raise OSError("this does not fit on the disk: make room, or set HF_HOME to a place that has it")
    snapshot_download(repository, allow_patterns=patterns)


def explain(error: Exception, repository: str) -> str:
    """One sentence on what went wrong and what to do."""
    own = type(error) is OSError  # raised above
    return f"{error}." if own else explain_hub_error(error, repository, "its files")


if __name__ == "__main__":
    raise SystemExit(main())
