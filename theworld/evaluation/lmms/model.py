"""TheWorld as a model of lmms-eval: its tasks, asked in one arm, through the same calls as `theworld eval`."""

from __future__ import annotations

import difflib
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from tqdm import tqdm

from theworld.evaluation.answering import ModelAnswerer
from theworld.evaluation.arms import ARMS, Arm, Batch, Imagination
from theworld.evaluation.items import HIDDEN, Item
from theworld.evaluation.lmms.requests import Asked, Writing, read_messages, read_visuals
from theworld.evaluation.runner import answer, check_arms, inputs_of
from theworld.inference.pipeline import TheWorld
from theworld.model.spec import resolve_model

# Interventions that need nothing but a question and its pictures: no true future, no other question's picture. Trained
# controls are models of their own (`pretrained=nano/direct,arm=no-world`).
OFFERED = ("fused", "fused-0", "no-world", "gemma", "verbal", "imagined-image", "zero", "dummy", "random-projection")


class TheWorldChat(lmms):
    """What `--model theworld` is; the arguments are those of `--model_args`.

    Args:
        pretrained: `nano`, a folder, or a Hub id, of TheWorld or of a plain Gemma 3.
        world_model: of a fresh fusion with a plain Gemma 3; None is the default one.
        num_world_steps: world steps to imagine; None is the model's own number.
        arm: one of OFFERED.
        seed: of the rollouts.
        batch_size: questions answered at once.
        device: None is this process's GPU, or the CPU.
        dtype: of the weights, such as `bfloat16`; None is the device's default.

    Raises:
        ValueError: an argument that is not known, an arm that cannot be asked, or a model that cannot be read.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "nano",
        world_model: str | None = None,
        num_world_steps: int | None = None,
        arm: str = "fused",
        seed: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_names(unknown)
        self.arm = chosen(arm)
        self.seed = seed
        self.batch_size = whole_number("batch_size", batch_size)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1 and device != "cpu" and torch.cuda.is_available():
            device = f"cuda:{self.accelerator.local_process_index}"
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        answerer = load(str(pretrained), world_model, num_world_steps, self.arm, device, dtype)
        check_arms(answerer, {arm: self.arm})
        self.num_world_steps = answerer.config.num_world_steps
        self.device = answerer.model.device
        self.imagination = Imagination(answerer)
        self.warned: set[str] = set()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> TheWorldChat:
        """As lmms-eval makes a model; what `--model_args` says goes before options such as `--batch_size`."""
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**options, **simple_parse_args_string(arg_string)})

    def clean(self) -> None:
        """Frees the model, when everything has been asked."""
        del self.imagination
        super().clean()

    # ------------------------------------------------------------------------------------- what lmms-eval asks

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answer to each request, in their order; those with equal settings share batches."""
        groups: dict[Writing, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[self.writing(request)].append(place)
        found: dict[int, GenerationResult] = {}
        with self.progress(len(requests)) as bar:
            for writing, places in groups.items():
                for start in range(0, len(places), self.batch_size):
                    own = places[start : start + self.batch_size]
                    asked = [self.read(requests[place]) for place in own]
                    found.update(zip(own, self.answers(asked, writing), strict=True))
                    bar.update(len(own))
        return [found[place] for place in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers to all rounds of each request; a task makes the next question of the answers so far."""
        found: list[list[str]] = []
        with self.progress(len(requests)) as bar:
            for start in range(0, len(requests), self.batch_size):
                own = requests[start : start + self.batch_size]
                found += self.rounds(own)
                bar.update(len(own))
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """lmms-eval makes requests of likelihoods only for models in their simple form."""
        raise NotImplementedError("tasks of likelihoods are asked with --force_simple; add it to the command.")

    # -------------------------------------------------------------------------------------- how they are asked

    def doc(self, request: Instance) -> Any:
        """The row of the data set that a request is about."""
        number, task, split = request.args[-3:]
        return self.task_dict[task][split][number]

    def read(self, request: Instance) -> Asked:
        return read_messages(request.args[1](self.doc(request)))

    def writing(self, request: Instance) -> Writing:
        writing = Writing.read(request.args[1 if self.is_simple else 2])
        for name in set(writing.ignored) - self.warned:
            self.warned.add(name)
            logger.warning(f"{request.task_name} sets {name} for its answers, which TheWorld does not follow.")
        return writing

    def progress(self, total: int) -> tqdm[Any]:
        return tqdm(total=total, disable=self.rank != 0, desc="TheWorld answers")

    def rounds(self, requests: Sequence[Instance]) -> list[list[str]]:
        """All rounds of some requests; of those that go on, each round is one batch where settings are equal."""
        found: list[list[str]] = [[] for _ in requests]
        known: list[Any] = [None] * len(requests)  # what a task wants to be told again in the next round
        going_on = list(range(len(requests)))
        number = 0
        while going_on:
            asked: dict[Writing, dict[int, Asked]] = defaultdict(dict)
            for place in going_on:
                request = requests[place]
                messages = request.args[1]
                if number == 0:
                    turn = messages(self.doc(request))
                else:
                    following = messages(
                        self.doc(request),
                        round_idx=number,
                        previous_output=list(found[place]),
                        previous_round_info=known[place],
                    )
                    turn, is_over, _, known[place] = following
                    if is_over:
                        continue
                asked[self.writing(request)][place] = read_messages(turn)
            for writing, own in asked.items():
                for place, result in zip(own, self.answers(list(own.values()), writing), strict=True):
                    found[place].append(result.text)
            going_on = sorted(place for own in asked.values() for place in own)
            number += 1
        return found

    def answers(self, asked: Sequence[Asked], writing: Writing) -> list[GenerationResult]:
        """The answers to one batch, cut at their stops."""

        def ask(arm: Arm, batch: Batch, places: Sequence[int]) -> list[GenerationResult]:
            said = answer(arm, batch, writing.max_new_tokens, writing.temperature, writing.top_p)
            return [
                GenerationResult(writing.cut(one.text), TokenCounts(one.prompt_tokens, one.new_tokens)) for one in said
            ]

        return self.batches(asked, ask)

    def batches(self, asked: Sequence[Asked], ask: Callable[[Arm, Batch, Sequence[int]], list[Any]]) -> list[Any]:
        """What `ask` says to each question, those without a picture apart: nothing can be looked ahead from there."""
        found: dict[int, Any] = {}
        for pictured in (True, False):
            places = [place for place, one in enumerate(asked) if bool(one.pictures) == pictured]
            if not places:
                continue
            arm = self.arm if pictured else ARMS["gemma" if self.arm.asks_gemma else "no-world"]
            found.update(zip(places, ask(arm, self.batch([asked[place] for place in places]), places), strict=True))
        self.imagination.forget_features()
        return [found[place] for place in range(len(asked))]

    def batch(self, asked: Sequence[Asked]) -> Batch:
        return Batch(
            images=[one.pictures for one in asked],
            questions=[one.text for one in asked],
            num_world_steps=self.num_world_steps,
            seed=self.seed,
            enable_world=True,
            world_latents=None,
            records=[
                Item(str(place), "", "", "free", one.pictures, one.text, HIDDEN) for place, one in enumerate(asked)
            ],
            seen=[one.seen(self.imagination.every) for one in asked],
            others=[[] for _ in asked],
            imagination=self.imagination,
        )


class TheWorldSimple(TheWorldChat):
    """The form of `--force_simple`: a task gives pictures and one prompt, and may ask how likely an answer is."""

    is_simple = True

    def read(self, request: Instance) -> Asked:
        return read_visuals(request.args[2](self.doc(request)), request.args[0])

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each answer, its loss behind its question, summed over tokens, and whether a greedy answer begins with it.

        lmms-eval 0.7.3 takes the smallest for the likeliest, and makes text of a bare pair, which it then cannot score
        (`unwrap_generation_output`): hence the sign, and the wrapping.
        """
        found: list[tuple[float, bool]] = []
        with self.progress(len(requests)) as bar:
            for start in range(0, len(requests), self.batch_size):
                own = requests[start : start + self.batch_size]
                found += self.likelihoods([self.read(one) for one in own], [self.continuation(one) for one in own])
                bar.update(len(own))
        return [GenerationResult((-logprob, is_greedy)) for logprob, is_greedy in found]

    def continuation(self, request: Instance) -> str:
        """The answer that is asked about, without the blank that would stand before it in running text."""
        text = request.args[1]
        return str(text(self.doc(request)) if callable(text) else text).strip()

    def likelihoods(self, asked: Sequence[Asked], answers: Sequence[str]) -> list[tuple[float, bool]]:
        def ask(arm: Arm, batch: Batch, places: Sequence[int]) -> list[tuple[float, bool]]:
            changed = arm.change(batch)
            own = [answers[place] for place in places]
            return self.imagination.model.answer_logprobs(changed.images, changed.questions, own, inputs_of(changed))

        return self.batches(asked, ask)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        raise NotImplementedError("tasks of several rounds are asked as chats; leave --force_simple out.")


def check_names(unknown: dict[str, Any]) -> None:
    """Raises a ValueError for arguments that are not known: a run with a misspelt one would measure something else."""
    if unknown:
        name = sorted(unknown)[0]
        known = [own for own in inspect.signature(TheWorldChat.__init__).parameters if own not in ("self", "unknown")]
        close = difflib.get_close_matches(name, known, 1)
        guess = f"did you mean {close[0]}?" if close else f"they are {', '.join(known)}."
        raise ValueError(f"model_args has no {name!r} for theworld; {guess}")


def chosen(name: str) -> Arm:
    """The arm of that name, where lmms-eval's tasks can be asked in it."""
    if name in OFFERED:
        return ARMS[name]
    why = "is no arm"
    if name in ARMS:
        why = "needs what lmms-eval's tasks do not have (true futures, other questions' pictures)"
        if ARMS[name].weights is not None:
            why = f"has weights of its own: give them as pretrained=…/{name}, with an arm of that model"
    close = difflib.get_close_matches(name, OFFERED, 1) if name not in ARMS else []
    guess = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(OFFERED)}."
    raise ValueError(f"arm={name} {why}; {guess}")


def whole_number(name: str, value: int | str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{name} is {value!r}; give a whole number of 1 or more.")
    return int(value)


def load(
    pretrained: str,
    world_model: str | None,
    num_world_steps: int | None,
    arm: Arm,
    device: str | None,
    dtype: str | None = None,
) -> ModelAnswerer:
    """A trained model, or a plain Gemma 3 freshly fused, with a world only where the arm needs one."""
    spec = resolve_model(pretrained, world_model=world_model, enable_world=arm.needs_world)
    spec.check_world_model(world_model)
    return ModelAnswerer(TheWorld(spec, num_world_steps, device=device, dtype=dtype))
