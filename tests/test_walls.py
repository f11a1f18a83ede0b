"""The walls of the house: which room may import which, read from the source alone.

`flows -> tasks -> rudalle_lib`, and inside the library a few files that own a dependency.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("flows", "tasks", "rudalle_lib")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
LONGEST_MODULE = 400

# The hub's accounts that publish weights, as they stand before the slash of a repository's name.
WEIGHT_REPOSITORY = re.compile(
    r"\b(ai-forever|sberbank-ai|shonenkov(-AI)?|Helsinki-NLP|cene555|xinntao)/[\w.-]+"
)


def name_of(path: Path) -> str:
    """Give the path as it is written in a failure: relative to the repository."""
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> list[str]:
    """Give the parts of the package that a file's relative imports start from."""
    return list(path.relative_to(ROOT).parent.parts)


def imports_of(path: Path, source: str | None = None) -> set[str]:
    """Collect the dotted names that a file imports anywhere, relative ones made absolute."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source if source is not None else path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = package_of(path)
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found.add(stem)
            found.update(f"{stem}.{alias.name}" for alias in node.names)
    return found


def roots_of(path: Path) -> set[str]:
    """Collect the first parts of the names that a file imports."""
    return {name.partition(".")[0] for name in imports_of(path)}


def strings_of(path: Path) -> list[str]:
    """Collect the string constants of a file, docstrings aside."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]


def offenders(room: str, forbidden: set[str]) -> list[str]:
    """List the files of a room that import a forbidden package, each with what it imports."""
    return [
        f"{name_of(path)} imports {', '.join(sorted(wrong))}"
        for path in SOURCES
        if name_of(path).startswith(f"{room}/") and (wrong := roots_of(path) & forbidden)
    ]


def test_relative_and_nested_imports_are_seen() -> None:
    """The reader of imports sees every form of them, or the other tests would prove nothing."""
    here = ROOT / "rudalle_lib" / "models" / "x.py"
    nested = "def f():\n    import a.b\n"
    source = nested + "from ..config import C\nfrom . import dalle\nfrom torch import nn"
    assert imports_of(here, source) == {
        "a.b",
        "rudalle_lib.config",
        "rudalle_lib.config.C",
        "rudalle_lib.models",
        "rudalle_lib.models.dalle",
        "torch",
        "torch.nn",
    }
    assert len(SOURCES) > 10


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("rudalle_lib", {"flows", "tasks", "prefect", "prefect_ray", "ray", "typer"}),
        ("tasks", {"flows", "typer"}),
        ("flows", {"torch", "transformers", "torchvision"}),
    ],
)
def test_imports_go_one_way(room: str, forbidden: set[str]) -> None:
    """`flows -> tasks -> rudalle_lib`; no orchestration below, no networks above."""
    assert offenders(room, forbidden) == []


def test_models_import_nothing_of_ours_but_models() -> None:
    """A network can be read, copied and tested with nothing else of this project."""
    ours = {
        name_of(path): {name for name in imports_of(path) if name.partition(".")[0] in ROOMS}
        for path in SOURCES
        if name_of(path).startswith("rudalle_lib/models/")
    }
    allowed = ("rudalle_lib", "rudalle_lib.models")
    wrong = {
        file: bad
        for file, names in ours.items()
        if (
            bad := {
                n for n in names if n not in allowed and not n.startswith("rudalle_lib.models.")
            }
        )
    }
    assert wrong == {}


def test_only_one_module_knows_fsspec() -> None:
    """One file speaks to the outside, so one file turns its faults into clear errors."""
    wrong = [name_of(p) for p in SOURCES if roots_of(p) & {"fsspec", "s3fs", "boto3", "botocore"}]
    assert set(wrong) <= {"rudalle_lib/file_systems.py"}


def test_only_the_registry_names_weight_repositories() -> None:
    """Where weights come from is answered by one file."""
    wrong = {
        name_of(path): found.group()
        for path in SOURCES
        for text in strings_of(path)
        if name_of(path) != "rudalle_lib/registry.py" and (found := WEIGHT_REPOSITORY.search(text))
    }
    assert wrong == {}


def test_no_module_is_too_long_or_has_no_subject() -> None:
    """One idea a file: nothing over the limit, and no drawer for what has no place."""
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [name_of(path) for path in SOURCES if path.name in drawers] == []
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {file: n for file, n in lengths.items() if n > LONGEST_MODULE} == {}


def test_importing_the_library_is_cheap() -> None:
    """`import rudalle_lib` brings no network library along: the command line stays quick."""
    heavy = "{'torch', 'transformers', 'prefect', 'pandas'}"
    code = f"import sys, rudalle_lib; print(sorted({heavy} & set(sys.modules)))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
