"""Compares all runs below a folder: `theworld compare` on every run in it.

python scripts/compare_results.py runs/blink -o report/blink
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from theworld.evaluation import compare
from theworld.evaluation.run_folder import RUN


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", default=[Path("runs/blink")], help="runs, or folders of runs")
    parser.add_argument("--output", "-o", type=Path, default=Path("report"), help="folder of the report")
    parser.add_argument("--reference", default="", help="arm that all others are compared with")
    options = parser.parse_args(arguments)
    runs = sorted({path.parent for folder in options.folders for path in folder.rglob(RUN)})
    try:
        if not runs:
            folders = ", ".join(map(str, options.folders))
            raise ValueError(f"There is no run in {folders}; create runs with make eval-blink and make eval-gemma.")
        results = compare(runs, reference=options.reference, output=options.output)
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print(results.to_markdown())
    print(f"{options.output}: comparison.json, comparison.md, comparison.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
