"""What an evaluation showed, in sentences: the verdict, and what each arm is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from theworld.evaluation.arms import arm_named
from theworld.evaluation.statistics import NO_DIFFERENCE

NOT_PUBLISHED = "The answers of this split are not published, so no accuracy is claimed."

# The arms that a verdict about `fused` rests on, the best control first, and what each of them lacks.
CONTROLS = {
    "fused-0": "The imagined future",
    "no-world": "The use of world tokens",
    "matched-control": "Training with world tokens",
    "direct": "Training with world tokens",
    "gemma": "The world model with its training",
}
# Why an arm is evaluated: what follows from its comparison with `fused`.
PURPOSES = {
    "fused": "The arm under test.",
    "fused-0": "The difference is what the imagined future adds.",
    "no-world": "The difference is what all world tokens add, those of the present included.",
    "gemma": "The difference is what training and world tokens add together.",
    "verbal": "Shows whether a future in words does as well as one in latents.",
    "imagined-image": "Shows whether the imagined future is better read as an image than as world tokens.",
    "true-image": "An upper bound: the language model sees what really happens.",
    "shuffled": "If it does as well, the content of the world tokens does not matter.",
    "wrong-future": "If it does as well, the content of the imagined future does not matter.",
    "zero": "If it does as well, only the number of tokens matters.",
    "dummy": "If it does as well, only the number of tokens matters.",
    "random-projection": "If it does as well, the training of the projector does not matter.",
    "oracle-future": "The difference is what errors of the imagined future cost.",
    "futures": "Shows whether several futures are better than one.",
    "averaged": "Shows whether the mean of several futures is better than one.",
    "gated": "Shows how many rollouts can be saved.",
    "matched-control": "The difference is what world tokens add to training on the same labels.",
    "direct": "Shows whether training the language model itself does as well as looking ahead.",
    "trained-dummy": "If it does as well, the content of the tokens does not matter, even with training.",
    "trained-oracle": "An upper bound: what a perfect world model would give.",
    "frozen-random-projection": "If it does as well, the training of the projector does not matter.",
}


def verdict(content: Mapping[str, Any]) -> str:
    """One sentence: what helped, by how much, and how sure that is.

    Args:
        content: of `Results`.
    """
    if content.get("hidden"):
        return NOT_PUBLISHED
    name = content["reference"]
    score = content["arms"][name]
    share = f"{name} answered {percent(score['accuracy'])} of {score['n']:,} questions correctly"
    other = opponent(name, list(content["arms"]))
    if other is None:
        low, high = score["interval_95"]
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f} %"
        return f"{share} ({interval}); with a single arm there is nothing to compare it with."
    pair = content["paired"][f"{name}-minus-{other}"]
    subject = CONTROLS.get(base(other)) if base(name) == "fused" and group(name) == group(other) else None
    count = len(content["paired"])
    sure = f"95 % interval {' to '.join(map(points, pair['interval_95']))}, p {p_value(pair['p_holm'])}"
    if count > 1:
        sure += f" after correction for {count} comparisons"
    return f"{claim(pair['finding'], subject, name, other)}: {share}, {gained(pair['difference'], other)} ({sure})."


def claim(finding: str, subject: str | None, name: str, other: str) -> str:
    if subject is None:
        return (
            f"No difference between {name} and {other} is shown"
            if finding == NO_DIFFERENCE
            else (f"{name} is {finding} than {other}")
        )
    if finding == NO_DIFFERENCE:
        return f"It is not shown that {subject[0].lower()}{subject[1:]} changed the accuracy"
    return f"{subject} {'helped' if finding == 'better' else 'did harm'}"


def gained(difference: float, other: str) -> str:
    if points(difference) in ("+0.0", "-0.0"):
        return f"as many as {other}"
    return f"{abs(100 * difference):.1f} percentage points {'more' if difference > 0 else 'less'} than {other}"


def evidence(content: Mapping[str, Any]) -> str:
    """One sentence about the other comparisons; empty if there are none."""
    if content.get("hidden"):
        return ""
    name = content["reference"]
    decisive = opponent(name, list(content["arms"]))
    found: dict[str, list[str]] = {"better": [], "worse": [], NO_DIFFERENCE: []}
    for other in content["arms"]:
        if other not in (name, decisive):
            pair = content["paired"][f"{name}-minus-{other}"]
            found[pair["finding"]].append(f"{other} ({points(pair['difference'])})")
    words = {"better": "better than", "worse": "worse than", NO_DIFFERENCE: "not shown to differ from"}
    parts = [f"{words[finding]} {', '.join(names)}" for finding, names in found.items() if names]
    if not parts:
        return ""
    return f"In the other comparisons, with differences in percentage points, {name} is {'; '.join(parts)}."


def opponent(reference: str, names: Sequence[str]) -> str | None:
    """The arm whose comparison with the reference is the verdict: its best control, else the first other arm."""
    others = [name for name in names if name != reference]
    own = {base(name): name for name in reversed(others) if group(name) == group(reference)}
    if base(reference) == "fused":
        for control in CONTROLS:
            if control in own:
                return own[control]
    return others[0] if others else None


def explanations(names: Sequence[str]) -> dict[str, str]:
    """Arm -> what it is and why it is evaluated."""
    found = {}
    for name in names:
        arm, steps = base(name), name.partition("@")[2]
        meaning = arm_named(arm).meaning
        run = f" Of {group(name)}." if group(name) else ""
        with_steps = f", with {steps} world steps" if steps else ""
        purpose = PURPOSES.get(arm) or PURPOSES.get(arm.rpartition("-")[0])  # an arm of a user's own has none
        found[name] = " ".join(filter(None, [f"{meaning[0].upper()}{meaning[1:]}{with_steps}.", purpose])) + run
    return found


def base(name: str) -> str:
    """The entry of ARMS: `fused` of `run/fused@4`."""
    return name.partition("@")[0].rpartition("/")[2]


def group(name: str) -> str:
    """The group of runs that an arm belongs to: `run` of `run/fused@4`, "" in a single run."""
    return name.rpartition("/")[0]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}"
