"""Keeps a Hugging Face token that was given on the command line out of the process list and of logged command lines.

Every user of a machine can read the command lines of all processes, and trackers such as Weights & Biases upload the
command line of a run. The token is therefore moved to the environment, and the program is executed again without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

NAMES = ("hf_token", "hub_token")


def without_token(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without a token, and the token or None.

    It may be given as `--hf_token TOKEN` or `--set hf_token=TOKEN`, with `=`, hyphens, or Trainer's name `hub_token`.
    """
    kept: list[str] = []
    token = None
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        following = arguments[position + 1 : position + 2]
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        text = value if equals else "".join(following)
        key, _, setting = text.partition("=")
        if option.startswith("--") and name in NAMES and text:
            token = text
        elif option == "--set" and key.strip() in NAMES:
            token = setting
        else:
            kept.append(argument)
            position += 1
            continue
        position += 1 if equals else 2
    return kept, token


def hide_token() -> None:
    """Executes this program again without the token on its command line, if there is one."""
    kept, token = without_token(sys.orig_argv[1:])
    if token is None:
        return
    os.environ["HF_TOKEN"] = token
    os.execv(sys.executable, [sys.executable, *kept])
