"""The common part of the stages that process only kept images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.images.file_threads import Pending
from rudalle_lib.pipeline.artifacts import find_artifact, read_artifact, write_artifact
from rudalle_lib.pipeline.reuse import Made, find_made
from rudalle_lib.pipeline.selected import read_selected
from rudalle_lib.schema.arrow import from_table, to_table
from rudalle_lib.schema.records import PixelsRecord, StageArtifact
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import notice
from tasks.runtime.job import Job
from tasks.runtime.models import DeviceSlot, device_slot_if

Image = TypeVar("Image", bound=PixelsRecord)


def process_kept(
    stage: str,
    job: Job,
    selection: ScoreConfig,
    source: StageArtifact,
    generated: StageArtifact,
    scored: StageArtifact,
    fingerprint: str,
    record: type[Image],
    work: Callable[[Sequence[PixelsRecord], DeviceSlot], Pending[Image]],
    choice: Choice = NO_CHOICE,
) -> StageArtifact:
    """Process the kept images that a stage has not processed yet.

    Images that were kept by an earlier selection stay in the artifact. So after a changed threshold
    only newly kept images are processed, as after a changed number of candidates.

    Args:
        stage: name of the stage.
        job: the shard.
        selection: decides which images are kept.
        source: the images to process.
        generated: the tokens of all candidates.
        scored: their scores.
        fingerprint: of the artifact to write.
        record: type of its rows.
        work: processes rows on a device; not called for zero rows.
        choice: what else decides which images are kept.

    Returns:
        The artifact: one row per processed image, in the order of `source`.
    """
    storage = Storage(job.output)
    kept_ids = read_selected(storage, generated, scored, selection, choice)
    done = find_artifact(storage, stage, job.shard, fingerprint, notice, job.term)
    if done is None:
        made = find_made(storage, stage, job.shard, fingerprint, record, job.reuse, job.term)
    else:
        rows_of_done = from_table(read_artifact(storage, done), record)
        made = Made({row.image_id: row for row in rows_of_done}, seconds=done.seconds)
    missing = kept_ids - made.rows.keys()
    if done is not None and not missing:
        return done
    rows = from_table(read_artifact(storage, source), PixelsRecord)
    todo = [row for row in rows if row.image_id in missing]
    with device_slot_if(bool(todo), job.runtime, job.shard.index) as slot:
        pending = work(todo, slot) if todo else Pending[Image](())
    by_id = {**made.rows, **{row.image_id: row for row in pending.rows()}}
    table = to_table([by_id[row.image_id] for row in rows if row.image_id in by_id], record)
    return write_artifact(
        storage, stage, job.shard, fingerprint, table, slot.seconds + made.seconds,
        made.use_with(slot.use), job.term, job.reuse.rows.get(stage),
    )  # fmt: skip
