"""doctor: what is true here before anything is fetched; a Hub on loopback, folders, the cache, and no network."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.loopback_hub import ACCEPTED, OTHER_ACCOUNT, LoopbackHub, files_of, use_endpoint
from theworld.cli import app
from theworld.inspection import machine, memory, readiness, repositories
from theworld.model.call_plan import plan_call
from theworld.model.configuration import TheWorldConfig
from theworld.model.processing import NO_CHAT_TEMPLATE
from theworld.model.published import published_gemma
from theworld.storage.hub import SHIPPED_WEIGHTS
from theworld.world_models.configuration import COSMOS_2B

GEMMA, COSMOS, ADAPTER = "google/gemma-3-4b-it", COSMOS_2B, "owner/tuned"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def report(*arguments: str | Path, works: bool = True) -> dict[str, Any]:
    """What doctor says as JSON, with the exit code that goes with it."""
    result = run(*arguments, "--json")
    content: dict[str, Any] = json.loads(result.stdout)
    assert content["works"] == works, content["findings"]
    assert result.exit_code == (0 if works else 1)
    return content


def problems(content: dict[str, Any]) -> list[str]:
    return [one["text"] for one in content["findings"] if one["fails"]]


def by_name(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in content["repositories"]}


@pytest.fixture(autouse=True)
def _plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with enough memory and disk, on any machine that runs the tests."""
    monkeypatch.setattr(machine, "free_ram", lambda: 2**40)
    monkeypatch.setattr(machine, "gpus", list)


@pytest.fixture(scope="module")
def loopback(family: Path) -> Iterator[LoopbackHub]:
    """The tiny models under the published names, both bases gated, and an adapter that names them."""
    adapter = files_of(family / "fused")
    config = json.loads(adapter["config.json"])
    adapter["config.json"] = json.dumps(
        {**config, "vlm_name_or_path": GEMMA, "world_name_or_path": COSMOS, "vlm_revision": None}
    ).encode()
    repositories = {
        GEMMA: {**files_of(family / "bases" / "gemma"), "README.md": b"x" * 5000, "original/model.safetensors": b"y"},
        COSMOS: {**files_of(family / "bases" / "cosmos"), "text_encoder/model.safetensors": b"z" * 9000},
        ADAPTER: adapter,
    }
    with LoopbackHub(repositories, gated=(GEMMA, COSMOS)) as server:
        yield server


def test_nano_works_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)  # asking it would be a finding
    content = report("--model", "nano")
    assert [row["where"] for row in content["repositories"]] == ["shipped"] * 3
    assert content["download_bytes"] == 0
    assert content["num_world_steps"] == 4
    assert content["findings"] == []
    text = run().stdout
    for expected in ("OK: this machine can run nano with 4 world steps.", "guardrail", "RAM", "nano/cosmos"):
        assert expected in text


def test_a_folder_with_its_bases(family: Path) -> None:
    content = report("--model", family / "fused", "--steps", "1")
    assert [row["access"] for row in content["repositories"]] == ["ok"] * 3
    assert "projector of this model is untrained" in report("--model", family / "untrained")["findings"][0]["text"]
    bases = family / "bases"
    assert len(report("--model", bases / "gemma", "--world-model", bases / "cosmos")["repositories"]) == 2


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_gemma_without_a_chat_template_cannot_answer(family: Path, tmp_path: Path, where: str) -> None:
    gemma = shutil.copytree(family / "bases" / "gemma", tmp_path / "gemma")
    template = (gemma / "chat_template.jinja").read_text()
    (gemma / "chat_template.jinja").unlink()
    world = ("--world-model", family / "bases" / "cosmos")
    (problem,) = problems(report(gemma, *world, works=False))
    assert problem == NO_CHAT_TEMPLATE.format(gemma), "the sentence with which `ask` would fail"
    if where == "chat_template.jinja":
        (gemma / where).write_text("")
        assert problems(report(gemma, *world, works=False)) == [problem], "an empty file is no template"
        (gemma / where).write_text(template)
    else:
        config = json.loads((gemma / where).read_text())
        (gemma / where).write_text(json.dumps({**config, "chat_template": template}))
    assert not problems(report(gemma, *world))


@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json"])
def test_a_gemma_without_its_processor_cannot_answer(family: Path, tmp_path: Path, file: str) -> None:
    gemma = shutil.copytree(family / "bases" / "gemma", tmp_path / "gemma")
    for path in gemma.glob(file if file.startswith("tokenizer") else "*processor_config.json"):
        path.unlink()
    (problem,) = problems(report(gemma, "--world-model", family / "bases" / "cosmos", works=False))
    assert str(gemma) in problem


