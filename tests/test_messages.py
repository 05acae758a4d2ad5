"""Messages of the library suit its callers in Python as well as the command line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import theworld

LIBRARY = Path(theworld.__file__).parent
# these read options of their own command line, speak to the users of lmms-eval's, or name the command that uploads
COMMAND_LINES = (
    "cli/", "evaluation/lmms/", "training/command_line.py", "training/token.py", "training/uploads.py",
)  # fmt: skip
FLAG = re.compile(r"(?<![\w-])--[a-z]\w*")
INSTALLS = "pip install --python"


def messages_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each string that is not a docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_message_of_the_library_names_a_flag() -> None:
    found, checked = [], 0
    for file in sorted(LIBRARY.rglob("*.py")):
        name = file.relative_to(LIBRARY).as_posix()
        if name.startswith(COMMAND_LINES):
            continue
        for line, text in messages_of(ast.parse(file.read_text(encoding="utf-8"))):
            checked += 1
            found += [f"{name}:{line}: {flag}" for flag in FLAG.findall(text.replace(INSTALLS, ""))]
    assert checked > 1000
    assert not found
