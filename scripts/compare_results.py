"""All runs of a folder against each other: `theworld compare` on every run below it.

python scripts/compare_results.py runs/blink -o report/blink
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from theworld.cli import app
from theworld.evaluation.run_folder import RUN


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("runs/blink")], help="runs, or folders of runs")
    parser.add_argument("--output", "-o", type=Path, default=Path("report"), help="where the report goes")
    parser.add_argument("--reference", default="", help="compare all others with this arm")
    given = parser.parse_args(arguments)
    runs = sorted({place.parent for folder in given.folders for place in folder.rglob(RUN)})
    if not runs:
        places = ", ".join(map(str, given.folders))
        print(f"there is no run in {places}; make some with make eval-blink and make eval-gemma.", file=sys.stderr)
        return 1
    app(["compare", *map(str, runs), "-o", str(given.output), "--reference", given.reference], standalone_mode=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
