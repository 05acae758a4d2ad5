"""Every python and bash block of the pages runs offline, and every local link has a target.

The blocks of one page run in order in a temporary folder with links to the files of the repository; python blocks
share their names. A block that cannot run here gives the reason on the line before it:

    <!-- not run: it needs the network -->

A block whose commands take long gives additional arguments for the test there:

    <!-- run with: --set max_steps=1 -->
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import commands
from theworld.cli import app

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *(page for name in ("README.md", "CONTRIBUTING.md") if (page := REPOSITORY / name).exists()),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
]
LANGUAGES = {"python": "python", "bash": "bash", "sh": "bash", "shell": "bash"}
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*) -->")
RUN_WITH = re.compile(r"<!-- run with: (?P<arguments>\S.*) -->")


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of the first line of code
    code: str
    not_run: str | None
    run_with: str | None = None


def blocks_of(text: str) -> list[Block]:
    """The python and bash blocks of a page, in order; a ValueError for a marker without a block."""
    blocks: list[Block] = []
    lines = text.splitlines()
    markers: dict[str, str] = {}
    index = 0
    while index < len(lines):
        fence = re.match(r"(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)", lines[index])
        if not fence:
            line = lines[index].strip()
            if markers and line:
                raise ValueError(f"line {index + 1}: 'not run' or 'run with' is not followed by a block")
            if found := NOT_RUN.fullmatch(line):
                markers["not_run"] = found["reason"]
            if found := RUN_WITH.fullmatch(line):
                markers["run_with"] = found["arguments"]
            index += 1
            continue
        first = index + 1
        last = next(i for i in range(first, len(lines)) if lines[i].strip() == fence["fence"])
        if fence["language"] in LANGUAGES:
            code = "\n".join(line.removeprefix(fence["indent"]) for line in lines[first:last])
            language = LANGUAGES[fence["language"]]
            blocks.append(Block(language, first + 1, code, markers.get("not_run"), markers.get("run_with")))
        markers = {}
        index = last + 1
    return blocks


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone: its files are links, and blocks write into the folder only."""
    for entry in REPOSITORY.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("checkpoints", "logs", "runs", "outputs"):
            (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.quantization] * (page.name == "small_cards.md"))
        for page in PAGES
        if blocks_of(page.read_text("utf-8"))
    ],
)
def test_every_block_runs(page: Path, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {"__name__": "__page__"}
    for block in blocks_of(page.read_text("utf-8")):
        if block.not_run:
            continue
        where = f"{name_of(page)}:{block.line}"
        if block.language == "python":
            # line numbers of the page in tracebacks
            exec(compile("\n" * (block.line - 1) + block.code, name_of(page), "exec"), names)
        elif block.run_with or runs_theworld_only(block.code):
            for command in commands_of(block.code):
                run_here(command, shlex.split(block.run_with or ""), monkeypatch)
        else:
            assert run_bash(block.code).returncode == 0, f"{where} failed:\n{block.code}"


def run_bash(code: str) -> subprocess.CompletedProcess[bytes]:
    """Runs bash offline, with the programs of this Python first; `make` installs nothing."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(commands.programs()), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHON": str(commands.programs() / "python"),
        "PYTHONPATH": str(REPOSITORY),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=environment, timeout=300, check=False)


def commands_of(code: str) -> list[list[str]]:
    """The words of each command of a block, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def runs_theworld_only(code: str) -> bool:
    """Whether a block has only `theworld` commands and nothing that needs a shell, so that it runs in this process."""
    return not set("|<>&;$`(*~") & set(code) and all(words[0] == "theworld" for words in commands_of(code))


def run_here(command: list[str], more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `theworld …` or `python scripts/train_hf.py …` in this process, which has loaded all modules."""
    script = None
    if command[0] != "theworld":
        assert command[:2] == ["python", "scripts/train_hf.py"], f"{command} cannot be run with further arguments"
        spec = importlib.util.spec_from_file_location("train_hf", REPOSITORY / "scripts" / "train_hf.py")
        assert spec is not None
        assert spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    with monkeypatch.context() as patch:
        for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT"):  # which training sets
            patch.setenv(name, "")
        if script is not None:
            assert script.main([*command[2:], *more]) == 0, f"{shlex.join(command)} failed"
            return
        result = CliRunner().invoke(app, [*command[1:], *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # with its traceback
    assert result.exit_code == 0, f"{shlex.join(command)} failed:\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_local_links_have_targets(page: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert missing == [], f"{name_of(page)} links to missing files"


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
            "<!-- run with: --set max_steps=1 -->",
            "```bash",
            "theworld train a.json \\",
            "    --set 'x={\"y\": 1}'  # briefly",
            "```",
        ]
    )
    assert blocks_of(page) == [
        Block("python", 3, "x = 1", None),
        Block("bash", 8, "make everything", "it needs a GPU"),
        Block("python", 14, "y = x", None),
        Block("bash", 18, "theworld train a.json \\\n    --set 'x={\"y\": 1}'  # briefly", None, "--set max_steps=1"),
    ]
    assert commands_of(blocks_of(page)[-1].code) == [["theworld", "train", "a.json", "--set", 'x={"y": 1}']]


@pytest.mark.parametrize("marker", ["not run: it needs the network", "run with: --set max_steps=1"])
def test_a_marker_without_a_block_is_refused(marker: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        blocks_of(f"<!-- {marker} -->\nSome words.\n")


def test_a_failing_block_is_seen() -> None:
    assert run_bash("false; true").returncode != 0
    assert run_bash("python -c 'import theworld'; test -n \"$HF_HUB_OFFLINE\"").returncode == 0
