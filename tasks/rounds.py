"""Draw in rounds: until every prompt of a shard has enough accepted images.

Whether an image is accepted shows only when it is decoded and scored. So the stage "generate" also
decodes and scores here, round by round, and the stages of these names find nothing left to do.
After every round the artifacts of all three stages are written, marked as unfinished. A run that is
killed continues with the round that it was in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rudalle_lib.config.sections import DecodeConfig, GenerateConfig, ScoreConfig
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.runtime.batching import OnProgress
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import ScoreRecord, StageArtifact, TokensRecord
from rudalle_lib.selection.rounds import needed_images
from rudalle_lib.storage.storage import Storage
from tasks.candidates import Candidates
from tasks.decode import decode_missing
from tasks.runtime.events import RoundFinished, report_round, reporter
from tasks.runtime.job import Job
from tasks.runtime.stopping import stop_if_requested
from tasks.score import score_missing

SCALE = 1000
"""Units of progress, as it is not known how many rounds there will be."""


@dataclass(frozen=True)
class Judges:
    """The stages that decide which images are accepted.

    Attributes:
        decode, score: their sections.
        fingerprints: of their artifacts, by stage.
    """

    decode: DecodeConfig
    score: ScoreConfig
    fingerprints: Mapping[str, str]


def draw_in_rounds(
    candidates: Candidates,
    section: GenerateConfig,
    job: Job,
    translated: StageArtifact,
    judges: Judges,
) -> dict[str, int]:
    """Draw, decode and score until every prompt has enough accepted images, or the most allowed.

    Args:
        candidates: of the shard; more of them are drawn.
        section: size of a round, and when a prompt has enough.
        job: the shard.
        translated: its translations.
        judges: decide which images are accepted.

    Returns:
        The number of images of each prompt that a run from the start would have drawn; there may
        be more.
    """
    storage, shard = Storage(job.output), job.shard.index
    progress, number = 0.0, 0
    needed = needed_images(candidates.prompts, section, judges.score, (), ())
    while True:
        number += 1
        candidates.draw(needed, _report_from(shard, progress))
        generated = candidates.write(None, finished=False)
        scored = _judge(job, translated, generated, judges)
        needed = needed_images(
            candidates.prompts, section, judges.score,
            from_table(read_artifact(storage, generated), TokensRecord),
            from_table(read_artifact(storage, scored), ScoreRecord),
        )  # fmt: skip
        drawn, drawable = candidates.drawn, candidates.drawable
        waiting = sum(needed[prompt_id] > drawn[prompt_id] for prompt_id in drawable)
        report_round(RoundFinished(shard, number, drawn.total(), waiting, len(drawable)))
        if not waiting:
            return needed
        progress = max((1 + progress) / 2, 1 - waiting / len(drawable))


def _judge(
    job: Job, translated: StageArtifact, generated: StageArtifact, judges: Judges
) -> StageArtifact:
    """Decode and score what is drawn so far; returns the scores."""

    def report(_: int, __: int) -> None:
        stop_if_requested()

    prints = judges.fingerprints
    decoded = decode_missing(
        judges.decode, job, generated, prints["decode"], report, finished=False
    )
    return score_missing(
        judges.score, job, translated, decoded, prints["score"], report, finished=False
    )


def _report_from(shard: int, start: float) -> OnProgress:
    """A progress callback for a round: it takes half of what is left of the stage."""
    report = reporter("generate", shard)

    def of_round(done: int, total: int) -> None:
        report(round(SCALE * (start + (1 - start) / 2 * done / max(total, 1))), SCALE)

    return of_round
