"""Questions are picked evenly, in balance, the same for the same seed, and apart for different seeds."""

import os
from collections import Counter
from pathlib import Path

import pytest

from tests import commands
from theworld.datasets.physics import FAMILIES, Question
from theworld.evaluation import physics
from theworld.evaluation.scoring import is_right


def question(scene: int, topic: str, answer: str, form: str = "free") -> Question:
    return Question(f"{scene}/{topic}/{form}", "drop", "next", topic, form, "Which?", answer)


def test_answers_topics_and_forms_are_balanced() -> None:
    # outcomes in balance over scenes, as the scenes are; one topic is nearly always answered "no"
    scenes = []
    for scene in range(90):
        outcome = ("left", "middle", "right")[scene % 3]
        scenes.append(
            [
                question(scene, "side", outcome),
                question(scene, "side", "ABC"[scene // 3 % 3], "choice"),
                question(scene, "inside", "yes" if scene // 9 % 2 else "no"),
                question(scene, "rare", "yes" if scene % 10 == 0 else "no"),
            ]
        )
    chosen = physics.choose_one_each(scenes)
    assert [one.id.split("/")[0] for one in chosen] == [str(scene) for scene in range(90)]
    counts = Counter((one.topic, one.form, one.answer) for one in chosen)
    for topic, form, answers in (
        ("side", "free", ("left", "middle", "right")),
        ("side", "choice", "ABC"),
        ("inside", "free", ("yes", "no")),
    ):
        numbers = [counts[topic, form, answer] for answer in answers]
        assert max(numbers) - min(numbers) <= 2, (topic, form, numbers)
        assert sum(numbers) >= 15
    assert counts["rare", "free", "no"] - counts["rare", "free", "yes"] <= 1


def test_a_small_selection_is_spread_over_families_and_is_reproducible() -> None:
    steps: list[tuple[int, int]] = []
    items = physics.pick("test", 4, progress=lambda *step: steps.append(step))
    assert Counter(item.family for item in items) == {FAMILIES[0]: 2, FAMILIES[1]: 1, FAMILIES[2]: 1}
    assert len({item.image.tobytes() for item in items}) == 4
    assert steps == [(done, 4) for done in range(1, 5)]
    assert [item.id for item in physics.pick("test", 4)] == [item.id for item in items]
    assert not {item.id for item in physics.pick("test", 3, seed=1)} & {item.id for item in items}
    for item in items:
        assert item.now_form
        assert item.frames is not None
        assert item.answer in item.legal
        assert is_right(item, item.answer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("tset", 3), "no split 'tset'"), (("test", 0), "limit is 0"), (("test", 3, -1), "seed is -1")],
)
def test_wrong_arguments_are_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        physics.pick(*arguments)


def test_legal_answers_are_letters_for_choice_and_all_possible_answers_for_free() -> None:
    asked = [
        Question("1", "drop", "next", "side", "choice", "Which?", "B", ("left", "middle", "right")),
        Question("2", "drop", "next", "side", "free", "Which?", "left"),
        Question("3", "drop", "next", "colour", "free", "Which?", "red"),
    ]
    legal = physics.legal_answers(asked)
    assert legal["drop", "side", "choice"] == {"A", "B", "C"}
    assert legal["drop", "side", "free"] == {"left", "middle", "right"}
    assert {"red", "blue", "green"} <= legal["drop", "colour", "free"]


def test_a_script_without_a_guard_may_generate_many_scenes(tmp_path: Path) -> None:
    """Worker processes must not run the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from theworld.evaluation import physics\n"
        "physics.POOL_FROM = 2\n"
        "print([clip.family for clip in physics.make_clips([('tower', 'test', index) for index in range(3)])])\n"
    )
    done = commands.run(script, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.returncode, done.stdout) == (0, "['tower', 'tower', 'tower']\n"), done.stderr
