"""The command `app`: a page on this machine to try prompts."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from flows.exits import clear_exit


def app(
    config: Annotated[
        str, typer.Argument(help="A YAML file or URL, or a packaged name such as demo.")
    ] = "demo",
    port: Annotated[int, typer.Option(min=1024, max=65535, help="Port on this machine.")] = 7860,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: generate.images=4."),
    ] = None,
) -> None:
    """Try prompts on a page: draw, rank, enlarge, and keep prompts for a bulk run."""
    with clear_exit():
        import tempfile
        from pathlib import Path

        from flows.cli import load
        from rudalle_lib.errors import ConfigError

        settings = load(config, None, None, overrides)
        if importlib.util.find_spec("gradio") is None:
            raise ConfigError(
                "The page needs Gradio, which is not installed; "
                "install it with: pip install -c constraints.txt '.[app]'"
            )
        from rich.console import Console

        from rudalle_lib.studio import Studio

        with Console(stderr=True).status("Loading models"):
            studio = Studio.load(settings)
            from flows.app import HOST, serve
        typer.echo(f"Try prompts at http://{HOST}:{port} (end with Ctrl+C)")
        with tempfile.TemporaryDirectory() as folder:
            try:
                serve(studio, port, Path(folder))
            except OSError as error:
                raise ConfigError(
                    f"Cannot listen on port {port}: {error}. Choose another with --port."
                ) from None
