"""The configurations that commands accept, and a help that is fast and complete."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.options import PACKAGED, find_config, load
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import ConfigError

COMMANDS = (
    *("run", "plan", "preview", "status", "verify", "replay", "retry", "gallery", "app", "serve"),
    *("models", "models list", "models show", "models pull", "models convert", "models verify"),
)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, flows.cli; print(*sorted(set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGED.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"torch", "prefect", "pyarrow", "pandas", "transformers", "pydantic"}
    assert heavy & set(done.stdout.split()) == set()


def test_it_runs_as_a_module_without_warnings() -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "flows.cli", "--help"]
    done = subprocess.run(command, cwd=PACKAGED.parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in COMMANDS if " " not in name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_itself_its_arguments_and_its_options(command: str) -> None:
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    usage, _, description, *_ = done.stdout.splitlines()
    assert usage.startswith("Usage: ") and description.strip()


def test_every_packaged_configuration_is_valid_and_found_by_name() -> None:
    names = sorted(path.stem for path in PACKAGED.glob("*.yaml"))
    assert {"demo", "malevich"} <= set(names)
    for name in names:
        assert RunConfig.load(find_config(name)).name


def test_an_unknown_configuration_lists_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'dmo'.*demo.*malevich"):
        find_config("dmo")


def test_set_overrides_the_options_and_the_options_override_the_file() -> None:
    config = load("demo", "a.csv", "out", ["prompts.uri=b.csv"])
    assert (config.prompts.uri, config.output) == ("b.csv", "out")
