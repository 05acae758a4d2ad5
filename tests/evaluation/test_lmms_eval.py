"""The plug-in of lmms-eval: its own command asks TheWorld, and gets what we get on the same questions."""

from __future__ import annotations

import io
import json
import re
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from lmms_eval.api.instance import Instance
from PIL import Image

from tests import commands
from theworld import TheWorld
from theworld.evaluation.answering import ModelAnswerer, ReplyInputs
from theworld.evaluation.arms import ARMS, choose
from theworld.evaluation.lmms import manifest
from theworld.evaluation.lmms import model as plugin
from theworld.evaluation.lmms.model import TheWorldChat, TheWorldSimple
from theworld.evaluation.lmms.requests import Decoding, read_messages, read_visuals
from theworld.evaluation.runner import run_arms
from theworld.evaluation.tasks import Item, Request, load_benchmark
from theworld.inference.scored_answers import Reply
from theworld.media import animations

STEPS = 2
NUM_QUESTIONS = 6
IMAGE = {"type": "image", "url": Image.new("RGB", (8, 8), (9, 0, 0))}
BLINK = """
dataset_path: parquet
dataset_kwargs: {data_files: {val: VAL}}
test_split: val
doc_to_visual: !function blink.blink_doc_to_visual
doc_to_text: !function blink.blink_doc_to_text
doc_to_target: answer
"""
GENERATED = """
task: local_blink
output_type: generate_until
doc_to_messages: !function blink.blink_doc_to_messages
process_results: !function blink.blink_process_results
metric_list: [{metric: blink_acc, aggregation: !function blink.blink_aggregate_results, higher_is_better: true}]
generation_kwargs: {max_new_tokens: 8}
"""
LMMS_EVAL = """
import functools, pathlib, runpy, sys
import datasets
from lmms_eval.tasks import TaskManager
datasets.config.HF_DATASETS_CACHE = pathlib.Path(sys.argv.pop(1))
# reading the files of lmms-eval's own tasks takes 8 s
TaskManager.__init__ = functools.partialmethod(TaskManager.__init__, include_defaults=False)
runpy.run_module("lmms_eval", run_name="__main__", alter_sys=True)
"""
LIKELIEST = """
task: local_likeliest
output_type: multiple_choice
doc_to_choice: letters
doc_to_target: place
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_row_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    documents = [{"image": str(tmp_path / "bad.png")}]
    request = SimpleNamespace(args=("What?", {}, lambda row: [row["image"]], 0, "blink", "val"))
    model = TheWorldSimple.__new__(TheWorldSimple)
    model.task_dict = {"blink": {"val": documents}}
    with pytest.raises(ValueError, match=f"^blink, row 0 of val: '{tmp_path}/bad.png' is not an image"):
        model.read(request)


def test_an_animation_that_is_given_as_an_image_is_warned_about_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(animations, "_warned", [])
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "one.webp")
    read_visuals([str(tmp_path / "one.webp")], "What?")
    assert caplog.text == ""
    read_visuals([str(tmp_path / "a.gif"), str(tmp_path / "a.webp")], "What?")
    assert caplog.text.count("has 2 frames and is given as an image, so only its first one is read") == 1
    monkeypatch.setattr(animations, "_warned", [])
    Item("a", "", "", "free", (tmp_path / "a.webp",), "What?", "").images()
    assert caplog.text.count("a.webp has 2 frames") == 1


@pytest.fixture(scope="module")
def asked() -> list[Item]:
    """Questions about physics with letters as answers, each about its own image."""
    items = load_benchmark("physics", Request(limit=30, split="test", tasks=("drop",)))
    return [item for item in items if item.form == "choice"][:NUM_QUESTIONS]


@pytest.fixture(scope="module")
def nano() -> TheWorld:
    return TheWorld("nano", device="cpu")


def save_blink(folder: Path, items: list[Item], truths: list[str]) -> Path:
    """The questions in BLINK's layout on the Hub; every second one shows its image twice."""
    rows = []
    for number, (item, truth) in enumerate(zip(items, truths, strict=True)):
        file = io.BytesIO()
        Image.fromarray(np.asarray(item.image)).save(file, "PNG")
        image = {"bytes": file.getvalue(), "path": None}
        letters = sorted(item.legal)
        rows.append(
            {
                "idx": f"val_Counting_{number}",
                "sub_task": "Counting",
                "prompt": item.question,
                "image_1": image,
                "image_2": image if number % 2 else None,
                "choices": [f"choice {letter}" for letter in letters],
                "letters": letters,
                "place": letters.index(truth),
                "answer": f"({truth})",
            }
        )
    text, texts, image_type = datasets.Value("string"), datasets.List(datasets.Value("string")), datasets.Image()
    kinds = {"image_1": image_type, "image_2": image_type, "choices": texts, "letters": texts}
    features = datasets.Features({name: kinds.get(name, text) for name in rows[0]} | {"place": datasets.Value("int64")})
    (folder / "Counting").mkdir(parents=True)
    place = folder / "Counting" / "val-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows, features=features).to_parquet(place)
    return place


