"""The model card of a trained model, from the files in its folder: bases, data, trained parts, metrics, licences."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from safetensors import safe_open

from theworld.model.freezing import part_of
from theworld.storage.files import read_json_file
from theworld.storage.hub import ADAPTER_FILE, CONFIG_FILE, may_be_on_hub
from theworld.training import checkpointing

CARD_FILE = "README.md"
TRAINING_CONFIG, STATE, RESULTS = checkpointing.CONFIG_FILE, checkpointing.STATE_FILE, "results.json"
MEAN_OF_FAMILIES = "mean_of_families"
TAGS = ["theworld", "world-model", "gemma3", "cosmos-predict2", "adapter"]
SHOWN_SETTINGS = (
    "dataset_name", "num_samples", "num_world_steps", "true_futures", "batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler", "max_steps", "num_epochs", "mixed_precision", "seed",
)  # fmt: skip
LIMITS = """An adapter adds tokens of imagined frames to the language model. What the world model imagines is a guess,
can be wrong, and is not evidence of what will happen. Compare with the controls of `theworld eval` before you conclude
that imagining helps."""
LICENCES = """This repository holds only what was trained. The base models are downloaded from their own repositories
and are governed by their own terms: Gemma by the Gemma Terms of Use (https://ai.google.dev/gemma/terms),
Cosmos-Predict2 by the NVIDIA Open Model License. Whoever uses this model accepts both."""


def model_card(folder: Path, repository: str) -> str:
    """The model card of the model in `folder` as Markdown with metadata.

    Args:
        repository: `owner/name` that the card is for.

    Raises:
        ValueError: if there is no adapter in the folder, or one of its files is damaged.
    """
    config = read(folder / CONFIG_FILE)
    if config.get("model_type") != "theworld":
        raise ValueError(
            f"{folder} holds no TheWorld model: its config.json has model_type {config.get('model_type')!r}."
        )
    if not (folder / ADAPTER_FILE).is_file():
        raise ValueError(f"{folder} has no {ADAPTER_FILE}; save the model again.")
    if any(str(config.get(name)).startswith("./") for name in ("vlm_name_or_path", "world_name_or_path")):
        raise ValueError(f"{folder} is a full export, which holds the base models; save and upload the adapter alone.")
    last = checkpointing.find_last_checkpoint(folder)  # a run's folder has its state there
    settings, state = read(folder / TRAINING_CONFIG), read((last or folder) / STATE)
    bases = [str(config[name]) for name in ("vlm_name_or_path", "world_name_or_path") if config.get(name)]
    bases = bases if config.get("enable_world", True) else bases[:1]
    dataset = str(settings.get("dataset_name", ""))
    data = ModelCardData(
        library_name="theworld",
        pipeline_tag="image-text-to-text",
        base_model=[base for base in bases if may_be_on_hub(base)] or None,
        datasets=[dataset] if may_be_on_hub(dataset) else None,
        license="other",
        license_name="terms-of-the-base-models",
        tags=TAGS,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# {repository}",
        "An adapter for TheWorld, a vision-language model that imagines the next moments before it answers.",
        usage(repository, config),
        "## Model\n\n" + table(["part", "trained parameters"], trained(folder)),
        "Base models: " + ", ".join(f"`{base}`" for base in bases) + ".",
        training(settings, state),
        evaluation(read(folder / RESULTS)),
        f"## Limits\n\n{LIMITS}",
        f"## Licences\n\n{LICENCES}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def usage(repository: str, config: dict[str, Any]) -> str:
    steps = config.get("num_world_steps", 0)
    return (
        "## Use\n\n```python\nfrom theworld import TheWorld\n\n"
        f'model = TheWorld.from_pretrained("{repository}")\n'
        f'print(model.generate("image.png", "What will happen next?", num_world_steps={steps}))\n```'
    )


def trained(folder: Path) -> list[list[str]]:
    """The parts that the adapter holds, with their numbers of parameters."""
    counts = Counter[str]()
    with safe_open(folder / ADAPTER_FILE, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            counts[part_of(name)] += math.prod(file.get_slice(name).get_shape())
    return [[part, f"{count:,}"] for part, count in counts.items()]


def training(settings: dict[str, Any], state: dict[str, Any]) -> str:
    if not settings:
        return ""
    rows = [[f"`{name}`", f"`{json.dumps(settings[name])}`"] for name in SHOWN_SETTINGS if name in settings]
    text = "## Training\n\n" + table(["setting", "value"], rows)
    text += f"\n\nAll settings are in `{TRAINING_CONFIG}`; `theworld train {TRAINING_CONFIG}` repeats the run."
    history = state.get("log_history", [])
    metrics = [entry for entry in history if "loss" in entry][-1:] + [e for e in history if "eval_loss" in e][-1:]
    shown = [
        [str(entry.get("step")), f"`{name}`", f"{entry[name]:.4g}"]
        for entry in metrics
        for name in entry
        if name == "loss" or (name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time")))
    ]
    return f"{text}\n\n{table(['step', 'metric', 'value'], shown)}" if shown else text


def evaluation(results: dict[str, Any]) -> str:
    """Accuracies with their intervals, and the command that measured them, of a `results.json` in the folder."""
    arms = results.get("arms")
    if not isinstance(arms, dict):
        return ""
    rows = []
    for name, arm in arms.items():
        score = arm.get("mean_of_families", arm) if results.get("headline") == MEAN_OF_FAMILIES else arm
        if "accuracy" in score:
            low, high = score["interval_95"]
            rows.append([name, f"{100 * score['accuracy']:.1f} %", f"{100 * low:.1f} … {100 * high:.1f}"])
    command = results.get("command")
    return (
        f"## Evaluation\n\n{results.get('questions')} questions of `{results.get('benchmark')}`:\n\n"
        + table(["arm", "correct", "95 %"], rows)
        + (f"\n\nMeasured by `{command}`." if command else "")
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read(path: Path) -> dict[str, Any]:
    return read_json_file(path, "save the model again") if path.is_file() else {}
