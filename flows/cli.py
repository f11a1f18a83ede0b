"""The command line: run, plan, preview, serve, status, verify, replay, retry, gallery, app, models.

Exit codes: 0 all is well, 1 some shards failed, 2 the input is wrong (one sentence on stderr), 130
interrupted, 143 stopped by SIGTERM. Heavy packages are imported by the command that needs them, so
that help is instant.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import app_cli, gallery_cli, models_cli, preview_cli, upkeep_cli
from flows.exits import clear_exit
from rudalle_lib.errors import ConfigError

if TYPE_CHECKING:
    from rudalle_lib.config import RunConfig
    from rudalle_lib.records import RunManifest

PACKAGED = Path(__file__).resolve().parent.parent / "configs"
"""Configurations that can be called by name."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a table of prompts into an image dataset with ruDALL-E.",
)
app.add_typer(models_cli.app, name="models")

Config = Annotated[
    str, typer.Argument(help="A YAML file or URL, or the name of a packaged one such as demo.")
]
Prompts = Annotated[
    str | None,
    typer.Option(help="Prompt table: Parquet, CSV or JSONL, at any path or fsspec URL."),
]
Output = Annotated[
    str | None, typer.Option(help="Folder or URL that the dataset is written to, as s3://b/run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: generate.images=4."),
]


@app.command()
def run(
    config: Config,
    prompts: Prompts = None,
    output: Output = None,
    overrides: Overrides = None,
) -> None:
    """Make a dataset, or what is missing of it."""
    with clear_exit():
        run_and_tell(load(config, prompts, output, overrides))


@app.command()
def plan(
    config: Config,
    prompts: Prompts = None,
    output: Output = None,
    overrides: Overrides = None,
) -> None:
    """Show what a run would do; nothing is written."""
    with clear_exit():
        from flows.tables import print_difference

        print_difference(load(config, prompts, output, overrides))


@app.command()
def serve(
    config: Config,
    prompts: Prompts = None,
    output: Output = None,
    overrides: Overrides = None,
    cron: Annotated[
        str | None, typer.Option(help='Also start a run on a schedule, such as "0 2 * * *".')
    ] = None,
) -> None:
    """Offer a configuration as a form in the Prefect UI, and do the runs that are started there."""
    with clear_exit():
        from flows.embedded import set_up_prefect
        from rudalle_lib.preflight import check_inputs

        settings = load(config, prompts, output, overrides)
        check_inputs(settings)
        if set_up_prefect():
            raise ConfigError(
                "Serving needs a Prefect server that stays: start one with `prefect server start`, "
                "and name it, as in PREFECT_API_URL=http://127.0.0.1:4200/api."
            )
        from flows.deployments import serve_flow

        serve_flow(settings, cron, typer.echo)


@app.command()
def status(
    url: Annotated[str, typer.Argument(help="The output of a run.")],
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="As Prometheus text, for a textfile collector.")
    ] = False,
) -> None:
    """Show how far a run is, from its output alone."""
    with clear_exit():
        from flows.tables import print_metrics, print_status

        print_metrics(url) if prometheus else print_status(url)


app.command()(upkeep_cli.verify)
app.command()(upkeep_cli.replay)
app.command()(upkeep_cli.retry)
app.command()(gallery_cli.gallery)


app.command()(preview_cli.preview)
app.command()(app_cli.app)


def load(
    config: str, prompts: str | None, output: str | None, overrides: Sequence[str] | None
) -> RunConfig:
    """Read a configuration; `--prompts` and `--output` go before `--set`, the file before both."""
    from rudalle_lib.config import RunConfig

    given = [("prompts.uri", prompts), ("output", output)]
    shortcuts = [f"{key}={value}" for key, value in given if value is not None]
    return RunConfig.load(find_config(config), [*shortcuts, *(overrides or [])])


def find_config(name: str) -> str:
    """The path or URL of a configuration.

    Raises:
        ConfigError: neither a file nor the name of a packaged one; lists the names.
    """
    packaged = PACKAGED / f"{name}.yaml"
    if "://" in name or Path(name).is_file():
        return name
    if "/" not in name and packaged.is_file():
        return str(packaged)
    names = ", ".join(sorted(path.stem for path in PACKAGED.glob("*.yaml")))
    raise ConfigError(
        f"There is no configuration {name!r}: expected a YAML file or one of the packaged {names}."
    )


def run_and_tell(settings: RunConfig) -> None:
    """Run the flow, and say what has come of it."""
    started = time.monotonic()
    manifest = run_flow(settings)
    typer.echo(summary(settings, manifest, time.monotonic() - started))


def run_flow(settings: RunConfig) -> RunManifest:
    """Run the flow with a view of its progress.

    Where all is finished, no server is embedded to find that out; one that is there sees every run.
    """
    from rich.console import Console

    from flows.embedded import set_up_prefect
    from rudalle_lib.difference import finished_run
    from rudalle_lib.preflight import check_run

    console = Console(stderr=True, highlight=False)
    with console.status("Looking at models, prompts and output"):
        weights = check_run(settings)
        finished = finished_run(settings, weights) if set_up_prefect() else None
        if finished is not None:
            return finished
        from flows.generate_dataset import generate_dataset
        from flows.progress import make_view
        from rudalle_lib.stages import stages_off
        from tasks.progress import listener

    with make_view(console, stages_off(settings)) as view:
        token = listener.set(view)
        try:
            return generate_dataset(settings)
        finally:
            listener.reset(token)


def summary(settings: RunConfig, manifest: RunManifest, seconds: float) -> str:
    """What has come of a run, and on the last line where the pictures are."""
    from rudalle_lib import layout
    from rudalle_lib.storage import Storage

    sums, storage = manifest.totals, Storage(settings.output)
    aside = sum(sums.rejected.values())
    figures = (
        f"{sums.kept:,} of {sums.images:,} images published from {sums.prompts:,} prompts, "
        f"{aside:,} rows set aside, {seconds:,.0f} s."
    )
    pictures = storage.public_path(layout.pictures_folder(settings.publish.format))
    page = f", to look at: {storage.public_path(layout.GALLERY_PAGE)}"
    shown = page if settings.publish.gallery else ""
    return f"{figures}\nThe pictures are in {pictures}{shown}"


if __name__ == "__main__":
    app()
