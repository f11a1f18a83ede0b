"""The commands below `rudalle-flows models`: list, show, pull, convert, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.exits import clear_exit

if TYPE_CHECKING:
    from rudalle_lib.config import WeightsConfig
    from rudalle_lib.registry import ModelEntry

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="The models that a configuration can name: list (also without a command), show, pull, "
    "convert, verify.",
)

Name = Annotated[str, typer.Argument(help="The model, as in `models list`.")]
Folder = Annotated[
    str | None, typer.Option(help="Local folder with weights, looked into before the hub.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never download.")]
Endpoint = Annotated[str | None, typer.Option(help="Address of a mirror of the hub.")]


@app.callback()
def main(context: typer.Context) -> None:
    """List the models, where no other command is given."""
    if context.invoked_subcommand is None:
        list_models()


@app.command("list")
def list_models() -> None:
    """List every model by name."""
    with clear_exit():
        from flows.tables import print_models

        print_models()


@app.command()
def show(name: Name) -> None:
    """Show where a model comes from and how it is built; fetches nothing."""
    with clear_exit():
        from flows.tables import print_pairs
        from rudalle_lib import registry

        entry = registry.get(name)
        print_pairs(f"{entry.name}: {entry.about}", _facts(entry))


@app.command()
def pull(
    name: Name, folder: Folder = None, offline: Offline = False, endpoint: Endpoint = None
) -> None:
    """Fetch the files of a model into the cache of the hub, and say where they are."""
    with clear_exit():
        from flows.tables import print_pairs
        from rudalle_lib import registry
        from rudalle_lib.weight_files import resolve_files

        entry = registry.get(name)
        files = resolve_files(entry, _weights(folder, offline, endpoint))
        print_pairs(entry.name, [(role, _place(path)) for role, path in files.items()])


@app.command()
def convert(file: Annotated[Path, typer.Argument(help="A .bin, .ckpt or .pth file.")]) -> None:
    """Write the safetensors copy of a checkpoint, as its first use would."""
    with clear_exit():
        from rudalle_lib.conversion import safe_file

        typer.echo(_place(safe_file(file)))


@app.command()
def verify(
    name: Name, folder: Folder = None, offline: Offline = False, endpoint: Endpoint = None
) -> None:
    """Fetch and digest the files of a model, load it, and run it once on the CPU."""
    with clear_exit():
        from flows.tables import print_pairs
        from rudalle_lib.verification import verify as check

        seen = check(name, _weights(folder, offline, endpoint))
        files = [
            (role, f"{_place(path)}\nSHA-256 {seen.sha256[role]}")
            for role, path in seen.files.items()
        ]
        run = f"{seen.made}; {seen.seconds:,.1f} s to load and run"
        print_pairs(f"{seen.entry.name} works", [*files, ("run", run)])


def _weights(folder: str | None, offline: bool, endpoint: str | None) -> WeightsConfig:
    from rudalle_lib.config import RunConfig

    given = {"folder": folder, "offline": str(offline).lower(), "endpoint": endpoint}
    overrides = [f"weights.{key}={value}" for key, value in given.items() if value is not None]
    return RunConfig.parse("{}", overrides, "the command line").weights


def _facts(entry: ModelEntry) -> list[tuple[str, str]]:
    files = [(f"file: {role}", _source(entry, role)) for role in entry.files]
    sizes = [f"{key} {_plain(value)}" for key, value in entry.architecture.items()]
    digests = [(f"SHA-256: {role}", digest) for role, digest in entry.sha256.items()]
    return [
        ("kind", entry.kind),
        ("revision", entry.revision if entry.repository else "of the package"),
        ("licence", entry.licence),
        *files,
        *digests,
        ("architecture", ", ".join(sizes) or "as its config.json says"),
    ]


def _source(entry: ModelEntry, role: str) -> str:
    return f"{entry.files[role]} from {entry.repository_of(role) or 'the package'}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _place(path: Path) -> str:
    return f"{path} ({path.stat().st_size / 1e6:,.1f} MB)"
