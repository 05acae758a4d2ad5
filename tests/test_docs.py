"""What the pages show, works: every python and bash block runs, offline, and every local link leads somewhere.

The blocks of one page run in order in a folder of their own, where the repository's files lie as links; python blocks
share their names. A block that cannot run here says so on the line before it:

    <!-- not run: it needs the network -->
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *(page for name in ("README.md", "CONTRIBUTING.md") if (page := REPOSITORY / name).exists()),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
]
LANGUAGES = {"python": "python", "bash": "bash", "sh": "bash", "shell": "bash"}
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*) -->")


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of the first line of code
    code: str
    not_run: str | None


def blocks_of(text: str) -> list[Block]:
    """The python and bash blocks of a page, in order; ValueError for a marker that stands before none."""
    blocks: list[Block] = []
    lines = text.splitlines()
    marker: str | None = None
    index = 0
    while index < len(lines):
        fence = re.match(r"(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)", lines[index])
        if not fence:
            if marker is not None and lines[index].strip():
                raise ValueError(f"line {index + 1}: 'not run' stands before no block")
            found = NOT_RUN.fullmatch(lines[index].strip())
            marker = found["reason"] if found else marker
            index += 1
            continue
        first = index + 1
        last = next(i for i in range(first, len(lines)) if lines[i].strip() == fence["fence"])
        if fence["language"] in LANGUAGES:
            code = "\n".join(line.removeprefix(fence["indent"]) for line in lines[first:last])
            blocks.append(Block(LANGUAGES[fence["language"]], first + 1, code, marker))
        marker = None
        index = last + 1
    return blocks


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone: files are read through links, and what a block writes stays here."""
    for entry in REPOSITORY.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("checkpoints", "logs", "runs", "outputs"):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page.read_text("utf-8"))], ids=name_of)
def test_every_block_runs(page: Path, workshop: Path) -> None:
    names: dict[str, object] = {"__name__": "__page__"}
    for block in blocks_of(page.read_text("utf-8")):
        if block.not_run:
            continue
        where = f"{name_of(page)}:{block.line}"
        if block.language == "python":
            # line numbers of the page in tracebacks
            exec(compile("\n" * (block.line - 1) + block.code, name_of(page), "exec"), names)
        else:
            assert run_bash(block.code).returncode == 0, f"{where} failed:\n{block.code}"


def run_bash(code: str) -> subprocess.CompletedProcess[bytes]:
    """Offline, with this Python's programs first, and `make` told that it need not set up."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=environment, timeout=300, check=False)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_local_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert missing == [], f"{name_of(page)} points at files that are not there"


def test_blocks_are_found_with_their_lines_and_markers() -> None:
    page = "\n".join(
        [
            "# A page",
            "```python",
            "x = 1",
            "```",
            "<!-- not run: it needs a GPU -->",
            "",
            "```bash",
            "make everything",
            "```",
            "```",
            "plain",
            "```",
            "  ```python",
            "  y = x",
            "  ```",
        ]
    )
    assert blocks_of(page) == [
        Block("python", 3, "x = 1", None),
        Block("bash", 8, "make everything", "it needs a GPU"),
        Block("python", 14, "y = x", None),
    ]


def test_a_marker_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        blocks_of("<!-- not run: it needs the network -->\nSome words.\n")


def test_a_failing_block_is_seen() -> None:
    assert run_bash("false; true").returncode != 0
    assert run_bash("python -c 'import theworld'; test -n \"$HF_HUB_OFFLINE\"").returncode == 0
