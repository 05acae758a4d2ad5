"""Rows of user-provided questions: JSON Lines, JSON, parquet, a folder of these, or a dataset on the Hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from theworld.datasets.hub import load_split
from theworld.datasets.jsonl import check_characters, read_lines
from theworld.storage.files import no_file

ROWS = (".jsonl", ".json", ".parquet")


def read_rows(source: str, split: str | None, config: str | None) -> tuple[list[dict[str, Any]], Path]:
    """The rows of a file, folder or Hub dataset, and the folder that their paths are relative to."""
    path = Path(source).expanduser()
    if path.is_file():
        return read_file(path), path.parent
    if path.is_dir():
        return read_folder(path, split, config)
    if path.exists():
        raise ValueError(f"{no_file(path)}: save the questions as a file, and pass its path.")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return read_hub(source, split, config), Path()
    raise ValueError(
        f"There is no file or folder {source!r}, and it is not the id of a Hub dataset (owner/name): check the name."
    )


def read_file(path: Path) -> list[dict[str, Any]]:
    if path.suffix not in ROWS:
        raise ValueError(f"{path} is none of {', '.join(ROWS)}: convert the questions to one of these.")
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged or not a parquet file ({error}): get the file again.") from error
        return rows
    if path.suffix == ".jsonl":
        return [row for _, row in read_lines(path)]
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): each row must be an object of columns and values.") from error
    rows = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no rows: each row must be a JSON object of columns and values.")
    for number, row in enumerate(rows):
        check_characters(row, f"{path} row {number}")
    return rows


def read_folder(folder: Path, split: str | None, config: str | None) -> tuple[list[dict[str, Any]], Path]:
    """The rows of a split, whose files are in the folder, in its `data`, or in the folder of a configuration."""
    folders = [folder / config] if config is not None else [folder, folder / "data"]
    files = [file for path in folders if path.is_dir() for file in sorted(path.iterdir()) if file.suffix in ROWS]
    chosen = [file for file in files if split is None or re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", file.name)]
    if not chosen:
        wanted = f"{split or '*'}*" + "|".join(ROWS)
        raise ValueError(f"{folders[0]} holds no questions ({wanted}): check the folder and the split.")
    if len({file.suffix for file in chosen}) > 1:
        raise ValueError(
            f"{chosen[0].parent} holds {chosen[0].name} and {chosen[-1].name}: pass the file that you mean."
        )
    return [row for file in chosen for row in read_file(file)], chosen[0].parent


def read_hub(source: str, split: str | None, config: str | None) -> list[dict[str, Any]]:
    """The rows of a dataset on the Hub, or in its cache without a network; images and videos stay encoded."""
    import datasets

    table = load_split(source, split or "test", name=config)
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            table = table.cast_column(name, datasets.List(datasets.Image(decode=False)))
        elif isinstance(feature, datasets.Video):  # its decoder is another package
            table = table.cast_column(name, datasets.Video(decode=False))
    return list(table)
