"""What people get wrong, and odd things that are right: each through the command itself.

A wrong input is one sentence that says what was wrong, where and what to do, exit code 1, no traceback, and nothing
written. An odd image that is sound gets an answer.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from tests import commands
from tests.loopback_hub import ACCEPTED, LoopbackHub, files_of, use_endpoint
from tests.tiny import tiny_gemma_folder
from theworld.cli import app
from theworld.cli.loading import go_offline_if_unreachable
from theworld.storage.hub import hub_answers

QUESTION = "Which bin will the ball land in?"
GEMMA, COSMOS = "google/gemma-3-4b-it", "nvidia/Cosmos-Predict2-2B-Video2World"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fail(*arguments: str | Path) -> str:
    """The one sentence of a command that fails as it should."""
    result = run(*arguments)
    assert result.exit_code == 1, result.output + repr(result.exception)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert line.endswith((".", "?"))
    return line.removeprefix("Error: ")


def ask(model: Path | str, image: Path, *options: str) -> str:
    return fail("ask", image, QUESTION, "--model", model, "--max-new-tokens", "2", *options)


def image_of(folder: Path, name: str = "now.png") -> Path:
    path = folder / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_of(tmp_path_factory.mktemp("images"))


@pytest.fixture
def own(family: Path, tmp_path: Path) -> Path:
    """A copy of the tiny models that a test may damage; `fused` uses the bases in the same folder."""
    folder = tmp_path / "models"
    shutil.copytree(family, folder)
    change(
        folder / "fused" / "config.json",
        vlm_name_or_path=str(folder / "bases" / "gemma"),
        world_name_or_path=str(folder / "bases" / "cosmos"),
    )
    return folder


def change(config: Path, **values: Any) -> None:
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


# --------------------------------------------------------------------------------------------------------- images


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises 8-bit RGB of this size, with almost nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def write_text(path: Path) -> None:
    path.write_text("not an image")


def cut(path: Path) -> None:
    path.write_bytes(image_of(path.parent, "whole.png").read_bytes()[:200])


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


BAD_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "There is no file"),
    "empty": (Path.touch, "is empty (0 bytes)"),
    "text": (write_text, "not an image that can be read"),
    "cut": (cut, "damaged or cut short"),
    "bomb": (lambda path: path.write_bytes(png(40_000, 40_000)), "make it smaller"),
    "large": (lambda path: path.write_bytes(png(10_000, 10_000)), "make it smaller"),
    "no pixels": (lambda path: path.write_bytes(png(0, 4)), "not an image that can be read"),
    "folder": (Path.mkdir, "is a directory"),
    "pipe": (make_pipe, "not an ordinary file"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images(kind: str, family: Path, tmp_path: Path) -> None:
    make, says = BAD_IMAGES[kind]
    path = tmp_path / f"{kind}.png"
    make(path)
    before = sorted(tmp_path.iterdir())
    for said in (
        ask(family / "fused", path),
        fail("imagine", path, "-o", tmp_path / "future.gif", "--model", family / "fused"),
    ):
        assert says in said
        assert path.name in said
    assert sorted(tmp_path.iterdir()) == before


def test_a_image_that_may_not_be_read(family: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    said = ask(family / "fused", image)
    assert "Permission denied" in said
    assert "permissions" in said


def test_a_bad_image_among_good_ones_is_named(family: Path, image: Path) -> None:
    said = fail("ask", image, "nowhere.png", QUESTION, "--model", family / "fused")
    assert said.startswith("Image 2 of 2: There is no file 'nowhere.png'")


def odd_images(folder: Path) -> list[Path]:
    """Sound images of every kind that people have lying about."""
    pixels = np.random.default_rng(1).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "one.png": (rgb.resize((1, 1)), {}),
        "wide.png": (rgb.resize((3000, 1)), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "palette.png": (rgb.quantize(8), {}),
        "deep.png": (Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        "alpha.png": (rgb.convert("RGBA"), {}),
        "greyalpha.png": (rgb.convert("LA"), {}),
        "bits.png": (rgb.convert("1"), {}),
        "float.tiff": (Image.fromarray(pixels[..., 0].astype(np.float32) / 255), {}),
        "turned.jpg": (rgb, {"exif": turned}),
        "moving.gif": (rgb, {"save_all": True, "append_images": frames}),
        "moving.png": (rgb, {"save_all": True, "append_images": frames}),
        "lossless.webp": (rgb, {"lossless": True}),
    }
    for name, (image, options) in kinds.items():
        image.save(folder / name, **options)
    return [folder / name for name in kinds]


def test_odd_images_are_answered(family: Path, tmp_path: Path) -> None:
    paths = odd_images(tmp_path)
    result = run("ask", *paths, QUESTION, "--model", family / "fused", "--max-new-tokens", "2", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == [str(path) for path in paths]
    notes = result.stderr.splitlines()
    assert notes
    assert all(line.startswith("Note: ") and "of which the first is read" in line for line in notes)
    for path in paths[:2]:
        imagined = run("imagine", path, "-o", tmp_path / "future.gif", "--model", family / "fused", "--steps", "1")
        assert imagined.exit_code == 0, imagined.output


# ----------------------------------------------------------------------------------------------------------- models


def test_more_steps_than_the_model_has(
    family: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from theworld.inference.pipeline import TheWorld

    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("weights were loaded first")

    monkeypatch.setattr(TheWorld, "__init__", load)
    for said in (
        ask(family / "fused", image, "--steps", "5"),
        fail("imagine", image, "-o", tmp_path / "a.gif", "--model", family / "fused", "--steps", "5"),
        fail("eval", "physics", "--model", family / "fused", "--limit", "1", "--steps", "5"),
    ):
        assert "at most 4 world steps, and 5 were requested" in said
    said = fail("imagine", image, "-o", tmp_path / "a.gif", "--model", family / "fused", "--fps", "99999")
    assert "fps is 99999" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-model", "There is no folder no-such-model"),
        ("./no/such/folder", "There is no folder ./no/such/folder"),
        ("nano/huge", "not shipped"),
        ("owner/nothing", "Hub access is disabled (HF_HUB_OFFLINE=1); unset it or pass a local folder."),
    ],
)
def test_an_unknown_model(image: Path, name: str, says: str) -> None:
    assert says in ask(name, image)
    assert says.split()[-1] in ask(name, image)


def test_a_folder_that_is_no_model(image: Path, tmp_path: Path) -> None:
    assert "has no config.json" in ask(tmp_path, image)
    (tmp_path / "config.json").write_text('{"model_type": "theworld", ')
    assert "is not valid JSON" in ask(tmp_path, image)
    (tmp_path / "config.json").write_text("[]")
    assert "no JSON object" in ask(tmp_path, image)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_world_step": 2}, "no key 'num_world_step'; did you mean 'num_world_steps'?"),
        ({"projecter": "mlp"}, "no key 'projecter'; did you mean 'projector'?"),
        ({"zzz": 1}, "no key 'zzz'; choose one of vlm_config"),
        ({"num_world_steps": "four"}, "num_world_steps is 'four'; give a whole number"),
        ({"max_world_steps": None}, "max_world_steps is None; it must be an integer"),
        ({"world_image_size": 33}, "must be a multiple of"),
        ({"projector": "cnn"}, "choose one of linear"),
        ({"vlm_config": 7}, "vlm_config is 7"),
    ],
)
def test_a_config_that_is_wrong(own: Path, image: Path, changes: dict[str, Any], says: str) -> None:
    change(own / "fused" / "config.json", **changes)
    said = ask(own / "fused", image)
    assert says in said
    assert f"The config.json of {own / 'fused'} is wrong" in said


def test_a_world_config_that_is_wrong(own: Path, image: Path) -> None:
    config = own / "fused" / "config.json"
    world = json.loads(config.read_text())["world_config"]
    change(config, world_config={**world, "guidance": 2.0})
    assert "no key 'guidance'; did you mean 'guidance_scale'?" in ask(own / "fused", image)


def tampered(tensors: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    first = sorted(tensors)[0]
    if kind == "missing":
        return {name: tensor for name, tensor in tensors.items() if name != first}
    if kind == "unexpected":
        return {**tensors, "another": torch.zeros(2)}
    if kind == "shape":
        return {**tensors, first: torch.zeros(3, 5)}
    return {**tensors, first: tensors[first] * float("nan")}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "1 tensor missing"),
        ("unexpected", "1 tensor unexpected (another)"),
        ("shape", "is (3, 5) there"),
        ("numbers", "non-finite values"),
    ],
)
def test_an_adapter_that_was_tampered_with(own: Path, image: Path, kind: str, says: str) -> None:
    weights = own / "fused" / "model.safetensors"
    save_file(tampered(load_file(weights), kind), weights)
    said = ask(own / "fused", image)
    assert says in said
    assert str(own / "fused") in said


@pytest.mark.parametrize(
    "weights",
    [
        "fused/model.safetensors",
        "bases/gemma/model.safetensors",
        "bases/cosmos/vae/diffusion_pytorch_model.safetensors",
    ],
)
@pytest.mark.parametrize("keep", [0, 4, 500, -8])
def test_weights_that_are_cut_short(own: Path, image: Path, weights: str, keep: int) -> None:
    path = own / weights
    path.write_bytes(path.read_bytes()[:keep])
    said = ask(own / "fused", image)
    assert "damaged or cut short" in said
    assert str(own) in said


def test_a_header_that_was_tampered_with(own: Path, image: Path) -> None:
    path = own / "fused" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[10:14] = b"!!!!"
    path.write_bytes(content)
    assert "damaged or cut short" in ask(own / "fused", image)
    content[:8] = (2**62).to_bytes(8, "little")  # a header as long as the world
    path.write_bytes(content)
    assert "damaged or cut short" in ask(own / "fused", image)


def test_a_checkpoint_of_another_base(own: Path, image: Path) -> None:
    other = tiny_gemma_folder(own / "other", hidden_size=48)
    change(own / "fused" / "config.json", vlm_name_or_path=str(other))
    assert "saved with another base model" in ask(own / "fused", image)


class RunsCode:
    """Pickled, it makes a file when owner loads it."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


