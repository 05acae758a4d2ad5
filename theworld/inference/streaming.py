"""An answer in pieces, while it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


class Gone(StoppingCriteria):
    """Stops writing after the token at hand when nobody reads any more: Ctrl-C, or a loop that was left."""

    reader = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.reader, device=input_ids.device)


def stream_text(
    generate: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> Iterator[str]:
    """Text that `generate(**arguments)` of transformers writes for one prompt, piece by piece.

    What goes wrong there is raised here; a reader who leaves stops the writer.
    """
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    gone = Gone()
    with ThreadPoolExecutor(max_workers=1) as executor:
        writing = executor.submit(
            generate, **arguments, streamer=streamer, stopping_criteria=StoppingCriteriaList([gone])
        )
        # a failure would else leave the reader waiting for ever
        writing.add_done_callback(lambda done: streamer.end() if done.exception() else None)
        try:
            yield from streamer
            writing.result()
        finally:
            gone.reader = True  # the executor waits for the writer: not for the rest of its answer
