"""DataComp: images on the web with their captions (https://www.datacomp.ai), and other datasets of addresses.

The Hub has the addresses and captions (`url`, `text`) and not the images, which are downloaded when samples are needed.
Many addresses are dead by now; their rows are skipped and counted by cause.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from theworld.datasets.shards import ImageShards
from theworld.datasets.streams import StreamedSamples
from theworld.media.images import load_image
from theworld.storage.downloads import CAUSES, Downloaded, Downloader, DownloadSettings

logger = logging.getLogger(__name__)

HUB_ID = "mlfoundations/datacomp_1b"
QUESTION = "Describe this image."
REPORT_EVERY = 1000  # skipped rows between two log lines
MOST_WITHOUT_IMAGE = 1000  # rows after which a dataset without any image is an error
Row = Mapping[str, Any]


class ImageDownloads:
    """Turns rows with an address and a caption into records with an image; skips what cannot be downloaded or read.

    Args:
        question: of every record.
        shards: folder that keeps what was downloaded, as WebDataset shards; None keeps nothing.
        settings: limits of the downloads.

    Attributes:
        seen: number of rows that were read.
        causes: number of rows that were skipped, by cause: those of `theworld.storage.downloads`, and `caption`.
    """

    def __init__(
        self,
        question: str = QUESTION,
        shards: str | os.PathLike[str] | None = None,
        settings: DownloadSettings | None = None,
    ) -> None:
        self.question = question
        self.folder = shards
        self.settings = settings
        self.seen = 0
        self.causes = Counter[str]()

    def read(self, rows: Iterable[Row]) -> Iterator[dict[str, Any] | None]:
        """The record of each row (`url` and `text`), in order; None for a row that is skipped.

        Raises:
            ValueError: if none of the first `MOST_WITHOUT_IMAGE` rows, or of all, has an image.
        """
        kept = None if self.folder is None else ImageShards(self.folder)
        found = False
        try:
            for result in self._files(rows, kept):
                self.seen += 1
                cause, image = result.cause, None
                if result.content is not None:
                    image = readable(result.content)
                    cause = None if image is not None else "image"
                url, text = str(result.row["url"]), result.row["text"]
                if kept is not None and url not in kept and text:
                    if image is not None:
                        kept.add(url, text, result.content or b"")
                    elif cause is not None and kept.cause(url) is None:
                        kept.mark(url, cause)
                if image is not None:
                    found = True
                    yield {"image": image, "text": self.question, "label": text}
                    continue
                self.causes[str(cause)] += 1
                if not found and self.seen >= MOST_WITHOUT_IMAGE:
                    raise ValueError(f"None of the first {self.seen} rows has an image: {self.summary()}.")
                if self.causes.total() % REPORT_EVERY == 0:
                    self.report()
                yield None
        finally:
            if kept is not None:
                kept.close()
            if self.causes:
                self.report()

    def _files(self, rows: Iterable[Row], kept: ImageShards | None) -> Iterator[Downloaded[Row]]:
        """The file of each row, in order; those of rows without a caption, and those that are kept, need no request."""

        def request(row: Row) -> str | Downloaded[Row]:
            url = str(row["url"])
            if not row["text"]:
                return Downloaded(row, cause="caption")
            if kept is not None and (content := kept.read(url)) is not None:
                return Downloaded(row, content=content)
            if kept is not None and (cause := kept.cause(url)) is not None:
                return Downloaded(row, cause=cause)
            return url

        with Downloader(self.settings) as downloader:
            yield from downloader.map(rows, request)

    def summary(self) -> str:
        """The skipped rows by cause."""
        meanings = {**CAUSES, "caption": "no caption"}
        return ", ".join(f"{number} {cause} ({meanings[cause]})" for cause, number in self.causes.most_common())

    def report(self) -> None:
        logger.warning("%d of %d rows were skipped: %s", self.causes.total(), self.seen, self.summary())


def readable(content: bytes) -> Image.Image | None:
    """The image in a file; None if it is not one that can be read."""
    try:
        return load_image(content)
    except (ValueError, OSError):
        return None


def datacomp(
    rows: Iterable[Row],
    limit: int | None,
    question: str | None = None,
    shards: str | os.PathLike[str] | None = None,
    settings: DownloadSettings | None = None,
    shuffle: int = 0,
    seed: int = 0,
) -> StreamedSamples:
    """Makes samples of the rows of DataComp that have an image; see `ImageDownloads` and `StreamedSamples`."""
    downloads = ImageDownloads(question or QUESTION, shards, settings)
    return StreamedSamples(rows, downloads.read, limit=limit, origin="DataComp row", shuffle=shuffle, seed=seed)
