"""Scores of an earlier run are kept, and all images of a prompt are ranked together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.pipeline.artifacts import find_artifact, read_artifact
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import ScoreRecord, StageArtifact
from rudalle_lib.storage.storage import Storage
from tasks.decode import decode
from tasks.generate import generate
from tasks.runtime.job import Job
from tasks.score import score, score_missing
from tasks.translate import translate


def scores(job: Job, artifact: StageArtifact) -> Sequence[ScoreRecord]:
    return from_table(read_artifact(Storage(job.output), artifact), ScoreRecord)


def decoded(config: RunConfig, job: Job, images: int) -> tuple[StageArtifact, StageArtifact]:
    """Translations and decoded images of a number of images per prompt."""
    section = config.generate.model_copy(update={"images": images})
    translated = translate.fn(config.translate, job, "t")
    drawn = generate.fn(section, job, translated, f"g{images}", config.seed)
    return translated, decode.fn(config.decode, job, drawn, f"d{images}")


def test_only_new_images_are_scored_and_all_are_ranked_again(
    config: RunConfig, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_progress(*_: int) -> None:
        return

    translated, few = decoded(config, job, 1)
    first = score_missing(config.score, job, translated, few, "s", no_progress, finished=False)
    kept = {row.image_id: row.score for row in scores(job, first)}
    storage = Storage(job.output)
    assert find_artifact(storage, "score", job.shard, "s") is None  # not finished
    translated, many = decoded(config, job, 3)
    done: list[Any] = []
    second = score_missing(
        config.score, job, translated, many, "s", lambda *step: done.append(step), finished=False
    )
    rows = scores(job, second)
    assert done[-1] == (len(rows) - len(kept),) * 2
    assert kept.items() <= {row.image_id: row.score for row in rows}.items()
    for prompt_id in {row.prompt_id for row in rows}:
        own = sorted((row for row in rows if row.prompt_id == prompt_id), key=lambda row: row.rank)
        assert [row.rank for row in own] == list(range(1, len(own) + 1))
        assert [row.score for row in own] == sorted((row.score for row in own), reverse=True)

    monkeypatch.setattr("tasks.score.scorer", lambda *_: pytest.fail("a network was loaded"))
    again = score_missing(config.score, job, translated, many, "s", no_progress, finished=False)
    assert again == second
    last = score.fn(config.score, job, translated, many, "s")
    assert scores(job, last) == rows
    assert find_artifact(storage, "score", job.shard, "s") == last
