"""DataComp: images on the web with their captions (https://www.datacomp.ai).

The Hub has the addresses and captions (`url`, `text`) and not the images, which are fetched when samples are needed.
Many addresses are dead by now; their rows are left out and counted.
"""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from PIL import Image

from theworld.datasets.samples import StreamedSamples
from theworld.media.images import load_image

logger = logging.getLogger(__name__)

HUB_ID = "mlfoundations/datacomp_1b"
QUESTION = "Describe this image."
TIMEOUT = 10.0  # seconds per image
MOST_BYTES = 20 * 2**20
REPORT_EVERY = 100  # rows left out between two log lines


class FetchedRows:
    """Turns rows with an address and a caption into records with an image; leaves out what cannot be fetched or read.

    Attributes:
        num_skipped: how many rows were left out so far in this process.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], question: str = QUESTION) -> None:
        self.rows = rows
        self.question = question
        self.num_skipped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for seen, row in enumerate(self.rows, start=1):
            image = fetch(str(row["url"])) if row["text"] else None
            if image is not None:
                yield {"image": image, "text": self.question, "label": row["text"]}
                continue
            self.num_skipped += 1
            if self.num_skipped % REPORT_EVERY == 0:
                logger.warning("%d of %d rows were left out: their image or caption is missing", self.num_skipped, seen)


def fetch(url: str) -> Image.Image | None:
    """Fetches the image at an address; None if there is no answer, or if the answer is not an image."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "theworld"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            content = answer.read(MOST_BYTES + 1)
        return load_image(content) if len(content) <= MOST_BYTES else None
    except (OSError, ValueError):  # no such host, no such page, not an address, not an image
        return None


def datacomp(rows: Iterable[Mapping[str, Any]], limit: int | None, question: str | None = None) -> StreamedSamples:
    """Makes samples of DataComp's rows, at most `limit` that have an image."""
    return StreamedSamples(FetchedRows(rows, question or QUESTION), limit=limit, origin="DataComp image")
