"""Every verb on tiny models, in process: results on stdout, progress and notes on stderr, one sentence for an error."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from theworld import TheWorld, __version__
from theworld.cli import app
from theworld.cli.errors import is_out_of_memory, one_sentence
from theworld.evaluation.evaluator import find_controls
from theworld.media.video import load_video
from theworld.world_models import guardrail

QUESTION = "Which bin will the ball land in?"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def fail(*arguments: str | Path) -> str:
    """The one line a failing command says; nothing of it on stdout."""
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert "Traceback" not in line
    return line.removeprefix("Error: ")


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "now.png"
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def shipped(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny models stand where the shipped ones are."""
    monkeypatch.setattr("theworld.storage.hub.SHIPPED_WEIGHTS", family)
    return family


# ------------------------------------------------------------------------------------------------------ the command


def test_help_names_every_verb_and_loads_no_library() -> None:
    script = (
        "import sys; from theworld.cli import app; from typer.testing import CliRunner;"
        "print(CliRunner().invoke(app, ['--help']).stdout);"
        "heavy = {'torch', 'transformers', 'diffusers', 'numpy', 'pymunk'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("ask", "imagine", "info", "doctor", "eval", "compare", "gate", "nano"):
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *((), ("ask",), ("imagine",), ("info",), ("doctor",), ("eval",), ("eval", "physics"), ("compare",), ("nano",)),
        *(("nano", "scene"), ("gate",)),
    ],
)
def test_every_verb_has_help(command: tuple[str, ...]) -> None:
    assert "Usage" in succeed(*command, "--help").stdout


def test_an_option_has_one_name_in_every_verb() -> None:
    """What two verbs take is called the same; an earlier name is not shown."""
    for verb in ("ask", "imagine", "info", "doctor"):
        shown = " ".join(succeed(verb, "--help").stdout.split())
        assert "--world-model" in shown
        assert "--world " not in shown.replace("--world --no-world", ""), verb


def test_version() -> None:
    assert succeed("--version").stdout == f"theworld {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask",),
        ("ask", "only-one"),
        ("imagine", "a.png"),
        ("ask", "a.png", "?", "--steps", "two"),
        ("dance",),
        ("--loud",),
    ],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_debug_shows_the_traceback(family: Path) -> None:
    result = run("ask", "nowhere.png", QUESTION, "--model", family / "fused", "--debug")
    assert isinstance(result.exception, FileNotFoundError)


def test_errors_of_the_system_are_sentences() -> None:
    denied = PermissionError(13, "Permission denied", "a.gif")
    assert one_sentence(denied) == "Permission denied: a.gif; check its permissions."
    assert one_sentence(ValueError("two\n lines")) == "two lines"
    assert "memory" in one_sentence(MemoryError())
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …"))
    assert not is_out_of_memory(RuntimeError("shapes"))


# -------------------------------------------------------------------------------------------------------------- ask


def test_ask_streams_what_generate_answers(family: Path, image: Path) -> None:
    from theworld.inference.pipeline import TheWorld

    model = TheWorld.from_pretrained(family / "fused", device="cpu")
    answer = model.generate(str(image), QUESTION, max_new_tokens=6, num_world_steps=1, seed=3)
    options = ("--model", family / "fused", "--steps", "1", "--seed", "3", "--max-new-tokens", "6", "--device", "cpu")
    result = succeed("ask", image, QUESTION, *options)
    assert result.stdout.strip() == answer
    content = json.loads(succeed("ask", image, QUESTION, *options, "--json").stdout)
    assert content["answer"] == answer
    assert (content["num_world_steps"], content["seed"], content["question"]) == (1, 3, QUESTION)
    assert content["notes"] == []


def test_ask_takes_several_images(family: Path, image: Path) -> None:
    result = succeed("ask", image, image, QUESTION, "-m", family / "fused", "--max-new-tokens", "2", "--json")
    assert json.loads(result.stdout)["images"] == [str(image)] * 2


