"""A shard whose stages are made by hand: known tokens, scores and pictures, without any network."""

from __future__ import annotations

from pathlib import Path

import torch

from rudalle_lib.config import RunConfig
from rudalle_lib.images import encode_image
from rudalle_lib.manifest import read_shard_manifest
from rudalle_lib.planning import plan_run, read_shard
from rudalle_lib.publishing import publish_shard
from rudalle_lib.record_tables import to_table
from rudalle_lib.records import (
    PictureRecord,
    ScoreRecord,
    ShardManifest,
    ShardSpec,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
    image_id,
)
from rudalle_lib.selection import rank
from rudalle_lib.stages import with_refused, write_artifact
from rudalle_lib.storage import Storage

NAMES = {
    "translate": "demo-marian",
    "generate": "demo-dalle",
    "decode": "demo-vqgan",
    "score": "demo-ruclip",
    "upscale": "demo-realesrgan-x2",
}
SCORES = (0.5, 0.1, 0.4, None)
"""Of the four candidates of every prompt; the last could not be decoded."""

TABLE = "prompt,prompt_id,theme\nкруг,circle,a\nквадрат,square,b\nred,red,c\nдлинный,long,d\n,,e\n"
"""Two prompts that are drawn, one that is not translated, one that is too long, an empty row."""


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
    """Write what the stages made of the shard."""
    prompts = read_shard(storage, shard)
    translations = [
        TranslationRecord(
            p.prompt_id, p.text, *(("en", None) if p.text == "red" else ("ru", p.text))
        )
        for p in prompts
    ]
    drawn = [(name, n) for name in ("circle", "square") for n in range(len(SCORES))]
    tokens = [
        TokensRecord(image_id(p, n), p, n, 2**62 + n, [n], -1.0, 2.0, 1.0, 0, 0.9, False)
        for p, n in drawn
    ]
    scored = [(p, n, score) for p, n in drawn if (score := SCORES[n]) is not None]
    ranks = rank([p for p, _, _ in scored], [score for _, _, score in scored])
    scores = [
        ScoreRecord(image_id(p, n), p, score, place)
        for (p, n, score), place in zip(scored, ranks, strict=True)
    ]
    refused = {"long": ("too_long", "40 pieces, at most 24")}
    return {
        "translate": _write(storage, shard, "translate", translations, TranslationRecord),
        "generate": write_artifact(
            storage,
            "generate",
            shard,
            "generate",
            with_refused(to_table(tokens, TokensRecord), refused),  # type: ignore[arg-type]
            1.0,
        ),
        "decode": _write(storage, shard, "decode", [_picture(p, n, 8) for p, n in drawn]),
        "score": _write(storage, shard, "score", scores, ScoreRecord),
        "upscale": _write(storage, shard, "upscale", [_picture(p, n, 16) for p, n in drawn]),
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
        "fingerprint",
        config.digest(),
    )
    manifest = read_shard_manifest(storage, shard.index)
    assert manifest is not None
    return manifest


def _picture(prompt_id: str, replica: int, side: int) -> PictureRecord:
    picture = None
    if SCORES[replica] is not None:
        picture = encode_image(torch.full((3, side, side), 40 * replica, dtype=torch.uint8))
    return PictureRecord(image_id(prompt_id, replica), prompt_id, side, side, picture)


def _write(
    storage: Storage,
    shard: ShardSpec,
    stage: str,
    records: list,  # type: ignore[type-arg]
    record: type = PictureRecord,
) -> StageArtifact:
    return write_artifact(storage, stage, shard, stage, to_table(records, record), 1.0)
