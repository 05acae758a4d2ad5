"""What the command lines of training share: config keys as options, the log, and a script's main function.

The recipe imports torch and transformers, which takes seconds; settings and files are checked before.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from theworld.training.config import TrainingConfig
from theworld.training.stopping import INTERRUPTED, Stop
from theworld.training.token import hide_token

if TYPE_CHECKING:
    from theworld.training.dataset_loading import LoadDatasets


def keys_as_set(arguments: list[str], known: Collection[str]) -> list[str]:
    """The arguments with every unknown `--key value` and `--key=value` as `--set key=value`.

    A key without a value, at the end or before another option, is set to true.
    """
    changed: list[str] = []
    index = 0
    while index < len(arguments):
        option, equals, value = arguments[index].partition("=")
        index += 1
        if option == "--":  # positional arguments follow
            return [*changed, option, *arguments[index:]]
        if not option.startswith("--") or option in known:
            changed.append(f"{option}{equals}{value}")
            if option in known and not equals and index < len(arguments) and not arguments[index].startswith("--"):
                changed.append(arguments[index])  # possibly its value, which may look like anything
                index += 1
            continue
        if not equals:
            has_value = index < len(arguments) and not arguments[index].startswith("--")
            value = arguments[index] if has_value else "true"
            index += has_value
        changed += ["--set", f"{option.removeprefix('--').replace('-', '_')}={value}"]
    return changed


class StderrHandler(logging.StreamHandler):
    """Writes to what is stderr at the time, so that lines go above a progress bar, which replaces it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def log_to_stderr() -> None:
    """Logs our own lines, and the warnings of libraries."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", handlers=[StderrHandler()]
    )
    logging.getLogger("theworld").setLevel(logging.INFO)


def import_recipe() -> ModuleType:
    from theworld.training import recipe

    hide_library_bars()  # since a run shows its own
    return recipe


def hide_library_bars() -> None:
    """Switches off the progress bars of transformers, which loads and writes within our own display.

    Those of downloads stay: a command shows nothing else while it downloads.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


class ProgressBars:
    """Progress bars on a terminal: one at a time, removed when complete."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.bars:
            self.bars[what] = tqdm(total=total, initial=done, desc=what, leave=False, disable=None)
        self.bars[what].update(done - self.bars[what].n)
        if done >= total:
            self.bars.pop(what).close()


def settings_of_run(changes: Sequence[str]) -> str | None:
    """The settings of the run that `resume_from=NAME` resumes, a folder or Hub id; None for a new run and `last`."""
    from theworld.storage.hub import find_file
    from theworld.training.checkpointing import CONFIG_FILE, LAST

    for change in reversed(changes):
        key, _, name = change.partition("=")
        if key.strip() in ("resume_from", "resume_from_checkpoint") and name and name != LAST:
            return str(find_file(name, CONFIG_FILE))
    return None


def main(load: LoadDatasets, description: str, default_config: str, arguments: Sequence[str] | None = None) -> int:
    """Trains as a script: `--config FILE`, and every config key as an option. Returns the exit code.

    Args:
        load: loads training and evaluation samples.
        description: shown by `--help`.
        arguments: of the command line; None means those of this process.
    """
    if arguments is None:
        hide_token()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    config_help = f"a JSON file (default: that of the run to resume, or {default_config})"
    parser.add_argument("--config", metavar="FILE", help=config_help)
    changes_help = "set any key of the config (repeatable); --KEY VALUE does the same"
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help=changes_help)
    own = ("--config", "--set", "--help")
    given = parser.parse_args(keys_as_set(list(sys.argv[1:] if arguments is None else arguments), own))
    log_to_stderr()
    try:
        with Stop() as stop:
            file = given.config or settings_of_run(given.changes) or default_config
            config = TrainingConfig.read(file, given.changes)
            train = import_recipe().train
            sys.stdout.write(f"{train(config, load, ProgressBars(), stop)}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0
