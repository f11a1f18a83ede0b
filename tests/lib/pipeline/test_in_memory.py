"""The stages in memory: the rows of a run, with models that are loaded when needed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from rudalle_lib.api.images import cut_out_images
from rudalle_lib.checks.replay import compare_pixels
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import SettingsError, WeightsError
from rudalle_lib.images.codecs import decode_image, encode_image
from rudalle_lib.pipeline.artifacts import read_artifact, rejects_in
from rudalle_lib.pipeline.in_memory import InMemoryPipeline
from rudalle_lib.prompts.plan import plan_run, read_shard
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import (
    CutoutRecord,
    PixelsRecord,
    Prompt,
    ScoreRecord,
    TokensRecord,
    TranslationRecord,
)
from rudalle_lib.storage.storage import Storage
from tasks.without_prefect import process_shard
from tests.support.finished_run import tiny_config

TABLE = "prompt,images,seed\nчёрный квадрат,3,\nкрасный круг,,7\na red circle,,\n"

SCORE = {
    "probes": {"aesthetic": "preset"}, "embeddings": True, "compare_translations": True,
    "second_model": "demo-ruclip",
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two prompts in Russian and one in English, in one shard; all images are cut out."""
    folder = tmp_path_factory.mktemp("in_memory")
    base = tiny_config(folder, str(folder / "out"), TABLE).model_dump()
    prompts = {**base["prompts"], "shard_size": 3}
    return RunConfig.model_validate(
        {**base, "prompts": prompts, "score": SCORE, "cutout": {"transparent": True}}
    )


def test_the_rows_are_those_of_a_run(config: RunConfig) -> None:
    storage = Storage(config.output)
    (shard,) = plan_run(config, storage).shards
    manifest = process_shard(config, {"generate": "digest"}, shard)

    def table(stage: str) -> Any:
        return read_artifact(storage, manifest.stages[stage])

    pipeline, prompts = InMemoryPipeline(config), read_shard(storage, shard)
    translations, rejects = pipeline.translate(prompts)
    assert translations == from_table(table("translate"), TranslationRecord)
    assert rejects == rejects_in(table("translate")) and len(rejects) == 1
    texts = {row.prompt_id: row.text_ru for row in translations if row.text_ru is not None}
    tokens, rejects = pipeline.draw(prompts, texts)
    stored = from_table(table("generate"), TokensRecord)
    assert [(row.image_id, row.seed, row.tokens) for row in tokens] == [
        (row.image_id, row.seed, row.tokens) for row in stored
    ]
    assert rejects == {} and len(tokens) == 7
    images = pipeline.decode(tokens)
    assert images == from_table(table("decode"), PixelsRecord)
    scores = from_table(table("score"), ScoreRecord)
    for row, expected in zip(pipeline.score(images, translations), scores, strict=True):
        assert (row.image_id, row.rank) == (expected.image_id, expected.rank)
        assert row.score == pytest.approx(expected.score, abs=1e-6)
        assert row.measures == pytest.approx(expected.measures, abs=1e-5)
        assert row.second_score == pytest.approx(expected.second_score, abs=1e-6)
        assert row.second_score is not None and row.embedding == expected.embedding
    large = pipeline.upscale(images)
    assert large == from_table(table("upscale"), PixelsRecord)
    assert pipeline.cut_out(large) == from_table(table("cutout"), CutoutRecord)


def test_chosen_replicas_are_drawn_like_all_of_them(config: RunConfig) -> None:
    pipeline, prompts = InMemoryPipeline(config), [Prompt("a", "чёрный квадрат")]
    everything, _ = pipeline.draw(prompts, {"a": "чёрный квадрат"})
    some, _ = pipeline.draw(prompts, {"a": "чёрный квадрат"}, range(1, 3))
    assert [row.image_id for row in some] == ["a-001", "a-002"]
    assert [row.tokens for row in some] == [row.tokens for row in everything[1:3]]


def test_models_are_loaded_when_a_stage_first_needs_them(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = InMemoryPipeline(config)
    for name in ("translator", "decoder", "vqgan", "scorer", "upscaler", "segmenter"):
        unavailable = partial(_unavailable, name)
        monkeypatch.setattr(f"rudalle_lib.pipeline.in_memory.load_{name}", unavailable)
    (row,), _ = pipeline.translate([Prompt("a", "чёрный квадрат")])
    assert row.text_ru == "чёрный квадрат", "Russian needs no translator"
    with pytest.raises(WeightsError, match="^translator$"):
        pipeline.translate([Prompt("a", "a black square")])
    with pytest.raises(WeightsError, match="^decoder$"):
        pipeline.draw([], {})
    with pytest.raises(WeightsError, match="^vqgan$"):
        pipeline.decode([])
    with pytest.raises(WeightsError, match="^scorer$"):
        pipeline.score([], [])
    with pytest.raises(WeightsError, match="^upscaler$"):
        pipeline.upscale([])
    assert pipeline.cut_out([]) == [], "colour alone needs no segmenter"


def _unavailable(name: str, *_: object) -> None:
    raise WeightsError(name)


def test_load_loads_all_models_once(config: RunConfig) -> None:
    pipeline = InMemoryPipeline(config)
    pipeline.load()
    loaded = {name for name in vars(pipeline) if not name.startswith("_")}
    stages = {"translator", "decoder", "vqgan", "scorer", "second_scorer", "upscaler"}
    stages |= {"segmenter"}
    assert loaded == {"config", "devices", *stages}
    assert pipeline.decoder is pipeline.decoder


def test_stages_that_are_off_pass_their_input_on(config: RunConfig) -> None:
    off = {**dict(config), "upscale": {"model": None}, "cutout": {"transparent": False}}
    pipeline = InMemoryPipeline(RunConfig.model_validate(off))
    rows = [PixelsRecord("a-000", "a", 8, 8, None)]
    assert pipeline.upscale(rows) == rows and pipeline.cut_out(rows) == rows


def test_an_image_is_cut_out_like_a_published_one(config: RunConfig) -> None:
    side = 48
    drawn = torch.full((3, side, side), 255, dtype=torch.uint8)
    drawn[:, 16:32, 16:32] = torch.tensor([20, 40, 200], dtype=torch.uint8)[:, None, None]
    row = PixelsRecord("a-000", "a", side, side, encode_image(drawn))
    (cut,) = InMemoryPipeline(config).cut_out([row])
    assert cut.image is not None
    final = decode_image(cut.image, keep_alpha=True)
    assert final.equal(cut_out_images(drawn[None])[0]) and not final[3, :15].any()
    assert compare_pixels(cut.image, final)[0].startswith("0 of")


def test_the_image_encoder_is_the_vqgan_unless_another_is_named(config: RunConfig) -> None:
    def encoder_weight(pipeline: InMemoryPipeline) -> torch.Tensor:
        return pipeline.image_encoder.quant_conv.weight

    pipeline = InMemoryPipeline(config)
    assert encoder_weight(pipeline).equal(pipeline.vqgan.model.quant_conv.weight)
    generate = config.generate.model_copy(update={"image_encoder": "vqgan-f8"})
    other = InMemoryPipeline(config.model_copy(update={"generate": generate}))
    with pytest.raises(WeightsError):
        encoder_weight(other)


def test_an_unknown_device_is_an_error(config: RunConfig) -> None:
    runtime = config.runtime.model_copy(update={"devices": "cuda:99"})
    with pytest.raises(SettingsError, match="device 'cuda:99' was not found"):
        InMemoryPipeline(config.model_copy(update={"runtime": runtime}))
