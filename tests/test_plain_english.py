"""Comments, docstrings, messages and pages are written in plain technical English.

The test counts words and phrases that engineers of this field do not use. Well-known projects of the field have 0.03 to
0.28 of them per 1,000 words.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CODE = ("theworld", "recipes", "scripts", "benchmarks", "examples", "tests")
CHECKED = (*CODE, "README.md", "docs", "CONTRIBUTING.md", "CHANGELOG.md")
LIMIT = 0.30  # per 1,000 words
ODD = re.compile(
    r"""\b(anew|afresh|mend|mends|mended|nobody|whoever|somebody|lies|lie|told|beside|whatever|thereby|hitherto|
    for\ want\ of|goes\ on|go\ on|gone\ on|as\ it\ was|as\ they\ come|as\ it\ comes|stands\ for|stand\ beside|
    stands\ beside|stands\ in|stands\ behind|no\ pairs|no\ share|no\ text|no\ way\ back|room\ of\ its\ own|
    makes\ its\ name\ enough|it\ says|may\ be\ had|can\ be\ had|is\ to\ be\ known|what\ is\ wrong|by\ its\ own\ will|
    of\ an\ earlier\ day|before\ its\ day|lead\ nowhere|whole\ thing|an\ arm\ a|one\ a\ picture|a\ picture\ each|
    a\ question\ each|a\ row\ a|a\ word\ a|so\ many|as\ many\ as|in\ slow\ motion|gets\ up|cut\ off\ where|
    is\ at\ an\ end|is\ meant)\b""",
    re.IGNORECASE | re.VERBOSE,
)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]+")
# Texts that the language model reads, words in answers that the parser knows, and names in files of older versions.
MAY_SAY_PICTURE = (
    "datasets/physics/questions.py",
    "evaluation/answer_parser.py",
    "evaluation/arms.py",
    "evaluation/lmms/requests.py",
    "evaluation/run_folder.py",
    "inference/filmstrip.py",
    "training/config_keys.py",
)


def files_of(name: str) -> list[Path]:
    path = REPOSITORY / name
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return [file for file in files if file.suffix in (".py", ".md") and file != Path(__file__)]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of comments and strings of a Python file, and of Markdown outside code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            name = tokenize.tok_name[token.type]
            if token.type in (tokenize.COMMENT, tokenize.STRING) or name == "FSTRING_MIDDLE":
                yield token.start[0], token.string
        return
    code = False
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            code = not code
        elif not code:
            yield number, re.sub(r"`[^`]*`", " ", line)


def test_the_english_is_plain() -> None:
    words, hits = 0, []
    for name in CHECKED:
        for file in files_of(name):
            for line, text in prose_of(file):
                words += len(WORD.findall(text))
                hits += [f"{file.relative_to(REPOSITORY)}:{line}: {hit[0]}" for hit in ODD.finditer(text)]
    assert words > 10_000
    assert 1000 * len(hits) / words <= LIMIT, "\n".join(hits)


def test_an_image_is_called_an_image() -> None:
    found = []
    for file in files_of("theworld"):
        name = file.relative_to(REPOSITORY / "theworld").as_posix()
        if not name.startswith(MAY_SAY_PICTURE):
            lines = file.read_text(encoding="utf-8").splitlines()
            found += [f"{name}:{n}" for n, line in enumerate(lines, 1) if re.search("picture", line, re.IGNORECASE)]
    assert found == []
