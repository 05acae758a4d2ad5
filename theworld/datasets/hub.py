"""Datasets that Hugging Face's `datasets` reads: on the Hub, in a folder, or streamed; columns are mapped by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from theworld.datasets.samples import FieldMapping, HFDatasetWrapper, class_names
from theworld.datasets.streams import StreamedSamples


def load_split(path: str, split: str, streaming: bool = False, **options: Any) -> Any:
    """Loads one split of a dataset with `datasets`.

    Args:
        path: a Hub id, a folder written by `save_to_disk`, or a folder of files.
        split: `train`, `validation[:100]`, …
        options: further arguments of `datasets.load_dataset` (`name`, `revision`, `data_files`, …).

    Raises:
        ValueError: if the dataset does not exist, cannot be read, or has no such split.
    """
    import datasets

    try:
        if Path(path).is_dir() and any(Path(path).glob("**/dataset_info.json")):
            loaded = datasets.load_from_disk(path)
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise ValueError(f"there is no split {split!r}; it has {', '.join(loaded)}")
                loaded = loaded[split]
            return loaded.to_iterable_dataset() if streaming else loaded
        return datasets.load_dataset(path, split=split, streaming=streaming, **options)
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The split {split!r} of the dataset {path} cannot be loaded: {reason}.") from error


def mapped(split: Any, fields: FieldMapping, limit: int | None = None) -> HFDatasetWrapper:
    """Makes samples of a split, at most `limit` of them."""
    if limit is not None:
        split = split.select(range(min(limit, len(split))))
    return HFDatasetWrapper(split, fields.image_key, fields.text_key, fields.label_key, fields.question_template)


def streamed(
    split: Any, fields: FieldMapping, limit: int | None = None, shuffle: int = 0, seed: int = 0
) -> StreamedSamples:
    """Makes samples of a streamed split; see `StreamedSamples`."""
    fields.check(split.column_names)
    # images are decoded when a sample is made, since a block of rows waits in memory
    rows = split.decode(False) if split.features is not None else split
    record = replace(fields, classes=class_names(split.features)).record
    return StreamedSamples(rows, limit=limit, origin="streamed row", shuffle=shuffle, seed=seed, record=record)
