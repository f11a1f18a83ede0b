"""The commands `rerender` and `compare`: another version of a dataset, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.files import check_writable, write_file
from flows.cli.maintain import FetchWeights
from flows.cli.options import AsJson, FinishedOutput, Overrides
from flows.cli.run import run_and_summarise
from flows.exits import FAILED, translate_exit


def rerender(
    source: FinishedOutput,
    new: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="Output of the new dataset: a folder or URL, new or of before."
        ),
    ],
    overrides: Overrides = None,
    fetch_weights: FetchWeights = False,
) -> None:
    """Make a new dataset from the image tokens of a finished one.

    Nothing is drawn again: image ids, prompts and tokens stay the same. Settings of decode, score,
    upscale, cutout and publish can be changed with --set.
    """
    with translate_exit():
        from rudalle_lib.pipeline.recorded_run import naming_option, restricted
        from rudalle_lib.pipeline.rerender import rerender_config
        from rudalle_lib.storage.storage import Storage

        config = rerender_config(Storage(source), new, overrides or [])
        with naming_option(fetch_weights):
            run_and_summarise(restricted(config, fetch_weights, private_hosts=True), source=source)


def compare(
    before: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Output of a run, or a pattern for several, such as 's3://bucket/daily-*': the "
            "last one that finished before AFTER.",
        ),
    ],
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATH]",
            help="Output to compare with it; without one, the two newest of the pattern are "
            "compared.",
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the prompt table to group by."),
    ] = None,
    max_drift: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MEASURE=LIMIT",
            help="Exit with 1 beyond a limit, such as acceptance=0.05 or score=0.1. Repeatable.",
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML file to write, with plots.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two finished datasets: acceptance, scores, diversity, duplicates, time and cost."""
    with translate_exit():
        from rudalle_lib.comparison.drift import parse_limits
        from rudalle_lib.comparison.outputs import compare_outputs, find_outputs
        from rudalle_lib.comparison.page import render_comparison

        limits = parse_limits(max_drift or [])
        if page is not None:
            check_writable(page)
        found = compare_outputs(*find_outputs(before, after), by, limits)
        if as_json:
            from flows.cli.as_json import print_json
            from rudalle_lib.comparison.rows import comparison_values

            print_json(comparison_values(found))
        else:
            from flows.cli.tables import print_comparison

            print_comparison(found)
        if page is not None:
            write_file(page, render_comparison(found).encode())
            typer.echo(f"The page is {page}", err=as_json)
        if found.exceeded:
            typer.echo(f"Beyond the limit: {', '.join(found.exceeded)}.", err=True)
            raise typer.Exit(FAILED)