def test_a_gemma_on_the_hub_is_asked_for_its_chat_template(
    loopback: LoopbackHub, family: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loopback.use(monkeypatch, tmp_path, ACCEPTED)
    files = loopback.repositories[GEMMA]
    monkeypatch.setitem(loopback.repositories, GEMMA, {n: f for n, f in files.items() if n != "chat_template.jinja"})
    assert problems(report("--model", ADAPTER, works=False)) == [NO_CHAT_TEMPLATE.format(GEMMA)]


def test_sizes_are_of_the_files_that_the_call_reads(
    loopback: LoopbackHub, family: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loopback.use(monkeypatch, tmp_path, ACCEPTED)
    loopback.fetched.clear()
    now, later = (report("--model", ADAPTER, "--steps", steps) for steps in ("0", "2"))
    assert not [name for name in loopback.fetched if not name.endswith("config.json")]  # no weights
    cosmos = family / "bases" / "cosmos"
    transformer = sum(path.stat().st_size for path in (cosmos / "transformer").glob("*.safetensors"))
    prompts = (cosmos / "prompt_embeds.safetensors").stat().st_size
    difference = by_name(later)[COSMOS]["needed_bytes"] - by_name(now)[COSMOS]["needed_bytes"]
    assert difference == transformer + prompts
    assert by_name(now)[GEMMA]["needed_bytes"] == sum(
        path.stat().st_size for path in (family / "bases" / "gemma").iterdir()
    )
    assert now["download_bytes"] <= sum(row["needed_bytes"] for row in now["repositories"])
    assert not [row for row in now["repositories"] if row["where"] != "hub" or row["access"] != "ok"]


def test_a_world_without_stored_prompts_needs_its_text_encoder_once(
    family: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cosmos = files_of(family / "bases" / "cosmos")
    del cosmos["prompt_embeds.safetensors"]
    encoder = {
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": b"z" * 9000,
        "tokenizer/tokenizer.json": b"{}",
    }
    repositories = {GEMMA: files_of(family / "bases" / "gemma"), COSMOS: {**cosmos, **encoder}}
    with LoopbackHub(repositories) as server:
        server.use(monkeypatch, tmp_path)
        content = report("--model", GEMMA, "--steps", "1")
        assert content["repositories"][-1]["role"] == "its text encoder"
        assert content["repositories"][-1]["needed_bytes"] == 9004
        assert len(report("--model", GEMMA, "--steps", "0")["repositories"]) == 2
    with LoopbackHub({**repositories, COSMOS: cosmos}) as server:
        server.use(monkeypatch, tmp_path / "other")
        assert "no text_encoder/config.json" in problems(report("--model", GEMMA, "--steps", "1", works=False))[0]


def test_prompts_that_an_adapter_keeps_need_no_text_encoder(family: Path, tmp_path: Path) -> None:
    models = shutil.copytree(family, tmp_path / "models")
    prompts = models / "bases" / "cosmos" / "prompt_embeds.safetensors"
    config = json.loads((models / "fused" / "config.json").read_text())
    bases = {"vlm_name_or_path": "gemma", "world_name_or_path": "cosmos"}
    named = {key: str(models / "bases" / name) for key, name in bases.items()}
    (models / "fused" / "config.json").write_text(json.dumps({**config, **named}))
    prompts.rename(models / "fused" / prompts.name)
    roles = [row["role"] for row in report("--model", models / "fused", "--steps", "1")["repositories"]]
    assert roles == ["adapter", "vision-language model", "world model"]
    (models / "fused" / prompts.name).unlink()
    without = report("--model", models / "fused", "--steps", "1", works=False)
    assert without["repositories"][-1]["role"] == "its text encoder"


def test_what_is_cached_is_not_downloaded_again_and_is_enough_offline(
    loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants, snapshot_download

    loopback.use(monkeypatch, tmp_path, ACCEPTED)
    for name in (ADAPTER, GEMMA, COSMOS):
        snapshot_download(name)
    assert report("--model", ADAPTER, "--steps", "2")["download_bytes"] == 0
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)
    content = report("--model", ADAPTER, "--steps", "2")
    assert {row["where"] for row in content["repositories"]} == {"cache"}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert report("--model", ADAPTER, "--steps", "2")["machine"]["offline"]
    weights = next((tmp_path / "hub").glob("models--google*/snapshots/*/model.safetensors"))
    weights.unlink()
    assert (
        "Hub access is disabled (HF_HUB_OFFLINE=1); unset it or pass a local folder."
        in problems(report("--model", ADAPTER, "--steps", "2", works=False))[0]
    )


@pytest.mark.parametrize(
    ("token", "says"), [(None, "there is no token"), (OTHER_ACCOUNT, "not accepted by the account of this token")]
)
def test_a_gated_base_says_the_page_to_visit(
    loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None, says: str
) -> None:
    loopback.use(monkeypatch, tmp_path, token)
    content = report("--model", GEMMA, "--steps", "1", works=False)
    assert len(problems(content)) == 2
    for text, name in zip(problems(content), (GEMMA, COSMOS), strict=True):
        assert says in text
        assert f"{loopback.url}/{name}" in text
    # the sizes are public, and the published configurations are known: memory is predicted all the same
    assert by_name(content)[GEMMA]["needed_bytes"] > 0
    assert content["memory"][0]["predicted"] > 4 * 4_300_079_472
    assert "gated" in run("--model", GEMMA).stdout


def test_a_token_that_nobody_knows(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loopback.use(monkeypatch, tmp_path, "hf_of_yesterday")
    said = problems(report("--model", GEMMA, works=False))
    assert "does not know this token" in said[0]
    assert "hf_of_yesterday" not in run("--model", GEMMA).stdout


def test_no_network_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)
    content = report("--model", GEMMA, works=False)
    assert "check the network and http://127.0.0.1:9" in problems(content)[0]
    assert not content["machine"]["offline"], "it was not requested"
    assert content["memory"]
    assert list(tmp_path.rglob("*.*")) == []


def test_what_is_no_model(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loopback.use(monkeypatch, tmp_path)
    assert "no public repository some/nothing" in problems(report("--model", "some/nothing", works=False))[0]
    loopback.use(monkeypatch, tmp_path, ACCEPTED)
    assert "that this token may read" in problems(report("--model", "some/nothing", works=False))[0]
    assert "no folder nowhere" in problems(report("--model", "nowhere", works=False))[0]
    assert "not shipped" in problems(report("--model", "nano/huge", works=False))[0]
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "'llama' model" in problems(report("--model", tmp_path, works=False))[0]
    assert "takes 0 to 4" in problems(report("--model", "nano", "--steps", "9", works=False))[0]
    config = json.loads((SHIPPED_WEIGHTS / "fused" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "has no model.safetensors" in problems(report("--model", tmp_path, works=False))[0]


def test_too_little_disk_or_memory(loopback: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loopback.use(monkeypatch, tmp_path, ACCEPTED)
    monkeypatch.setattr(repositories, "free_disk", lambda folder: 1000)
    monkeypatch.setattr(machine, "free_ram", lambda: 1000)
    said = " ".join(problems(report("--model", ADAPTER, works=False)))
    assert "set HF_HOME" in said
    assert "GiB of RAM" in said


def test_a_gpu_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "Card", "total_bytes": 2**33, "free_bytes": 2**20}
    monkeypatch.setattr(machine, "gpus", lambda: [card])
    content = report("--model", "nano", works=False)
    assert [row["of"] for row in content["memory"]] == ["RAM", "GPU"]
    assert "GiB of GPU" in problems(content)[0]


def test_missing_libraries_and_a_missing_guardrail(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    content = report("--model", family / "fused")
    assert content["machine"]["guardrail"] is None
    assert any("cosmos_guardrail" in one["text"] for one in content["findings"])
    monkeypatch.setattr(
        readiness.importlib.metadata, "requires", lambda name: ["torch>=99", "no-such-package>=1", "x; extra == 'y'"]
    )
    said = problems(report("--model", family / "fused", works=False))
    assert [text.split()[0] for text in said] == ["torch", "no-such-package"]


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert repositories.free_disk(tmp_path / "a" / "b") > 0
    free = machine.free_ram()
    assert free is None or free > 0


def test_stars_do_not_reach_into_folders() -> None:
    names = ["model.safetensors", "original/model.safetensors", "vae/config.json"]
    assert repositories.matching(names, ("*.safetensors",)) == ["model.safetensors"]
    assert repositories.matching(names, ("vae/*",)) == ["vae/config.json"]


def predict(config: TheWorldConfig, text_encoder: int = 0) -> list[dict[str, Any]]:
    return readiness.predict_memory(config, plan_call(config, num_world_steps=4), text_encoder)


def test_memory_counts_the_text_encoder_of_a_first_rollout_and_imagined_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = TheWorldConfig(vlm_config=published_gemma(GEMMA))
    encoder = 30 * 2**30
    (ram,), (more,) = predict(config), predict(config, encoder)
    assert more["predicted"] - ram["predicted"] > encoder // 2, "the largest moment instead of a smaller one"
    card = {"name": "a card", "total_bytes": 2**40, "free_bytes": 2**40}
    monkeypatch.setattr(machine, "gpus", lambda: [card])
    (ram, gpu), (with_encoder, same_gpu) = predict(config), predict(config, encoder)
    assert gpu == same_gpu, "where a GPU has no room for it, it runs on the CPU"
    process = memory.LIBRARIES + memory.TOKENIZER_ROW * config.get_text_config().vocab_size
    assert with_encoder["predicted"] == encoder + process > ram["predicted"]
    # an untrained projector is answered from frames, which are decoded; a trained one reads tokens
    config.reads_world_tokens = True
    assert predict(config)[1]["predicted"] != gpu["predicted"]
