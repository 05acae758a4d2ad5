"""The latents of the last images in memory: further questions about an image need no rollout."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from theworld.inference.pipeline import TheWorld
from theworld.media.inputs import ImageOrVideo
from theworld.messages import Progress


class LatentCache:
    """Imagines each image once for equal frames, prompt, seed and number of steps, on which alone latents depend.

    Args:
        max_bytes: size of the latents that are kept; the ones that were not used for longest are dropped.

    Attributes:
        size: of the latents that are kept, in bytes.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()  # (C, P + 1 + N, h, w) on the CPU
        self.size = 0

    def imagine(
        self,
        model: TheWorld,
        images: Sequence[ImageOrVideo],
        num_world_steps: int,
        seed: int,
        prompts: Sequence[str] | None,
        progress: Progress,
    ) -> Tensor:
        """Latents (n, C, P + 1 + N, h, w) on the CPU, as `TheWorld.imagine` returns them; one prompt per image."""
        inputs = model.processor.world_inputs(images, num_world_steps, seed, prompts)
        frames, texts = inputs["world_frames"], inputs.get("world_prompt", [""] * len(images))
        keys = []
        for clip, text in zip(frames, texts, strict=True):
            digest = hashlib.sha256(repr((tuple(clip.shape), text, seed, num_world_steps)).encode())
            digest.update(clip.numpy().tobytes())
            keys.append(digest.digest())

        def missing(rows: list[int]) -> Tensor:
            wanted = {name: inputs[name][rows] for name in ("world_frames", "world_seeds")}
            wanted |= {"world_prompt": [texts[row] for row in rows]} if "world_prompt" in inputs else {}
            return model.runner.imagine_from(wanted, num_world_steps, progress)

        return self.get(keys, missing)

    def get(self, keys: Sequence[Hashable], imagine: Callable[[list[int]], Tensor]) -> Tensor:
        """The latents of each key, on the CPU; `imagine` makes those of rows whose keys are new."""
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for key in found:
            self._kept.move_to_end(key)
        rows = sorted({key: row for row, key in enumerate(keys) if key not in found}.values())
        if rows:
            for row, latents in zip(rows, imagine(rows), strict=True):
                found[keys[row]] = latents.cpu().clone()
                self._keep(keys[row], found[keys[row]])
        return torch.stack([found[key] for key in keys])

    def _keep(self, key: Hashable, latents: Tensor) -> None:
        self._kept[key] = latents
        self.size += latents.nbytes
        while self.size > self.max_bytes:
            self.size -= self._kept.popitem(last=False)[1].nbytes
