"""Train nano from scratch: `python -m recipes.nano --work checkpoints/nano --scale laptop`."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path

import torch

from recipes.nano import recipe
from theworld.model.devices import check_device


def main(arguments: list[str] | None = None) -> None:
    """Runs the wanted stages; each one reads what the earlier ones left in the work folder."""
    parser = argparse.ArgumentParser(prog="python -m recipes.nano", description=__doc__)
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="folder for the results of all stages")
    parser.add_argument(
        "--scale",
        choices=sorted(recipe.SCALES),
        default="shipped",
        help="shipped needs one large GPU; laptop trains a smaller model on two CPU cores",
    )
    parser.add_argument("--stages", default=",".join(recipe.STAGES), help="some of %(default)s, in that order")
    parser.add_argument("--publish", action="store_true", help="install the result as the packaged nano weights")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, for example language.training.max_steps=4000 (repeatable)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N; default: a GPU if there is one")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        check_device(given.device, "--device")
        settings = recipe.with_values(recipe.SCALES[given.scale](), given.changes)
        stages = [stage for stage in given.stages.split(",") if stage]
        command = shlex.join(["python", "-m", "recipes.nano", *(sys.argv[1:] if arguments is None else arguments)])
        device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        recipe.train(given.work, settings, stages, device, command)
        if given.publish:
            recipe.publish(given.work)
    except ValueError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
