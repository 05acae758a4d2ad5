"""A Hugging Face token on the command line: out of everybody's sight before anything else happens.

Every user of a machine can read the command lines of all processes (`ps`), but not their environments. So a token that
was given as an option moves to the environment, and the program starts anew without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

OPTION = "--hf_token"
SETTING = "hf_token="  # behind --set


def without_token(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without a token, and the token; None where there is none."""
    kept: list[str] = []
    token = None
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        option, equals, value = argument.partition("=")
        if argument == OPTION and following:
            token, position = following, position + 2
        elif option == OPTION and equals:
            token, position = value, position + 1
        elif argument == "--set" and following.startswith(SETTING):
            token, position = following.removeprefix(SETTING), position + 2
        elif option == "--set" and value.startswith(SETTING):
            token, position = value.removeprefix(SETTING), position + 1
        else:
            kept.append(argument)
            position += 1
    return kept, token


def hide_token() -> None:
    """Starts this program anew without the token that its command line holds, if it does; else returns."""
    kept, token = without_token(sys.orig_argv[1:])
    if token is None:
        return
    os.environ["HF_TOKEN"] = token
    os.execv(sys.executable, [sys.executable, *kept])
