"""Cut out and publish: transparent grounds of pictures made by hand, by colour and by a network."""

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
from rudalle_lib.config import RunConfig
from rudalle_lib.images import decode_image, encode_image
from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig
from rudalle_lib.pictures import cut_out_pictures
from rudalle_lib.record_tables import from_table, to_table
from rudalle_lib.records import CutoutRecord, PictureRecord, StageArtifact
from rudalle_lib.replaying import compare_pixels, finish
from rudalle_lib.shards import read_records
from rudalle_lib.stages import read_artifact, write_artifact
from rudalle_lib.storage import Storage
from rudalle_lib.verification import verify
from tasks.cutout import cutout
from tasks.job import Job
from tasks.publish import publish
from tests.hand_made import NAMES, plan_by_hand, stages_by_hand

SIDE = 48
UNET = "emojich-unet"


class Made(NamedTuple):
    """A planned shard with stages made by hand, up to large pictures."""

    storage: Storage
    job: Job
    artifacts: dict[str, StageArtifact]


def square(ground: int) -> bytes:
    """A blue square in the middle of a ground, as PNG."""
    picture = torch.full((3, SIDE, SIDE), ground, dtype=torch.uint8)
    picture[:, 16:32, 16:32] = torch.tensor([20, 40, 200], dtype=torch.uint8)[:, None, None]
    return encode_image(picture)


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
    drawn = from_table(read_artifact(storage, artifacts["upscale"]), PictureRecord)
    large = [
        PictureRecord(row.image_id, row.prompt_id, SIDE, SIDE, row.picture and square(255))
        for row in drawn
    ]
    table = to_table(large, PictureRecord)
    artifacts["upscale"] = write_artifact(storage, "upscale", shard, "upscale", table, 1.0)
    return Made(storage, Job(shard, config.output, config.runtime, config.weights), artifacts)


def cut(made: Made, config: RunConfig, fingerprint: str = "c", **selection: Any) -> StageArtifact:
    chosen = config.score.model_copy(update=selection)
    source, scored = made.artifacts["upscale"], made.artifacts["score"]
    return cutout.fn(config.cutout, chosen, made.job, source, scored, fingerprint)


def publish_cut(made: Made, config: RunConfig, names: dict[str, str]) -> None:
    artifacts = {**made.artifacts, "cutout": cut(made, config)}
    publish.fn(config.publish, config.score, made.job, names, artifacts, "p", "digest")


def test_a_replayed_picture_is_cut_out_as_a_published_one(config: RunConfig) -> None:
    upscale = config.upscale.model_copy(update={"model": None})
    without = config.model_copy(update={"upscale": upscale})
    drawn = decode_image(square(255))
    final = finish(without, drawn)
    assert final.equal(cut_out_pictures(drawn[None])[0]) and not final[3, :15].any()
    assert compare_pixels(encode_image(final), final)[0].startswith("0 of")


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_stickers_are_published_with_their_ground_transparent(
    made: Made, config: RunConfig, image_format: str
) -> None:
    form = config.publish.model_copy(update={"image_format": image_format})
    publish_cut(made, config.model_copy(update={"publish": form}), NAMES)
    records = read_records(made.storage, 0)
    assert len(records) == 6
    for record in records:
        assert (record.ground, record.segmenter) == ("colour", None)
        with Image.open(io.BytesIO(made.storage.read_bytes(record.path))) as image:
            assert (image.format, image.mode) == (image_format.upper(), "RGBA")
            alpha = np.array(image)[:, :, 3]
        assert (alpha[18:30, 18:30] == 255).all() and not alpha[:15].any()


def test_only_kept_pictures_are_cut_out_and_no_picture_twice(
    made: Made, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cut(made, config, keep_best=1)
    assert first.rows == 2
    rows = from_table(read_artifact(made.storage, first), CutoutRecord)
    assert [row.image_id for row in rows] == ["circle-000", "square-000"]
    wide = cut(made, config, keep_best=3)
    assert wide.rows == 6
    with monkeypatch.context() as patch:
        patch.setattr("tasks.cutout.cut_out", lambda *_: pytest.fail("cut out again"))
        assert cut(made, config, keep_best=1) == wide
        with pytest.raises(pytest.fail.Exception):
            cut(made, config, fingerprint="another", keep_best=1)


def test_the_network_is_loaded_from_its_published_place_and_recorded(
    made: Made, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"width": 0.1, "depth": 0.3, "decoder_channels": (8, 8, 8, 8, 8)}
    torch.manual_seed(0)
    network = EfficientUnet(EfficientUnetConfig(**sizes))  # type: ignore[arg-type]
    torch.nn.init.zeros_(network.segmentation_head[0].weight)
    network.segmentation_head[0].bias.data.copy_(torch.tensor([0.0, 9.0]))
    path = tmp_path / "rudalle-Emojich" / "unet_effnetb5" / "pytorch_model_v2.bin"
    path.parent.mkdir(parents=True)
    unused = {"encoder._conv_head.weight": torch.zeros(8, 8, 1, 1)}
    torch.save({**network.state_dict(), **unused}, path)
    small = dataclasses.replace(registry.get(UNET), architecture=MappingProxyType(sizes))
    monkeypatch.setattr(registry, "_ENTRIES", {**registry._ENTRIES, UNET: small})
    section = config.cutout.model_copy(update={"model": UNET})
    publish_cut(made, config.model_copy(update={"cutout": section}), {**NAMES, "cutout": UNET})
    seen = {(row.ground, row.segmenter) for row in read_records(made.storage, 0)}
    assert seen == {("network", UNET)}
    assert verify(UNET, config.weights).made == "segmenter output [1, 2, 64, 64], finite"
