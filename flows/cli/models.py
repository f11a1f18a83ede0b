"""The commands of `rudalle-flows models`: list, show, pull, convert, verify."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import MAX_SHOWN, AsJson, complete_model, find_config, source_of
from flows.exits import translate_exit

if TYPE_CHECKING:
    from rudalle_lib.config.sections import WeightsConfig
    from rudalle_lib.registry import ModelEntry

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="""List, inspect, download, convert and check models.

    Without a command, lists the models that a configuration can name.""",
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=complete_model,
        help="Name of a model, see `rudalle-flows models list`.",
    ),
]
RunFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="CONFIG",
        help="Configuration of a run: its `weights` apply, with the names in `weights.models`.",
    ),
]
Folder = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Local folder with weights; files missing there come from the Hugging Face Hub.",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download.")]
Endpoint = Annotated[
    str | None, typer.Option(metavar="URL", help="URL of a mirror of the Hugging Face Hub.")
]


@app.callback()
def main(context: typer.Context, as_json: AsJson = False, config: RunFile = None) -> None:
    """List the models if no command is given."""
    if context.invoked_subcommand is None:
        list_models(as_json, config)


@app.command("list")
def list_models(as_json: AsJson = False, config: RunFile = None) -> None:
    """List all models."""
    with translate_exit():
        from rudalle_lib import registry

        own = _weights(config, None, False, None).own()
        entries = [*(registry.get(name) for name in registry.names()), *own.values()]
        if as_json:
            from flows.cli.as_json import model_values, print_json

            print_json(model_values(entries))
        else:
            from flows.cli.tables import print_models

            print_models(entries)


@app.command()
def show(name: Name, config: RunFile = None) -> None:
    """Show source, licence and architecture of a model. Downloads nothing."""
    with translate_exit():
        from flows.cli.tables import print_pairs

        entry = _weights(config, None, False, None).find(name)
        print_pairs(f"{entry.name}: {entry.about}", _facts(entry))


@app.command()
def pull(
    name: Name,
    config: RunFile = None,
    folder: Folder = None,
    offline: Offline = False,
    endpoint: Endpoint = None,
) -> None:
    """Download a model. Prints where its files are."""
    with translate_exit():
        from flows.cli.tables import print_pairs
        from rudalle_lib.weights.files import resolve_files

        weights = _weights(config, folder, offline, endpoint)
        entry = weights.find(name)
        files = resolve_files(entry, weights)
        print_pairs(entry.name, [(role, _path_and_size(path)) for role, path in files.items()])


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .bin, .ckpt or .pth file.")],
) -> None:
    """Convert a PyTorch checkpoint to safetensors.

    The first use of a checkpoint does the same.
    """
    with translate_exit():
        from rudalle_lib.errors import WeightsError
        from rudalle_lib.weights.conversion import safe_file

        if not os.path.isfile(file):
            raise WeightsError(f"There is no checkpoint {str(file)[:MAX_SHOWN]}: expected a file.")
        typer.echo(_path_and_size(safe_file(file)))


@app.command()
def verify(
    name: Name,
    config: RunFile = None,
    folder: Folder = None,
    offline: Offline = False,
    endpoint: Endpoint = None,
) -> None:
    """Download a model, load it and run it once on the CPU."""
    with translate_exit():
        from flows.cli.tables import print_pairs
        from rudalle_lib.checks.models import check_model

        check = check_model(name, _weights(config, folder, offline, endpoint))
        files = [
            (role, f"{_path_and_size(path)}\nSHA-256 {check.sha256[role]}")
            for role, path in check.files.items()
        ]
        run = f"{check.output}; {check.seconds:,.1f} s to load and run"
        print_pairs(f"{check.entry.name} works", [*files, ("run", run)])


def _weights(
    config: str | None, folder: str | None, offline: bool, endpoint: str | None
) -> WeightsConfig:
    """The section `weights` of a configuration, if one is given, with what options replace."""
    from rudalle_lib.config.run import RunConfig

    options = {"folder": folder, "offline": "true" if offline else None, "endpoint": endpoint}
    overrides = [f"weights.{key}={value}" for key, value in options.items() if value is not None]
    if config is not None:
        return RunConfig.load(find_config(config), overrides).weights
    return RunConfig.parse("{}", overrides, "the command line").weights


def _facts(entry: ModelEntry) -> list[tuple[str, str]]:
    files = [(f"file: {role}", _source(entry, role)) for role in entry.files]
    sizes = [f"{key} {_as_list(value)}" for key, value in entry.architecture.items()]
    digests = [(f"SHA-256: {role}", digest) for role, digest in entry.sha256.items()]
    revision = entry.revision if entry.repository else "part of the package"
    return [
        ("kind", entry.kind),
        *([("base", entry.base), ("folder", source_of(entry))] if entry.folder else []),
        *([("revision", revision)] if entry.folder is None else []),
        ("licence", entry.licence),
        *files,
        *digests,
        ("architecture", ", ".join(sizes) or "defined by its config.json"),
    ]


def _source(entry: ModelEntry, role: str) -> str:
    return f"{entry.files[role]} from {entry.repository_of(role) or source_of(entry)}"


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _path_and_size(path: Path) -> str:
    return f"{path} ({path.stat().st_size / 1e6:,.1f} MB)"
