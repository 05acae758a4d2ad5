"""The tokens of one image in vLLM's prompts: Gemma's image block and, where the image has them, world placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from theworld.model.call_plan import NO_WORLD_MODEL, UNTRAINED
from theworld.model.configuration import TheWorldConfig
from theworld.model.processing import TheWorldProcessor

NO_WORLD = -1  # in place of a number of world steps
LONGEST_RUN = 64  # newlines that a tokenizer has one token for, at most; Gemma's has 31


def check_servable(config: TheWorldConfig) -> None:
    """Raises a ValueError for a model that vLLM could not serve, or would serve with other answers than ours."""
    if not config.enable_world:
        raise ValueError(f"{NO_WORLD_MODEL} Serve its Gemma base with vLLM instead.")
    if not config.reads_world_tokens:
        raise ValueError(f"{UNTRAINED} Train it before you serve the model with vLLM, or use `theworld serve`.")
    image = config.vlm_config.mm_tokens_per_image
    for steps in range(config.max_world_steps + 1):
        if config.world_token_count(steps) == image:  # the engine knows how long blocks are, and not what they hold
            raise ValueError(
                f"With {steps} world steps, an image has as many world tokens as Gemma's {image} soft tokens, and "
                "vLLM could not tell them apart: use `theworld serve`."
            )


def image_ranges(
    ranges: Mapping[int, Sequence[tuple[int, int]]], config: TheWorldConfig
) -> dict[int, list[tuple[int, int]]]:
    """Of the first and last positions of embedded tokens of each request, those of Gemma's images.

    World tokens are embedded too, but attend as text does.
    """
    size = config.vlm_config.mm_tokens_per_image
    return {request: [one for one in found if one[1] - one[0] + 1 == size] for request, found in ranges.items()}


class ImageBlocks:
    """Replaces the image token of prompts by blocks; the ids are those of `TheWorldProcessor` for the whole text.

    Gemma's block begins and ends with newlines. Those between other tokens of a block are in it; those at its ends may
    be one token with newlines of the text.

    Args:
        tokenizer: the one that encoded the prompts.
        processor: the processor of the model.
    """

    def __init__(self, tokenizer: Any, processor: TheWorldProcessor) -> None:
        before, _, rest = processor.full_image_sequence.partition(processor.boi_token)
        inside, _, after = rest.rpartition(processor.tokenizer.eoi_token)
        assert not f"{before}{after}".strip("\n"), "Gemma's image block begins and ends with newlines"
        self._before, self._after = len(before), len(after)
        self._tokenizer = tokenizer
        self._config = processor.config
        self._image = self._encode(f"{processor.boi_token}{inside}{processor.tokenizer.eoi_token}")
        self._runs = {}  # id of a token of newlines alone -> how many
        for count in range(1, LONGEST_RUN + 1):
            if len(ids := self._newlines(count)) == 1:
                self._runs[ids[0]] = count
        self.start = self._image[0]
        self.embedded = (self._config.vlm_config.image_token_id, self._config.world_token_id)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _newlines(self, count: int) -> list[int]:
        return self._encode("\n" * count)

    def of(self, num_world_steps: int) -> list[int]:
        """The block of an image with N world steps, or NO_WORLD, without newlines at its ends."""
        if num_world_steps == NO_WORLD:
            return list(self._image)
        world = [self._config.world_token_id] * self._config.world_token_count(num_world_steps)
        return [*self._image, *self._newlines(self._after), *world]

    def expand(self, ids: Sequence[int], blocks: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
        """A prompt with its first image tokens replaced by blocks, and the position of each block in it."""
        expanded: list[int] = []
        places: list[int] = []
        open_end = False  # whether newlines of the last block have yet to be merged with those that follow
        for token in ids:
            if token == self.start and len(places) < len(blocks):
                self._append_newlines(expanded, self._before)
                block = blocks[len(places)]
                places.append(len(expanded))
                expanded += block
                if open_end := len(block) == len(self._image):
                    self._append_newlines(expanded, self._after)
            elif open_end and token in self._runs:
                self._append_newlines(expanded, self._runs[token])
            else:
                expanded.append(token)
                open_end = False
        return expanded, places

    def _append_newlines(self, ids: list[int], count: int) -> None:
        while ids and ids[-1] in self._runs:
            count += self._runs[ids.pop()]
        ids += self._newlines(count)