def test_code_in_a_pickle_is_not_run(own: Path, image: Path, tmp_path: Path) -> None:
    from theworld.inference.pipeline import TheWorld

    witness = tmp_path / "it-ran"
    pickled = tmp_path / "pytorch_model.bin"
    torch.save({"projector.row": RunsCode(witness)}, pickled)

    (own / "fused" / "model.safetensors").rename(own / "kept")
    shutil.copy(pickled, own / "fused" / "pytorch_model.bin")
    assert "has no model.safetensors" in ask(own / "fused", image)
    with pytest.raises(ValueError, match="it was not loaded"):
        TheWorld.from_pretrained(own / "fused", checkpoint_name="pytorch_model.bin", device="cpu")
    shutil.copy(pickled, own / "fused" / "model.safetensors")  # under a name that promises better
    assert "damaged or cut short" in ask(own / "fused", image)

    (own / "kept").replace(own / "fused" / "model.safetensors")
    (own / "bases" / "gemma" / "model.safetensors").unlink()
    shutil.copy(pickled, own / "bases" / "gemma")
    ask(own / "fused", image)
    assert not witness.exists()


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 3}'])
def test_a_tokenizer_that_is_missing_or_broken(own: Path, image: Path, content: str | None) -> None:
    path = own / "bases" / "gemma" / "tokenizer.json"
    path.unlink() if content is None else path.write_text(content)
    said = ask(own / "fused", image)
    assert "tokenizer or image processor" in said
    assert str(own / "bases" / "gemma") in said


