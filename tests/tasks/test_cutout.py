"""Cut out and publish: transparent backgrounds, found by colour and by a network."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from rudalle_lib import registry
from rudalle_lib.checks.models import check_model
from rudalle_lib.config.run import RunConfig
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.pipeline.artifacts import read_artifact, write_artifact
from rudalle_lib.schema.arrow import from_table, to_table
from rudalle_lib.schema.records import CutoutRecord, PixelsRecord, StageArtifact
from rudalle_lib.storage.storage import Storage
from tasks.cutout import cutout
from tasks.publish import publish
from tasks.runtime.job import Job
from tests.support.hand_made import NAMES, plan_by_hand, stages_by_hand
from tests.support.image_records import read_records
from tests.support.tiny_segmenter import SIZES, tiny_segmenter

SIDE = 48
UNET = "emojich-unet"


class Made(NamedTuple):
    """A planned shard with handmade artifacts, up to large images."""

    storage: Storage
    job: Job
    artifacts: dict[str, StageArtifact]


def square(background: int) -> bytes:
    """A PNG file of a blue square on a plain background."""
    image = torch.full((3, SIDE, SIDE), background, dtype=torch.uint8)
    image[:, 16:32, 16:32] = torch.tensor([20, 40, 200], dtype=torch.uint8)[:, None, None]
    return encode_image(image)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(
        {"output": str(tmp_path / "out"), "weights": {"folder": str(tmp_path), "offline": True},
         "runtime": {"devices": "cpu"}, "cutout": {"transparent": True}}
    )  # fmt: skip


@pytest.fixture
def made(config: RunConfig, tmp_path: Path) -> Made:
    storage, shard = Storage(config.output), plan_by_hand(config, tmp_path)
    artifacts = stages_by_hand(storage, shard)
    drawn = from_table(read_artifact(storage, artifacts["upscale"]), PixelsRecord)
    large = [
        PixelsRecord(row.image_id, row.prompt_id, SIDE, SIDE, row.image and square(255))
        for row in drawn
    ]
    table = to_table(large, PixelsRecord)
    artifacts["upscale"] = write_artifact(storage, "upscale", shard, "upscale", table, 1.0)
    return Made(storage, Job(shard, config.output, config.runtime, config.weights), artifacts)


def cut(made: Made, config: RunConfig, fingerprint: str = "c", **selection: Any) -> StageArtifact:
    selected = config.score.model_copy(update=selection)
    source, drawn, scored = (made.artifacts[name] for name in ("upscale", "generate", "score"))
    return cutout.fn(config.cutout, selected, made.job, source, drawn, scored, fingerprint)


def publish_cut(made: Made, config: RunConfig, names: dict[str, str]) -> None:
    artifacts = {**made.artifacts, "cutout": cut(made, config)}
    publish.fn(config.publish, config.score, made.job, names, artifacts, "p", "digest")


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_images_are_published_with_a_transparent_background(
    made: Made, config: RunConfig, image_format: str
) -> None:
    section = config.publish.model_copy(update={"image_format": image_format})
    publish_cut(made, config.model_copy(update={"publish": section}), NAMES)
    records = read_records(made.storage, 0)
    assert len(records) == 6
    for record in records:
        assert (record.background, record.segmenter) == ("colour", None)
        with Image.open(io.BytesIO(made.storage.read_bytes(record.path))) as image:
            assert (image.format, image.mode) == (image_format.upper(), "RGBA")
            alpha = np.array(image)[:, :, 3]
        assert (alpha[18:30, 18:30] == 255).all() and not alpha[:15].any()


def test_only_kept_images_are_cut_out_and_each_only_once(
    made: Made, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cut(made, config, keep_best=1)
    assert first.rows == 2
    rows = from_table(read_artifact(made.storage, first), CutoutRecord)
    assert [row.image_id for row in rows] == ["circle-000", "square-000"]
    wide = cut(made, config, keep_best=3)
    assert wide.rows == 6
    with monkeypatch.context() as patch:
        patch.setattr("rudalle_lib.images.cutout.cut_out", lambda *_: pytest.fail("cut out again"))
        assert cut(made, config, keep_best=1) == wide
        with pytest.raises(pytest.fail.Exception):
            cut(made, config, fingerprint="another", keep_best=1)


def test_the_published_network_is_used_and_recorded(
    made: Made, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rudalle-Emojich" / "unet_effnetb5" / "pytorch_model_v2.bin"
    path.parent.mkdir(parents=True)
    unused = {"encoder._conv_head.weight": torch.zeros(8, 8, 1, 1)}
    torch.save({**tiny_segmenter(0.0, 9.0).state_dict(), **unused}, path)
    small = dataclasses.replace(
        registry.get(UNET), architecture=MappingProxyType(dataclasses.asdict(SIZES))
    )
    monkeypatch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, UNET: small})
    section = config.cutout.model_copy(update={"model": UNET})
    publish_cut(made, config.model_copy(update={"cutout": section}), {**NAMES, "cutout": UNET})
    methods = {(row.background, row.segmenter) for row in read_records(made.storage, 0)}
    assert methods == {("network", UNET)}
    assert check_model(UNET, config.weights).output == "segmenter output [1, 2, 64, 64], finite"