def lmms_eval(folder: Path, *runs: dict[str, Any]) -> list[tuple[dict[str, float], dict[str, list[Any]]]]:
    """The score and the samples of each task per run, all from one process of lmms-eval's own command."""
    shared = {"model": "theworld", "include_path": str(folder / "tasks"), "log_samples": True, "batch_size": 3}
    outputs = [folder / f"out{number}" for number in range(len(runs))]
    (folder / "runs.yaml").write_text(
        yaml.safe_dump([shared | run | {"output_path": str(out)} for run, out in zip(runs, outputs, strict=True)])
    )
    done = commands.run("-c", LMMS_EVAL, folder / "cache", "--config", folder / "runs.yaml")
    found = []
    for out in outputs:
        results = list(out.rglob("*_results.json"))
        assert len(results) == 1, done.stdout + done.stderr
        scores = {}
        for task, values in json.loads(results[0].read_text())["results"].items():
            (scores[task],) = [values[name] for name in ("blink_acc,none", "acc,none") if name in values]
        samples = {}
        for task in scores:
            (place,) = out.rglob(f"*_samples_{task}.jsonl")
            lines = [json.loads(line) for line in place.read_text().splitlines()]
            samples[task] = sorted(lines, key=lambda line: line["doc_id"])
        found.append((scores, samples))
    return found


def test_lmms_eval_gets_the_answers_of_run_arms_and_scores_them(
    asked: list[Item], nano: TheWorld, tmp_path: Path
) -> None:
    """One arm in the chat form, another in the simple form, which also requests likelihoods."""
    save_blink(tmp_path / "first", asked, ["A"] * NUM_QUESTIONS)  # truths are planted when the answers are known
    items = load_benchmark("blink", Request(data=str(tmp_path / "first"), tasks=("Counting",)))
    ours = run_arms(
        items, choose(["fused", "zero"]), lambda _: ModelAnswerer(nano), num_world_steps=STEPS, batch_size=NUM_QUESTIONS
    )
    said = {arm: [one.text for one in answers] for arm, answers in ours.items()}
    assert said["fused"] != said["zero"], "two arms that say the same cannot tell whether the arm was followed"
    assert len(set(said["fused"])) > 1, "one answer to everything cannot tell whether the order was kept"
    wrong = {1, 4}
    truths = [
        next(letter for letter in sorted(item.legal) if (letter == text) != (row in wrong))
        for row, (item, text) in enumerate(zip(asked, said["fused"], strict=True))
    ]
    planted = BLINK.replace("VAL", str(save_blink(tmp_path / "planted", asked, truths)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "blink.py").write_text("from lmms_eval.tasks.blink.utils import *\n")
    (tasks / "generated.yaml").write_text(planted + GENERATED)
    (tasks / "likeliest.yaml").write_text(planted + LIKELIEST)

    model = f"pretrained=nano,num_world_steps={STEPS},device=cpu,dtype=float32"
    chat, simple = lmms_eval(
        tmp_path,
        {"model_args": model, "tasks": "local_blink"},
        {
            "model_args": f"{model},arm=zero,batch_size=8",
            "tasks": "local_blink,local_likeliest",
            "force_simple": True,
        },
    )
    right = {
        arm: np.mean([text == truth for text, truth in zip(own, truths, strict=True)]) for arm, own in said.items()
    }
    assert right["fused"] == (NUM_QUESTIONS - len(wrong)) / NUM_QUESTIONS
    for (scores, samples), arm in ((chat, "fused"), (simple, "zero")):
        assert scores["local_blink"] == right[arm]
        assert [line["filtered_resps"] for line in samples["local_blink"]] == said[arm]
        counts = [line["token_counts"][0] for line in samples["local_blink"]]
        assert [own["input_tokens"] for own in counts] == [one.prompt_tokens for one in ours[arm]]
    assert simple[0]["local_likeliest"] == right["zero"]  # the likeliest letter is the one that is said
    for line, item, answer in zip(simple[1]["local_likeliest"], asked, ours["zero"], strict=True):
        losses, greedy = zip(*line["filtered_resps"], strict=True)
        assert [-float(loss) for loss in losses] == pytest.approx(answer.logprobs, abs=1e-3)
        assert [own == "True" for own in greedy] == [letter == answer.text for letter in sorted(item.legal)]


# --- what a task asks, as TheWorld is asked ---


def say(role: str, *content: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": role, "content": parts}


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([say("user", IMAGE, "Which?")], "Which?"),
        ([say("user", IMAGE, IMAGE, "Which?\n", "(A) (B)")], "Which?\n(A) (B)"),
        ([say("user", "Which?", IMAGE)], "Which?(picture 1)\n"),
        ([say("user", IMAGE, "then ", IMAGE, "Which?")], "then (picture 2)\nWhich?"),
        ([say("system", "Be short."), say("user", IMAGE, "Which?")], "Be short.\n\nWhich?"),
        ([{"role": "user", "content": "No picture."}], "No picture."),
    ],
)
def test_a_chat_becomes_images_and_one_text(messages: list[dict[str, Any]], text: str) -> None:
    asked = read_messages(messages)
    assert asked.text == text
    assert len(asked.images) == sum(part is IMAGE for message in messages for part in message["content"])
    assert asked.world_images(use_all=False) == asked.images[:1]
    assert asked.world_images(use_all=True) == asked.images


