"""Commands import only what they use, say nothing but their answer, and leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DATASET = Path(__file__).resolve().parents[2] / "data/before_rooms/dataset"
"""A finished run."""

WATCHED = (
    *("torch", "transformers", "tokenizers", "prefect", "pandas", "PIL", "s3fs", "gradio"),
    *("accelerate", "peft"),
)
"""Packages that take long to import."""

SCRIPT = f"""
import atexit, json, sys
from flows.cli import app
found = lambda: json.dumps([name for name in {WATCHED!r} if name in sys.modules])
atexit.register(lambda: print(found(), file=sys.stderr))
app()
"""

BY_PYARROW = {"pandas"}
"""pyarrow imports it as soon as it makes a column of Python values, as reading a table does."""

Environment = dict[str, str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """That of a new user: an empty home, no settings of Prefect."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    kept.pop("XDG_CACHE_HOME", None)
    kept.pop("DO_NOT_TRACK", None)
    return {**kept, "HOME": str(tmp_path / "home")}


def call(environment: Environment, *arguments: str) -> tuple[str, set[str], str]:
    """Run a command; return its output, the watched packages that it imported, and its messages."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *messages, imported = done.stderr.splitlines()
    return done.stdout, set(json.loads(imported)), "\n".join(messages)


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["models"], set()),
        (["models", "--json"], set()),
        (["models", "show", "malevich-v3"], set()),
        (["status", str(DATASET)], set()),
        (["status", str(DATASET), "--json"], set()),
        (["status", str(DATASET), "--prometheus"], set()),
        (["verify", str(DATASET), "--sample", "0", "--json"], {"torch", "PIL", "pandas"}),
    ],
)
def test_a_command_imports_only_what_it_uses(
    arguments: list[str], needed: set[str], environment: Environment, tmp_path: Path
) -> None:
    shown, imported, messages = call(environment, *arguments)
    assert shown and messages == ""
    assert imported <= needed
    assert not (tmp_path / "home").exists()  # no file of Prefect's telemetry
    if "--json" in arguments:
        assert json.loads(shown)


def test_a_plan_of_the_demo_needs_no_torch(environment: Environment, tmp_path: Path) -> None:
    """Not even the first one: the package notes that its own models have passed their checks."""
    arguments = ["plan", "demo", "--output", str(tmp_path / "out"), "--json"]
    shown, imported, messages = call(environment, *arguments)
    assert imported <= BY_PYARROW and messages == ""
    assert json.loads(shown)["images_to_draw"] == 512
    as_alias, *_ = call(environment, "run", *arguments[1:-1], "--dry-run")
    assert as_alias == call(environment, *arguments[:-1])[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "home").exists()


def test_a_second_plan_needs_no_torch(
    environment: Environment, settings: dict[str, object], tmp_path: Path
) -> None:
    """The first one checks the files of the models, and notes that they are as they should be."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**settings, "output": f"{tmp_path}/out"}))
    arguments = ["plan", str(tmp_path / "tiny.yaml"), "--json"]
    first, imported, messages = call(environment, *arguments)
    assert "torch" in imported and "prefect" not in imported and messages == ""
    second, imported, messages = call(environment, *arguments)
    assert imported <= BY_PYARROW and messages == ""
    assert second == first and json.loads(first)["images_to_draw"] == 19


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rudalle-flows st", {"status"}),
        ("rudalle-flows run de", {"demo"}),
        ("rudalle-flows run --sh", {"--shards"}),
        ("rudalle-flows models sh", {"show"}),
        ("rudalle-flows models show malevich", {"malevich-v2", "malevich-v3"}),
        ("rudalle-flows retry out --reason bad_i", {"bad_image_prompt"}),
        ("rudalle-flows run prompts/my", set()),  # the shell then looks for files
    ],
)
def test_completion_knows_commands_options_and_names(
    words: str, expected: set[str], environment: Environment
) -> None:
    asked = {"_RUDALLE_FLOWS_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split()) - 1)
    done = subprocess.run(
        [Path(sys.executable).with_name("rudalle-flows")],
        env={**environment, **asked}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(done.stdout.split()) == expected
