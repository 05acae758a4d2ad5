"""A run that cannot push ends with one sentence before weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.loopback_hub import ACCEPTED, LoopbackHub, use_endpoint
from tests.training.conftest import load, records
from theworld.storage.hub import hub_answers
from theworld.training import recipe
from theworld.training.config import TrainingConfig
from theworld.training.push import local_bases

Settings = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recipe, "build_model", lambda *_: pytest.fail("the weights were loaded first"))
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


def pushed(settings: Settings) -> TrainingConfig:
    return settings(push_to_hub=True, hub_model_id="me/mine")


def refusal(config: TrainingConfig) -> str:
    with pytest.raises(ValueError, match=r"\S") as error:
        recipe.train(config, load())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_repository_of_an_example_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is the example 'your-username/x'; replace it by your own repository"):
        TrainingConfig(push_to_hub=True, hub_model_id="your-username/x")
    TrainingConfig(push_to_hub=False, hub_model_id="your-username/x")


def test_offline(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set: unset it, or set push_to_hub to false" in refusal(pushed(settings))


def test_no_token(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with LoopbackHub({}) as server:
        server.use(monkeypatch, tmp_path)
        assert "needs a token: set HF_TOKEN to one with write access" in refusal(pushed(settings))


def test_an_unknown_token(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with LoopbackHub({}) as server:
        server.use(monkeypatch, tmp_path, "hf_nobody")
        assert "does not know this token" in refusal(pushed(settings))


def test_an_unreachable_hub(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path, ACCEPTED)
    said = refusal(pushed(settings))
    assert "it does not answer: check the network and http://127.0.0.1:9, or set push_to_hub to false" in said


def test_a_token_without_write_access(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Any]] = []

    def refuse(self: HfApi, repo_id: str, **keywords: Any) -> None:
        asked.append((repo_id, keywords["private"]))
        answer: Any = SimpleNamespace(status_code=403, headers={}, request=None)
        raise HfHubHTTPError("no", response=answer)

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with LoopbackHub({}) as server:
        server.use(monkeypatch, tmp_path, ACCEPTED)
        said = refusal(settings(push_to_hub=True, hub_model_id="me/mine", hub_private_repo=True))
        with pytest.raises(ValueError, match="has no evaluation samples"):
            recipe.train(
                settings(push_to_hub=True, hub_model_id="me/other", do_eval=True), lambda _: (records(2), None)
            )
    assert asked == [("me/mine", True)], "an error in the data creates no repository"
    assert "The Hub does not let this token write to me/mine (403)" in said


def test_an_invalid_repository_name(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with LoopbackHub({}) as server:
        server.use(monkeypatch, tmp_path, ACCEPTED)
        said = refusal(settings(push_to_hub=True, hub_model_id="me/mine/too"))
    assert "hub_model_id 'me/mine/too' is not a valid repository name" in said
    monkeypatch.setenv("HF_TOKEN", "")  # the id is reported first
    assert "hub_model_id 'me/mine/too' is" in refusal(settings(push_to_hub=True, hub_model_id="me/mine/too"))


def test_bases_that_only_this_machine_has(tmp_path: Path) -> None:
    on_hub = {"vlm_name_or_path": "google/gemma-3-4b-it", "world_name_or_path": "nvidia/Cosmos-Predict2-2B-Video2World"}
    shipped = {"vlm_name_or_path": "nano/gemma", "world_name_or_path": "nano/cosmos"}
    assert local_bases(on_hub) == local_bases(shipped) == []
    (world,) = local_bases({**on_hub, "world_name_or_path": "/gone/cosmos"})
    assert world.startswith("world_name_or_path is /gone/cosmos, a folder of this machine")
    assert local_bases({**on_hub, "world_name_or_path": str(tmp_path), "enable_world": False}) == []
    assert len(local_bases({"vlm_name_or_path": str(tmp_path), "world_name_or_path": "./world"})) == 2
