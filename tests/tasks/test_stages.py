"""Tasks as plain functions: which artifacts they write, reuse and rebuild, and their rejects."""

from __future__ import annotations

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import Task

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.images.codecs import decode_image, encode_for_stage
from rudalle_lib.pipeline.artifacts import read_artifact, rejects_in
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import (
    PixelsRecord,
    ScoreRecord,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
)
from rudalle_lib.storage.storage import Storage
from tasks.decode import decode
from tasks.generate import generate
from tasks.publish import publish
from tasks.runtime.device_locks import queue_lock
from tasks.runtime.events import Event, Step, listener
from tasks.runtime.job import Job
from tasks.score import score
from tasks.translate import translate
from tasks.upscale import upscale
from tests.support.tiny_run import snapshot
from tests.support.tiny_stack import SIDE, write_tiny_vqgan


def call(task: Task[..., Any], *arguments: Any) -> Any:
    """Call the function of a task, without Prefect."""
    return task.fn(*arguments)


def rows(job: Job, artifact: StageArtifact, record: type[Any]) -> list[Any]:
    return from_table(read_artifact(Storage(job.output), artifact), record)


class Stages:
    """The stages of a shard; each runs those before it."""

    def __init__(self, config: RunConfig, job: Job) -> None:
        self.config, self.job = config, job

    def translated(self) -> StageArtifact:
        return call(translate, self.config.translate, self.job, "t")

    def drawn(self) -> StageArtifact:
        section, translated = self.config.generate, self.translated()
        return call(generate, section, self.job, translated, "g", self.config.seed)

    def decoded(self) -> StageArtifact:
        return call(decode, self.config.decode, self.job, self.drawn(), "d")

    def scored(self) -> StageArtifact:
        return call(score, self.config.score, self.job, self.translated(), self.decoded(), "s")

    def upscaled(self, keep_best: int) -> StageArtifact:
        selection = self.config.score.model_copy(update={"keep_best": keep_best})
        section, artifacts = self.config.upscale, (self.decoded(), self.drawn(), self.scored())
        return call(upscale, section, selection, self.job, *artifacts, "u")


@pytest.fixture
def stages(config: RunConfig, job: Job) -> Stages:
    return Stages(config, job)


def fail(*_: object) -> None:
    pytest.fail("a model was loaded")


# --- translate ---------------------------------------------------------------------------------


def test_prompts_without_a_translation_become_rejects_of_the_artifact(stages: Stages) -> None:
    translated = stages.translated()
    found = rows(stages.job, translated, TranslationRecord)
    assert [row.prompt_id for row in found] == ["black", "red", "long", "english", "german"]
    by_id = {row.prompt_id: row for row in found}
    assert by_id["black"].text_ru == by_id["black"].text == "чёрный квадрат"
    assert (by_id["english"].lang, by_id["english"].text_ru) == ("en", None)
    assert (by_id["german"].lang, by_id["german"].text_ru) == ("de", None)
    rejects = rejects_in(read_artifact(Storage(stages.job.output), translated))
    assert {name: reject.reason for name, reject in rejects.items()} == dict.fromkeys(
        ("english", "german"), "translation_failed"
    )