def test_a_base_that_is_gone(own: Path, image: Path) -> None:
    shutil.rmtree(own / "bases" / "cosmos")
    said = ask(own / "fused", image)
    assert "there is no such folder" in said
    assert "world_name_or_path in the config.json" in said
    shutil.rmtree(own / "bases" / "gemma")
    assert str(own / "bases" / "gemma") in ask(own / "fused", image)


def test_a_world_model_for_a_model_that_has_one(family: Path, image: Path) -> None:
    assert "is already fused with" in ask(family / "fused", image, "--world-model", family / "bases" / "cosmos")


def test_questions_that_are_none(family: Path, image: Path) -> None:
    model = ("--model", family / "fused", "--steps", "0")
    for empty in ("", " \n"):
        result = run("ask", image, empty, "--model", "no/such-model")
        assert result.exit_code == 2
        assert "then the question, in quotes" in " ".join(result.stderr.replace("│", " ").split())
    assert run("ask", image, "What <end_of_turn> is it?", *model).exit_code == 0  # words, and no control token
    assert "is not valid UTF-8 text" in run("ask", image, "What \udcff is it?", *model).stderr.splitlines()[-1]


def test_devices_that_cannot_answer(family: Path, image: Path) -> None:
    for device in ("meta", "xla", "cuda:99", "gpu", ""):
        assert f"--device {device}" in ask(family / "fused", image, "--device", device)


