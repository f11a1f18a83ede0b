"""Every stage as a plain function: what it makes, what it refuses, when it has nothing to do."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import Task
from safetensors.torch import load_file

from rudalle_lib.config import RunConfig, WeightsConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.planning import plan_run
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import (
    PictureRecord,
    ScoreRecord,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
)
from rudalle_lib.seeds import image_seed
from rudalle_lib.stages import read_artifact, refused_in
from rudalle_lib.storage import Storage
from tasks.decode import decode
from tasks.generate import generate
from tasks.job import Job
from tasks.progress import Event, Step, listener
from tasks.publish import publish
from tasks.score import score
from tasks.translate import translate
from tasks.upscale import upscale
from tests.tiny_run import snapshot
from tests.tiny_stack import SIDE, write_tiny_vqgan


def call(task: Task[..., Any], *arguments: Any) -> Any:
    """A task as the plain function that it wraps: no server is asked."""
    return task.fn(*arguments)


def rows(job: Job, artifact: StageArtifact, record: type[Any]) -> list[Any]:
    return from_table(read_artifact(Storage(job.output), artifact), record)


class Stages:
    """The stages in order, each made when it is first asked for."""

    def __init__(self, config: RunConfig, job: Job) -> None:
        self.config, self.job = config, job

    def translated(self) -> StageArtifact:
        return call(translate, self.config.translate, self.job, "t")

    def drawn(self) -> StageArtifact:
        made = self.translated()
        return call(generate, self.config.generate, self.job, made, "g", self.config.seed)

    def decoded(self) -> StageArtifact:
        return call(decode, self.config.decode, self.job, self.drawn(), "d")

    def scored(self) -> StageArtifact:
        return call(score, self.config.score, self.job, self.translated(), self.decoded(), "s")

    def upscaled(self, keep_best: int) -> StageArtifact:
        selection = self.config.score.model_copy(update={"keep_best": keep_best})
        section, decoded, scored = self.config.upscale, self.decoded(), self.scored()
        return call(upscale, section, selection, self.job, decoded, scored, "u")


@pytest.fixture
def stages(config: RunConfig, job: Job) -> Stages:
    return Stages(config, job)


# --- translate ---------------------------------------------------------------------------------


def test_russian_passes_and_what_cannot_be_translated_has_no_translation(stages: Stages) -> None:
    found = rows(stages.job, stages.translated(), TranslationRecord)
    by_id = {row.prompt_id: row for row in found}
    assert by_id["black"].text_ru == by_id["black"].text == "чёрный квадрат"
    assert (by_id["english"].lang, by_id["english"].text_ru) == ("en", None)
    assert (by_id["german"].lang, by_id["german"].text_ru) == ("de", None)
    refused = refused_in(read_artifact(Storage(stages.job.output), stages.translated()))
    assert refused["german"][1] == (
        "not translated from 'de': the translator reads 'en'; give it in Russian"
    )
    assert "never ends" in refused["english"][1]
    assert list(by_id) == ["black", "red", "long", "english", "german"]


def test_a_shard_in_russian_loads_no_translator(config: RunConfig, job: Job) -> None:
    table = Path(config.prompts.uri)
    table.write_text("prompt\nбелый круг\n", encoding="utf-8")
    (*_, shard) = plan_run(config, Storage(config.output)).shards
    nowhere = WeightsConfig(folder="/nowhere", offline=True)
    new = dataclasses.replace(job, shard=shard, weights=nowhere)
    (found,) = rows(new, call(translate, config.translate, new, "t"), TranslationRecord)
    assert found.text_ru == "белый круг"


def test_any_pair_of_languages_translates_what_it_reads(
    config: RunConfig, job: Job, tmp_path: Path
) -> None:
    """A network for German by its published name, in a folder as its repository lies on the hub."""
    stored, folder = Path(str(config.weights.folder)) / "demo-marian", tmp_path / "opus-mt-de-ru"
    shutil.copytree(stored, folder)
    torch.save(load_file(stored / "model.safetensors"), folder / "pytorch_model.bin")
    section = config.translate.model_copy(update={"model": "opus-mt-de-ru"})
    weights = WeightsConfig(folder=str(tmp_path), offline=True)
    made = call(translate, section, dataclasses.replace(job, weights=weights), "de")
    refused = refused_in(read_artifact(Storage(job.output), made))
    found = {row.prompt_id: row.lang for row in rows(job, made, TranslationRecord)}
    assert found["english"] == "de", "by its script it is no Russian, so it counts as German"
    assert set(refused) == {"english", "german"}
    assert "never ends" in refused["english"][1]


# --- generate ----------------------------------------------------------------------------------


def test_images_seeds_and_settings_follow_the_rows(stages: Stages) -> None:
    found = rows(stages.job, stages.drawn(), TokensRecord)
    assert [row.image_id for row in found] == [
        *("black-000", "black-001", "black-002"),
        *("red-000", "red-001"),
        *("long-000", "long-001"),
    ]
    assert [row.seed for row in found[:3]] == [image_seed(3, "black", n) for n in range(3)]
    assert [row.seed for row in found[3:5]] == [image_seed(7, "red", n) for n in range(2)]
    assert [row.top_p for row in found] == [0.995] * 3 + [0.5] * 2 + [0.995] * 2
    assert [row.truncated for row in found] == [False] * 5 + [True] * 2


def test_a_text_that_may_not_be_cut_is_refused_and_the_others_are_drawn(
    config: RunConfig, stages: Stages
) -> None:
    section = config.generate.model_copy(update={"allow_truncation": False})
    made = call(generate, section, stages.job, stages.translated(), "g", 3)
    assert {row.prompt_id for row in rows(stages.job, made, TokensRecord)} == {"black", "red"}
    (refused,) = refused_in(read_artifact(Storage(stages.job.output), made)).items()
    assert (refused[0], refused[1][0]) == ("long", "too_long")


def test_steps_are_told_to_whoever_listens(stages: Stages) -> None:
    heard: list[Event] = []
    token = listener.set(heard.append)
    try:
        stages.drawn()
    finally:
        listener.reset(token)
    steps = [event for event in heard if isinstance(event, Step)]
    assert steps[-1].done == steps[-1].total > 0
    assert {(step.stage, step.shard) for step in steps} == {("generate", 0)}


# --- decode ------------------------------------------------------------------------------------


def test_every_token_row_becomes_a_picture(stages: Stages) -> None:
    found = rows(stages.job, stages.decoded(), PictureRecord)
    assert [row.image_id for row in found] == [
        row.image_id for row in rows(stages.job, stages.drawn(), TokensRecord)
    ]
    assert {(row.width, row.height) for row in found} == {(SIDE, SIDE)}
    assert all(row.picture.startswith(b"\x89PNG") for row in found)


def test_pixels_that_are_no_numbers_make_an_empty_picture_and_a_reject(
    config: RunConfig, stages: Stages, tmp_path: Path
) -> None:
    broken = write_tiny_vqgan(tmp_path / "broken", damaged=True)
    job = dataclasses.replace(stages.job, weights=WeightsConfig(folder=str(broken), offline=True))
    decoded = call(decode, config.decode, job, stages.drawn(), "d")
    assert {row.picture for row in rows(job, decoded, PictureRecord)} == {None}
    # The scorer is whole: its weights lie in the folder of the other stages.
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


def test_a_vqgan_of_another_decoder_is_named(
    config: RunConfig, stages: Stages, tmp_path: Path
) -> None:
    small = write_tiny_vqgan(tmp_path / "small", codes=2)
    job = dataclasses.replace(stages.job, weights=WeightsConfig(folder=str(small), offline=True))
    with pytest.raises(SettingsError, match=r"decode.model does not belong to generate.model"):
        call(decode, config.decode, job, stages.drawn(), "d")


# --- score, upscale ----------------------------------------------------------------------------


def test_pictures_are_compared_with_every_unsafe_text(stages: Stages) -> None:
    texts = ("чёрный квадрат", "красный круг")
    section = stages.config.score.model_copy(update={"unsafe_texts": texts})
    made = call(score, section, stages.job, stages.translated(), stages.decoded(), "unsafe")
    found = rows(stages.job, made, ScoreRecord)
    own = {"black": texts[0], "red": texts[1]}
    assert {row.prompt_id for row in found} >= own.keys()
    # The text of a picture's own prompt is among them, so none is less like than that.
    assert all(row.unsafe is not None and row.unsafe >= row.score - 1e-6 for row in found
               if row.prompt_id in own)  # fmt: skip
    plain = rows(stages.job, stages.scored(), ScoreRecord)
    assert [row.unsafe for row in plain] == [None] * len(plain)
    assert [row.score for row in plain] == [row.score for row in found]


def test_scores_are_cosines_with_ranks_inside_each_prompt(stages: Stages) -> None:
    found = rows(stages.job, stages.scored(), ScoreRecord)
    assert all(-1 <= row.score <= 1 for row in found)
    assert sorted(row.rank for row in found if row.prompt_id == "black") == [1, 2, 3]
    best = max((row for row in found if row.prompt_id == "black"), key=lambda row: row.score)
    assert best.rank == 1


def test_only_kept_images_are_enlarged_and_a_wider_choice_adds_the_others(stages: Stages) -> None:
    job = stages.job
    narrow = {row.image_id: row for row in rows(job, stages.upscaled(1), PictureRecord)}
    assert len(narrow) == 3
    assert {row.width for row in narrow.values()} == {2 * SIDE}
    wide = {row.image_id: row for row in rows(job, stages.upscaled(2), PictureRecord)}
    assert len(wide) == 6
    assert narrow.items() <= wide.items()


def test_a_narrower_choice_needs_no_network(stages: Stages) -> None:
    stages.upscaled(2)
    before = snapshot(Path(stages.job.output))
    nowhere = WeightsConfig(folder="/nowhere", offline=True)
    stages.job = dataclasses.replace(stages.job, weights=nowhere)
    assert stages.upscaled(1).rows == 6
    assert snapshot(Path(stages.job.output)) == before


# --- skipping ----------------------------------------------------------------------------------


def test_a_stage_with_the_same_fingerprint_is_skipped_and_another_is_not(
    config: RunConfig, stages: Stages
) -> None:
    first = stages.translated()
    before = snapshot(Path(stages.job.output))
    assert stages.translated() == first
    assert snapshot(Path(stages.job.output)) == before
    again = call(translate, config.translate, stages.job, "other")
    assert again.fingerprint == "other"
    assert snapshot(Path(stages.job.output)) != before


def test_a_damaged_artifact_is_made_again(stages: Stages) -> None:
    path = Path(stages.drawn().uri)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = rows(stages.job, stages.drawn(), TokensRecord)
    assert len(found) == 7