def test_a_shard_in_russian_loads_no_translator(
    config: RunConfig, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(config.prompts.uri).write_text("prompt\nбелый круг\n", encoding="utf-8")
    (*_, shard) = plan_run(config, Storage(config.output)).shards
    russian = dataclasses.replace(job, shard=shard)
    monkeypatch.setattr("tasks.translate.translator", fail)
    made = call(translate, config.translate, russian, "t")
    (found,) = rows(russian, made, TranslationRecord)
    assert found.text_ru == "белый круг" and made.devices == 0
    with pytest.raises(pytest.fail.Exception):
        call(translate, config.translate, job, "t")


# --- generate ----------------------------------------------------------------------------------


def test_prompts_that_cannot_be_drawn_become_rejects_of_the_artifact(
    config: RunConfig, stages: Stages
) -> None:
    section = config.generate.model_copy(update={"allow_truncation": False})
    drawn = call(generate, section, stages.job, stages.translated(), "g", 3)
    assert {row.prompt_id for row in rows(stages.job, drawn, TokensRecord)} == {"black", "red"}
    (reject,) = rejects_in(read_artifact(Storage(stages.job.output), drawn)).items()
    assert (reject[0], reject[1].reason) == ("long", "too_long")


@pytest.mark.parametrize("stage", ["generate", "decode", "score", "upscale"])
def test_progress_is_emitted_in_steps(stages: Stages, stage: str) -> None:
    events: list[Event] = []
    token = listener.set(events.append)
    try:
        stages.upscaled(1)
    finally:
        listener.reset(token)
    steps = [event for event in events if isinstance(event, Step) and event.stage == stage]
    assert steps[-1].done == steps[-1].total > 0
    assert {step.shard for step in steps} == {stages.job.shard.index}


# --- decode, score -----------------------------------------------------------------------------


def test_rows_follow_the_candidates_through_decode_and_score(stages: Stages) -> None:
    ids = [row.image_id for row in rows(stages.job, stages.drawn(), TokensRecord)]
    assert len(ids) == 7
    decoded = rows(stages.job, stages.decoded(), PixelsRecord)
    assert [row.image_id for row in decoded] == ids
    assert {(row.width, row.height) for row in decoded} == {(SIDE, SIDE)}
    scored = stages.scored()
    assert [row.image_id for row in rows(stages.job, scored, ScoreRecord)] == ids
    assert scored.devices == 1 and scored.seconds >= 0


def test_images_with_nan_pixels_are_not_scored_and_become_rejects(
    config: RunConfig, stages: Stages, tmp_path: Path
) -> None:
    damaged = write_tiny_vqgan(tmp_path / "damaged", damaged=True)
    job = dataclasses.replace(stages.job, weights=WeightsConfig(folder=str(damaged), offline=True))
    decoded = call(decode, config.decode, job, stages.drawn(), "d")
    assert {row.image for row in rows(job, decoded, PixelsRecord)} == {None}
    scored = call(score, config.score, stages.job, stages.translated(), decoded, "s")
    assert scored.rows == 0
    artifacts = {
        "translate": stages.translated(),
        "generate": stages.drawn(),
        "decode": decoded,
        "score": scored,
    }
    names = dict.fromkeys(artifacts, "model")
    manifest = call(publish, config.publish, config.score, job, names, artifacts, "p", "c")
    assert manifest.kept == 0
    assert manifest.rejected == {"decode_error": 7, "translation_failed": 2}


def test_a_gpu_is_released_before_its_images_are_encoded(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = queue_lock(torch.device("cpu"), "images")
    released: list[bool] = []

    def encode(image: torch.Tensor) -> bytes:
        until = time.monotonic() + 10
        while device._locked and time.monotonic() < until:
            time.sleep(0.01)
        released.append(not device._locked)
        return encode_for_stage(image)

    stages.drawn()
    monkeypatch.setattr("rudalle_lib.images.decoding.encode_for_stage", encode)
    with ThreadPoolExecutor(7) as threads:
        monkeypatch.setattr("rudalle_lib.images.decoding.files_beside", lambda _: threads)
        decoded = rows(stages.job, stages.decoded(), PixelsRecord)
    assert released == [True] * 7
    assert {decode_image(row.image or b"").shape for row in decoded} == {(3, SIDE, SIDE)}


# --- upscale -----------------------------------------------------------------------------------


def test_only_kept_images_are_enlarged_and_a_wider_selection_adds_the_others(
    stages: Stages,
) -> None:
    job = stages.job
    narrow = {row.image_id: row for row in rows(job, stages.upscaled(1), PixelsRecord)}
    assert len(narrow) == 3
    assert {row.width for row in narrow.values()} == {2 * SIDE}
    wide = rows(job, stages.upscaled(2), PixelsRecord)
    assert len(wide) == 6
    assert narrow.items() <= {row.image_id: row for row in wide}.items()
    ids = [row.image_id for row in rows(job, stages.decoded(), PixelsRecord)]
    assert [row.image_id for row in wide] == sorted((row.image_id for row in wide), key=ids.index)


def test_a_narrower_selection_loads_no_model(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.upscaled(2)
    before = snapshot(Path(stages.job.output))
    monkeypatch.setattr("tasks.upscale.upscaler", fail)
    assert stages.upscaled(1).rows == 6
    assert snapshot(Path(stages.job.output)) == before
    with pytest.raises(pytest.fail.Exception):
        stages.upscaled(3)


def test_only_drawing_takes_the_queue_for_drawing(
    stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a GPU draws one shard while it decodes, scores and enlarges another one."""
    taken: list[str] = []

    def watch(device: Any, queue: Any) -> Any:
        taken.append(queue)
        return queue_lock(device, queue)

    monkeypatch.setattr("tasks.runtime.models.queue_lock", watch)
    stages.upscaled(1)
    assert taken == ["images", "draw", "images", "images", "images"]


# --- reuse -------------------------------------------------------------------------------------


def test_an_artifact_is_reused_if_its_fingerprint_is_the_same(
    config: RunConfig, stages: Stages
) -> None:
    first = stages.translated()
    before = snapshot(Path(stages.job.output))
    assert stages.translated() == first
    assert snapshot(Path(stages.job.output)) == before
    again = call(translate, config.translate, stages.job, "other")
    assert again.fingerprint == "other"
    assert snapshot(Path(stages.job.output)) != before


@pytest.mark.parametrize("stage", ["translated", "drawn", "decoded", "scored"])
def test_a_damaged_artifact_is_rebuilt(stages: Stages, stage: str) -> None:
    make = getattr(stages, stage)
    artifact = make()
    path = Path(artifact.uri)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert make().rows == artifact.rows
    assert read_artifact(Storage(stages.job.output), artifact).num_rows == artifact.rows
