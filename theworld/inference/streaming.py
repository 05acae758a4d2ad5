"""An answer piece by piece, while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


class StopOnClose(StoppingCriteria):
    """Stops the generation after the current token once the iterator is closed (Ctrl-C or `break`)."""

    closed = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.closed, device=input_ids.device)


def check_streamable(arguments: Mapping[str, Any]) -> None:
    """Raises a ValueError for arguments of transformers' `generate` that cannot be streamed."""
    config = arguments.get("generation_config")
    beams = arguments.get("num_beams") or (config.num_beams if config is not None else None) or 1
    if beams > 1:
        raise ValueError(f"num_beams is {beams}, and beam search cannot be streamed; use generate.")
    if "streamer" in arguments:
        raise ValueError("stream makes its own streamer; pass yours to generate.")


def stream_text(
    generate: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the text that transformers' `generate(**arguments)` writes for one prompt.

    An error in `generate` is raised here; closing the iterator stops the generation.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = StopOnClose()
    criteria = StoppingCriteriaList([*(arguments.get("stopping_criteria") or ()), stop])
    with ThreadPoolExecutor(max_workers=1) as executor:
        writer = executor.submit(generate, **{**arguments, "streamer": streamer, "stopping_criteria": criteria})
        # without this, an error would leave the reader waiting forever
        writer.add_done_callback(lambda done: streamer.end() if done.exception() else None)
        try:
            yield from filter(None, streamer)
            writer.result()
        finally:
            stop.closed = True  # leaving the executor waits for the writer, though not for the rest of its answer
