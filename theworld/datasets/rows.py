"""Rows of anybody's files: JSON Lines, JSON, parquet, a folder of these, or a dataset on the Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROWS = (".jsonl", ".json", ".parquet")


def read_rows(place: str, split: str | None, config: str | None) -> tuple[list[dict[str, Any]], Path]:
    """Rows of a place, and the folder that paths in them are seen from."""
    path = Path(place).expanduser()
    if path.is_file():
        return read_file(path), path.parent
    if path.is_dir():
        return read_folder(path, split, config)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        return read_hub(place, split, config), Path()
    raise ValueError(f"There is no file or folder {place!r}, and it is no dataset's id on the Hub (owner/name).")


def read_file(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in ROWS:
        raise ValueError(f"{path} is none of {', '.join(ROWS)}; bring the questions into one of these.")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged or no parquet ({error}); get the file again.") from error
        return rows
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        content = parse(text, str(path))
        rows = list(content.values()) if isinstance(content, dict) else content
    else:
        lines = enumerate(text.splitlines(), start=1)
        rows = [parse(line, f"line {number} of {path}") for number, line in lines if line.strip()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no rows; each row is a JSON object of column and value.")
    return rows


def parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); each row is an object of column and value.") from error


def read_folder(folder: Path, split: str | None, config: str | None) -> tuple[list[dict[str, Any]], Path]:
    """Rows of the files of a split, which lie in the folder, in its `data`, or in the folder of a configuration."""
    inside = [folder / config] if config is not None else [folder, folder / "data"]
    files = [file for place in inside if place.is_dir() for file in sorted(place.iterdir()) if file.suffix in ROWS]
    chosen = [file for file in files if split is None or re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name)]
    if not chosen:
        wanted = f"{split or '*'}*" + "|".join(ROWS)
        raise ValueError(f"{inside[0]} holds no questions ({wanted}); check the folder and the split.")
    if len({file.suffix for file in chosen}) > 1:
        raise ValueError(f"{chosen[0].parent} holds {chosen[0].name} and {chosen[-1].name}; name the file you mean.")
    return [row for file in chosen for row in read_file(file)], chosen[0].parent


def read_hub(place: str, split: str | None, config: str | None) -> list[dict[str, Any]]:
    """Rows of a dataset on the Hub, or in its cache where there is no network; pictures stay as they were stored."""
    import datasets

    try:
        table = datasets.load_dataset(place, config, split=split or "test")
    except (OSError, ValueError) as error:  # what the library raises without a network, a cache, a split
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{place} could not be read from the Hub or its cache ({said}); check the name and the split, or download "
            "it and give its folder (--data FOLDER)."
        ) from error
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return list(table)