def test_every_nano_answer_says_what_nano_knows(shipped: Path, image: Path) -> None:
    result = succeed("ask", image, QUESTION, "--max-new-tokens", "2")
    assert result.stderr.count("nano understands only its simulated scenes") == 1
    assert "nano understands" not in result.stdout
    result = succeed("ask", image, QUESTION, "--max-new-tokens", "2", "--json")
    assert "nano understands" not in result.stderr
    (note,) = json.loads(result.stdout)["notes"]
    assert "nano understands only its simulated scenes" in note


def test_a_rollout_beyond_the_training_clips_is_noted_everywhere(
    shipped: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from theworld.evaluation import evaluate
    from theworld.inference.pipeline import TheWorld
    from theworld.inference.world_runner import warn_once

    monkeypatch.setattr("theworld.model.spec.NANO_WORLD_STEPS", 2)
    expected = "trained on clips of 2 world steps, and 3 were requested"
    for command in (("ask", image, QUESTION, "--max-new-tokens", "2"), ("imagine", image, "-o", tmp_path / "a.gif")):
        assert expected in json.loads(succeed(*command, "--steps", "3", "--json").stdout)["notes"][-1]
    findings = json.loads(succeed("doctor", "--steps", "3", "--json").stdout)["findings"]
    assert any(expected in one["text"] and not one["fails"] for one in findings)
    results = evaluate("nano", "physics", arms="fused", num_world_steps=[2, 3], limit=2, device="cpu")
    assert [expected in warning for warning in results.warnings].count(True) == 1
    logging.getLogger("theworld.inference.world_runner").setLevel(logging.NOTSET)  # which commands silence
    warn_once.cache_clear()
    for _ in range(2):
        TheWorld("nano", device="cpu").imagine(str(image), 3)
    assert caplog.text.count(expected) == 1


def test_a_plain_gemma_without_a_future_needs_no_world_model(family: Path, image: Path) -> None:
    gemma = family / "bases" / "gemma"
    result = succeed("ask", image, QUESTION, "-m", gemma, "--steps", "0", "--max-new-tokens", "2")
    assert "World model not used; the answer is based on the input images only" in result.stderr


def test_an_untrained_projector_is_not_used_silently(family: Path, image: Path) -> None:
    for model in (family / "untrained", family / "bases" / "gemma"):  # neither waits for weights
        said = fail("ask", image, QUESTION, "--model", model, "--mode", "tokens")
        assert "projector of this model is untrained" in said
        assert "Train the projector of" in said
        assert "--mode frames" in said
    without = succeed(
        "ask", image, QUESTION, "-m", family / "untrained", "--no-world", "--max-new-tokens", "2", "--json"
    )
    assert json.loads(without.stdout)["num_world_steps"] is None


def test_no_steps_of_an_untrained_model_imagine_nothing(
    family: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that is printed is the call that is made."""
    called = []
    stream = TheWorld.stream

    def noted(self: TheWorld, *given: Any, **more: Any) -> Any:
        called.append(more["enable_world"])
        return stream(self, *given, **more)

    monkeypatch.setattr(TheWorld, "stream", noted)
    said = succeed(
        "ask", image, QUESTION, "-m", family / "untrained", "--steps", "0", "--max-new-tokens", "2", "--json"
    )
    assert json.loads(said.stdout)["num_world_steps"] is None
    assert called == [False]


def test_a_model_without_an_adapter_answers_from_imagined_frames(family: Path, image: Path, tmp_path: Path) -> None:
    world = shutil.copytree(family / "bases" / "cosmos", tmp_path / "cosmos")
    config = json.loads((world / "transformer" / "config.json").read_text())
    config["max_size"] = [17, 28, 28]  # room for the images of 224 px of a fresh fusion
    (world / "transformer" / "config.json").write_text(json.dumps(config))
    bases = ("--model", family / "bases" / "gemma", "--world-model", world)
    short = ("--max-new-tokens", "2")
    plain = succeed("ask", image, QUESTION, *bases, "--steps", "2", *short)
    assert "Mode frames: the answer sees 2 imagined frames as further images." in " ".join(plain.stderr.split())
    assert "The projector of this model is untrained" in plain.stderr
    content = json.loads(succeed("ask", image, QUESTION, *bases, "--steps", "2", *short, "--json").stdout)
    assert (content["mode"], content["num_world_steps"]) == ("frames", 2)
    content = json.loads(succeed("ask", image, QUESTION, *bases, *short, "--json").stdout)
    assert (content["mode"], content["num_world_steps"]) == (
        "frames",
        4,
    ), "its own default, not the 0 of a fresh fusion"
    content = json.loads(succeed("ask", image, QUESTION, *bases, "--steps", "0", *short, "--json").stdout)
    assert content["mode"] == "off"


def test_ask_says_which_mode_answered(family: Path, image: Path) -> None:
    fused = ("ask", image, QUESTION, "-m", family / "fused", "--steps", "1", "--max-new-tokens", "2")
    assert (
        "Mode tokens: the answer reads world tokens of the present and 1 imagined world step." in succeed(*fused).stderr
    )
    assert "Mode frames: the answer sees 1 imagined frame as" in " ".join(
        succeed(*fused, "--mode", "frames").stderr.split()
    )
    assert "World model not used; the answer is based on the input images only." in succeed(*fused, "--no-world").stderr
    wrong = run(*fused, "--mode", "thoughts")
    assert wrong.exit_code == 2
    assert "thoughts" in wrong.stderr
    assert "imagines none; use 1 step or more" in fail(*fused[:-4], "--mode", "frames", "--steps", "0")


def test_a_question_may_come_from_stdin_and_an_animation_is_said_to_move(
    family: Path, image: Path, tmp_path: Path
) -> None:
    command = ["-m", str(family / "fused"), "--steps", "1", "--max-new-tokens", "2", "--json"]
    done = CliRunner().invoke(app, ["ask", str(image), "-", *command], input=f"{QUESTION}\n")
    assert json.loads(done.stdout)["question"] == QUESTION
    moving = tmp_path / "moving.gif"
    iio.imwrite(moving, np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8))
    said = succeed("ask", moving, QUESTION, *command).stderr
    assert "moving.gif has 3 frames, of which the first is read; --video reads all." in " ".join(said.split())


def test_ask_says_what_is_wrong(family: Path, image: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    model = ("--model", family / "fused")
    assert "nowhere.png" in fail("ask", "nowhere.png", QUESTION, *model)
    assert "broken.png" in fail("ask", broken, QUESTION, *model)
    assert "at most 4 world steps" in fail("ask", image, QUESTION, *model, "--steps", "9")
    assert "no-such-model" in fail("ask", image, QUESTION, "--model", tmp_path / "no-such-model")
    assert "--device gpu is not a device" in fail("ask", image, QUESTION, *model, "--device", "gpu")
    assert "is a world model; pass it as the world model" in fail(
        "ask", image, QUESTION, "-m", family / "bases" / "cosmos"
    )
    assert "not shipped" in fail("ask", image, QUESTION, "--model", "nano/huge")


# ---------------------------------------------------------------------------------------------------------- imagine


@pytest.mark.parametrize("extension", ["gif", "mp4", "png"])
def test_imagine_writes_each_format(shipped: Path, image: Path, tmp_path: Path, extension: str) -> None:
    output = tmp_path / "new" / f"future.{extension}"
    result = succeed("imagine", image, "-o", output, "--steps", "1")
    assert result.stdout.strip() == str(output)
    assert result.stderr.count("nano understands only") == 1
    frames = iio.imread(output) if extension != "png" else iio.imread(output)[None]
    assert len(frames) >= {"gif": 5, "mp4": 5, "png": 1}[extension]
    assert frames.std() > 0


def test_ask_answers_from_several_futures(family: Path, image: Path) -> None:
    call = ("ask", image, QUESTION, "-m", family / "fused", "--steps", "1", "--max-new-tokens", "2", "--futures", "3")
    result = succeed(*call, "--option", "left", "--option", "right")
    answer, head, *rows = result.stdout.splitlines()
    assert answer in ("left", "right")
    assert head.split() == ["answer", "probability", "±", "futures"]
    assert {row.split()[0] for row in rows} == {"left", "right"}
    content = json.loads(succeed(*call, "--imagine", "auto", "--json").stdout)
    assert content["answer"] == content["futures"]["answer"]
    assert content["futures"]["gate"]["imagined"] == content["futures"]["num_futures"] == 3  # a tiny model is not sure
    auto = succeed(*call, "--imagine", "auto")
    assert "(limit 90.0 %); 3 futures imagined, 3 used." in " ".join(auto.stderr.split())
    assert "this call imagines nothing" in fail(*call, "--steps", "0")
    assert "this call imagines nothing" in fail(*call[:-2], "--imagine", "auto", "--no-world")


def test_imagine_writes_a_grid_of_futures(shipped: Path, image: Path, tmp_path: Path) -> None:
    result = succeed("imagine", image, "-o", tmp_path / "grid.gif", "--steps", "1", "--futures", "3", "--seed", "5")
    assert "in 3 futures with the seeds 5 to 7" in " ".join(result.stderr.split())
    grid = iio.imread(tmp_path / "grid.gif")
    succeed("imagine", image, "-o", tmp_path / "one.gif", "--steps", "1", "--seed", "6")
    one = iio.imread(tmp_path / "one.gif")  # the second of two columns
    assert grid.shape[1:3] == (2 * 256 + 8, 2 * 256 + 8)
    apart = [np.abs(grid[-1, :256, left : left + 256].astype(int) - one[-1]).mean() for left in (264, 0)]
    assert apart[0] < min(apart[1], 5), "nearer than the first future, apart from the palette of a GIF"


def test_imagine_depends_on_the_seed_alone(family: Path, image: Path, tmp_path: Path) -> None:
    def strip(name: str, seed: int) -> bytes:
        model = family / "untrained"  # no projector stands between an image and its future
        succeed("imagine", image, "-o", tmp_path / name, "--steps", "1", "--seed", str(seed), "--model", model)
        return (tmp_path / name).read_bytes()

    assert strip("a.png", 1) == strip("b.png", 1) != strip("c.png", 2)


def test_imagine_says_what_is_wrong_before_it_loads(
    family: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ".gif, .mp4, .png" in fail("imagine", image, "-o", tmp_path / "a.jpg", "--model", "no/such-model")
    assert "nowhere.png" in fail("imagine", "nowhere.png", "-o", tmp_path / "a.gif", "--model", family / "fused")
    assert "cannot imagine" in fail("imagine", image, "-o", tmp_path / "a.gif", "--model", family / "direct")
    weightless = tmp_path / "models"
    shutil.copytree(family, weightless)
    for weights in weightless.rglob("*.safetensors"):
        weights.write_bytes(b"")
    (weightless / "bases" / "cosmos" / "rollout_config.json").unlink()  # then the weights count as NVIDIA's
    monkeypatch.setattr(guardrail, "PACKAGE", "no_such_package")
    bases = ("--model", weightless / "bases" / "gemma", "--world-model", weightless / "bases" / "cosmos")
    assert "guardrail" in fail("imagine", image, "-o", tmp_path / "a.gif", *bases)
    assert list(tmp_path.iterdir()) == [weightless]


# ------------------------------------------------------------------------------------------------------------- info


def test_info_counts_what_a_loaded_model_has(family: Path) -> None:
    from theworld.inference.pipeline import TheWorld

    content = json.loads(succeed("info", family / "fused", "--json").stdout)
    model = TheWorld.from_pretrained(family / "fused", num_world_steps=4, device="cpu")
    model.decode(model.imagine(np.zeros((32, 32, 3), np.uint8)))  # every part of the world model is in memory now
    table = [{"part": row.part, "total": row.total, "trainable": row.trainable} for row in model.parameter_table()]
    assert content["parameters"] == table
    assert content["trainable_parameters"] == model.get_trainable_parameters()[0]
    assert content["tokens"] == {"per_image": 18, "per_world_step": 16, "world_now": 18, "world_default": 50}
    assert content["trained_parts"] == ["projector", "lora"]
    assert content["seconds_per_world_step"] == 4 / 16


def test_info_as_text(family: Path) -> None:
    text = succeed("info", family / "fused").stdout
    assert "what fits (GiB)" in text
    assert "plain (" in text
    for expected in (
        "a world step",
        "0.25 s",
        "tokens per world step",
        "16 (a 4×4 latent grid)",
        "world transformer",
        "+ VAE encoder",
        "prefill",
    ):
        assert expected in text
    assert "none" in succeed("info", family / "direct").stdout


def test_info_of_a_plain_gemma_is_of_the_fusion_it_would_become(family: Path) -> None:
    bases = family / "bases"
    content = json.loads(succeed("info", bases / "gemma", "--world-model", bases / "cosmos", "--json").stdout)
    assert [row["part"] for row in content["parameters"] if row["trainable"]] == ["projector"]
    assert content["trained_parts"] == []


def test_info_of_the_published_pair_needs_no_network() -> None:
    arguments = (
        "google/gemma-3-4b-it",
        "--world-model",
        "nvidia/Cosmos-Predict2-2B-Video2World",
        "--batch",
        "4",
        "--json",
    )
    content = json.loads(succeed("info", *arguments).stdout)
    assert ["bundled copy" in note for note in content["notes"]] == [True, True, False]  # where both configs came from
    assert "An answer therefore sees imagined frames" in content["notes"][2]
    memory = content["memory"]
    assert (memory["num_world_steps"], memory["training_world_steps"]) == (4, 0), "answers imagine by default"
    sizes = {row["component"]: row["parameters"] for row in content["components"]}
    assert sizes["vision tower"] == 416_866_032
    assert sizes["vision projector"] == 2_950_272
    assert sizes["language model"] == 3_209_010_688
    assert sizes["text embeddings"] == 671_252_480
    assert sizes["world transformer"] == 1_956_413_440
    assert sizes["VAE encoder"] == 53_595_872
    assert sum(sizes[part] for part in sizes if part.startswith("VAE")) == 126_892_531
    assert sizes["projection"] == 43_520
    shares = {row["setting"]: round(row["percent"], 2) for row in content["freeze_settings"]}
    assert shares == {
        "projector only": 0.0,
        "+ VAE encoder": 0.84,
        "+ vision": 6.58,
        "+ language": 60.79,
        "+ vision + language": 67.36,
        "all of these": 68.20,
    }
    step = content["freeze_settings"][0]["training_memory"]["peak"]
    assert round(step / 2**30, 1) == 41.9  # 41.8 were measured
    assert content["tokens"]["per_world_step"] == 784


def test_the_page_on_full_size_shows_the_output_of_info() -> None:
    page = (Path(__file__).parents[2] / "docs" / "full_size.md").read_text("utf-8")
    command = "theworld info google/gemma-3-4b-it --batch 4"
    shown = page.partition(f"`{command}`")[2].partition("```text\n")[2].partition("```")[0].splitlines()
    assert len(shown) > 10
    said = [line.split() for line in succeed(*command.split()[1:]).stdout.splitlines()]
    for line in shown:
        assert line.split() in said, line


def test_info_predicts_for_the_call_that_is_meant(family: Path) -> None:
    def peak(*options: str) -> int:
        memory = json.loads(succeed("info", family / "fused", "--json", *options).stdout)["memory"]
        peak: int = memory["inference"]["peak"]
        return peak

    now = peak("--steps", "0")
    assert now < peak("--steps", "1") < peak("--steps", "4")
    assert now < peak("--steps", "0", "--batch", "8")
    assert now < peak("--steps", "0", "--dtype", "float32")


def test_info_takes_the_model_as_doctor_does(family: Path) -> None:
    """The two commands are asked the same, and their numbers of steps and their memory agree."""
    bases = ("--world-model", family / "bases" / "cosmos", "--json")
    named, placed = (
        json.loads(succeed("info", *how, *bases).stdout)
        for how in (("--model", family / "bases" / "gemma"), (family / "bases" / "gemma",))
    )
    assert named == placed
    doctor = json.loads(run("doctor", family / "bases" / "gemma", *bases).stdout)
    assert doctor["num_world_steps"] == named["memory"]["num_world_steps"] == 4
    assert "given twice" in run("info", "nano", "--model", "nano").stderr
    ram = doctor["memory"][0]
    assert sum(ram["contains"].values()) == ram["predicted"]
    assert list(ram["contains"])[1:] == ["libraries", "tokenizer"]
    exact = ("--dtype", next(iter(ram["contains"])).removeprefix("torch (").rstrip(")"))
    predicted = json.loads(succeed("info", family / "bases" / "gemma", *bases, *exact).stdout)["memory"]
    assert predicted["inference_frames"]["peak"] == next(iter(ram["contains"].values()))


def test_info_says_what_is_wrong(family: Path, tmp_path: Path) -> None:
    assert "no config.json" in fail("info", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "'llama' model" in fail("info", tmp_path)
    assert "no/such-model" in fail("info", "no/such-model")
    assert "int4" in run("info", "nano", "--dtype", "int4").stderr
    assert "takes 0 to 4" in fail("info", "nano", "--steps", "5")


# ------------------------------------------------------------------------------------------------------------- eval


def test_eval_physics_writes_scores_and_predictions(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "results" / "nano.json"
    monkeypatch.setattr(sys, "argv", ["/bin/theworld", "eval", "physics", "--model", "my model"])
    arms = "fused,fused-0,matched-control,direct,imagined-image,shuffled"
    (shipped / "direct" / "provenance.json").write_text('{"labelled_scenes_per_family": 300}')
    command = ("eval", "physics", "--arms", arms, "--limit", "4", "--seed", "2", "--steps", "1", "--json", output)
    result = succeed(*command, "--device", "cpu", "--batch-size", "3")
    (shipped / "direct" / "provenance.json").unlink()
    content = json.loads(output.read_text())
    assert list(content["arms"]) == arms.split(",")
    for score in content["arms"].values():
        assert {"accuracy", "n", "interval_95", "by_family", "unparsed", "likelihood", "by_horizon", "cost"} < set(
            score
        )
        assert score["n"] == 4
        assert sum(family["n"] for family in score["by_family"].values()) == 4
    assert set(content["paired"]) == {f"fused-minus-{arm}" for arm in arms.split(",")[1:]}
    assert (content["model"], content["seed"], content["split"], content["steps"]) == ("nano", 2, "test", 1)
    assert content["command"] == "theworld eval physics --model 'my model'"
    assert content["labels"] == {"model": {}, "direct": {"labelled_scenes_per_family": 300}, "matched-control": {}}
    assert content["controls"] == {"direct": "nano/direct", "matched-control": "nano/matched-control"}
    assert {"versions", "seconds", "note"} <= set(content)
    lines = (output.parent / "nano.predictions.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert set(json.loads(lines[0])["predictions"]) == set(arms.split(","))
    for shown in ("imagined-image", "fused − shuffled", "(most common answer)"):
        assert shown in result.stdout


def test_eval_lists_its_arms_and_benchmarks() -> None:
    assert "wrong-future" in succeed("eval", "physics", "--arms", "list").stdout
    listed = succeed("eval", "list").stdout
    assert "BLINK" in listed
    assert "from memory" in listed  # what we know of a set's columns, and from where, is said


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Six questions of one's own, with what happened next."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(6):
        names = [f"{number}_{frame}.png" for frame in range(6)]
        for name in names:
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / name)
        rows.append(
            {
                "id": f"q{number}",
                "image": names[0],
                "future": names[1:],
                "question": "Which bin will the ball land in?",
                "options": ["left", "right"],
                "answer": "AB"[number % 2],
                "task": "near" if number < 3 else "far",
            }
        )
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return tmp_path / "mine.jsonl"


def test_eval_of_ones_own_questions_and_their_comparison(
    family: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "mine"
    arms = "fused,wrong-future,oracle-future,true-image,imagined-image,verbal,gemma,dummy"
    command = ("eval", "mcq", "--data", questions, "--fields", "choices=options,future_frames=future", "--model")
    options = ("--arms", arms, "--steps", "1", "--max-new-tokens", "4", "--device", "cpu", "-o", run)
    result = succeed(*command, family / "fused", *options)
    assert "finding" in result.stdout
    content = json.loads((run / "results.json").read_text())
    assert list(content["arms"]) == arms.split(",")
    assert len((run / "answers" / "oracle-future.jsonl").read_text().splitlines()) == 6
    before = {file: file.read_bytes() for file in (run / "answers").iterdir()}
    with monkeypatch.context() as patched:  # all is answered: no model is loaded, and nothing changes
        patched.setattr("theworld.cli.eval.load", lambda *names, **settings: pytest.fail("loaded a model"))
        succeed(*command, family / "fused", *options)
    assert {file: file.read_bytes() for file in (run / "answers").iterdir()} == before
    assert "holds a run with model" in fail(*command, family / "matched-control", *options[:1], "gemma", *options[2:])
    report = tmp_path / "report"
    assert "p (Holm)" in succeed("compare", run, "-o", report, "--reference", "oracle-future").stdout
    compared = json.loads((report / "comparison.json").read_text())
    assert compared["reference"] == "oracle-future"
    assert compared["runs"][0]["device"] == "cpu"
    assert "<svg" in (report / "comparison.html").read_text()
    assert "| oracle-future − fused |" in (report / "comparison.md").read_text()
    assert "holds no run" in fail("compare", tmp_path, "-o", report)
    assert "is not a writable folder" in fail("compare", run, "-o", questions / "x")


def test_eval_with_several_numbers_of_steps(family: Path, questions: Path, tmp_path: Path) -> None:
    run = tmp_path / "steps"
    options = ("--fields", "choices=options", "--steps", "0,2", "--max-new-tokens", "2", "--device", "cpu", "-o", run)
    succeed("eval", "mcq", "--data", questions, "--model", family / "fused", "--arms", "fused,no-world", *options)
    compared = tmp_path / "report" / "comparison.json"
    succeed("compare", run, "-o", compared.parent)
    content = json.loads(compared.read_text())
    assert list(content["arms"]) == ["fused@0", "fused@2", "no-world"]
    assert content["reference"] == "fused@2"
    ((_, points),) = content["steps"].items()
    assert [point["steps"] for point in points] == [0, 2]


def test_eval_of_a_plain_gemma(family: Path, questions: Path) -> None:
    options = ("--data", questions, "--fields", "choices=options", "--max-new-tokens", "2", "--device", "cpu")
    result = succeed("eval", "mcq", "--model", family / "bases" / "gemma", "--arms", "gemma,verbal", *options)
    assert "gemma − verbal" in result.stdout
    assert "cannot use the base Gemma model" in fail(
        "eval", "mcq", "--model", family / "direct", "--arms", "gemma", *options
    )


def test_a_blink_test_run_writes_what_can_be_handed_in_and_claims_nothing(family: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        Image.new("RGB", (32, 32), (number * 9, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(
            {
                "idx": f"test_Counting_{number}",
                "sub_task": "Counting",
                "image_1": f"{number}.png",
                "question": "How many?",
                "prompt": "How many?\n(A) one\n(B) two",
                "choices": ["one", "two"],
                "answer": "hidden",
            }
        )
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ("eval", "blink", "--data", tmp_path / "test.jsonl", "--split", "test", "--model", family / "fused")
    result = succeed(*command, "--arms", "fused", "--steps", "1", "--device", "cpu", "-o", tmp_path / "run")
    handed_in = json.loads((tmp_path / "run" / "submission.fused.json").read_text())
    assert list(handed_in) == [f"test_Counting_{number}" for number in range(3)]
    assert set(handed_in.values()) <= {"(A)", "(B)", "(Z)"}
    content = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "accuracy" not in json.dumps(content["arms"])
    assert "submission.fused.json: for the evaluation server" in " ".join(result.stderr.split())


def test_eval_says_what_is_wrong(family: Path, tmp_path: Path) -> None:
    model = ("--model", family / "fused", "--limit", "1")
    assert "no arm 'fusd'" in fail("eval", "physics", *model, "--arms", "fusd")
    assert "no split 'tset'" in fail("eval", "physics", *model, "--split", "tset")
    assert "at most 4 world steps" in fail("eval", "physics", *model, "--steps", "5")
    assert "leave out the arms that read them (fused)" in fail(
        "eval", "physics", "--model", family / "untrained", "--arms", "fused,no-world"
    )
    assert "write NAME=MODEL" in fail("eval", "physics", *model, "--arms", "direct", "--control", "direct")


def test_controls_are_found_beside_the_model_or_where_one_says(family: Path) -> None:
    wanted = {"direct"}
    assert find_controls("nano", wanted, {"direct": str(family / "direct")}) == {"direct": str(family / "direct")}
    assert find_controls(str(family / "fused"), wanted, {}) == {"direct": str(family / "direct")}
    with pytest.raises(ValueError, match="in the controls, as direct=FOLDER"):
        find_controls("user/model", wanted, {})
    gemma = family / "bases" / "gemma"
    with pytest.raises(ValueError, match=f"there is no folder 'direct' next to {gemma}: .* as direct=FOLDER"):
        find_controls(str(gemma), wanted, {})


# ------------------------------------------------------------------------------------------------------------- nano


def test_nano_scene_gives_a_image_its_questions_and_the_truth(tmp_path: Path) -> None:
    from theworld.datasets.physics import make_clip, next_questions

    image, truth = tmp_path / "new" / "first.png", tmp_path / "truth.gif"
    result = succeed("nano", "scene", "drop", "--index", "1", "-o", image, "--truth", truth, "--json")
    content = json.loads(result.stdout)
    clip = make_clip("drop", "test", 1)
    assert content["outcome"] == clip.outcome
    assert [(q["question"], q["answer"]) for q in content["questions"]] == [
        (q.text, q.answer) for q in next_questions(clip)
    ]
    np.testing.assert_array_equal(np.asarray(Image.open(image)), clip.frames[0])  # exactly what the model was made for
    assert len(iio.imread(truth)) == len(clip.frames)
    read = load_video(truth)  # in real time
    assert read.times == pytest.approx([number / 16 for number in range(17)], abs=0.006)
    text = succeed("nano", "scene", "drop", "--index", "1").stdout
    assert f"{next_questions(clip)[0].text}  →  {next_questions(clip)[0].answer}" in text


def test_nano_scene_says_what_is_wrong(tmp_path: Path) -> None:
    assert "Unknown family 'pour'" in fail("nano", "scene", "pour")
    assert "does not end in .png" in fail("nano", "scene", "drop", "-o", tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_any_question_is_asked(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("theworld.evaluation.evaluator.run_arms", lambda *_, **options: pytest.fail("asked"))
    command = ("eval", "physics", "--model", family / "fused", "--limit", "3", "--steps", "1")
    for option in ("--json", "-o"):
        assert "cannot be written: /proc is not a writable folder" in fail(*command, option, "/proc/r.json")
    (tmp_path / "file").write_text("")
    assert "is a file; name a folder" in fail(*command, "-o", tmp_path / "file")
    assert "is a file; name a folder" in fail("compare", tmp_path, "-o", tmp_path / "file")


def test_questions_without_a_column_of_answers_are_no_hidden_test_set(
    family: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"image": str(image), "question": QUESTION, "choices": ["left", "right"]}
    command = ("eval", "mcq", "--data", "q.jsonl", "--model", family / "fused", "--steps", "1", "--arms", "fused")
    Path("q.jsonl").write_text(json.dumps({**row, "label": "left"}) + "\n")
    said = fail(*command)
    assert "No row of q.jsonl has an answer (answer or correct_answer)" in said
    assert "its columns are image, question, choices, label" in said
    assert "is one file, which has no splits; leave the split out" in fail(*command, "--split", "val")
    Path("q.jsonl").write_text(json.dumps({**row, "answer": None}) + "\n")
    hidden = succeed(*command)
    assert "are not published" in hidden.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.jsonl"], "no file is written unless it is requested"


def test_gate_chooses_on_a_run_and_saves_it_with_the_model(family: Path, tmp_path: Path) -> None:
    model, run_folder = tmp_path / "model", tmp_path / "run"
    shutil.copytree(family / "fused", model)
    succeed("eval", "physics", "-m", model, "--limit", "6", "--steps", "1", "-o", run_folder, "--device", "cpu")
    options = ("--keep", "0", "--max-rollouts", "1")
    content = json.loads(succeed("gate", run_folder, *options, "--json", "-o", tmp_path / "curve.json").stdout)
    assert 0 <= content["rollouts"] <= 1
    assert len(json.loads((tmp_path / "curve.json").read_text())["curve"]) >= 2
    table = succeed("gate", run_folder, *options, "--save", model).stdout
    assert f"{content['min_confidence']:g}" in table
    saved = json.loads((model / "config.json").read_text())["gate"]
    assert saved == {name: content[name] for name in ("min_confidence", "max_jump")}
    assert "holds no run" in fail("gate", tmp_path / "none")
    assert "is written as .json, .png, .svg" in fail("gate", run_folder, "-o", "curve.txt")
