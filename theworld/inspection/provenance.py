"""Where a model and a number come from: package versions, and the `provenance.json` of a model's folder."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("theworld", "torch", "transformers", "diffusers", "peft", "numpy", "scipy", "statsmodels")
PROVENANCE = "provenance.json"  # next to a model's weights: how they were made, and from how many scenes
LABEL_COUNTS = ("labelled_scenes_per_family", "unlabelled_clips", "clips_asked_about_now_per_family")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that determine results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a source tree that was never installed
            continue
    return found


def provenance(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Content of `provenance.json` in a model's folder or its parent; empty if there is none."""
    for path in (Path(folder) / PROVENANCE, Path(folder).parent / PROVENANCE):
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def labels(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Numbers of labelled and unlabelled scenes that a model was trained on, from its provenance; empty if unknown."""
    content = provenance(folder)
    return {name: content[name] for name in LABEL_COUNTS if name in content}
