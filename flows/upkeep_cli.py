"""The commands `verify`, `replay` and `retry`: looking after a dataset that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.exits import FAILED, clear_exit

Output = Annotated[str, typer.Argument(help="The output of a run.")]

SHOWN = 20
"""Faults that are printed, at most."""

LEASE_SECONDS = 60.0


def verify(
    url: Output,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Pictures scored again with their captions; 0: no model."),
    ] = 64,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let the next run make faulty shards again.")
    ] = False,
) -> None:
    """Check every file of a dataset: counts, digests, pictures, columns, captions, leftovers."""
    with clear_exit():
        from flows.tables import print_audit
        from rudalle_lib.audit import audit_output, reopen_faulty
        from rudalle_lib.storage import Storage

        storage = Storage(url)
        audit = audit_output(storage)
        if sample:
            from rudalle_lib.rescoring import rescore_sample

            rescore_sample(storage, audit, sample)
        print_audit(storage.public_path(), audit, SHOWN)
        if repair and audit.faults:
            shards = reopen_faulty(storage, audit, LEASE_SECONDS)
            typer.echo(f"{_shards(len(shards))} reopened: run again to make them anew.")
        if audit.faults:
            raise typer.Exit(FAILED)


def replay(
    url: Output,
    image_id: Annotated[str, typer.Argument(help="The image, as it is called in the dataset.")],
    to: Annotated[
        Path | None, typer.Option(help="File that it is written to; IMAGE_ID.png by default.")
    ] = None,
) -> None:
    """Make one image again from run.json and the plan, and say whether it is the very same."""
    with clear_exit():
        from rudalle_lib.errors import StorageError
        from rudalle_lib.replaying import replay as make_again
        from rudalle_lib.storage import Storage

        made = make_again(Storage(url), image_id)
        path = Path(f"{image_id}.{made.suffix}") if to is None else to
        try:
            path.write_bytes(made.content)
        except OSError as error:
            raise StorageError(f"Cannot write {path}: {error.strerror or error}.") from None
        what = "the published file" if made.published else "the picture that was drawn"
        verdict = {
            True: f"bit for bit {what}",
            False: f"not bit for bit {what}",
            None: "not compared: the output does not hold this image (yet, or any more)",
        }[made.identical]
        typer.echo("; ".join([f"{path}: {verdict}", *made.differences]) + ".")
        if made.identical is False:
            raise typer.Exit(FAILED)


def retry(
    url: Output,
    reason: Annotated[str, typer.Option(help="Reason code, such as translation_failed.")],
) -> None:
    """Try again what was rejected for a reason, with the configuration of the last run."""
    with clear_exit():
        from flows.cli import run_and_tell
        from rudalle_lib.recorded import read_recorded_run, recorded_config
        from rudalle_lib.retrying import reopen_rejected
        from rudalle_lib.storage import Storage

        storage = Storage(url)
        config = recorded_config(storage, read_recorded_run(storage))
        reopened = reopen_rejected(storage, reason, LEASE_SECONDS)
        if not reopened.shards:
            typer.echo(f"Nothing in a finished shard was rejected as {reason}.")
            return
        prompts = "1 prompt" if reopened.prompts == 1 else f"{reopened.prompts:,} prompts"
        typer.echo(f"{prompts} in {_shards(len(reopened.shards))} reopened.")
        run_and_tell(config)


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count:,} shards"
