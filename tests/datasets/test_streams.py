"""Streams: parts cover every row once, blocks are shuffled, and reading can continue at any position."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from theworld.datasets.hub import load_split, streamed
from theworld.datasets.samples import FieldMapping, Sample
from theworld.datasets.streams import Position, StreamedSamples
from theworld.media.images import load_image

ROWS = [{"text": f"Question {number}?", "label": "yes"} for number in range(23)]
Source = Callable[[Path], Any]


def files(number: int) -> Source:
    """Streams of JSON Lines files, which `datasets` reads file by file."""

    def rows(folder: Path) -> Any:
        for part in range(number):
            lines = [json.dumps(row) for row in ROWS[part::number]]
            (folder / f"{part}.jsonl").write_text("\n".join(lines))
        return load_split(str(folder), "train", streaming=True)

    return rows


def parquet(folder: Path) -> Any:
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "rows.parquet", batch_size=3)
    return load_split(str(folder), "train", streaming=True)


SOURCES: dict[str, Source] = {
    "a list": lambda folder: ROWS,
    "one file": files(1),
    "four files": files(4),
    "row groups": parquet,
}


def question(sample: Sample) -> str:
    text: str = sample.messages[0]["content"][-1]["text"]
    return text


def without_states(found: list[tuple[str, Position]]) -> list[tuple[str, Position]]:
    """A source may describe one place by several states."""
    return [(text, replace(position, state=None)) for text, position in found]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("shuffle", [0, 5, 100])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_cover_every_row_once_and_go_on_at_any_position(
    source: str, shuffle: int, num_parts: int, tmp_path: Path
) -> None:
    stream = StreamedSamples(SOURCES[source](tmp_path), shuffle=shuffle, seed=3)
    found = []
    for part in range(num_parts):
        whole = [(question(sample), position) for sample, position in stream.epoch(part, num_parts) if sample]
        assert [question(sample) for sample, _ in stream.epoch(part, num_parts) if sample] == [a for a, _ in whole]
        for number, (_, position) in enumerate(whole, start=1):
            start = Position(**json.loads(json.dumps(asdict(position))))
            assert start == position
            rest = [(question(sample), after) for sample, after in stream.epoch(part, num_parts, start) if sample]
            assert without_states(rest) == without_states(whole[number:])
            if len(rest) > 3:  # interrupted once more
                third = [question(sample) for sample, _ in stream.epoch(part, num_parts, rest[2][1]) if sample]
                assert third == [text for text, _ in rest[3:]]
        later = [question(sample) for sample, _ in stream.epoch(part, num_parts, Position(1)) if sample]
        assert sorted(later) == sorted(text for text, _ in whole)
        assert (later != [text for text, _ in whole]) == (shuffle > 1), "each epoch has an order of its own"
        found += [text for text, _ in whole]
    assert sorted(found) == sorted(row["text"] for row in ROWS)


def test_continuing_reads_one_block_again_and_nothing_before() -> None:
    read = []

    def generate(shards: list[int]) -> Iterator[dict[str, str]]:
        for shard in shards:
            for number in range(10):
                read.append((shard, number))
                yield {"text": f"{shard}-{number}", "label": "yes"}

    rows = datasets.IterableDataset.from_generator(generate, gen_kwargs={"shards": [0, 1, 2]})
    stream = StreamedSamples(rows, shuffle=4)
    whole = list(stream.epoch())
    assert len(read) == 30
    read.clear()
    rest = [question(sample) for sample, _ in stream.epoch(start=whole[25][1]) if sample]
    assert rest == [question(sample) for sample, _ in whole[26:] if sample]
    assert {shard for shard, _ in read} == {2}, "files that were read are not opened again"


def test_a_stream_restarts_and_ends_at_its_limit() -> None:
    stream = StreamedSamples(ROWS, limit=3)
    assert [len(list(stream)), len(list(stream))] == [3, 3]
    assert [sample.origin for sample in stream][-1] == "streamed record 2"
    parts = [sum(sample is not None for sample, _ in stream.epoch(part, 2)) for part in (0, 1)]
    assert parts == [2, 1]
    *_, (_, last) = stream.epoch(0, 2)
    assert list(stream.epoch(0, 2, last)) == []


def test_images_of_a_stream_are_decoded_when_they_are_needed(tmp_path: Path) -> None:
    shades = range(0, 250, 10)
    rows = {
        "image": [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in shades],
        "text": ["What is this?"] * len(shades),
        "label": [str(shade) for shade in shades],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    stream = streamed(load_split(str(tmp_path), "train", streaming=True), FieldMapping(), shuffle=10)
    samples = list(stream)
    assert len(samples) == len(shades)
    for sample in samples:
        assert not isinstance(sample.images[0], Image.Image)
        assert np.asarray(load_image(sample.images[0]))[0, 0].tolist() == [int(sample.answers()[0]), 0, 0]
