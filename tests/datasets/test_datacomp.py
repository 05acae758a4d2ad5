"""DataComp: rows with addresses become samples, faults are counted by cause, and a second epoch needs no network."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.storage.test_downloads import GOOD, PUBLIC, QUICK, Names, Server
from tests.tiny import tiny_bases
from tests.world_models.tiny import TINY_SIZE
from theworld.datasets import datacomp
from theworld.datasets.datacomp import ImageDownloads
from theworld.datasets.shards import ImageShards, key_of
from theworld.storage.downloads import Downloader, DownloadSettings
from theworld.training import dataset_loading, recipe
from theworld.training.config import TrainingConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One address of this machine counts as public."""

    def made(settings: DownloadSettings | None) -> Downloader:
        return Downloader(settings, allow=lambda address, port: address == PUBLIC, resolver=Names())

    monkeypatch.setattr(datacomp, "Downloader", made)


def rows(server: Server, *paths: str) -> list[dict[str, Any]]:
    return [{"url": server.url(path), "text": f"caption {number}"} for number, path in enumerate(paths)]


def test_rows_become_records_and_faults_are_counted(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    asked = [
        *rows(server, "good", "gone", "good", "cut", "to-private", "text"),
        {"url": server.url("good"), "text": ""},
    ]
    made = ImageDownloads("What is this?", settings=QUICK)
    with caplog.at_level(logging.WARNING):
        found = list(made.read(asked))
    assert [record is None for record in found] == [False, True, False, True, True, True, True]
    records = [record for record in found if record]
    assert [record["label"] for record in records] == ["caption 0", "caption 2"]
    assert {record["text"] for record in records} == {"What is this?"}
    assert records[0]["image"].size == (32, 32)
    assert made.causes == {"refused": 1, "connection": 1, "private": 1, "image": 1, "caption": 1}
    assert "5 of 7 rows were skipped: 1 refused (answered 4xx, such as 404), " in caplog.text


def test_a_second_epoch_needs_no_network(server: Server, tmp_path: Path) -> None:
    asked = rows(server, "good?1", "gone", "good?2", "broken", "text")
    first = [record["label"] for record in ImageDownloads(shards=tmp_path, settings=QUICK).read(asked) if record]
    before = server.requests.copy()
    made = ImageDownloads(shards=tmp_path, settings=QUICK)
    again = [record for record in made.read(asked) if record]
    assert [record["label"] for record in again] == first == ["caption 0", "caption 2"]
    assert again[0]["image"].getpixel((0, 0)) == (200, 0, 0)
    assert set(server.requests - before) == {(PUBLIC, "broken")}, "what may work another time is tried again"
    assert made.causes == {"refused": 1, "image": 1, "server": 1}


def test_shards_are_those_of_webdataset(server: Server, tmp_path: Path) -> None:
    """Consecutive members with one key are one sample."""
    row, other = rows(server, "good?1", "good?2")
    list(ImageDownloads(shards=tmp_path, settings=QUICK).read([row, other]))
    (shard,) = tmp_path.glob("*.tar")
    with tarfile.open(shard) as tar:
        names = tar.getnames()
        contents = [tar.extractfile(name).read() for name in names]  # type: ignore[union-attr]
    keys = [key_of(each["url"]) for each in (row, other)]
    assert names == [f"{key}.{suffix}" for key in keys for suffix in ("png", "json")]
    assert contents[0] == GOOD
    assert json.loads(contents[1]) == {"url": row["url"], "text": "caption 0"}


def test_a_shard_whose_end_is_missing_keeps_its_complete_samples(tmp_path: Path) -> None:
    with ImageShards(tmp_path) as made:
        for number in range(3):
            made.add(f"http://a/{number}", "text", GOOD)
    (shard,) = tmp_path.glob("*.tar")
    whole = shard.read_bytes()
    found = set()
    for length in range(0, len(whole), 100):
        shard.write_bytes(whole[:length])
        kept = ImageShards(tmp_path)
        found.add(len(kept))
        assert all(kept.read(f"http://a/{number}") in (None, GOOD) for number in range(3))
    assert found == {0, 1, 2, 3}
    kept.add("http://a/9", "text", GOOD)
    kept.close()
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["000000.tar", "000001.tar"]
    assert ImageShards(tmp_path).read("http://a/9") == GOOD


def test_a_dataset_without_any_image_is_an_error(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datacomp, "MOST_WITHOUT_IMAGE", 5)
    with pytest.raises(ValueError, match=r"None of the first 5 rows has an image: 5 refused \(answered 4xx"):
        list(ImageDownloads(settings=QUICK).read(rows(server, *["gone"] * 50)))


def test_a_resumed_stream_downloads_nothing_twice(server: Server) -> None:
    asked = rows(server, *(f"{('good', 'gone')[number % 2]}?again{number}" for number in range(40)))
    few = replace(QUICK, lookahead=4)
    stream = datacomp.datacomp(asked, None, settings=few, shuffle=8, seed=1)
    whole = [(sample, position) for sample, position in stream.epoch() if sample is not None]
    labels = [sample.answers() for sample, _ in whole]
    assert sorted(labels) == sorted([f"caption {number}"] for number in range(0, 40, 2)) != labels
    before = server.requests.copy()
    resumed = [sample.answers() for sample, _ in stream.epoch(start=whole[13][1]) if sample is not None]
    assert resumed == labels[14:]
    assert (server.requests - before).total() <= 40 - whole[13][1].row


@pytest.mark.parametrize("name", ["datacomp_test", "datacomp_production"])
def test_the_shipped_configs_train(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With tiny models, and with addresses of which every second one is dead."""
    bases = tiny_bases(tmp_path / "bases")
    asked = [
        {"url": server.url(("good", "gone")[number % 2] + f"?{number}"), "text": f"caption {number}"}
        for number in range(24)
    ]
    monkeypatch.setattr(dataset_loading, "load_split", lambda *arguments, **keywords: asked)
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    values |= {
        "model_name": bases["vlm_name_or_path"],
        "cosmos_model_name": bases["world_name_or_path"],
        "world_image_size": TINY_SIZE,
        "mixed_precision": "fp32",
        "num_workers": 0,
        "batch_size": 2,
        "gradient_accumulation_steps": 1,
        "log_to_wandb": False,
        "max_steps": 3,
        "output_dir": str(tmp_path / "run"),
    }
    values |= (
        {"num_samples": 6} if "num_samples" in values else {"dataset_options": {"shards": str(tmp_path / "shards")}}
    )
    trained = recipe.train(TrainingConfig.from_dict(values))
    history = json.loads((trained / "checkpoint-3" / "trainer_state.json").read_text())
    assert history["global_step"] == 3
    assert (tmp_path / "shards").exists() == (name == "datacomp_production")
