"""What the stages have in common that work only on the pictures that are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from rudalle_lib.config import ScoreConfig
from rudalle_lib.record_tables import from_table, to_table
from rudalle_lib.records import PictureRecord, ScoreRecord, StageArtifact
from rudalle_lib.selection import kept
from rudalle_lib.stages import find_artifact, read_artifact, write_artifact
from rudalle_lib.storage import Storage
from tasks.job import Job
from tasks.loaded_models import DeviceSlot
from tasks.progress import notice

Made = TypeVar("Made", bound=PictureRecord)


def make_missing(
    stage: str,
    job: Job,
    selection: ScoreConfig,
    source: StageArtifact,
    scored: StageArtifact,
    fingerprint: str,
    record: type[Made],
    work: Callable[[Sequence[PictureRecord]], tuple[list[Made], DeviceSlot]],
) -> StageArtifact:
    """Make what a stage has not made yet of pictures that are kept, in the order of the source.

    The artifact may hold more than is kept now: pictures that an earlier threshold let through.
    With those, a changed threshold costs only the pictures that it newly lets through.

    Args:
        stage, job, fingerprint: of the artifact.
        selection: says which pictures are kept.
        source: pictures to make something of.
        scored: their scores.
        record: the type of the rows that are made.
        work: makes rows of pictures; gives back the slot that it held for that, too.
    """
    storage = Storage(job.output)
    chosen = kept(from_table(read_artifact(storage, scored), ScoreRecord), selection)
    done = find_artifact(storage, stage, job.shard, fingerprint, notice)
    before = [] if done is None else from_table(read_artifact(storage, done), record)
    missing = chosen - {row.image_id for row in before}
    if done is not None and not missing:
        return done
    rows = from_table(read_artifact(storage, source), PictureRecord)
    made, slot = work([row for row in rows if row.image_id in missing])
    have = {row.image_id: row for row in (*before, *made)}
    records = [have[row.image_id] for row in rows if row.image_id in have]
    seconds = slot.seconds + (done.seconds if done is not None else 0.0)
    table = to_table(records, record)
    return write_artifact(storage, stage, job.shard, fingerprint, table, seconds, slot.use)
