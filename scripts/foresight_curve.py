"""Measure how foresight depends on training steps and unlabelled clips, with new transformers trained on few clips.

The shipped VAE is used. For each number of clips a new transformer is trained for the same time, and foresight is
measured repeatedly; at the end also with other numbers of denoising steps.

python scripts/foresight_curve.py --clips 1000,5000,20000 --seconds 70 --csv docs/nano/foresight_clips.csv
"""

from __future__ import annotations

import argparse
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from recipes.nano.buffers import FrameBuffer
from recipes.nano.clips import ClipFactory, ClipSettings, load_labelled
from recipes.nano.foresight import Foresight, ForesightSettings
from recipes.nano.progress import CsvLog
from recipes.nano.world import TransformerSettings, nano_world_config, train_transformer
from theworld.datasets.physics import FAMILIES, IMAGE_SIZE, NUM_FRAMES
from theworld.storage.hub import resolve
from theworld.world_models.cosmos_predict2 import CosmosPredict2

COLUMNS = ("clips", "step", "denoise_steps", "family", "scenes", "foresight", "ceiling", "commonest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="nano/cosmos", help="world folder whose VAE is used")
    parser.add_argument("--clips", default="1000,5000,20000", help="numbers of unlabelled clips, one run each")
    parser.add_argument("--seconds", type=float, default=70.0, help="training time of each run")
    parser.add_argument("--every", type=float, default=6.0, help="seconds of training between measurements")
    parser.add_argument("--denoise-steps", default="2,4,10,20", help="measured at the end of each run")
    parser.add_argument("--labelled", type=int, default=3216, help="labelled validation clips a family, for the reader")
    parser.add_argument("--scenes", type=int, default=150, help="scenes a family that foresight is measured on")
    parser.add_argument("--reader-steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=14, help="processes that draw clips")
    parser.add_argument("--work", type=Path, default=Path("checkpoints/foresight"))
    parser.add_argument("--csv", type=Path, default=Path("docs/nano/foresight_clips.csv"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    numbers = [int(number) for number in arguments.clips.split(",")]
    denoise_steps = [int(number) for number in arguments.denoise_steps.split(",")]
    device = torch.device(arguments.device)
    vae = CosmosPredict2.from_pretrained(
        resolve(arguments.world), parts=("encoder", "decoder"), dtype=torch.float32
    ).vae
    assert vae is not None
    vae.to(device)
    log = CsvLog(arguments.csv, COLUMNS)
    clips = ClipSettings(
        workers=arguments.workers, max_clips=max(numbers), labelled_per_family=arguments.labelled, head_start=0
    )
    shards = arguments.work / "shards"
    room = 2 * max(numbers) + 1000  # nothing is overwritten, so that each run starts from the same first clip
    with (
        ClipFactory(shards, clips, FAMILIES) as factory,
        FrameBuffer(shards, room, (NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE), device) as frames,
    ):
        while (labelled := load_labelled(shards, clips, FAMILIES)) is None or frames.filled < max(numbers):
            factory.check()
            frames.check()
            time.sleep(0.5)
        foresight = Foresight(labelled, vae, ForesightSettings(arguments.scenes, arguments.reader_steps), device)
        ceiling, commonest = foresight.ceiling(), foresight.commonest()

        def record(folder: Path, step: int, number: int, steps: int) -> None:
            for family, share in foresight.measure(folder, steps).items():
                scenes = len(foresight.held_out[family])
                row = (number, step, steps, family, scenes, share, ceiling[family], commonest[family])
                logging.info("foresight: %s", log.add(row))

        for number in numbers:
            frames.taken = 0
            work = arguments.work / str(number)
            shutil.rmtree(work, ignore_errors=True)
            settings = replace(
                TransformerSettings(seconds=arguments.seconds, batch=arguments.batch),
                max_clips=number,
                min_clips=number,
                measure_seconds=arguments.every,
            )
            last = [0]

            def measure(folder: Path, step: int, clips: int, last: list[int] = last) -> None:
                last[0] = step
                record(folder, step, clips, 4)

            world = train_transformer(
                settings, nano_world_config(), vae, frames, work, device, check=factory.check, measure=measure
            )
            for steps in denoise_steps:
                if steps != 4:  # measured by the stage itself when it ends
                    record(world, last[0], number, steps)


if __name__ == "__main__":
    main()
