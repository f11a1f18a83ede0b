"""Arguments and options that commands share, and the loading of configurations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rudalle_lib.errors import ConfigError
from rudalle_lib.storage.urls import public_url

if TYPE_CHECKING:
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.registry import ModelEntry

PACKAGED = Path(__file__).resolve().parents[2] / "configs"
"""Folder of the configurations that can be selected by name."""

FINE_TUNING = "finetune-"
"""Start of the names of packaged configurations of fine-tunings."""

MAX_SHOWN = 500
"""Characters of a wrong name that are shown."""


def complete_config(begun: str) -> list[str]:
    """The names of packaged configurations of runs that begin so; shells add files."""
    return [name for name in packaged_configs() if name.startswith(begun)]


def complete_model(begun: str) -> list[str]:
    """The names of models of the registry that begin so."""
    from rudalle_lib import registry

    return [name for name in registry.names() if name.startswith(begun)]


def complete_reason(begun: str) -> list[str]:
    """The reasons for a rejection that begin so."""
    from rudalle_lib.schema.reasons import REASONS

    return [reason for reason in REASONS if reason.startswith(begun)]


Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        autocompletion=complete_config,
        help="Configuration of the run: a YAML file or URL, or the name of a packaged one, such "
        "as demo.",
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Prompt table: a file, folder or pattern (Parquet, CSV, JSON). Overrides prompts.uri.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Output of the run: a folder or URL, such as s3://bucket/run. Overrides output.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a setting of the configuration, such as generate.images=4. Repeatable.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON instead, for scripts; see docs/operations.md.")
]
FinishedOutput = Annotated[
    str, typer.Argument(metavar="OUTPUT", help="Output of a run: a folder or URL.")
]


def load(
    config: str, prompts: str | None, output: str | None, overrides: Sequence[str] | None
) -> RunConfig:
    """Load a configuration; `prompts` and `output` override the file, `overrides` override all.

    Raises:
        ConfigError: when there is no such configuration, or it is invalid.
    """
    from rudalle_lib.config.run import RunConfig

    options = [("prompts.uri", prompts), ("output", output)]
    shortcuts = [f"{key}={value}" for key, value in options if value is not None]
    return RunConfig.load(find_config(config), [*shortcuts, *(overrides or [])])


def packaged_configs(fine_tuning: bool = False) -> list[str]:
    """Return the names of the packaged configurations of runs, or of fine-tunings."""
    names = sorted(path.stem for path in PACKAGED.glob("*.yaml"))
    return [name for name in names if name.startswith(FINE_TUNING) is fine_tuning]


def find_config(name: str, fine_tuning: bool = False) -> str:
    """Return the path or URL of a configuration of a run, or of a fine-tuning.

    Raises:
        ConfigError: when it is neither a file nor a packaged configuration of that kind; lists
            the latter.
    """
    if "://" in name or os.path.isfile(name):  # Path.is_file raises for impossible names
        return name
    names = packaged_configs(fine_tuning)
    if name in names:
        return str(PACKAGED / f"{name}.yaml")
    if name in packaged_configs(not fine_tuning):
        command = "run" if fine_tuning else "fine-tune"
        raise ConfigError(f"{name} is for another command: `rudalle-flows {command} {name}`.")
    raise ConfigError(
        f"There is no configuration {name[:MAX_SHOWN]!r}: expected a YAML file or one of the "
        f"packaged configurations {', '.join(names)}."
    )


def source_of(entry: ModelEntry) -> str:
    """Return where the weights of a model come from."""
    if entry.folder is not None:
        return public_url(entry.folder)
    return entry.repository or "this package"
