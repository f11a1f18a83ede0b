"""The command `app`: a local web page to try prompts."""

from __future__ import annotations

import importlib.util
from typing import Annotated

import typer

from flows.cli.options import Config, Overrides, load
from flows.exits import translate_exit


def try_prompts(
    config: Config = "demo",
    port: Annotated[
        int, typer.Option(min=1024, max=65535, metavar="N", help="Local port of the page.")
    ] = 7860,
    overrides: Overrides = None,
) -> None:
    """Try prompts on a local web page.

    Draws candidates, ranks and enlarges them, and exports the prompts that you keep for a run.
    """
    with translate_exit():
        import tempfile
        from pathlib import Path

        from rudalle_lib.errors import ConfigError

        settings = load(config, None, None, overrides)
        if importlib.util.find_spec("gradio") is None:
            raise ConfigError(
                "The page needs Gradio, which is not installed. "
                "Install it with: pip install -c constraints.txt '.[app]'"
            )
        from flows.console import SafeConsole
        from rudalle_lib.api.studio import Studio

        with SafeConsole(stderr=True).status("Loading models"):
            studio = Studio.load(settings)
            from flows.ui.local_server import HOST
            from flows.ui.prompt_page import serve
        with tempfile.TemporaryDirectory() as folder:
            try:
                server = serve(studio, port, Path(folder))
            except OSError as error:
                raise ConfigError(
                    f"Cannot listen on port {port}: {error}. Choose another port with --port."
                ) from None
            typer.echo(f"Try prompts at http://{HOST}:{server.port} (Ctrl-C to stop)")
            server.wait()
