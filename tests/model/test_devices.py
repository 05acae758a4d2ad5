"""The dtype of a model follows the device, can be chosen everywhere, and is reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.tiny import TINY_SIZE, tiny_bases
from theworld import TheWorld
from theworld.cli import app
from theworld.model import devices
from theworld.model.devices import cpu_has_bfloat16  # before the fixture of all tests replaces it

QUESTION = "Which bin will the ball land in?"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtype")
    bases = tiny_bases(folder)
    model = TheWorld(bases["vlm_name_or_path"], cosmos_model_name=bases["world_name_or_path"], max_world_steps=4,
                     world_image_size=TINY_SIZE, device="cpu")  # fmt: skip
    model.config.reads_world_tokens = True
    model.save_pretrained(folder / "adapter")
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "now.png")
    return folder


@pytest.mark.parametrize(
    ("machine", "avx512", "amx", "expected"),
    [
        ("x86_64", True, False, True),
        ("AMD64", False, True, True),
        ("x86_64", False, False, False),
        ("aarch64", True, True, False),
    ],
)
def test_a_cpu_has_bfloat16_if_it_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch, machine: str, avx512: bool, amx: bool, expected: bool
) -> None:
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert cpu_has_bfloat16() is expected


@pytest.mark.parametrize("native", [True, False])
def test_the_default_dtype_is_what_the_device_computes_in(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: native)
    chosen = torch.bfloat16 if native else torch.float32
    assert devices.default_dtype(torch.device("cpu")) == chosen
    assert devices.default_dtype(torch.device("cuda")) == torch.bfloat16
    assert devices.default_dtype(torch.device("mps")) == torch.float32
    model = TheWorld.from_pretrained(adapter / "adapter", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {chosen}
    model = TheWorld.from_pretrained(adapter / "adapter", device="cpu", dtype="float32")
    assert model.model.dtype == torch.float32, "a dtype that the caller gives wins"


@pytest.mark.parametrize("dtype", ["float32", None])
def test_every_command_takes_a_dtype_and_reports_it(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    image, rollout, results = str(adapter / "now.png"), str(tmp_path / "a.gif"), str(tmp_path / "results.json")
    shared = ["--model", str(adapter / "adapter"), "--device", "cpu", "--steps", "1"]
    shared += [] if dtype is None else ["--dtype", dtype]
    used = dtype or "bfloat16"

    def run(*arguments: str) -> tuple[str, str]:
        result = CliRunner().invoke(app, [*arguments, *shared])
        assert result.exit_code == 0, result.output
        return result.stdout, result.stderr

    assert f"({used} on cpu)" in run("ask", image, QUESTION, "--max-new-tokens", "1")[1]
    assert json.loads(run("ask", image, QUESTION, "--max-new-tokens", "1", "--json")[0])["dtype"] == used
    assert f"({used} on cpu)" in run("imagine", image, "-o", rollout)[1]
    assert json.loads(run("imagine", image, "-o", rollout, "--json")[0])["dtype"] == used
    run("eval", "physics", "--arms", "fused", "--limit", "1", "--json", results)
    assert json.loads(Path(results).read_text())["dtype"] == used


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_the_plugin_takes_a_dtype_and_reports_it(adapter: Path, dtype: str | None) -> None:
    pytest.importorskip("lmms_eval")
    from loguru import logger

    from theworld.evaluation.lmms.model import TheWorldChat

    lines: list[str] = []
    handler = logger.add(lines.append, format="{message}")
    model = TheWorldChat(str(adapter / "adapter"), num_world_steps=1, device="cpu", dtype=dtype)
    logger.remove(handler)
    used = dtype or "float32"
    assert str(model.imagination.model.model.model.dtype) == f"torch.{used}"
    assert [line for line in lines if f"{used} on cpu" in line]
