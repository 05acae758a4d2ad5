"""Questions about clips: what an image shows now, and what happens after the first one.

Answers are one word (a colour, a side, a digit, yes or no) or, for multiple choice, one letter. The wording depends on
the id of a question only. There are no questions that the image leaves open.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from theworld.datasets.physics import contact, drop, tower
from theworld.datasets.physics.rendering import PALETTE
from theworld.datasets.physics.scenes import BLOCK, Clip, outcomes
from theworld.datasets.physics.simulation import ASKED, IMAGE_SIZE, Part, corners

_EIGHTH = IMAGE_SIZE / 8
_BOUNDARY = 0.6  # px from the edge of an eighth within which there is no question about a position
_PAIR = 2.0  # px by which one object must be further left, right, up or down
_TOUCHING_NOW = 0.7  # stricter than at the end: the image must be unambiguous
_COLOURS = tuple(name for name in PALETTE if name not in ("black", "stone", "wood"))


@dataclass(frozen=True)
class Question:
    """One question and its answer.

    Attributes:
        id: unique; names clip, moment, topic and form.
        family: drop | contact | tower.
        kind: "now" (about one image) or "next" (about what follows the first image).
        topic: the subject; answers are balanced within (family, topic, form).
        form: "free" or "choice".
        text: the full prompt, choices included.
        answer: exact text; a letter for "choice".
        choices: the texts of the letters A, B, …; empty for "free".
        now_form: for "next", the same question about the state in the last image; None for "now".
    """

    id: str
    family: str
    kind: str
    topic: str
    form: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    now_form: str | None = None


# Two or three wordings of each topic; the id of the question selects one.
_NOW_WORDING: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is {a}?", "Which colour does {a} have?"),
    "material": ("What is {a} made of, stone or wood?", "Is {a} stone or wood?"),
    "count": ("How many {a} are there?", "How many {a} are in the picture?"),
    "column": ("In which column is {a}?", "Which column, 1 to 8 from the left, is {a} in?"),
    "row": ("In which row is {a}?", "Which row, 1 to 8 from the top, is {a} in?"),
    "left_right": ("Is {a} left or right of {b}?", "Is {a} on the left or on the right of {b}?"),
    "higher_lower": ("Is {a} higher or lower than {b}?", "Compared with {b}, is {a} higher or lower?"),
    "tilt": ("Which end of {a} is lower, left or right?", "Does {a} slope down to the left or to the right?"),
    "ground": ("What colour is the ground {a}?", "Which colour does the ground {a} have?"),
    "bin_side": (
        "Which bin is {a} in: left, middle, right or none?",
        "Is {a} in the left, middle or right bin, or none?",
    ),
    "bin_colour": ("What colour is the bin that {a} is in?", "The bin that {a} is in has which colour?"),
    "in_colour": ("Is {a} in {b}?", "Does {b} hold {a}?"),
    "touching": ("Is the red ball touching the blue box?", "Are the red ball and the blue box touching?"),
    "touching_other": ("Is the red ball touching {a}?", "Are the red ball and {a} touching?"),
    "stack": (
        "On which side has {a} fallen: {b}, or is it standing?",
        "Has {a} fallen on the {b} side, or is it standing?",
    ),
    "stack_is": ("{b}",),
}
_NEXT_WORDING: dict[str, tuple[str, ...]] = {
    "bin_colour": ("What colour is the bin {a} will land in?", "{A} will land in a bin of which colour?"),
    "in_colour": ("Will {a} land in {b}?", "Will {a} end up in {b}?"),
    "touching": ("Will the red ball touch the blue box?", "Will the red ball come to touch the blue box?"),
    "touching_other": ("Will the red ball touch {a}?", "Will the red ball come to touch {a}?"),
    "stack": (
        "On which side will {a} fall: {b}, or does it stay standing?",
        "Will {a} fall on the {b} side, or stay standing?",
    ),
    "stack_is": ("{next_b}",),
}


def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def _with_choices(text: str, choices: Sequence[str]) -> str:
    listed = " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=False))
    return f"{text} {listed}. Answer with the letter."


def _arrange(answer: str, others: Sequence[str], place: int, key: str) -> tuple[str, ...]:
    """The choices: `answer` at the index `place`, the others in an order that depends on `key`."""
    rest = sorted((other for other in others if other != answer), key=lambda other: _hash(key + other))
    return (*rest[:place], answer, *rest[place:])


class _Asker:
    """Collects the questions about one image (kind "now") or one clip (kind "next")."""

    def __init__(self, clip: Clip, kind: str, frame: int = 0) -> None:
        self.clip, self.kind = clip, kind
        self.prefix = f"{clip.family}/{clip.split}/{clip.index}/{kind}" + (f"/{frame}" if kind == "now" else "")
        self.wordings = (_NEXT_WORDING, _NOW_WORDING) if kind == "next" else (_NOW_WORDING,)
        self.questions: list[Question] = []

    def ask(
        self,
        topic: str,
        answer: str,
        others: Sequence[str] = (),
        *,
        a: str = "",
        b: str = "",
        next_b: str = "",
        place: int | None = None,
        forms: Sequence[str] = ("free",),
    ) -> None:
        """Adds a question in the given forms; `others` are the wrong choices, `place` the index of the right one."""
        for form in forms:
            key = "/".join(part for part in (self.prefix, topic, form, f"{a}-{b}".strip("-").replace(" ", "_")) if part)
            words = {"a": a, "b": b, "A": a.capitalize(), "next_b": next_b}
            wordings = [wording[topic] for wording in self.wordings]
            texts = [wording[_hash(key) % len(wording)].format(**words) for wording in wordings]
            choices: tuple[str, ...] = ()
            shown = answer
            if form == "choice":
                where = _hash(key + "place") % (len(others) + 1) if place is None else place
                choices = _arrange(answer, others, where, key)
                texts = [_with_choices(text, choices) for text in texts]
                shown = "ABCD"[where]
            text, *now_form = texts
            self.questions.append(
                Question(key, self.clip.family, self.kind, topic, form, text, shown, choices, *now_form)
            )


_BOTH = ("free", "choice")
_YELLOW = "the yellow ball"


def next_questions(clip: Clip) -> list[Question]:
    """All questions about what happens after the first image, in fixed order."""
    asker = _Asker(clip, "next")
    options = outcomes(clip.family)
    ways = len(options)
    places = min(ways, 3)
    place, turn = clip.slot // ways % places, clip.slot // (ways * places)  # balanced over a block of indices
    first_yes, second_yes, coin = turn % 2 == 0, turn < BLOCK // (ways * places) // 2, clip.slot // ways % 2
    if clip.family == "tower":
        options = _stack_states(clip, tower.STANDS[0])
    elif clip.family == "drop":
        options = tuple(part.colour for part in clip.parts if part.kind == "bin")
    others = [option for option in options if option != clip.outcome]
    wrong = others[_hash(asker.prefix) % len(others)]
    if clip.family == "drop":
        asker.ask("bin_colour", clip.outcome, others, a=_YELLOW, place=place, forms=_BOTH)
        for yes, form in ((first_yes, "free"), (second_yes, "choice")):
            about = f"the {clip.outcome if yes else wrong} bin"
            asker.ask("in_colour", _yes(yes), [_yes(not yes)], a=_YELLOW, b=about, place=coin, forms=(form,))
    elif clip.family == "contact":
        asker.ask("touching", clip.outcome, others, place=place, forms=_BOTH)
        _ask_boxes(asker, clip, -1)
    else:
        stack = f"the stack on the {tower.STANDS[0]} stand"
        asker.ask("stack", clip.outcome, others, a=stack, b=" or ".join(options[:2]), place=place, forms=_BOTH)
        for yes, form in ((first_yes, "free"), (second_yes, "choice")):
            about = clip.outcome if yes else wrong
            now, after = _is_stack(stack, about), _will_stack(stack, about)
            asker.ask("stack_is", _yes(yes), [_yes(not yes)], b=now, next_b=after, place=coin, forms=(form,))
    return asker.questions


def now_questions(clip: Clip, frame: int) -> list[Question]:
    """All unambiguous questions about the image `clip.frames[frame]`, in fixed order.

    Raises:
        ValueError: if there is no such frame.
    """
    if not 0 <= frame < clip.poses.shape[1]:
        raise ValueError(f"frame must be in [0, {clip.poses.shape[1] - 1}], got {frame}.")
    asker = _Asker(clip, "now", frame)
    {"drop": _ask_drop, "contact": _ask_contact, "tower": _ask_tower}[clip.family](asker, clip, frame)
    for name, i in _names(clip, frame).items():
        if clip.parts[i].kind == "ramp":
            down = "right" if np.sin(clip.poses[i, frame, 2]) > 0 else "left"
            asker.ask("tilt", down, ["left" if down == "right" else "right"], a=name, forms=_BOTH)
    middles = things(clip, frame)
    for name, (x, y) in middles.items():
        for topic, value in (("column", x), ("row", y)):
            if abs(value / _EIGHTH - round(value / _EIGHTH)) * _EIGHTH > _BOUNDARY:
                asker.ask(topic, str(int(value // _EIGHTH) + 1), a=name)
    for pair in combinations(middles, 2):
        a, b = reversed(pair) if _hash("".join(pair)) % 2 else pair
        (ax, ay), (bx, by) = middles[a], middles[b]
        if abs(ax - bx) >= _PAIR:
            asker.ask("left_right", *(("left", ["right"]) if ax < bx else ("right", ["left"])), a=a, b=b, forms=_BOTH)
        if abs(ay - by) >= _PAIR:
            asker.ask("higher_lower", "higher" if ay < by else "lower", a=a, b=b)
    return asker.questions


def things(clip: Clip, frame: int) -> dict[str, tuple[float, float]]:
    """Objects with a unique name that are completely in the image `clip.frames[frame]`, and where their middles are.

    Returns:
        Name to (x, y) in px from the upper left corner, in order of painting.
    """
    return {
        name: _centre(clip.parts[i], clip.poses[i, frame])
        for name, i in _names(clip, frame).items()
        if _inside(clip.parts[i], clip.poses[i, frame])
    }


def _yes(true: bool) -> str:
    return "yes" if true else "no"


def _names(clip: Clip, frame: int) -> dict[str, int]:
    """Objects with a unique name in this image, and their index among the parts."""
    names: dict[str, int] = {}
    for i, part in enumerate(clip.parts):
        if part.kind in ("ramp", "hill", "box", "ball"):
            names[f"the {part.colour} {part.kind}"] = i
    obstacles = [i for i, part in enumerate(clip.parts) if part.kind == "obstacle"]
    if len(obstacles) == 1:
        names["the obstacle"] = obstacles[0]
    for stand in tower.STANDS if clip.family == "tower" else ():
        if tower.state(clip.parts, clip.poses, frame, stand) == "standing":
            blocks = [i for i, part in enumerate(clip.parts) if part.kind == "block" and part.role == stand]
            names[f"the top block on the {stand} stand"] = blocks[-1]
            names[f"the bottom block on the {stand} stand"] = blocks[0]
    return names


def _centre(part: Part, pose: np.ndarray) -> tuple[float, float]:
    """The middle of the visible part, px."""
    if part.shape != "polygon":
        return float(pose[0]), float(pose[1])
    points = corners(part, *pose.tolist())
    return float(points[:, 0].min() + points[:, 0].max()) / 2, float(points[:, 1].min() + points[:, 1].max()) / 2


def _inside(part: Part, pose: np.ndarray) -> bool:
    """Whether (nearly) all of it is in the image, so that its middle is visible."""
    if part.shape == "circle":
        return bool((pose[:2] > part.size[0] - 1).all() and (pose[:2] < IMAGE_SIZE - part.size[0] + 1).all())
    points = corners(part, *pose.tolist())
    return bool(points.min() > -1 and points.max() < IMAGE_SIZE + 1)


def _ask_colours(asker: _Asker, name: str, colour: str) -> None:
    rest = sorted((c for c in _COLOURS if c != colour), key=lambda c: _hash(asker.prefix + name + c))
    asker.ask("colour", colour, rest[:3], a=name, forms=_BOTH)


def _ask_drop(asker: _Asker, clip: Clip, frame: int) -> None:
    bins = {part.role: part.colour for part in clip.parts if part.kind == "bin"}
    for index, part in enumerate(clip.parts):
        if part.kind != "ball":
            continue
        name = f"the {part.colour} ball"
        side = drop.bin_of_ball(clip.parts, clip.poses[index, frame].tolist())
        if side:
            asker.ask("bin_side", side, a=name)
            for form in _BOTH:
                key = asker.prefix + name + form
                held = side in bins and _hash(key) % 2 == 0
                about = side if held else [other for other in bins if other != side][_hash(key + "which") % 2]
                asker.ask("in_colour", _yes(held), [_yes(not held)], a=name, b=f"the {bins[about]} bin", forms=(form,))
        if side in bins:
            asker.ask("bin_side", side, [other for other in bins if other != side], a=name, forms=("choice",))
            others = [colour for colour in bins.values() if colour != bins[side]]
            asker.ask("bin_colour", bins[side], others, a=name, forms=_BOTH)
        if index < len(clip.parts) - 1:
            _ask_colours(asker, "the other ball", part.colour)
    for side, colour in bins.items():
        _ask_colours(asker, f"the {side} bin", colour)
    asker.ask("count", str(sum(part.kind == "ramp" for part in clip.parts)), a="ramps")


def _ask_contact(asker: _Asker, clip: Clip, frame: int) -> None:
    _ask_touching(asker, "touching", contact.gap(clip.parts, clip.poses, frame))
    _ask_boxes(asker, clip, frame)
    plurals = {"ball": "balls", "box": "boxes", "obstacle": "obstacles", "ramp": "ramps", "hill": "hills"}
    for kind, plural in plurals.items():
        asker.ask("count", str(sum(part.kind == kind for part in clip.parts)), a=plural)
    for kind in ("hill", "ramp"):
        only = [part for part in clip.parts if part.kind == kind]
        if len(only) == 1:
            _ask_colours(asker, f"the {kind}", only[0].colour)
    (other,) = (part.colour for part in clip.parts if part.kind == "ball" and not part.role)
    _ask_colours(asker, "the other ball", other)


def _ask_boxes(asker: _Asker, clip: Clip, frame: int) -> None:
    """Asks whether the red ball touches the other boxes of its floor."""
    for i, part in enumerate(clip.parts):
        if part.kind == "box" and part.role != "blue" and part.group == ASKED:
            distance = contact.gap_to(i, clip.parts, clip.poses, frame)
            _ask_touching(asker, "touching_other", distance, f"the {part.colour} box")


def _ask_touching(asker: _Asker, topic: str, distance: float, a: str = "") -> None:
    """Asks whether the red ball touches a box, unless the image leaves it open."""
    near = distance < _TOUCHING_NOW
    if near or distance >= contact.APART:
        asker.ask(topic, _yes(near), [_yes(not near)], a=a, forms=_BOTH)


def _stack_states(clip: Clip, stand: str) -> tuple[str, ...]:
    """The possible states of a stack: the colours of its two sides, and standing."""
    sides = {part.colour for part in clip.parts if part.kind == "ground" and part.role == stand}
    return tuple(option for option in tower.OUTCOMES if option in sides or option == "standing")


def _is_stack(name: str, state: str) -> str:
    return f"Is {name} standing?" if state == "standing" else f"Has {name} fallen on the {state} side?"


def _will_stack(name: str, state: str) -> str:
    return f"Will {name} stay standing?" if state == "standing" else f"Will {name} fall on the {state} side?"


def _ask_tower(asker: _Asker, clip: Clip, frame: int) -> None:
    for stand in tower.STANDS:
        name = f"the stack on the {stand} stand"
        state = tower.state(clip.parts, clip.poses, frame, stand)
        if state:
            others = [option for option in _stack_states(clip, stand) if option != state]
            sides = " or ".join(_stack_states(clip, stand)[:2])
            asker.ask("stack", state, others, a=name, b=sides, forms=_BOTH)
            for form in _BOTH:
                key = asker.prefix + stand + form
                yes = _hash(key) % 2 == 0
                about = state if yes else others[_hash(key + "which") % 2]
                asker.ask("stack_is", _yes(yes), [_yes(not yes)], b=_is_stack(name, about), forms=(form,))
        if state == "standing":
            blocks = [part for part in clip.parts if part.kind == "block" and part.role == stand]
            asker.ask("count", str(len(blocks)), a=f"blocks on the {stand} stand")
            for place, block in (("top", blocks[-1]), ("bottom", blocks[0])):
                other = "wood" if block.colour == "stone" else "stone"
                asker.ask("material", block.colour, [other], a=f"the {place} block on the {stand} stand", forms=_BOTH)
        grounds = [part.colour for part in clip.parts if part.kind == "ground" and part.role == stand]
        for side, colour in zip(("left", "right"), grounds, strict=True):
            asker.ask(
                "ground", colour, [c for c in tower.SIDES if c != colour], a=f"{side} of the {stand} stand", forms=_BOTH
            )
    blocks = [part for part in clip.parts if part.kind == "block"]
    for material in ("stone", "wood"):
        asker.ask("count", str(sum(part.colour == material for part in blocks)), a=f"{material} blocks")


def balanced(questions: Iterable[Question], tolerance: float = 0.01) -> list[Question]:
    """The largest subset in which, per (family, kind, topic, form), no constant answer exceeds chance + `tolerance`.

    Chance is one over the number of answers (or letters) that occur. Ids decide which questions are kept, and the order
    is kept. Groups with a single answer are dropped, since they test nothing.
    """
    listed = list(questions)
    groups: dict[tuple[str, ...], list[Question]] = defaultdict(list)
    for question in listed:
        groups[question.family, question.kind, question.topic, question.form, str(len(question.choices))].append(
            question
        )
    kept: set[str] = set()
    for group in groups.values():
        counts = Counter(question.answer for question in group)
        if len(counts) < 2:
            continue
        most = 1 / len(counts) + tolerance
        cap = max(counts.values())
        while cap > 1 and cap / sum(min(count, cap) for count in counts.values()) > most:
            cap -= 1
        taken: Counter[str] = Counter()
        for question in sorted(group, key=lambda q: (_hash(q.id), q.id)):
            if taken[question.answer] < cap:
                taken[question.answer] += 1
                kept.add(question.id)
    return [question for question in listed if question.id in kept]
