"""The options of one call: how the future is imagined (`RolloutOptions`), and how the answer is decoded."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypedDict

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase
from transformers.generation import logits_process

from theworld.messages import Progress, suggest
from theworld.model.call_plan import check_call, check_integer
from theworld.model.configuration import TheWorldConfig

MAX_NEW_TOKENS = 128  # default length of an answer
SAMPLING_ONLY = ("top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# arguments of transformers' generate that have no meaning for a text result, and what to use instead
UNSUPPORTED = {
    "max_length": "use max_new_tokens",
    "num_return_sequences": "repeat the question in a list",
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"),
        "call model.model.generate(**model.prepare(image, question), …), which returns transformers' output",
    ),
}
# arguments that transformers checks only when it starts to generate, which is after the rollout, and what checks them
CHECKED_LATE: dict[str, Callable[[Any], Any]] = {
    "bad_words_ids": logits_process.NoBadWordsLogitsProcessor,
    "suppress_tokens": logits_process.SuppressTokensLogitsProcessor,
    "begin_suppress_tokens": lambda value: logits_process.SuppressTokensAtBeginLogitsProcessor(value, 0),
    "sequence_bias": logits_process.SequenceBiasLogitsProcessor,
    "exponential_decay_length_penalty": lambda value: logits_process.ExponentialDecayLengthPenalty(value, 0, 0),
    "top_h": logits_process.TopHLogitsWarper,
}
# names of the command line and of other interfaces -> ours, for suggestions
ELSEWHERE = {"steps": "num_world_steps", "max_tokens": "max_new_tokens", "stop": "stop_strings"}


@dataclass(frozen=True)
class RolloutOptions:
    """Whether and how one call imagines the future.

    Args:
        num_world_steps: future latent frames to imagine; None means the model's own default.
        seed: integer; another seed gives another future of the same image.
        enable_world: False disables the world model for this call. Gemma then answers alone, and sees the last frame
            of a video.
        world_images: `first` imagines the future of a question's first image, `all` that of each image; None means the
            model's own setting.
        world_latents: (n, C, T, h, w) normalised latents to read instead of imagining, as `TheWorld.imagine` returns
            them: one row per image whose future is used.
        world_prompt: text that describes the imagined future ("the cup is pushed to the left"), one for all questions
            or one per question; None or an empty text leaves the future to the image. Requires a world model with a
            text encoder.
        mode: `tokens` passes the future to the language model as world tokens; `frames` shows it as further images,
            which needs no training. None means tokens if the projector is trained (see `plan_call`).
        progress: called with (denoising steps done, total) during the rollout.

    Raises:
        ValueError: if `seed` is not an integer, or `enable_world` is neither a bool nor None.
    """

    num_world_steps: int | None = None
    seed: int = 0
    enable_world: bool | None = None
    world_images: str | None = None
    world_latents: Tensor | None = None
    world_prompt: str | Sequence[str] | None = None
    mode: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_call(self.seed, self.enable_world)


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `TheWorld.generate` and `TheWorld.stream`.

    The first group is explained in `RolloutOptions`. The second is passed to transformers' `generate`: these are the
    common ones, and every other field of `transformers.GenerationConfig` is accepted too.
    """

    seed: int
    enable_world: bool | None
    world_images: str | None
    world_latents: Tensor | None
    world_prompt: str | Sequence[str] | None
    mode: str | None

    do_sample: bool
    top_p: float
    top_k: int
    min_p: float
    num_beams: int
    length_penalty: float
    early_stopping: bool | str
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_new_tokens: int
    bad_words_ids: list[list[int]]
    suppress_tokens: list[int]
    stop_strings: str | list[str]
    max_time: float
    use_cache: bool
    cache_implementation: str
    prompt_lookup_num_tokens: int
    assistant_model: Any
    generation_config: GenerationConfig
    logits_processor: Any
    stopping_criteria: Any
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]]
    streamer: Any


def split_options(
    options: Mapping[str, Any], num_world_steps: int | None, progress: Progress | None
) -> tuple[RolloutOptions, dict[str, Any]]:
    """Splits the keyword arguments of a call into rollout options and arguments of transformers' `generate`."""
    names = [field.name for field in fields(RolloutOptions)]
    decoding_names = generate_arguments()
    for name in options:
        if name in UNSUPPORTED:
            raise ValueError(f"{name} is not supported; {UNSUPPORTED[name]}.")
        if name not in names and name not in decoding_names:
            known = [*names, *decoding_names, "max_new_tokens", "temperature", "num_world_steps"]
            hint = suggest(ELSEWHERE.get(name, name), known, "see RolloutOptions and transformers.GenerationConfig.")
            raise ValueError(f"generate has no option {name!r}; {hint}")
    rollout = {name: value for name, value in options.items() if name in names}
    decoding = {name: value for name, value in options.items() if name not in names}
    return RolloutOptions(num_world_steps=num_world_steps, progress=progress, **rollout), decoding


