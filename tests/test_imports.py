"""Imports run in one direction only. They are read from the source, so that lazy imports count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import theworld

PACKAGE = Path(theworld.__file__).parent

# package -> the packages that it may import
_CORE = {
    "messages",
    "fast_path",
    "compilation",
    "cuda_graphs",
    "quantization",
    "storage",
    "media",
    "world_models",
    "model",
}
MAY_IMPORT: dict[str, set[str]] = {
    "messages": set(),
    "fast_path": set(),
    "compilation": set(),
    "cuda_graphs": {"compilation"},
    "quantization": {"fast_path"},
    "storage": {"messages"},
    "media": {"storage", "messages"},
    "nano": set(),  # weights only
    "world_models": {"storage", "media", "messages", "fast_path", "compilation", "cuda_graphs", "quantization"},
    "model": {
        "storage",
        "media",
        "world_models",
        "messages",
        "fast_path",
        "compilation",
        "cuda_graphs",
        "quantization",
    },
    "inference": _CORE,
    "inspection": _CORE,
    # samples know how a prompt is made; they do not know the model
    "datasets": _CORE | {"inference", "inspection"},
    "training": _CORE | {"inference", "inspection", "datasets"},
    "evaluation": _CORE | {"inference", "inspection", "datasets"},
    "serving": _CORE | {"inference"},
    "demo": _CORE | {"inference", "datasets", "serving"},
    "cli": _CORE | {"inference", "inspection", "datasets", "training", "evaluation", "serving", "demo"},
}


def packages() -> list[str]:
    return sorted({path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or is_package(path)} - {"__init__"})


def is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def files_of(package: str) -> list[Path]:
    return sorted((PACKAGE / package).rglob("*.py")) or [PACKAGE / f"{package}.py"]


def imported_packages(path: Path) -> set[str]:
    """The packages of theworld that a file imports, at its top or inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written in full"
            names.update([f"theworld.{alias.name}" for alias in node.names] if node.module == "theworld" else [])
            names.add(node.module or "")
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "theworld" and len(part) > 1}


@pytest.mark.parametrize("package", packages())
def test_imports_run_one_way(package: str) -> None:
    assert package in MAY_IMPORT, f"say in MAY_IMPORT what {package} may import"
    for path in files_of(package):
        known = imported_packages(path) & set(MAY_IMPORT)
        wrong = known - MAY_IMPORT[package] - {package}
        assert not wrong, f"{path.relative_to(PACKAGE.parent)} imports {sorted(wrong)}, which is the way back"


def test_the_order_has_no_circles() -> None:
    """What a package may import may not import the package, by any way round."""
    reach = {package: set(below) for package, below in MAY_IMPORT.items()}
    for _ in reach:
        for package, below in reach.items():
            reach[package] = below.union(*(reach[other] for other in below))
    assert not [package for package, below in reach.items() if package in below]


def loaded_after(statement: str, *packages: str) -> list[str]:
    """Which of `packages` a fresh Python has loaded after `statement`."""
    code = f"import sys; {statement}; print(*(name for name in {packages!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return result.stdout.split()


def test_importing_the_package_is_cheap() -> None:
    heavy = ("torch", "transformers", "diffusers", "peft", "datasets", "numpy", "PIL")
    assert loaded_after("import theworld; theworld.__version__; dir(theworld)", *heavy) == []


def test_public_names_resolve() -> None:
    assert set(theworld.__all__) == {"__version__", *theworld._PUBLIC}
    for name in theworld.__all__:
        assert getattr(theworld, name) is not None
        assert name in dir(theworld)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = theworld.nonsense
