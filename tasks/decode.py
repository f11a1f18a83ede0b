"""Decode: turn image tokens into images."""

from __future__ import annotations

from prefect import task

from rudalle_lib.config.sections import DecodeConfig
from rudalle_lib.images.decoding import decode_rows
from rudalle_lib.images.file_threads import Pending
from rudalle_lib.pipeline.artifacts import find_artifact, read_artifact, write_artifact
from rudalle_lib.pipeline.reuse import find_made
from rudalle_lib.runtime.batching import OnProgress
from rudalle_lib.schema.arrow import from_table, to_table
from rudalle_lib.schema.records import PixelsRecord, StageArtifact, TokensRecord
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import notice, reporter
from tasks.runtime.job import Job
from tasks.runtime.models import device_slot_if, vqgan
from tasks.runtime.options import OPTIONS, run_name

STAGE = "decode"


@task(name=STAGE, task_run_name=run_name(STAGE), **OPTIONS)
def decode(
    section: DecodeConfig,
    job: Job,
    generated: StageArtifact,
    fingerprint: str,
) -> StageArtifact:
    """Decode all candidates; one `PixelsRecord` per candidate, in order.

    An image with NaN or infinite pixels has no file and becomes a reject. Images that an earlier
    run has decoded are kept.
    """
    done = find_artifact(Storage(job.output), STAGE, job.shard, fingerprint, notice, job.term)
    if done is not None:
        return done
    return decode_missing(section, job, generated, fingerprint, reporter(STAGE, job.shard.index))


def decode_missing(
    section: DecodeConfig,
    job: Job,
    generated: StageArtifact,
    fingerprint: str,
    report: OnProgress,
    finished: bool = True,
) -> StageArtifact:
    """Decode the candidates that are not decoded yet, and write those of all.

    Args:
        section, job, generated, fingerprint: as `decode`.
        report: called with decoded images, and all that are to be decoded.
        finished: whether `generated` has all candidates of the shard.
    """
    storage = Storage(job.output)
    rows = from_table(read_artifact(storage, generated), TokensRecord)
    made = find_made(storage, STAGE, job.shard, fingerprint, PixelsRecord, job.reuse, job.term)
    todo = [row for row in rows if row.image_id not in made.rows]
    if made.saved is not None and not finished and not todo and len(rows) == len(made.rows):
        return made.saved
    with device_slot_if(bool(todo), job.runtime, job.shard.index) as slot:
        pending = Pending[PixelsRecord](())
        if todo:
            model = vqgan(section.model, job.weights, slot.device, section.dtype).model
            pending = decode_rows(model, todo, section.batch_size, report)
    images = {**made.rows, **{row.image_id: row for row in pending.rows()}}
    table = to_table([images[row.image_id] for row in rows], PixelsRecord)
    return write_artifact(
        storage, STAGE, job.shard, fingerprint, table, slot.seconds + made.seconds,
        made.use_with(slot.use), job.term, job.reuse.rows.get(STAGE), finished,
    )  # fmt: skip
