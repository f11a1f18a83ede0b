"""The command `curate`: decisions by hand about the images of an output."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.maintain import LEASE_SECONDS, FetchWeights
from flows.cli.options import FinishedOutput
from flows.cli.run import run_and_summarise
from flows.exits import translate_exit
from rudalle_lib.humanize import counted


def curate(
    url: FinishedOutput,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Table of decisions in CSV, as the gallery exports it: image_id, decision (keep "
            "or reject), note.",
        ),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Forget the decisions that the output has.")
    ] = False,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Also run the configuration of the last run, to apply them."),
    ] = False,
    fetch_weights: FetchWeights = False,
) -> None:
    """Keep and reject images by hand.

    Adds the decisions of a table to curation.csv in the output. The next run follows them, whatever
    its rules say; nothing is drawn again.
    """
    with translate_exit():
        from rudalle_lib.dataset.curation import MAX_BYTES, parse_curation
        from rudalle_lib.pipeline.curate import add_decisions
        from rudalle_lib.storage.filesystems import read_small
        from rudalle_lib.storage.storage import Storage

        storage = Storage(url)
        given = parse_curation(read_small(file, "table of decisions", MAX_BYTES), file)
        done = add_decisions(storage, given, replace, LEASE_SECONDS)
        typer.echo(
            f"{storage.public_path()} has {counted(done.decisions, 'decision')} by hand, "
            f"{done.kept:,} to keep and {done.rejected:,} to reject; {done.added:,} new, "
            f"{done.changed:,} changed."
        )
        if not apply:
            typer.echo("The next run applies them; nothing is drawn again.")
            return
        from rudalle_lib.dataset.manifests import require_run_manifest
        from rudalle_lib.pipeline.recorded_run import naming_option, recorded_config, restricted

        recorded = recorded_config(storage, require_run_manifest(storage))
        with naming_option(fetch_weights):
            run_and_summarise(restricted(recorded, fetch_weights, private_hosts=True))
