"""A shard whose artifacts are made by hand: known tokens, scores and images, without networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifest
from rudalle_lib.digests import digest_of
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.images.selection import rank
from rudalle_lib.pipeline.artifacts import with_rejects, write_artifact
from rudalle_lib.pipeline.publish import publish_shard
from rudalle_lib.prompts.plan import plan_run, read_shard
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import (
    PixelsRecord,
    Reject,
    ScoreRecord,
    ShardManifest,
    ShardSpec,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
    image_id,
)
from rudalle_lib.storage.storage import Storage

NAMES = {
    "translate": "demo-marian",
    "generate": "demo-dalle",
    "decode": "demo-vqgan",
    "score": "demo-ruclip",
    "upscale": "demo-realesrgan-x2",
}
SCORES = (0.5, 0.1, 0.4, None)
"""Scores of the four candidates of every prompt; the last one could not be decoded."""

TABLE = "prompt,prompt_id,theme\nкруг,circle,a\nквадрат,square,b\nred,red,c\nдлинный,long,d\n,,e\n"
"""Two prompts that are drawn, one not translated, one too long, and an empty row."""


def plan_by_hand(config: RunConfig, folder: Path) -> ShardSpec:
    """Plan `TABLE` into one shard."""
    table = folder / "table.csv"
    table.write_text(TABLE, encoding="utf-8")
    prompts = config.prompts.model_copy(update={"uri": str(table)})
    (shard,) = plan_run(
        config.model_copy(update={"prompts": prompts}), Storage(config.output)
    ).shards
    return shard


def stages_by_hand(storage: Storage, shard: ShardSpec) -> dict[str, StageArtifact]:
    """Write the artifacts of all stages."""
    prompts = read_shard(storage, shard)
    translations = [
        TranslationRecord(
            p.prompt_id, p.text, *(("en", None) if p.text == "red" else ("ru", p.text))
        )
        for p in prompts
    ]
    candidates = [(name, n) for name in ("circle", "square") for n in range(len(SCORES))]
    tokens = [
        TokensRecord(image_id(p, n), p, n, 2**62 + n, [n], -1.0, 2.0, 1.0, 0, 0.9, False)
        for p, n in candidates
    ]
    scored = [(p, n, score) for p, n in candidates if (score := SCORES[n]) is not None]
    ranks = rank([p for p, _, _ in scored], [score for _, _, score in scored])
    scores = [
        ScoreRecord(image_id(p, n), p, score, place)
        for (p, n, score), place in zip(scored, ranks, strict=True)
    ]
    rejected = {"long": Reject("too_long", "40 pieces, at most 24")}
    return {
        "translate": _write(storage, shard, "translate", translations, TranslationRecord),
        "generate": write_artifact(
            storage,
            "generate",
            shard,
            digest_of("generate"),
            with_rejects(to_table(tokens, TokensRecord), rejected),
            1.0,
        ),
        "decode": _write(storage, shard, "decode", [_image(p, n, 8) for p, n in candidates]),
        "score": _write(storage, shard, "score", scores, ScoreRecord),
        "upscale": _write(storage, shard, "upscale", [_image(p, n, 16) for p, n in candidates]),
    }


def publish_by_hand(storage: Storage, config: RunConfig, shard: ShardSpec) -> ShardManifest:
    """Publish the shard and read its manifest back."""
    publish_shard(
        storage,
        config.publish,
        config.score,
        NAMES,
        shard,
        stages_by_hand(storage, shard),
        digest_of("publish"),
        config.digest(),
    )
    manifest = read_shard_manifest(storage, shard.index)
    assert manifest is not None
    return manifest


def _image(prompt_id: str, replica: int, side: int) -> PixelsRecord:
    image = None
    if SCORES[replica] is not None:
        image = encode_image(torch.full((3, side, side), 40 * replica, dtype=torch.uint8))
    return PixelsRecord(image_id(prompt_id, replica), prompt_id, side, side, image)


def _write(
    storage: Storage,
    shard: ShardSpec,
    stage: str,
    records: list[Any],
    record: type = PixelsRecord,
) -> StageArtifact:
    return write_artifact(storage, stage, shard, digest_of(stage), to_table(records, record), 1.0)
