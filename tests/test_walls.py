"""The walls of the house: which room may import which, read from the source alone.

`ORDER` is the only place where the order of rooms is written down.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rudalle_lib", "tasks", "flows")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

ORDER = """
    escaping errors digests humanize | demo kernels schema registry
    models.layers models models.decoding models.gpu | runtime storage | text | config
    images weights dataset | prompts generation | selection | pipeline
    derived report comparison checks api training.data training training.demo
    fine_tuning sharing | tasks.runtime tasks tasks.training |
    flows flows.training flows.ui flows.cli
""".replace("|", " ").split()
"""Rooms in order: a room imports only rooms to its left. Bare names are in `rudalle_lib`."""

FORBIDDEN = [
    ("rudalle_lib", {"flows", "tasks", "prefect", "ray", "typer"}),
    ("tasks", {"flows", "typer"}),
    ("flows", {"torch", "transformers", "torchvision"}),
]
"""Packages that a package of ours never imports."""

MODELS_USE = ("models", "kernels")
"""The only rooms that networks import."""

MAX_FILES = 16
MAX_LINES = 400
TESTED_LINES = 100
"""A longer module has a test file of its own name."""

OWN_LOCAL_TESTS = {
    "rudalle_lib/training/demo/all.py": "runs all trainings, which takes hours",
}
"""Modules without a test file of their own name, each with the reason."""

# Accounts of the hub that publish weights, followed by the name of a repository.
WEIGHT_REPOSITORY = re.compile(
    r"\b(ai-forever|sberbank-ai|shonenkov(-AI)?|Helsinki-NLP|cene555|xinntao)/[\w.-]+"
)


# --- reading the source ------------------------------------------------------------------------


def name_of(path: Path) -> str:
    """The path relative to the repository, as failures show it."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, source: str | None = None) -> set[str]:
    """The dotted names that a file imports anywhere, relative ones made absolute."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source if source is not None else path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = list(path.relative_to(ROOT).parent.parts)
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found.add(stem)
            found.update(f"{stem}.{alias.name}" for alias in node.names)
    return found


def room_of(module: str) -> str | None:
    """The room of a dotted name; None for packages of others and for `rudalle_lib` itself."""
    package, *rest = module.split(".")
    if package not in PACKAGES:
        return None
    parts = rest if package == "rudalle_lib" else [package, *rest]
    inner = ".".join(parts[:2])
    return inner if inner in ORDER else (parts[0] if parts else None)


def arrows() -> set[tuple[str, str, str]]:
    """Every import from one room into another: the file, its room, the imported room."""
    return {
        (name_of(path), room, other)
        for path in SOURCES
        if (room := room_of(module_of(path))) is not None
        for name in imports_of(path)
        if (other := room_of(name)) is not None and other != room
    }


def strings_of(path: Path) -> list[str]:
    """The string constants of a file without its docstrings."""
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


def roots_of(path: Path) -> set[str]:
    """The packages that a file imports."""
    return {name.partition(".")[0] for name in imports_of(path)}


# --- rooms -------------------------------------------------------------------------------------


def test_relative_and_nested_imports_are_seen() -> None:
    """If the reader of imports missed a form of them, the other tests would prove nothing."""
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
    assert len(SOURCES) > 100


def test_a_wrong_arrow_would_be_seen() -> None:
    assert room_of("rudalle_lib.models.layers.int8_linear") == "models.layers"
    assert room_of("rudalle_lib.models.dalle") == "models"
    assert room_of("flows.cli.run") == "flows.cli" and room_of("tasks.decode") == "tasks"
    assert room_of("torch.nn") is None and room_of("rudalle_lib") is None
    assert len({(room, other) for _, room, other in arrows()}) > 100


def test_every_file_is_in_a_room_of_the_order() -> None:
    rooms = {room_of(module_of(path)) for path in SOURCES} - {None}
    assert rooms == set(ORDER)


def test_a_room_imports_only_rooms_to_its_left() -> None:
    wrong = {
        f"{file} ({room}) imports {other}"
        for file, room, other in arrows()
        if ORDER.index(other) > ORDER.index(room)
    }
    assert wrong == set()


def test_networks_import_only_networks_and_kernels() -> None:
    """A network can be read, copied and tested without the rest of this project."""
    wrong = {
        f"{file} imports {other}"
        for file, room, other in arrows()
        if room.partition(".")[0] == "models" and other.partition(".")[0] not in MODELS_USE
    }
    assert wrong == set()


def test_modules_import_each_other_without_circles() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {
        module: {name for name in imports_of(path) if name in modules and name != module}
        for module, path in modules.items()
    }
    for module, names in graph.items():  # what a package imports for its users is no dependency
        names -= {name for name in names if module.startswith(f"{name}.")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize(("package", "forbidden"), FORBIDDEN)
def test_packages_leave_the_libraries_of_others_alone(package: str, forbidden: set[str]) -> None:
    """`flows -> tasks -> rudalle_lib`; no orchestration below, no networks above."""
    wrong = [
        f"{name_of(path)} imports {', '.join(sorted(found))}"
        for path in SOURCES
        if name_of(path).startswith(f"{package}/") and (found := roots_of(path) & forbidden)
    ]
    assert wrong == []


def test_only_one_module_imports_fsspec() -> None:
    """One file talks to object stores, so one file turns their faults into clear errors."""
    wrong = [name_of(p) for p in SOURCES if roots_of(p) & {"fsspec", "s3fs", "boto3", "botocore"}]
    assert set(wrong) == {"rudalle_lib/storage/filesystems.py"}


def test_only_the_registry_names_weight_repositories() -> None:
    wrong = {
        name_of(path): found.group()
        for path in SOURCES
        for text in strings_of(path)
        if name_of(path) != "rudalle_lib/registry.py" and (found := WEIGHT_REPOSITORY.search(text))
    }
    assert wrong == {}


# --- sizes and tests ---------------------------------------------------------------------------


def test_no_folder_and_no_module_is_too_large() -> None:
    """One idea per file: nothing over the limits, and no drawer for what has no place."""
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [name_of(path) for path in SOURCES if path.name in drawers] == []
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {file: lines for file, lines in lengths.items() if lines > MAX_LINES} == {}
    folders = {path.parent for path in SOURCES}
    sizes = {name_of(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: files for folder, files in sizes.items() if files > MAX_FILES} == {}


def test_every_module_of_some_length_has_tests_of_its_name() -> None:
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [
        name_of(path)
        for path in SOURCES
        if len(path.read_text("utf-8").splitlines()) > TESTED_LINES
        and not candidates(path) & tests
        and name_of(path) not in OWN_LOCAL_TESTS
    ]
    assert missing == []


def candidates(path: Path) -> set[str]:
    """Names that the tests of a module may have: its own, or that of its package."""
    return {path.stem} if path.stem != "__init__" else {path.parent.name}


# --- documents ---------------------------------------------------------------------------------


def tree_of_the_tour() -> set[str]:
    """The files and folders that the tour in `rudalle_lib/README.md` names, as paths."""
    text = (ROOT / "rudalle_lib" / "README.md").read_text("utf-8")
    block = next(b for b in re.findall(r"```[a-z]*\n(.*?)```", text, re.S) if "rudalle_lib/" in b)
    return set(_paths(block))


def _paths(block: str) -> Iterator[str]:
    """Paths of an indented tree: a line is a name, blanks, and what it is for."""
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        name = line.split()[0] if line.strip() else ""
        if not name:
            continue
        depth = len(line) - len(line.lstrip())
        folders = [item for item in folders if item[0] < depth]
        path = "".join(folder for _, folder in folders) + name
        if name.endswith("/"):
            folders.append((depth, name))
        yield path


def test_the_tour_names_every_room_and_module_and_no_other() -> None:
    told = tree_of_the_tour()
    files = {name_of(path) for path in SOURCES if path.name not in ("__init__.py", "__main__.py")}
    folders = {f"{name_of(path.parent)}/" for path in SOURCES}
    assert {path for path in told if path.endswith(".py")} == files
    assert folders <= told


@pytest.mark.parametrize("document", ["rudalle_lib/README.md", "docs/architecture.md"])
def test_the_picture_of_the_rooms_follows_the_order(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    picture = next(re.finditer(r"```mermaid\n(flowchart.*?)```", text, re.S))[1]
    drawn = set(re.findall(r"^\s*([\w.]+)\s*-->\s*([\w.]+)\s*$", picture, re.M))
    real = {(room, other) for _, room, other in arrows()}
    order = re.search(r"only rooms to its left: `([^`]*)`", text)
    assert order is None or order[1].replace("|", " ").split() == ORDER
    assert len(drawn) > 20 and {name for arrow in drawn for name in arrow} <= set(ORDER)
    assert [arrow for arrow in drawn if ORDER.index(arrow[1]) > ORDER.index(arrow[0])] == []
    assert drawn <= real


def test_importing_the_library_is_cheap() -> None:
    """`import rudalle_lib` brings no network library along: the command line stays quick."""
    heavy = "{'torch', 'transformers', 'prefect', 'pandas'}"
    code = f"import sys, rudalle_lib; print(sorted({heavy} & set(sys.modules)))"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
