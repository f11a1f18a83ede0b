"""The commands `run`, `plan`, `serve` and `status`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import AsJson, Config, FinishedOutput, Output, Overrides, Prompts, load
from flows.exits import translate_exit
from rudalle_lib.errors import ConfigError
from rudalle_lib.humanize import counted, duration

if TYPE_CHECKING:
    from rudalle_lib.config.run import RunConfig
    from rudalle_lib.schema.records import RunManifest


def run(
    config: Config,
    prompts: Prompts = None,
    output: Output = None,
    overrides: Overrides = None,
    shards: Annotated[
        str | None,
        typer.Option(
            metavar="RANGE",
            help="Only make these shards, such as 0-99, while other machines make others; or auto: "
            "any that nobody works on, until the dataset is finished.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done, like `plan`.")
    ] = False,
) -> None:
    """Generate a dataset, or the missing part of it.

    Finished shards are skipped: after an interruption, or when the prompt table has grown, run the
    same command again.
    """
    with translate_exit():
        settings = load(config, prompts, output, overrides)
        if shards is not None:
            from rudalle_lib.dataset.range_lease import parse_shards

            parse_shards(shards)
        if dry_run:
            show_outlook(settings, as_json=False)
        else:
            run_and_summarise(settings, shards=shards)


def plan(
    config: Config,
    prompts: Prompts = None,
    output: Output = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show what `run` would do, without writing anything."""
    with translate_exit():
        show_outlook(load(config, prompts, output, overrides), as_json)


def show_outlook(settings: RunConfig, as_json: bool) -> None:
    """Print what a run of a configuration would do, as a table or as JSON."""
    from flows.cli.outlook import look_ahead

    outlook = look_ahead(settings)
    if as_json:
        from flows.cli.as_json import outlook_values, print_json

        print_json(outlook_values(settings, outlook))
    else:
        from flows.cli.tables import print_outlook

        print_outlook(settings, outlook)


def serve(
    config: Config,
    prompts: Prompts = None,
    output: Output = None,
    overrides: Overrides = None,
    cron: Annotated[
        str | None,
        typer.Option(
            metavar="SCHEDULE",
            help='Also start runs on a schedule in cron syntax, such as "0 2 * * *".',
        ),
    ] = None,
) -> None:
    """Start runs from a form in the Prefect UI.

    Registers the configuration as a deployment on the Prefect server at PREFECT_API_URL, and
    executes its runs until interrupted.
    """
    with translate_exit():
        from flows.prefect_settings import (
            check_size,
            set_up_prefect,
            translate_server_errors,
        )
        from rudalle_lib.checks.preflight import check_inputs

        settings = load(config, prompts, output, overrides)
        check_inputs(settings)
        if set_up_prefect():
            raise ConfigError(
                "Serving needs a permanent Prefect server: start one with `prefect server start`, "
                "and set its address, such as PREFECT_API_URL=http://127.0.0.1:4200/api."
            )
        check_size(settings.model_dump(mode="json"))
        from flows.deployments import serve_flow

        with translate_server_errors():
            serve_flow(settings, cron, typer.echo)


def status(
    url: FinishedOutput,
    prometheus: Annotated[
        bool,
        typer.Option("--prometheus", help="Print metrics in Prometheus' text format instead."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the progress and the figures of a run.

    Reads only the output, so it also works for a run on another machine.
    """
    with translate_exit():
        from rudalle_lib.pipeline.status import read_status
        from rudalle_lib.storage.storage import Storage

        found = read_status(Storage(url))
        if as_json:
            from flows.cli.as_json import print_json, status_values

            print_json(status_values(url, found))
        elif prometheus:
            from flows.cli.tables import print_metrics

            print_metrics(url, found)
        else:
            from flows.cli.tables import print_status

            print_status(url, found)


def run_and_summarise(
    settings: RunConfig, *, source: str | None = None, shards: str | None = None
) -> None:
    """Run the flow, see `make_dataset` and `make_shards`, and print a summary."""
    from flows.run import make_dataset, make_shards

    started = time.monotonic()
    if shards is None:
        manifest = make_dataset(settings, source).manifest
    elif (last := make_shards(settings, shards)) is None:
        typer.echo(shared_summary(settings))
        return
    else:
        manifest = last
    typer.echo(summary(settings, manifest, time.monotonic() - started))


def shared_summary(settings: RunConfig) -> str:
    """Return how far a dataset is that other runs still work on."""
    from rudalle_lib.pipeline.status import read_status
    from rudalle_lib.storage.storage import Storage

    found = read_status(Storage(settings.output))
    return (
        f"These shards are finished. {found.totals.shards:,} of {found.planned:,} shards of the "
        "dataset are; the run that finishes last writes the report."
    )


def summary(settings: RunConfig, manifest: RunManifest, seconds: float) -> str:
    """Return the figures of a run, and on the last line where the images are."""
    from rudalle_lib.dataset import layout
    from rudalle_lib.storage.storage import Storage

    sums, storage = manifest.totals, Storage(settings.output)
    figures = (
        f"{sums.kept:,} of {sums.images:,} images published from "
        f"{counted(sums.prompts, 'prompt')}, {sum(sums.rejected.values()):,} rejected, "
        f"{duration(seconds)}."
    )
    images = storage.public_path(layout.published_folder(settings.publish.format))
    gallery = f"The gallery is {storage.public_path(layout.GALLERY_PAGE)}\n"
    return f"{figures}\n{gallery if settings.publish.gallery else ''}The images are in {images}"
