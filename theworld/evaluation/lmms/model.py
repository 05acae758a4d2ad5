"""TheWorld as a model of lmms-eval: its tasks are answered in one arm, through the same calls as `theworld eval`."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from tqdm import tqdm

from theworld.datasets.samples import naming
from theworld.evaluation.answering import ModelAnswerer
from theworld.evaluation.arms import ARMS, Arm, Batch, Imagination
from theworld.evaluation.lmms.requests import Decoding, Prompt, read_messages, read_visuals
from theworld.evaluation.runner import answer, check_arms, inputs_of
from theworld.evaluation.strategies import once
from theworld.evaluation.tasks import HIDDEN, Item
from theworld.inference.pipeline import TheWorld
from theworld.messages import suggest
from theworld.model.call_plan import check_seed
from theworld.model.spec import resolve_model

# Interventions that need only a question and its images: no true future, no image of another question. Trained controls
# are models of their own (`pretrained=nano/direct,arm=no-world`).
OFFERED = (
    "fused", "fused-0", "no-world", "gemma", "verbal", "imagined-image", "zero", "dummy", "random-projection",
    "averaged-8",
)  # fmt: skip


class TheWorldChat(lmms):
    """`--model theworld`; the arguments are those of `--model_args`.

    Args:
        pretrained: `nano`, a folder, or a Hub id, of a TheWorld model or of a Gemma 3.
        world_model: world model that a Gemma 3 is fused with; None means the default one.
        num_world_steps: world steps to imagine; None means the model's own number.
        arm: one of OFFERED.
        seed: of the rollouts.
        batch_size: questions per batch.
        device: None means this process's GPU, or the CPU.
        dtype: `bfloat16`, `float32` or `float16`; None means what `TheWorld` chooses for the device.

    Raises:
        ValueError: if an argument or the arm is unknown, or the model cannot be read.
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
        self.arm = choose_arm(arm)
        self.seed = check_seed(seed)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; it must be an integer of 1 or more.")
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1 and device != "cpu" and torch.cuda.is_available():
            device = f"cuda:{self.accelerator.local_process_index}"
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        answerer = load(str(pretrained), world_model, num_world_steps, self.arm, device, dtype)
        check_arms(answerer, {arm: self.arm})
        self.num_world_steps = answerer.config.num_world_steps
        self.device = answerer.model.device
        logger.info(f"{pretrained}: {str(answerer.model.model.dtype).removeprefix('torch.')} on {self.device}")
        self.imagination = Imagination(answerer)
        self.warned: set[str] = set()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> TheWorldChat:
        """Called by lmms-eval; `--model_args` take precedence over options such as `--batch_size`."""
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**options, **simple_parse_args_string(arg_string)})

    def clean(self) -> None:
        """Frees the model at the end."""
        del self.imagination
        super().clean()

    # ------------------------------------------------------------------------------------- called by lmms-eval

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answer to each request, in order; requests with equal settings share batches."""
        groups: dict[Decoding, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[self.decoding(request)].append(i)
        found: dict[int, GenerationResult] = {}
        for batch in self.in_batches(list(groups.values())):
            prompts = [self.read(requests[i]) for i in batch]
            found.update(zip(batch, self.answers(prompts, self.decoding(requests[batch[0]])), strict=True))
        return [found[i] for i in range(len(requests))]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers to all rounds of each request; a task builds the next question from the answers so far."""
        return [texts for batch in self.in_batches([requests]) for texts in self.rounds(batch)]

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Not supported: lmms-eval requests likelihoods only from models in their simple form."""
        raise NotImplementedError("Likelihood tasks need --force_simple; add it to the command.")

    # -------------------------------------------------------------------------------------- answers

    def doc(self, request: Instance) -> Any:
        """The dataset row of a request."""
        number, task, split = request.args[-3:]
        return self.task_dict[task][split][number]

    def read(self, request: Instance) -> Prompt:
        with naming(row_of(request)):
            return read_messages(request.args[1](self.doc(request)))

    def decoding(self, request: Instance) -> Decoding:
        decoding = Decoding.read(request.args[1 if self.is_simple else 2])
        for name in set(decoding.ignored) - self.warned:
            self.warned.add(name)
            logger.warning(f"{request.task_name} sets {name}, which TheWorld ignores.")
        return decoding

    def in_batches(self, groups: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Yields the batches of each group, and shows one progress bar."""
        with tqdm(total=sum(map(len, groups)), disable=self.rank != 0, desc="TheWorld answers") as bar:
            for group in groups:
                for start in range(0, len(group), self.batch_size):
                    batch = group[start : start + self.batch_size]
                    yield batch
                    bar.update(len(batch))

    def rounds(self, requests: Sequence[Instance]) -> list[list[str]]:
        """All rounds of a batch of requests; in each round, those with equal settings share a batch."""
        found: list[list[str]] = [[] for _ in requests]
        known: list[Any] = [None] * len(requests)  # state that a task receives again in the next round
        unfinished = list(range(len(requests)))
        number = 0
        while unfinished:
            prompts: dict[Decoding, dict[int, Prompt]] = defaultdict(dict)
            for i in unfinished:
                request = requests[i]
                messages = request.args[1]
                if number == 0:
                    turn = messages(self.doc(request))
                else:
                    turn, is_over, _, known[i] = messages(
                        self.doc(request),
                        round_idx=number,
                        previous_output=list(found[i]),
                        previous_round_info=known[i],
                    )
                    if is_over:
                        continue
                with naming(row_of(request)):
                    prompts[self.decoding(request)][i] = read_messages(turn)
            for decoding, batch in prompts.items():
                for i, result in zip(batch, self.answers(list(batch.values()), decoding), strict=True):
                    found[i].append(result.text)
            unfinished = sorted(i for batch in prompts.values() for i in batch)
            number += 1
        return found

    def answers(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[GenerationResult]:
        """The answers to one batch, truncated at their stop strings."""

        def ask(arm: Arm, batch: Batch, indices: Sequence[int]) -> list[GenerationResult]:
            answers = answer(arm, batch, decoding.max_new_tokens, decoding.temperature, decoding.top_p)
            return [
                GenerationResult(decoding.truncate(one.text), TokenCounts(one.prompt_tokens, one.new_tokens))
                for one in answers
            ]

        return self.batches(prompts, ask)

    def batches(self, prompts: Sequence[Prompt], ask: Callable[[Arm, Batch, Sequence[int]], list[Any]]) -> list[Any]:
        """The result of `ask` for each prompt; prompts without an image, which have no future, are asked separately."""
        found: dict[int, Any] = {}
        for has_image in (True, False):
            indices = [i for i, prompt in enumerate(prompts) if bool(prompt.images) == has_image]
            if not indices:
                continue
            arm = self.arm if has_image else ARMS["gemma" if self.arm.needs_base_gemma else "no-world"]
            found.update(zip(indices, ask(arm, self.batch([prompts[i] for i in indices]), indices), strict=True))
        self.imagination.end_batch()
        return [found[i] for i in range(len(prompts))]

    def batch(self, prompts: Sequence[Prompt]) -> Batch:
        return Batch(
            images=[prompt.images for prompt in prompts],
            questions=[prompt.text for prompt in prompts],
            num_world_steps=self.num_world_steps,
            seed=self.seed,
            items=[
                Item(str(i), "", "", "free", prompt.images, prompt.text, HIDDEN) for i, prompt in enumerate(prompts)
            ],
            world_images=[prompt.world_images(self.imagination.uses_all_images) for prompt in prompts],
            other_images=[[] for _ in prompts],
            imagination=self.imagination,
        )


class TheWorldSimple(TheWorldChat):
    """The form for `--force_simple`: a task gives images and one prompt, and may request likelihoods of answers."""

    is_simple = True

    def read(self, request: Instance) -> Prompt:
        with naming(row_of(request)):
            return read_visuals(request.args[2](self.doc(request)), request.args[0])

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """For each answer, its loss given the question, summed over tokens, and whether greedy decoding gives it.

        lmms-eval 0.7.3 takes the smallest value as the likeliest, and converts a bare pair to text, which it cannot
        score (`unwrap_generation_output`): hence the sign, and the wrapping.
        """
        return [
            GenerationResult((-logprob, is_greedy))
            for batch in self.in_batches([requests])
            for logprob, is_greedy in self.likelihoods(
                [self.read(one) for one in batch], [self.continuation(one) for one in batch]
            )
        ]

    def continuation(self, request: Instance) -> str:
        """The answer to score, without the space that precedes it in running text."""
        text = request.args[1]
        return str(text(self.doc(request)) if callable(text) else text).strip()

    def likelihoods(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[tuple[float, bool]]:
        def ask(arm: Arm, batch: Batch, indices: Sequence[int]) -> list[tuple[float, bool]]:
            changed = arm.change(batch)
            texts = [answers[i] for i in indices]
            return self.imagination.model.answer_logprobs(changed.images, changed.questions, texts, inputs_of(changed))

        return self.batches(prompts, ask)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        raise NotImplementedError("Tasks of several rounds need the chat form; leave --force_simple out.")


def row_of(request: Instance) -> str:
    """Where a request comes from, for errors."""
    number, task, split = request.args[-3:]
    return f"{task}, row {number} of {split}"


def check_names(unknown: dict[str, Any]) -> None:
    """Raises a ValueError for an unknown argument, with a suggestion."""
    if unknown:
        name = sorted(unknown)[0]
        parameters = inspect.signature(TheWorldChat.__init__).parameters
        known = [parameter for parameter in parameters if parameter not in ("self", "unknown")]
        raise ValueError(f"--model_args of theworld has no {name!r}; {suggest(name, known)}")


def choose_arm(name: str) -> Arm:
    """The arm of that name, if lmms-eval's tasks can be answered in it."""
    if name in OFFERED:
        return ARMS[name]
    reason = "is not an arm"
    if name in ARMS:
        reason = "needs data that lmms-eval's tasks do not have (true futures, images of other questions)"
        if ARMS[name].strategy is not once:
            reason = "asks the model several times, which only `theworld eval` does"
        if ARMS[name].weights is not None:
            reason = f"has its own weights: pass them as pretrained=…/{name}, with an arm of that model"
    raise ValueError(f"arm={name} {reason}; {suggest('' if name in ARMS else name, OFFERED)}")


def load(
    pretrained: str,
    world_model: str | None,
    num_world_steps: int | None,
    arm: Arm,
    device: str | None,
    dtype: str | None = None,
) -> ModelAnswerer:
    """A TheWorld model, or a Gemma 3, which is fused with a world model only if the arm needs one."""
    spec = resolve_model(pretrained, world_model=world_model, enable_world=arm.needs_world)
    spec.check_world_model(world_model)
    return ModelAnswerer(TheWorld(spec, num_world_steps, device=device, dtype=dtype))
