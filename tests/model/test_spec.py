"""Claims about names of models: each is resolved once, without weights, and Python and the command line agree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from typer.testing import CliRunner

from tests.evaluation.tiny_family import tiny_family
from tests.world_models.tiny import TINY_SIZE
from theworld import TheWorld
from theworld.cli import app
from theworld.inference.world_runner import warn_once
from theworld.model.call_plan import plan_call, steps_to_imagine
from theworld.model.configuration import TheWorldConfig
from theworld.model.spec import resolve_model
from theworld.storage.hub import SHIPPED_WEIGHTS

QUESTION = "Which bin will the ball land in?"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_family(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "now.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    return path


CONFIG_FILES = ("config.json", "model_index.json", "rollout_config.json", "scheduler_config.json")
counters: list[Counter[Path]] = []


def count_opened(event: str, arguments: tuple[Any, ...]) -> None:
    """Counts every file that Python opens, by any library, while a counter is active."""
    if counters and event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(CONFIG_FILES):
        path = Path(arguments[0])
        if path.name in CONFIG_FILES:
            counters[-1][path.resolve()] += 1


sys.addaudithook(count_opened)


@pytest.fixture
def opened() -> Iterator[Counter[Path]]:
    """How often each config file was opened."""
    counters.append(Counter())
    yield counters[-1]
    counters.clear()


def run(*arguments: object) -> int:
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code


@pytest.mark.parametrize(
    ("command", "model", "options", "exit_code"),
    [
        ("ask", "fused", ("--steps", "1"), 0),
        ("ask", "fused", ("--steps", "1", "--mode", "frames"), 0),
        ("ask", "fused", ("--mode", "tokens", "--prompt", "it falls"), 1),  # this world model takes no prompts
        ("ask", "untrained", ("--steps", "1"), 0),
        ("ask", "bases/gemma", ("--steps", "0"), 0),
        ("imagine", "fused", ("--steps", "1"), 0),
        ("imagine", "untrained", ("--steps", "1"), 0),
    ],
)
def test_a_command_reads_each_config_once(
    family: Path,
    image: Path,
    tmp_path: Path,
    opened: Counter[Path],
    command: str,
    model: str,
    options: tuple[str, ...],
    exit_code: int,
) -> None:
    own = (QUESTION, "--max-new-tokens", "2") if command == "ask" else ("-o", tmp_path / "future.png")
    assert run(command, image, *own, "--model", family / model, "--device", "cpu", *options) == exit_code
    assert opened[(family / model / "config.json").resolve()] == 1
    assert set(opened.values()) == {1}, opened


def test_a_new_fusion_reads_each_config_once(family: Path, opened: Counter[Path]) -> None:
    bases = family / "bases"
    TheWorld(bases / "gemma", 1, str(bases / "cosmos"), world_image_size=TINY_SIZE, device="cpu")
    assert opened[(bases / "gemma" / "config.json").resolve()] == 1
    assert opened[(bases / "cosmos" / "transformer" / "config.json").resolve()] == 1
    assert set(opened.values()) == {1}, opened


def with_tokens(family: Path, folder: Path, *tokens: str) -> Path:
    """A copy of the tiny Gemma whose tokenizer has more tokens."""
    gemma = shutil.copytree(family / "bases" / "gemma", folder)
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(gemma)
    return gemma


def test_a_gemma_with_more_tokens_is_fused_at_the_next_free_row(family: Path, image: Path, tmp_path: Path) -> None:
    gemma = with_tokens(family, tmp_path / "gemma", "<tool_call>", "</tool_call>")
    world = str(family / "bases" / "cosmos")
    model = TheWorld(gemma, 1, world, world_image_size=TINY_SIZE, device="cpu")
    assert model.config.world_token_id == model.config.vlm_config.image_token_id + 3
    assert run("doctor", gemma, "--world-model", world) == 0
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert saved["world_token_id"] == model.config.world_token_id
    loaded = TheWorld.from_pretrained(tmp_path / "adapter", device="cpu")
    asked = loaded.prepare(image, QUESTION, num_world_steps=1)["input_ids"]
    assert int((asked == saved["world_token_id"]).sum()) == loaded.config.world_token_count(1)
    assert resolve_model(gemma, world_model=world, world_token_id=320).config.world_token_id == 320


def test_a_gemma_without_a_free_row(family: Path, tmp_path: Path) -> None:
    """`doctor` says what loading says, and what it advises works."""
    gemma = with_tokens(family, tmp_path / "gemma", *(f"<{number}>" for number in range(7)))
    world = str(family / "bases" / "cosmos")
    with pytest.raises(ValueError, match=r"All 323 rows .* are used, .*: save it again with .*\(324\)") as error:
        TheWorld(gemma, 1, world, device="cpu")
    result = CliRunner().invoke(app, ["doctor", str(gemma), "--world-model", world, "--json"])
    assert result.exit_code == 1
    assert str(error.value) in [one["text"] for one in json.loads(result.stdout)["findings"]]
    larger = AutoModelForImageTextToText.from_pretrained(gemma)
    larger.resize_token_embeddings(324)
    larger.save_pretrained(gemma)
    assert TheWorld(gemma, 1, world, world_image_size=TINY_SIZE, device="cpu").config.world_token_id == 323


def test_a_checkpoint_inside_a_model_is_resolved(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "direct", tmp_path / "run" / "checkpoint-3")
    spec = resolve_model(tmp_path / "run", checkpoint_name="checkpoint-3")
    assert spec.is_fused
    assert spec.config.trained_parts == ["vision", "language"]
    with pytest.raises(ValueError, match=r"has no config\.json"):
        resolve_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("trained", "arguments", "expected"),
    [
        (True, {}, ("tokens", 2, ("encoder", "transformer"))),
        (True, {"num_world_steps": 0}, ("tokens", 0, ("encoder",))),
        (True, {"mode": "frames"}, ("frames", 2, ("encoder", "transformer", "decoder"))),
        (True, {"mode": "frames", "num_world_steps": 0}, ("off", 0, ())),
        (True, {"enable_world": False}, ("off", 0, ())),
        (False, {}, ("frames", 2, ("encoder", "transformer", "decoder"))),
        (False, {"num_world_steps": 0}, ("off", 0, ())),
        (False, {"num_world_steps": 0, "num_past_steps": 1}, ("frames", 0, ("encoder",))),
        (False, {"mode": "tokens"}, ("tokens", 2, ("encoder", "transformer"))),
    ],
)
def test_the_plan_of_a_call(trained: bool, arguments: dict[str, Any], expected: tuple[Any, ...]) -> None:
    plan = plan_call(TheWorldConfig(num_world_steps=2, reads_world_tokens=trained), **arguments)
    assert (plan.mode, plan.num_world_steps, plan.parts) == expected
    assert (plan.reason is None) == (trained or arguments.get("enable_world") is False)


def test_an_untrained_model_imagines_four_steps_unless_a_number_is_set() -> None:
    assert plan_call(TheWorldConfig()).num_world_steps == 4
    assert plan_call(TheWorldConfig(max_world_steps=3)).num_world_steps == 3
    assert plan_call(TheWorldConfig(), num_world_steps=1).num_world_steps == 1
    with pytest.raises(ValueError, match="choose one of tokens, frames"):
        plan_call(TheWorldConfig(), mode="thoughts")


def test_python_answers_as_the_command_line_does(family: Path, image: Path) -> None:
    bases = family / "bases"
    model = TheWorld(bases / "gemma", cosmos_model_name=str(bases / "cosmos"), world_image_size=TINY_SIZE, device="cpu")
    answer = model.generate(str(image), QUESTION, 4)
    assert answer == model.generate(str(image), QUESTION, 4, num_world_steps=4, mode="frames")
    assert model.generate(str(image), QUESTION, 4, num_world_steps=0) == model.generate(
        str(image), QUESTION, 4, enable_world=False
    )
    assert model.config.num_world_steps == 0, "a training step imagines nothing unless it is asked to"
    shown = CliRunner().invoke(
        app,
        ["ask", str(image), QUESTION, "--model", str(family / "untrained"), "--max-new-tokens", "4", "--json"],
    )
    content = json.loads(shown.stdout)
    saved = TheWorld.from_pretrained(family / "untrained", device="cpu")
    assert content["answer"] == saved.generate(str(image), QUESTION, 4)
    assert (content["mode"], content["num_world_steps"]) == ("frames", saved.plan().num_world_steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ask", "nowhere.png", "What?"), "There is no file 'nowhere.png'"),
        (("ask", "IMAGE", "What?", "--steps", "9"), "imagines at most 4 world steps, and 9 were requested"),
        (("imagine", "IMAGE", "-o", "a.gif", "--steps", "9"), "imagines at most 4 world steps"),
        (("ask", "IMAGE", "What?", "--model", "nan"), "did you mean 'nano'?"),
    ],
)
def test_simple_mistakes_are_reported_before_torch_is_imported(
    image: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [str(image) if argument == "IMAGE" else argument for argument in arguments]
    code = (
        "import sys; from typer.testing import CliRunner; from theworld.cli import app;"
        f"print(CliRunner().invoke(app, {given!r}).stderr); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert message in done.stdout
    assert done.stdout.split()[-1] == "False"


def test_a_chat_template_in_the_tokenizer_config_is_enough(family: Path, image: Path, tmp_path: Path) -> None:
    gemma = shutil.copytree(family / "bases" / "gemma", tmp_path / "gemma")
    template = gemma / "chat_template.jinja"
    config = gemma / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template.read_text()}))
    template.unlink()
    (gemma / "chat_template.json").unlink(missing_ok=True)
    expected, found = (
        TheWorld(folder, enable_world=False, device="cpu").generate(str(image), QUESTION, 4)
        for folder in (family / "bases" / "gemma", gemma)
    )
    assert found == expected
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": None}))
    with pytest.raises(ValueError, match=f"{gemma} has no chat template.*add one"):
        TheWorld(gemma, enable_world=False, device="cpu").generate(str(image), QUESTION, 4)


def test_a_rollout_beyond_the_training_clips_gets_a_note(tmp_path: Path) -> None:
    """nano's world model was trained on 4 world steps and NVIDIA's on 23; no file says it of other weights."""
    world = shutil.copytree(SHIPPED_WEIGHTS / "cosmos", tmp_path / "cosmos")
    rollout = json.loads((world / "rollout_config.json").read_text())
    for source, learned in (("own", None), ("nvidia", 23)):
        (world / "rollout_config.json").write_text(json.dumps({**rollout, "weights_from": source}))
        spec = resolve_model("nano/gemma", world_model=world, max_world_steps=40, world_image_size=64)
        for steps in (4, 23, 24):
            note = spec.note_on_steps(steps)
            assert (note is not None) == (learned is not None and steps > learned)
    assert note is not None
    assert "trained on clips of 23 world steps, and 24 were requested" in note
    nano = resolve_model("nano/gemma", world_model="nano/cosmos", max_world_steps=16, world_image_size=64)
    assert nano.note_on_steps(4) is None
    assert "trained on clips of 4 world steps, and 16 were requested" in str(nano.note_on_steps(16))


def test_nano_warns_once_per_process(
    family: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("theworld.storage.hub.SHIPPED_WEIGHTS", family)
    warn_once.cache_clear()
    for _ in range(2):
        TheWorld("nano", device="cpu")
    assert caplog.text.count("nano understands only its simulated scenes") == 1


def test_the_default_steps_of_a_rollout_are_one_decision() -> None:
    for own, most, expected in ((0, 16, 4), (0, 2, 2), (3, 16, 3)):
        config = TheWorldConfig(num_world_steps=own, max_world_steps=most)
        assert steps_to_imagine(config) == expected == plan_call(config).num_world_steps
    assert steps_to_imagine(config, 0) == 0
    with pytest.raises(ValueError, match="takes 0 to 16"):
        steps_to_imagine(config, 17)
