"""The configurations that commands accept, and a help that is fast and complete."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.cli.options import PACKAGED, find_config, load, packaged_configs
from rudalle_lib.config.fine_tune import FineTuneConfig
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
    runs, fine_tunings = packaged_configs(), packaged_configs(fine_tuning=True)
    assert sorted(runs + fine_tunings) == sorted(path.stem for path in PACKAGED.glob("*.yaml"))
    assert {"demo", "malevich"} <= set(runs) and "finetune-demo" in fine_tunings
    for name in runs:
        assert RunConfig.load(find_config(name)).name
    for name in fine_tunings:
        assert FineTuneConfig.load(find_config(name, fine_tuning=True)).name


def test_a_configuration_of_another_command_names_it() -> None:
    with pytest.raises(ConfigError, match="`rudalle-flows fine-tune finetune-demo`"):
        find_config("finetune-demo")
    with pytest.raises(ConfigError, match="`rudalle-flows run demo`"):
        find_config("demo", fine_tuning=True)


@pytest.mark.parametrize("name", ["finetune-demo", "finetune-malevich", "demo", "kandinsky"])
def test_so_does_one_that_is_given_by_its_path(name: str) -> None:
    is_run = name in packaged_configs()
    other, command = (FineTuneConfig, "run") if is_run else (RunConfig, "fine-tune")
    with pytest.raises(ConfigError, match=rf"{name}.yaml is for .*`rudalle-flows {command}`"):
        other.load(str(PACKAGED / f"{name}.yaml"))


def test_an_unknown_configuration_lists_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match=r"no configuration 'dmo'.*demo.*malevich"):
        find_config("dmo")


def test_set_overrides_the_options_and_the_options_override_the_file() -> None:
    config = load("demo", "a.csv", "out", ["prompts.uri=b.csv"])
    assert (config.prompts.uri, config.output) == ("b.csv", "out")
