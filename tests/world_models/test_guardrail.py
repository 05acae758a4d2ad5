"""The guardrail runs exactly if there is something to check on NVIDIA's weights, and leaves autograd unchanged.

The real package downloads gated models. A stand-in of its interface is put on sys.path, with its worst habit: importing
it switches autograd off for the whole process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from tests.world_models.guardrail_stand_in import guardrail_calls, guardrail_installed
from tests.world_models.tiny import hub_copy, tiny_published_folder, tiny_world, tiny_world_config, tiny_world_folder
from theworld.storage.hub import resolve
from theworld.world_models import guardrail
from theworld.world_models.cosmos_predict2 import CosmosPredict2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with guardrail_installed(tmp_path / "site", monkeypatch):
        yield
    assert torch.is_grad_enabled()


@pytest.mark.usefixtures("package")
def test_the_stand_in_has_the_habit() -> None:
    try:
        import cosmos_guardrail  # noqa: F401

        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.usefixtures("package")
def test_autograd_is_as_it_was() -> None:
    guardrail.check_prompt("a cup")
    assert torch.is_grad_enabled()
    guardrail.check_frames(np.zeros((1, 2, 4, 4, 3), np.uint8))
    assert torch.is_grad_enabled()
    with pytest.raises(ValueError, match="refuses"):
        guardrail.check_prompt("a weapon")
    assert torch.is_grad_enabled()
    with torch.no_grad():
        guardrail.check_prompt("a cup")
        assert not torch.is_grad_enabled()


@pytest.mark.usefixtures("package")
def test_it_is_loaded_once_and_waits_on_the_cpu() -> None:
    guardrail.check_prompt("a cup", "meta")
    for _ in range(2):
        guardrail.check_prompt("a ball", "meta")
    assert guardrail_calls() == ["loaded", "meta", "a cup", "cpu", "meta", "a ball", "cpu"]


@pytest.mark.usefixtures("package")
def test_frames_come_back_as_it_gives_them() -> None:
    frames = np.full((2, 5, 4, 4, 3), 100, np.uint8)
    checked = guardrail.check_frames(frames)
    assert checked.dtype == np.uint8
    assert (checked == 50).all()
    assert guardrail_calls().count((5, 4, 4, 3)) == 2, "clip by clip"
    frames[1] = 255
    with pytest.raises(ValueError, match="refuses the imagined frames"):
        guardrail.check_frames(frames)


def test_absent_it_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    guardrail._checker.cache_clear()
    monkeypatch.setattr(guardrail, "PACKAGE", "no_such_guardrail")
    for ask in (guardrail.require_installed, lambda: guardrail.check_prompt("a cup")):
        with pytest.raises(
            ValueError, match=r"not installed; install it with `uv pip install --python .* cosmos_guardrail`"
        ):
            ask()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_dependency", r"cannot be imported \(No module named 'no_such_dependency'\)"),
        ("def CosmosSafetyChecker(): raise OSError('gated repo')", r"could not load its models \(gated repo\)"),
    ],
)
def test_what_fails_inside_it_is_a_sentence(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "site" / "cosmos_guardrail" / "__init__.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        guardrail.check_prompt("a cup")


# -- whose weights ----------------------------------------------------------------------------------------------------


def test_weights_of_our_own_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tiny_world().needs_guardrail, "built from a config, so its weights are not NVIDIA's"
    folder = tiny_world_folder(tmp_path / "own")
    assert not CosmosPredict2.from_pretrained(folder).needs_guardrail
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert not CosmosPredict2.from_pretrained(hub_copy(folder, tmp_path / "hub", "someone/own")).needs_guardrail


def test_the_shipped_model_needs_none() -> None:
    folder = resolve("nano/cosmos")
    world = CosmosPredict2.from_pretrained(folder, parts=("encoder",))
    assert not world.needs_guardrail
    record = json.loads((Path(folder) / "rollout_config.json").read_text())
    assert record["weights_from"] == "own", "said, not guessed"


def test_nvidias_weights_need_it_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = tiny_published_folder(tmp_path / "a-folder-of-my-own-naming")
    world = CosmosPredict2.from_pretrained(published)
    assert world.needs_guardrail, "a folder that does not say whose weights it holds"
    world.load_parts("encoder", "decoder", "transformer")
    world.save_pretrained(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned" / "rollout_config.json").read_text())["weights_from"] == "nvidia"
    assert CosmosPredict2.from_pretrained(tmp_path / "tuned").needs_guardrail, "saving passes it on"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    own = tiny_world_folder(tmp_path / "own")
    for name in ("nvidia/Cosmos-Tiny", "NVIDIA/Cosmos-Tiny"):
        world = CosmosPredict2.from_pretrained(hub_copy(own, tmp_path / "hub", name), parts=("encoder",))
        assert world.needs_guardrail, "NVIDIA's repositories, independent of their content"


def test_there_are_two_answers() -> None:
    with pytest.raises(ValueError, match="weights_from is 'mine'; choose one of own, nvidia"):
        tiny_world_config(weights_from="mine")
