"""The Python API: the images of a run, from a text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rudalle_lib.api.images import cut_out_images, draw_images, rank_images, upscale_images
from rudalle_lib.api.studio import Studio
from rudalle_lib.checks.replay import replay
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.errors import RudalleError, SettingsError
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.registry import get
from rudalle_lib.schema.records import ImageRecord
from rudalle_lib.storage.storage import Storage
from rudalle_lib.weights.loading import (
    Loaded,
    LoadedDecoder,
    LoadedScorer,
    LoadedUpscaler,
    LoadedVqGan,
    load_decoder,
    load_scorer,
    load_upscaler,
    load_vqgan,
)
from tests.support.finished_run import finish, tiny_config
from tests.support.image_records import read_records
from tests.support.tiny_segmenter import tiny_segmenter
from tests.support.tiny_stack import GRID, SIDE, write_tiny_vqgan

PROMPT = "чёрный квадрат"
IMAGES = 4


class Models(NamedTuple):
    """The tiny models of all functions."""

    decoder: LoadedDecoder
    vqgan: LoadedVqGan
    scorer: LoadedScorer
    upscaler: LoadedUpscaler


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run of one prompt; all its images are published as they are decoded."""
    folder = tmp_path_factory.mktemp("api")
    base = tiny_config(folder, str(folder / "out"), f"prompt\n{PROMPT}\n")
    config = base.model_copy(
        update={
            "score": base.score.model_copy(update={"keep_best": None}),
            "upscale": base.upscale.model_copy(update={"model": None}),
            "publish": base.publish.model_copy(update={"provenance": False}),
        }
    )
    finish(config)
    return config


@pytest.fixture(scope="module")
def published(config: RunConfig) -> list[ImageRecord]:
    records = read_records(Storage(config.output), 0)
    assert len(records) == config.generate.images == IMAGES
    return records


@pytest.fixture(scope="module")
def models(config: RunConfig) -> Models:
    weights = config.weights
    return Models(
        load_decoder("demo-dalle", weights),
        load_vqgan("demo-vqgan", weights),
        load_scorer("demo-ruclip", weights),
        load_upscaler("demo-realesrgan-x2", weights),
    )


def test_a_run_a_replay_the_studio_and_the_api_give_the_same_files(
    config: RunConfig, published: list[ImageRecord], models: Models
) -> None:
    storage = Storage(config.output)
    run = {record.image_id: storage.read_bytes(record.path) for record in published}
    replayed = {image_id: replay(storage, image_id).content for image_id in run}
    studio = Studio.load(config)
    (trials,) = studio.draw(studio.read(PROMPT), IMAGES, config.seed)
    tried = {trial.image_id: encode_image(trial.image) for trial in trials}
    images = draw_images(models.decoder, models.vqgan, PROMPT, IMAGES, config.seed)
    drawn = dict(zip(run, (encode_image(image) for image in images), strict=True))
    assert run == replayed == tried == drawn
    assert len(set(run.values())) == IMAGES


def test_images_are_ranked_like_in_the_run(published: list[ImageRecord], models: Models) -> None:
    images = draw_images(models.decoder, models.vqgan, PROMPT, IMAGES, seed=3)
    order, scores = rank_images(models.scorer, images, PROMPT, templates=("{}",))
    by_rank = sorted(published, key=lambda record: record.rank)
    assert [published[index].rank for index in order] == list(range(1, IMAGES + 1))
    assert scores == pytest.approx([record.score for record in by_rank], abs=1e-5)


def test_the_number_of_the_first_image_selects_among_the_candidates(models: Models) -> None:
    images = draw_images(models.decoder, models.vqgan, PROMPT, IMAGES, seed=3)
    others = draw_images(models.decoder, models.vqgan, PROMPT, 2, seed=3, first=2)
    assert (others.int() - images[2:].int()).abs().max() <= 1, "batches may differ in a last bit"
    assert not images[:2].equal(images[2:])


def test_zero_images_have_the_shape_of_images(models: Models) -> None:
    none = draw_images(models.decoder, models.vqgan, PROMPT, 0)
    assert none.shape == (0, 3, SIDE, SIDE) and none.dtype == torch.uint8


def test_progress_counts_image_tokens(models: Models) -> None:
    steps: list[tuple[int, int]] = []
    draw_images(
        models.decoder, models.vqgan, PROMPT, 2, on_progress=lambda *step: steps.append(step)
    )
    assert steps == sorted(steps) and steps[-1] == (2 * GRID**2, 2 * GRID**2)


def test_a_vqgan_that_does_not_fit_is_an_error(models: Models, tmp_path: Path) -> None:
    def load(**options: Any) -> LoadedVqGan:
        folder = write_tiny_vqgan(tmp_path, **options)
        return load_vqgan("demo-vqgan", WeightsConfig(folder=str(folder), offline=True))

    with pytest.raises(RudalleError, match="NaN or infinite pixels: check its weights"):
        draw_images(models.decoder, load(damaged=True), PROMPT, 1)
    with pytest.raises(SettingsError, match="decode.model does not belong to generate.model"):
        draw_images(models.decoder, load(codes=2), PROMPT, 1)


def test_images_are_enlarged_by_the_scale_of_the_network(models: Models) -> None:
    images = draw_images(models.decoder, models.vqgan, PROMPT, 2)
    large = upscale_images(models.upscaler, images)
    assert large.shape == (2, 3, 2 * SIDE, 2 * SIDE) and large.dtype == torch.uint8


def test_cutouts_keep_the_colours_and_add_alpha() -> None:
    images = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 0
    cut = cut_out_images(images)
    assert cut.shape == (1, 4, SIDE, SIDE) and cut[:, :3].equal(images)
    assert not cut[0, 3, :7].any() and (cut[0, 3, 10:22, 10:22] == 255).all()
    assert cut_out_images(images[:0]).shape == (0, 4, SIDE, SIDE)


def test_a_segmenter_that_is_confident_is_used_instead_of_colour() -> None:
    images = torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    images[:, :, 8:24, 8:24] = 0
    cut = cut_out_images(images, Loaded(tiny_segmenter(0.0, 9.0), get("emojich-unet")))
    assert (cut[0, 3] == 255).all(), "all of it is subject"
