"""Datasets that Hugging Face's `datasets` reads: on the Hub, in a folder, or streamed; columns are mapped by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from theworld.datasets.samples import FieldMapping, HFDatasetWrapper, StreamedSamples


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


def mapped(split: Any, fields: FieldMapping, streaming: bool, limit: int | None = None) -> Dataset:
    """Makes samples of a split, at most `limit` of them."""
    if streaming:
        fields.check(split.column_names)
        return StreamedSamples(MappedRows(split, fields), limit=limit, origin="streamed row")
    if limit is not None:
        split = split.select(range(min(limit, len(split))))
    return HFDatasetWrapper(split, fields.image_key, fields.text_key, fields.label_key, fields.question_template)


class MappedRows:
    """The rows of a stream as records; can be iterated over again."""

    def __init__(self, rows: Any, fields: FieldMapping) -> None:
        self.rows = rows
        self.fields = fields

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for row in self.rows:
            yield self.fields.record(row)