@cache
def generate_arguments() -> frozenset[str]:
    """Names that transformers' `generate` takes in addition to a model's inputs."""
    own = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "inputs", "kwargs"}
    config = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    return frozenset(own | config | {"tokenizer", "assistant_tokenizer"}) - set(UNSUPPORTED)


def decoding_arguments(
    max_new_tokens: int, temperature: float | None, decoding: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Arguments of transformers' `generate`, checked before anything is imagined.

    A temperature above 0 samples, and 0 does not. Without one, `do_sample` decides as in transformers, where sampling
    has a temperature of 1.0. With a `generation_config`, its values hold wherever `max_new_tokens` and `temperature`
    keep their defaults.
    """
    if check_integer("max_new_tokens", max_new_tokens) < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more.")
    if temperature is not None and not (is_number(temperature) and 0 <= temperature < math.inf):
        raise ValueError(f"temperature is {temperature!r}; 0 means greedy decoding, a number above 0 samples.")
    config = decoding.get("generation_config")
    arguments = {name: value for name, value in decoding.items() if name != "generation_config"}
    if config is None or max_new_tokens != MAX_NEW_TOKENS or config.max_new_tokens is None:
        arguments["max_new_tokens"] = max_new_tokens
    sampled = decoding.get("do_sample")
    if temperature is not None and sampled is not None and bool(sampled) != (temperature > 0):
        raise ValueError(f"temperature is {temperature} and do_sample is {sampled}; leave one of them out.")
    if temperature:
        arguments |= {"do_sample": True, "temperature": float(temperature)}
    elif temperature is not None or (config is None and not sampled):
        for name in SAMPLING_ONLY:
            if decoding.get(name):
                raise ValueError(f"{name} has no effect with greedy decoding; set temperature > 0.")
        arguments["do_sample"] = False
    check_ranges(arguments)
    check_late_values(arguments)
    if config is None:
        GenerationConfig(**{name: value for name, value in arguments.items() if name in vars(GenerationConfig())})
    else:
        config = copy.deepcopy(config)
        arguments = {**config.update(**arguments), "generation_config": config}
    if arguments.get("stop_strings") or (config is not None and config.stop_strings):
        arguments.setdefault("tokenizer", tokenizer)
    return arguments


def check_ranges(arguments: Mapping[str, Any]) -> None:
    """Raises a ValueError for a number that transformers would refuse only after the rollout."""
    for name in ("top_k", "num_beams", "min_new_tokens", "no_repeat_ngram_size", "prompt_lookup_num_tokens"):
        least = 1 if name in ("num_beams", "prompt_lookup_num_tokens") else 0
        if (value := arguments.get(name)) is not None and check_integer(name, value) < least:
            raise ValueError(f"{name} is {value}; it must be {least} or more.")
    for name in ("top_p", "min_p", "typical_p"):
        if (value := arguments.get(name)) is not None and not (is_number(value) and 0 < value <= 1):
            raise ValueError(f"{name} is {value!r}; it must be above 0 and at most 1.")
    for name in ("repetition_penalty", "max_time"):
        if (value := arguments.get(name)) is not None and not (is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name} is {value!r}; it must be above 0.")


def check_late_values(arguments: Mapping[str, Any]) -> None:
    """Raises a ValueError for what transformers refuses when it builds the processors of a generation."""
    if (stops := arguments.get("stop_strings")) is not None:
        listed = [stops] if isinstance(stops, str) else stops
        if not (isinstance(listed, list | tuple) and listed and all(isinstance(stop, str) and stop for stop in listed)):
            raise ValueError(f"stop_strings is {stops!r}; pass a text that is not empty, or a list of these.")
    for name, check in CHECKED_LATE.items():
        if (value := arguments.get(name)) is not None:
            try:
                check(value)
            except Exception as error:  # which exception depends on the place where transformers stumbles
                raise ValueError(f"{name} is {value!r}, which transformers refuses: {error}") from error


def check_keywords(config: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raises a ValueError for a keyword that neither `call` nor TheWorldConfig has: transformers would keep it."""
    known = [*inspect.signature(TheWorldConfig.__init__).parameters, *inspect.signature(call).parameters]
    for key in config:
        if key not in known:
            like = "dtype" if key == "torch_dtype" else key  # transformers' earlier name
            raise ValueError(f"{call.__qualname__} takes no {key!r}; {suggest(like, known, 'see help(TheWorld).')}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
