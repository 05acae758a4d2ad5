"""A hash of a question's images and videos, so that a run does not resume with other files of the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from theworld.evaluation.tasks import Item, image_key
from theworld.evaluation.training_format import SampleMedia
from theworld.media.video import Video, frame_paths

BLOCK = 2**20  # of a larger file, its size and this many bytes of its beginning and its end are hashed


def media_digest(item: Item) -> str:
    """A hash of the images of an item and of its true future, which are read as files and not decoded.

    Raises:
        ValueError: if a file cannot be read; the message names the item.
    """
    digest = hashlib.blake2b(digest_size=8)
    with item.named():
        for source in (item.image, item.future):
            _add(digest, source)
    return digest.hexdigest()


def _add(digest: Any, source: Any) -> None:
    if isinstance(source, Mapping) and source.keys() == {"bytes", "path"}:
        source = source["path"] if source["bytes"] is None else source["bytes"]
    if isinstance(source, SampleMedia):
        digest.update(repr(sorted(source.record.items(), key=str)).encode())
        _add(digest, source.files())
    elif isinstance(source, Video):
        moment = () if source.at is None and source.fps is None else (source.at, source.fps)
        digest.update(repr((source.selection, source.until, source.after, *moment)).encode())
        _add(digest, source.source)
    elif isinstance(source, str | Path) and Path(source).is_dir():
        _add(digest, frame_paths(Path(source)))
    elif isinstance(source, str | Path):
        _add_file(digest, Path(source).expanduser())
    elif isinstance(source, list | tuple):
        digest.update(repr(len(source)).encode())
        for entry in source:
            _add(digest, entry)
    elif isinstance(source, bytes):
        digest.update(source)
    else:
        digest.update(b"" if source is None else image_key(source).encode())


def _add_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(repr(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(BLOCK))
        if size > BLOCK:
            file.seek(max(BLOCK, size - BLOCK))
            digest.update(file.read())