def test_names_that_lead_nowhere(family: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    assert "There is no folder" in ask(tmp_path / "one", image)
    assert "There is no file" in ask(family / "fused", tmp_path / "one")
    assert "There is no folder ''" in ask("", image)
    assert "not shipped" in ask(f"nano/../../../../../../../../../..{family / 'fused'}", image)
    monkeypatch.setenv("HOME", str(family))
    assert run("info", "~/fused").exit_code == 0, "--model=~/fused reaches us as it is"


def test_a_terminal_of_another_alphabet(family: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run_into(subprocess.PIPE, "info", str(family / "fused"), env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert "a 4?4 latent grid" in done.stdout


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Inside, the system says that this account may not read a file; root may read everything."""
    with pytest.MonkeyPatch.context() as patch:
        access = os.access
        patch.setattr(os, "access", lambda place, mode: Path(place) != path and access(place, mode))
        yield


def test_weights_that_may_not_be_read(family: Path, image: Path) -> None:
    weights = family / "fused" / "model.safetensors"
    with unreadable(weights):
        assert ask(family / "fused", image) == f"Permission denied: {weights}; check its permissions."
        result = run("doctor", "--model", family / "fused")
    assert result.exit_code == 1
    assert f"{weights} may not be read by this account" in " ".join(result.stdout.split())


# ---------------------------------------------------------------------------------------------------------- the Hub


@pytest.fixture(scope="module")
def loopback(family: Path) -> Iterator[LoopbackHub]:
    adapter = files_of(family / "fused")
    names = {"vlm_name_or_path": GEMMA, "world_name_or_path": COSMOS}
    adapter["config.json"] = json.dumps({**json.loads(adapter["config.json"]), **names}).encode()
    repositories = {
        GEMMA: files_of(family / "bases" / "gemma"),
        COSMOS: files_of(family / "bases" / "cosmos"),
        "owner/tuned": adapter,
    }
    with LoopbackHub(repositories, gated=(GEMMA, COSMOS)) as server:
        yield server


def test_a_gated_model_without_a_token(
    loopback: LoopbackHub, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.use(monkeypatch, tmp_path)
    for model in (GEMMA, "owner/tuned"):  # itself, and as the base of a model that anybody may read
        said = ask(model, image)
        assert "gated" in said
        assert GEMMA in said
    assert not [name for name in loopback.fetched if name.startswith((GEMMA, COSMOS))]


def test_a_repository_that_is_not_there(
    loopback: LoopbackHub, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback.use(monkeypatch, tmp_path)
    assert "owner/nothing" in ask("owner/nothing", image)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that owner wanted to wait, without the waiting; the Hub was never asked before."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub_answers.cache_clear()
    return waits


def test_no_network(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    said = ask("owner/tuned", image)
    assert "owner/tuned" in said
    assert "network" in said
    assert sum(waited) == 1, "the Hub's client would wait for 23 seconds"


def test_without_a_network_the_cache_is_enough_and_at_once(
    loopback: LoopbackHub,
    family: Path,
    image: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waited: list[float],
) -> None:
    from huggingface_hub import snapshot_download

    loopback.use(monkeypatch, tmp_path, ACCEPTED)
    for name in (GEMMA, COSMOS, "owner/tuned"):
        snapshot_download(name)
    bases = {"vlm_name_or_path": GEMMA, "world_name_or_path": COSMOS}
    change(shutil.copytree(family / "fused", tmp_path / "here") / "config.json", **bases)
    short = ("--steps", "1", "--max-new-tokens", "2", "--device", "cpu")
    for model in ("owner/tuned", str(tmp_path / "here"), GEMMA):  # the bases of a folder are on the Hub, too
        use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)
        hub_answers.cache_clear()
        waited.clear()
        result = run("ask", image, QUESTION, "--model", model, "--no-world", *short)
        assert result.exit_code == 0, result.output
        assert "http://127.0.0.1:9 does not answer, so only the local cache was used." in result.stderr
        assert sum(waited) == 1


def test_a_hub_that_refuses_is_there(
    loopback: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    from huggingface_hub import constants

    loopback.use(monkeypatch, tmp_path)
    go_offline_if_unreachable("owner/nothing")  # its front page is a 404
    assert not constants.HF_HUB_OFFLINE, "a download keeps its own patience"
    go_offline_if_unreachable("nano")
    go_offline_if_unreachable("no-such-model")
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)
    go_offline_if_unreachable("nano")  # a local folder: the Hub is not asked
    assert not constants.HF_HUB_OFFLINE
    go_offline_if_unreachable("owner/nothing")
    assert constants.HF_HUB_OFFLINE


# ------------------------------------------------------------------------------------------------------ a full disk


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, the system refuses to make a file longer than this, in the middle of writing it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("extension", ["gif", "mp4", "png"])
def test_a_rollout_that_does_not_fit_on_the_disk(family: Path, image: Path, tmp_path: Path, extension: str) -> None:
    output = tmp_path / f"future.{extension}"
    with files_of_at_most(300):
        said = fail("imagine", image, "-o", output, "--steps", "1", "--model", family / "fused")
    assert output.name in said
    assert "choose another path" in said
    assert list(tmp_path.iterdir()) == []


def test_results_that_do_not_fit_on_the_disk(family: Path, tmp_path: Path) -> None:
    arguments = ("eval", "physics", "--model", family / "fused", "--limit", "1", "--steps", "1", "--device", "cpu")
    with files_of_at_most(100):
        result = run(*arguments, "--json", tmp_path / "results.json")
    assert result.exit_code == 1
    assert "free some space, or choose another path" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_scene_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    for options in (("-o", tmp_path / "a.png"), ("--truth", tmp_path / "a.gif")):
        with files_of_at_most(50):
            assert "choose another path" in fail("nano", "scene", "drop", *options)
    assert list(tmp_path.iterdir()) == []


def test_no_space_left(family: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", half)
    (tmp_path / "future.gif").touch()  # an earlier file, which is kept
    said = fail("imagine", image, "-o", tmp_path / "future.gif", "--steps", "1", "--model", family / "fused")
    assert "No space left on device" in said
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("future.gif", 0)]


def test_a_place_that_cannot_be_written_is_told_before_anything_runs(family: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "a.gif").mkdir()
    place = tmp_path / "file" / "a.gif"
    model = ("--model", "no/such-model")
    assert "is not a writable folder" in fail("imagine", image, "-o", place, *model)
    assert "is a folder" in fail("imagine", image, "-o", tmp_path / "a.gif", *model)
    assert "is not a writable folder" in fail("eval", "physics", *model, "--json", tmp_path / "file" / "r.json")
    for option, name in (("-o", "a.png"), ("--truth", "a.gif")):
        assert "is not a writable folder" in fail("nano", "scene", "drop", option, tmp_path / "file" / name)


# before a verb, in a verb, and through rich, which writes by itself
WRITES = [("--version",), ("--help",), ("nano", "scene", "drop", "--json"), ("eval", "physics", "--arms", "list")]


def run_into(stdout: Any, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*commands.client(), "-m", "theworld.cli", *arguments]
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **options
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", WRITES, ids=" ".join)
def test_a_full_disk_behind_stdout(arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        done = run_into(full, *arguments)
    assert done.returncode == 1
    assert done.stderr.strip() == "Error: No space left on device; free some space, or choose another path."


@pytest.mark.parametrize("arguments", WRITES, ids=" ".join)
def test_a_reader_that_has_gone_is_no_error_to_talk_about(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run_into(writing, *arguments)
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_closed_stdout_takes_nothing_and_harms_nothing(family: Path, image: Path) -> None:
    arguments = ("ask", str(image), QUESTION, "--model", str(family / "fused"), "--max-new-tokens", "2")
    done = run_into(None, *arguments, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
