"""DataComp: pictures on the web and the captions they had there (https://www.datacomp.ai).

The Hub has addresses and captions (`url`, `text`), not pictures: they are fetched as samples are needed. Many addresses
lead nowhere any more; those rows are left out and counted.
"""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from theworld.datasets.samples import StreamedSamples
from theworld.media.images import load_image

logger = logging.getLogger(__name__)

HUB_ID = "mlfoundations/datacomp_1b"
QUESTION = "Describe this image."
TIMEOUT = 10.0  # seconds for one picture
MOST_BYTES = 20 * 2**20
REPORT_EVERY = 100  # rows left out, between two lines in the log


class FetchedRows:
    """Rows with an address and a caption, as records with a picture; what cannot be fetched or read is left out.

    Attributes:
        left_out: rows that had no picture any more, of all that were asked for so far in this process.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], question: str = QUESTION) -> None:
        self.rows = rows
        self.question = question
        self.left_out = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for seen, row in enumerate(self.rows, start=1):
            image = fetch(str(row["url"])) if row["text"] else None
            if image is not None:
                yield {"image": image, "text": self.question, "label": row["text"]}
                continue
            self.left_out += 1
            if self.left_out % REPORT_EVERY == 0:
                logger.warning("%d of %d rows have no picture or no caption any more", self.left_out, seen)


def fetch(url: str) -> Image.Image | None:
    """The picture at an address; None for one that does not answer, or answers with something else."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "theworld"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            content = answer.read(MOST_BYTES + 1)
    except (OSError, ValueError, urllib.error.URLError):  # no such host, no such page, no address at all
        return None
    if len(content) > MOST_BYTES:
        return None
    try:
        return load_image(content)
    except ValueError:
        return None


def datacomp(rows: Iterable[Mapping[str, Any]], limit: int | None, question: str | None = None) -> StreamedSamples:
    """Samples out of rows of DataComp, at most `limit` that have a picture."""
    return StreamedSamples(FetchedRows(rows, question or QUESTION), limit=limit, origin="datacomp picture")
