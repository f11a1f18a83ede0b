"""The command line `rudalle-flows`.

Exit codes: 0 success, 1 some shards failed or faults were found, 2 invalid input (with a message on
stderr), 130 interrupted, 143 terminated by SIGTERM, 129 by SIGHUP. Every command imports heavy
packages only when it runs, so that `--help` is fast.
"""

from __future__ import annotations

from flows.watchdog import install_in_program

install_in_program()  # before other imports, so that a signal while starting ends the program

import importlib.metadata  # noqa: E402
from typing import Annotated  # noqa: E402

import typer  # noqa: E402

from flows.cli import (  # noqa: E402
    curate,
    gallery,
    maintain,
    models,
    preview,
    run,
    top,
    try_prompts,
    versions,
)
from flows.cli.training import fine_tune  # noqa: E402
from flows.terminal import SafeGroup  # noqa: E402

app = typer.Typer(
    cls=SafeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Generate image datasets from tables of prompts with ruDALL-E.

    To try it: rudalle-flows run demo. It downloads nothing and takes about a minute.""",
)


def print_version(wanted: bool) -> None:
    """Print the version of the package, and end the program."""
    if wanted:
        typer.echo(f"rudalle-flows {importlib.metadata.version('rudalle-flows')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


for command in (run.run, run.plan, preview.preview, run.status, top.top, maintain.verify,
                maintain.replay, maintain.retry, curate.curate, maintain.tidy, versions.rerender,
                versions.compare, gallery.gallery, gallery.push, fine_tune.fine_tune):  # fmt: skip
    app.command()(command)
app.command("app")(try_prompts.try_prompts)
app.command()(run.serve)
app.add_typer(models.app, name="models")
