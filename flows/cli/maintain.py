"""The commands `verify`, `replay`, `retry` and `tidy`, which maintain an existing dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.files import check_writable, write_file
from flows.cli.options import AsJson, FinishedOutput, complete_reason
from flows.cli.run import run_and_summarise
from flows.exits import FAILED, translate_exit
from rudalle_lib.humanize import counted

MAX_FAULTS = 20
"""Maximum number of faults that are printed."""

LEASE_SECONDS = 60.0
"""Lease of the commands that change an output; must be renewed within this time."""


FetchWeights = Annotated[
    bool,
    typer.Option(
        "--fetch-weights",
        help="Download weights that are not on this machine, from where the dataset says.",
    ),
]


def verify(
    url: FinishedOutput,
    sample: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Number of images to score again, to check that they match their captions; 0 "
            "loads no model.",
        ),
    ] = 64,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let the next run rebuild the shards with faults.")
    ] = False,
    fetch_weights: FetchWeights = False,
    as_json: AsJson = False,
) -> None:
    """Check all files of a dataset.

    Reads every file and checks sizes, digests, images and columns against the manifests, and finds
    missing and leftover files. Exits with 1 if there are faults.
    """
    with translate_exit():
        from rudalle_lib.checks.audit import audit_output, reopen_faulty
        from rudalle_lib.storage.storage import Storage

        storage = Storage(url)
        audit = audit_output(storage)
        if sample:
            from rudalle_lib.checks.rescore import rescore_sample

            rescore_sample(storage, audit, sample, fetch_weights)
        if as_json:
            from flows.cli.as_json import audit_values, print_json

            print_json(audit_values(url, audit))
        else:
            from flows.cli.tables import print_audit

            print_audit(storage.public_path(), audit, MAX_FAULTS)
        if repair and audit.faults:
            shards = reopen_faulty(storage, audit, LEASE_SECONDS)
            reopened = f"{counted(len(shards), 'shard')} reopened; the next run rebuilds them."
            typer.echo(reopened, err=as_json)
        if audit.faults:
            raise typer.Exit(FAILED)


def replay(
    url: FinishedOutput,
    image_id: Annotated[
        str, typer.Argument(metavar="IMAGE_ID", help="Image id, as in the dataset's metadata.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write; by default IMAGE_ID with its suffix."),
    ] = None,
    fetch_weights: FetchWeights = False,
    private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts",
            help="Read an image prompt from a private network, if the dataset allows it.",
        ),
    ] = False,
) -> None:
    """Draw one image again and compare it.

    Uses the configuration and the plan in the output, and compares the result with the published
    image bit for bit. Exits with 1 if they differ.
    """
    with translate_exit():
        from rudalle_lib.checks.replay import replay as replay_image
        from rudalle_lib.storage.storage import Storage

        check_writable(to or Path("image.png"))  # drawing it takes a while
        result = replay_image(Storage(url), image_id, fetch_weights, private_hosts)
        path = Path(Path(f"{image_id}.{result.suffix}").name) if to is None else to
        write_file(path, result.content)
        original = "the published file" if result.published else "the decoded image"
        verdict = {
            True: f"identical to {original}",
            False: f"differs from {original}",
            None: "not compared, because the output does not have this image",
        }[result.identical]
        typer.echo("; ".join([f"{path}: {verdict}", *result.differences]) + ".")
        if result.identical is False:
            raise typer.Exit(FAILED)


def retry(
    url: FinishedOutput,
    reason: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            autocompletion=complete_reason,
            help="Reason for the rejection, such as translation_failed.",
        ),
    ],
    fetch_weights: FetchWeights = False,
) -> None:
    """Process prompts again that were rejected for a reason.

    Reopens their shards and runs the configuration of the last run.
    """
    with translate_exit():
        from rudalle_lib.checks.retry import reopen_rejected
        from rudalle_lib.dataset.manifests import require_run_manifest
        from rudalle_lib.pipeline.recorded_run import naming_option, recorded_config, restricted
        from rudalle_lib.storage.storage import Storage

        storage = Storage(url)
        recorded = recorded_config(storage, require_run_manifest(storage))
        config = restricted(recorded, fetch_weights, private_hosts=True)
        reopened = reopen_rejected(storage, reason, LEASE_SECONDS)
        if not reopened.shards:
            typer.echo(f"No prompt or image in a finished shard was rejected as {reason}.")
            return
        shards = counted(len(reopened.shards), "shard")
        typer.echo(f"{counted(reopened.prompts, 'prompt')} in {shards} reopened.")
        if reopened.redrawn:
            images = counted(reopened.redrawn, "image")
            typer.echo(f"Their tokens are gone from stages/, so {images} are drawn again.")
        with naming_option(fetch_weights):
            run_and_summarise(config)


def tidy(
    url: FinishedOutput,
    keep: Annotated[
        str,
        typer.Option(
            metavar="LEVEL",
            help="What is kept of the work: decoded (images before they are enlarged), tokens "
            "(texts, image tokens, scores), or nothing.",
        ),
    ] = "tokens",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be deleted.")
    ] = False,
) -> None:
    """Delete stage artifacts that finished shards no longer need.

    The published dataset stays as it is. What is deleted is made again if changed settings need
    it: `plan` says what that costs.
    """
    with translate_exit():
        from flows.cli.tables import print_tidied
        from rudalle_lib.pipeline.tidy import tidy as tidy_output
        from rudalle_lib.storage.storage import Storage

        storage = Storage(url)
        print_tidied(
            storage.public_path(), keep, tidy_output(storage, keep, LEASE_SECONDS, dry_run)
        )
        if dry_run:
            typer.echo("Nothing was deleted.")