def test_of_a_video_some_frames_are_shown_and_the_last_is_the_present(tmp_path: Path) -> None:
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    asked = read_messages([say("user", {"type": "video", "url": str(tmp_path)}, "What happens?")])
    shades = [image.getpixel((0, 0))[0] for image in asked.images]
    assert (len(shades), shades[0], shades[-1], shades == sorted(shades)) == (8, 0, 19, True)
    for every in (False, True):
        assert [image.getpixel((0, 0))[0] for image in asked.world_images(every)] == [19]
    assert read_visuals([str(tmp_path)], "What happens?").now == 7  # without an image extension it is a video
    assert read_visuals([str(tmp_path / "03.png"), IMAGE["url"]], "What?").now is None


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([say("user", "One?"), say("assistant", "1"), say("user", "Two?")], "several turns"),
        ([say("user", "One?"), say("user", "Two?")], "several turns"),
        ([say("user", {"type": "audio", "url": "a.wav"})], "contains audio"),
        ([say("user", {"type": "video", "url": "a.mp4", "start_time": 2.0})], "time range of a video"),
        ([say("user", {"type": "video", "url": {"url": "a.mp4", "video_start": 2.0}})], "time range of a video"),
        ([say("user", {"type": "video", "url": [1, 2]})], "video as list"),
        ([say("user", {"type": "video", "url": "missing.mp4"})], "no file 'missing.mp4'"),
    ],
)
def test_unsupported_messages_are_errors(messages: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        read_messages(messages)


@pytest.mark.parametrize(
    ("settings", "writing"),
    [
        ({}, Decoding()),
        ({"max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1}, Decoding(16)),
        ({"temperature": 0.7, "top_p": 0.9}, Decoding(temperature=0.7, top_p=0.9)),
        ({"temperature": 0.7, "do_sample": False}, Decoding()),
        ({"until": ["\n\n"]}, Decoding()),  # what lmms-eval adds where a task names none
        ({"until": ["</s>", "Q:"]}, Decoding(stops=("</s>", "Q:"))),
        ({"until": "Q:"}, Decoding(stops=("Q:",))),
        ({"top_k": 5, "num_beams": 4}, Decoding(ignored=("num_beams", "top_k"))),
    ],
)
def test_settings_of_a_task(settings: dict[str, Any], writing: Decoding) -> None:
    assert Decoding.read(settings) == writing


def test_an_answer_ends_before_the_first_stop() -> None:
    assert Decoding(stops=("Q:", "</s>")).truncate("(B) </s> Q: next") == "(B)"
    assert Decoding().truncate(" because\n\n(B) ") == "because\n\n(B)"


# --- how they are asked ---


class Echo:
    """A model that answers with its question, and records each batch."""

    projector_is_trained = has_base_gemma = True
    passes_per_rollout = 3
    model = SimpleNamespace(device="cpu", model=SimpleNamespace(dtype=torch.float32))

    def __init__(self) -> None:
        self.config = SimpleNamespace(world_images="first", num_world_steps=1)
        self.batches: list[tuple[int, int, ReplyInputs]] = []

    def imagine(self, images: list[Any], num_world_steps: int, *, seed: int = 0, present: Any = None) -> torch.Tensor:
        return torch.zeros(len(images), 1, 1 + num_world_steps, 2, 2)

    def image_features(self, images: list[Any]) -> torch.Tensor:
        return torch.zeros(len(images), 1, 1)

    def reply(
        self, images: Any, questions: list[str], options: Any, longest: int, inputs: ReplyInputs, **sampling: Any
    ) -> list[Reply]:
        self.batches.append((len(questions), longest, inputs))
        return [Reply(f"{len(own)} {text} Q:", 1, 2) for own, text in zip(images, questions, strict=True)]


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    """The model that `theworld.evaluation.lmms.model` loads, in a single process."""
    one = Echo()
    monkeypatch.setattr(plugin, "load", lambda *_: one)
    monkeypatch.setattr(
        plugin, "Accelerator", lambda: SimpleNamespace(num_processes=1, process_index=0, free_memory=lambda: None)
    )
    return one


def requests(kind: str, docs: list[dict[str, Any]], messages: Any) -> list[Instance]:
    """Requests as lmms-eval creates them from the documents of a task."""
    metadata = {"task": "task", "repeats": 1}
    return [
        Instance(
            kind, ("", messages, doc.get("settings", {}), number, "task", "val"), 0, {**metadata, "doc_id": number}
        )
        for number, doc in enumerate(docs)
    ]


def test_batches_hold_equal_settings_and_answers_keep_their_order(echo: Echo) -> None:
    docs = [
        {
            "text": f"q{number}",
            "has_image": number != 2,
            "settings": {"max_new_tokens": 8 + number % 2, "until": ["Q:"]},
        }
        for number in range(7)
    ]
    model = TheWorldChat(batch_size=3)
    model.task_dict = {"task": {"val": docs}}
    asked = requests("generate_until", docs, lambda doc: [say("user", *[IMAGE] * doc["has_image"], doc["text"])])
    found = model.generate_until(asked)
    assert [one.text for one in found] == [f"{int(number != 2)} q{number}" for number in range(7)]
    assert [(size, longest) for size, longest, _ in echo.batches] == [(2, 8), (1, 8), (1, 8), (3, 9)]
    # the one without a image is asked without a world
    assert [inputs.enable_world for _, _, inputs in echo.batches] == [True, False, True, True]
    model.clean()
    assert "imagination" not in vars(model)


def test_the_next_round_is_built_from_the_answers_so_far(echo: Echo) -> None:
    docs = [{"rounds": number} for number in (2, 1, 3)]

    def messages(doc: dict[str, int], **before: Any) -> Any:
        number, said = before.get("round_idx", 0), before.get("previous_output", [])
        turn = [say("user", f"round {number} after {len(said)}, {before.get('previous_round_info')}")]
        return (turn, number >= doc["rounds"], said, number) if before else turn

    model = TheWorldChat(batch_size=2, arm="no-world")
    model.task_dict = {"task": {"val": docs}}
    found = model.generate_until_multi_round(requests("generate_until_multi_round", docs, messages))
    first, second, third = "0 round 0 after 0, None Q:", "0 round 1 after 1, None Q:", "0 round 2 after 2, 1 Q:"
    assert found == [[first, second], [first], [first, second, third]]
    assert [size for size, _, _ in echo.batches] == [2, 1, 1, 1, 1]


def test_model_args_take_precedence_over_options(echo: Echo) -> None:
    model = TheWorldChat.create_from_arg_string("batch_size=4,arm=no-world", {"batch_size": 1, "device": None})
    assert (model.batch_size, model.arm) == (4, ARMS["no-world"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_world_step": 4}, "theworld has no 'num_world_step'; did you mean 'num_world_steps'?"),
        ({"quantum": 4}, "theworld has no 'quantum'; choose one of pretrained,"),
        ({"arm": "fuse"}, "arm=fuse is not an arm; did you mean 'fused'?"),
        ({"arm": "shuffled"}, "arm=shuffled needs data"),
        ({"arm": "direct"}, "arm=direct has its own weights"),
        ({"arm": "futures-8"}, "arm=futures-8 asks the model several times"),
        ({"batch_size": "auto"}, "batch_size is 'auto'; it must be an integer"),
        ({"seed": -1}, "seed is -1; it must be between 0"),
    ],
)
def test_wrong_arguments_are_reported_before_loading(
    arguments: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "load", lambda *_: pytest.fail("loaded a model"))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        TheWorldChat(**arguments)


def test_the_offered_arms_need_no_data_that_tasks_do_not_have() -> None:
    for name in plugin.OFFERED:
        assert ARMS[name].weights is None
        assert not ARMS[name].reads_others


def test_likelihoods_need_the_simple_form(echo: Echo) -> None:
    with pytest.raises(NotImplementedError, match="--force_simple"):
        TheWorldChat().loglikelihood([])
    with pytest.raises(NotImplementedError, match="leave --force_simple out"):
        TheWorldSimple().generate_until_multi_round([])


def test_a_world_model_can_be_named_for_a_gemma_only() -> None:
    with pytest.raises(ValueError, match="already fused with"):
        plugin.load("nano", "elsewhere", None, ARMS["fused"], "cpu")


def test_the_manifest_names_existing_classes() -> None:
    named = manifest()
    assert {named.chat_class_path, named.simple_class_path} == {
        f"{own.__module__}.{own.__name__}" for own in (TheWorldChat, TheWorldSimple)
    }
    assert "theworld" in {point.name for point in entry_points(group="lmms_eval.models")}
