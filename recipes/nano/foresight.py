"""How well the world model foresees, measured. Used for measurement only; nothing here trains what is shipped.

A small reader learns, from labelled validation clips, to tell the outcome from a clip's true latents. Then it reads
imagined latents: *foresight* is the share of held-out scenes whose outcome it finds in the future that the model
imagined from the first frame alone. Its accuracy on the true latents of the same scenes is the ceiling.

Shapes: n clips, F pixel frames, T latent frames, C latent channels, h x w latent cells.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from recipes.nano.clips import LabelledClips
from recipes.nano.progress import CsvLog
from recipes.nano.vae import CHUNK, encode_normalised, random_windows
from recipes.nano.wan import decode_frames, latent_statistics
from theworld.world_models.cosmos_predict2 import CosmosPredict2

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

logger = logging.getLogger(__name__)

SHEET_GAP = 2  # px between rows of a contact sheet


@dataclass(frozen=True)
class ForesightSettings:
    """How foresight is measured.

    Args:
        scenes: held-out scenes a family whose future is imagined.
        reader_steps, reader_batch: the reader's training.
        reader_noise: noise on the latents it learns from, so that it bears with imagined ones.
    """

    scenes: int = 150
    reader_steps: int = 4000
    reader_batch: int = 384
    reader_noise: float = 0.2
    seed: int = 0


class OutcomeReader(nn.Module):
    """Latents (n, C, T, h, w) to logits (n, classes): all frames stacked as channels, three convolutions, one layer."""

    def __init__(self, channels: int, frames: int, grid: tuple[int, int], classes: int, width: int = 128) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels * frames, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(width // 2 * grid[0] * grid[1], width),
            nn.GELU(),
            nn.Linear(width, classes),
        )

    def forward(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.body(latents.flatten(1, 2))
        return logits


class Foresight:
    """Reader and held-out scenes, ready to measure world folders.

    Args:
        clips: labelled; the first `settings.scenes` of each family are held out, the rest train the reader.
        vae: the trained VAE.
    """

    def __init__(
        self, clips: LabelledClips, vae: AutoencoderKLWan, settings: ForesightSettings, device: torch.device
    ) -> None:
        self.settings = settings
        self.device = device
        self.families = sorted(set(clips.families))
        self.classes = sorted(set(zip(clips.families, clips.outcomes, strict=True)))
        self.frames = clips.frames
        self._vae = vae
        labels = [self.classes.index(pair) for pair in zip(clips.families, clips.outcomes, strict=True)]
        self.labels = torch.tensor(labels, device=device)
        # outcomes are colours, or yes and no: a mirrored clip keeps its own, and the reader has twice as many
        self.latents, self._mirrored = (self._encode(flip) for flip in (False, True))  # each (n, C, T, h, w)
        members = {f: [i for i, family in enumerate(clips.families) if family == f] for f in self.families}
        self.held_out = {family: places[: settings.scenes] for family, places in members.items()}
        self._train_reader([i for family in self.families for i in members[family][settings.scenes :]])

    def _encode(self, flip: bool) -> Tensor:
        chunks = torch.from_numpy(self.frames).split(CHUNK)
        clips = (chunk.to(self.device) for chunk in chunks)
        return torch.cat([encode_normalised(self._vae, clip.flip(3) if flip else clip) for clip in clips])

    def _train_reader(self, places: list[int]) -> None:
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            _, channels, frames, h, w = self.latents.shape
            self._reader = OutcomeReader(channels, frames, (h, w), len(self.classes)).to(self.device)
            steps = self.settings.reader_steps
            optimizer = torch.optim.AdamW(self._reader.parameters(), lr=1e-3, weight_decay=0.05)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
            pool = torch.tensor(places, device=self.device)
            for step in range(steps):
                batch = pool[torch.randint(len(pool), (self.settings.reader_batch,), device=self.device)]
                latents = (self._mirrored if step % 2 else self.latents)[batch]
                loss = F.cross_entropy(
                    self._reader(latents + self.settings.reader_noise * torch.randn_like(latents)), self.labels[batch]
                )
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
        self._reader.eval()
        logger.info("foresight: reader on true latents %s", self.ceiling())

    @torch.no_grad()
    def _read(self, latents: Tensor, family: str) -> Tensor:
        """Class (n,) that the reader predicts, among those of the family."""
        logits = self._reader(latents)
        foreign = torch.tensor([name != family for name, _ in self.classes], device=self.device)
        return logits.masked_fill(foreign, -torch.inf).argmax(dim=1)

    def ceiling(self) -> dict[str, float]:
        """Per family, the reader's accuracy on the true latents of the held-out scenes."""
        return {
            family: (self._read(self.latents[places], family) == self.labels[places]).float().mean().item()
            for family, places in self.held_out.items()
        }

    def commonest(self) -> dict[str, float]:
        """Per family, the share of the most frequent outcome, which a constant guess reaches."""
        return {
            family: max(Counter(self.labels[places].tolist()).values()) / len(places)
            for family, places in self.held_out.items()
        }

    def imagine(
        self, world: CosmosPredict2, family: str, num_inference_steps: int, scenes: int | None = None
    ) -> Tensor:
        """Rollouts (n, C, T, h, w) of a family's held-out scenes from their first frame, to the clips' own length."""
        places = self.held_out[family][:scenes]
        return world.rollout(
            self.latents[places][:, :, :1],
            self.latents.shape[2] - 1,
            seeds=range(len(places)),
            num_inference_steps=num_inference_steps,
        )

    def measure(self, folder: Path, num_inference_steps: int) -> dict[str, float]:
        """Foresight per family of the world in `folder`, read as a user's would be, in float32."""
        world = CosmosPredict2.from_pretrained(folder, parts=("transformer",), dtype=torch.float32).to(self.device)
        result = {}
        for family, places in self.held_out.items():
            found = self._read(self.imagine(world, family, num_inference_steps), family)
            result[family] = (found == self.labels[places]).float().mean().item()
        return result

    def record(self, file: Path, folder: Path, step: int, clips: int, denoise_steps: Sequence[int]) -> None:
        """Appends foresight, ceiling and most frequent outcome per number of denoising steps and family, as CSV."""
        columns = ("step", "clips", "denoise_steps", "family", "scenes", "foresight", "ceiling", "commonest", "seconds")
        log = CsvLog(file, columns)
        ceiling, commonest = self.ceiling(), self.commonest()
        for steps in denoise_steps:
            started = time.monotonic()
            for family, share in self.measure(folder, steps).items():
                scenes = len(self.held_out[family])
                seconds = time.monotonic() - started
                row = (step, clips, steps, family, scenes, share, ceiling[family], commonest[family], seconds)
                logger.info("foresight: %s", log.add(row))

    @torch.no_grad()
    def contact_sheet(self, file: Path, folder: Path, num_inference_steps: int, scenes: int = 4) -> None:
        """Writes a PNG with three rows per scene: the true clip, its reconstruction, and the imagined future."""
        world = CosmosPredict2.from_pretrained(folder, parts=("transformer",), dtype=torch.float32).to(self.device)
        rows: list[np.ndarray] = []
        for family in self.families:
            places = self.held_out[family][:scenes]
            imagined = self._pixels(self.imagine(world, family, num_inference_steps, scenes))
            rebuilt = self._pixels(self.latents[places])
            for scene, place in enumerate(places):
                for clip in (self.frames[place], rebuilt[scene], imagined[scene]):
                    rows.append(np.concatenate(list(clip[::2]), axis=1))
                rows.append(np.zeros((SHEET_GAP, rows[-1].shape[1], 3), dtype=np.uint8))
        Image.fromarray(np.concatenate(rows)).save(file)

    def _pixels(self, latents: Tensor) -> np.ndarray:
        """Normalised latents to uint8 frames (n, F, H, W, 3)."""
        mean, std = latent_statistics(self._vae)
        frames = decode_frames(self._vae, latents * std + mean).clamp(-1, 1)
        pixels: np.ndarray = ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()
        return pixels


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKLWan, clips: Tensor) -> dict[str, float]:
    """PSNR in dB of reconstructions of uint8 clips (n, F, H, W, 3): of all pixels, and of those that move."""
    squares: dict[str, list[Tensor]] = {"psnr": [], "psnr_moving": []}
    for chunk in clips.split(CHUNK // 4):
        pixels, moving = random_windows(chunk, chunk.shape[1])
        mean, std = latent_statistics(vae)
        decoded = decode_frames(vae, encode_normalised(vae, chunk) * std + mean).clamp(-1, 1)
        error = (decoded - pixels).square().mean(dim=1)  # (n, F, H, W), of a range of 2
        squares["psnr"].append(error.flatten())
        squares["psnr_moving"].append(error[moving])
    return {name: (10 * torch.log10(4.0 / torch.cat(parts).mean())).item() for name, parts in squares.items()}
