"""The flows are found in a folder that has packages of the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rudalle_lib.runtime import prefect_flows

ROOT = Path(__file__).parents[3]


def load(folder: Path, *before: str) -> str:
    """Load the flows in a process like that of a Prefect worker, and say from where."""
    code = [
        "import sys",
        *before,
        "from prefect.utilities.importtools import import_object",
        *(f"print(import_object('{prefect_flows.__name__}.{name}').fn.__code__.co_filename)"
          for name in prefect_flows.MODULES),
        "import tasks; print(tasks.__path__[0])",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        cwd=folder, env={"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder), "HOME": str(folder)},
        capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a team that has flows and tasks of its own."""
    for package in ("flows", "tasks"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("print('of the team')")
    (tmp_path / "flows" / "generate_dataset.py").write_text("raise SystemExit('the wrong flow')")
    return tmp_path


def test_the_flows_of_this_package_are_found_and_no_others(folder: Path) -> None:
    expected = [
        *(f"{module.replace('.', '/')}.py" for module in prefect_flows.MODULES.values()),
        "tasks",
    ]
    assert load(folder).splitlines() == [str(ROOT / path) for path in expected]


def test_packages_that_are_imported_already_are_named(folder: Path) -> None:
    said = load(folder, "import flows")
    assert f"The package flows of {folder}/flows was imported before that of rudalle-flows" in said


def test_another_name_is_an_error_that_lists_the_flows() -> None:
    with pytest.raises(AttributeError, match="no flow generate: expected generate_dataset, "):
        prefect_flows.generate  # noqa: B018
