"""Publish a shard: from what the stages made to images, metadata, rejects and the manifest.

Every prompt of the shard ends up in at least one row: of the metadata for each image that is kept,
of the rejects, with a reason, for everything else.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from rudalle_lib.blocked_words import refusal
from rudalle_lib.config import ScoreConfig
from rudalle_lib.config_publish import PublishConfig
from rudalle_lib.images import decode_image, encode_image
from rudalle_lib.manifest import write_shard_manifest
from rudalle_lib.planning import read_extras
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import (
    CutoutRecord,
    ImageRecord,
    PictureRecord,
    RejectRecord,
    ScoreRecord,
    ShardManifest,
    ShardSpec,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
    reject,
)
from rudalle_lib.selection import Rejection, rejections
from rudalle_lib.shards import write_rejects, write_shard
from rudalle_lib.stages import Refused, read_artifact, refused_in
from rudalle_lib.storage import Storage


@dataclass(frozen=True)
class Shard:
    """What the stages made of a shard: translations by prompt in the order of the plan,
    tokens in theirs, scores and pictures by image; `refused` are prompts that were not drawn.
    """

    index: int
    translations: Mapping[str, TranslationRecord]
    tokens: Sequence[TokensRecord]
    scores: Mapping[str, ScoreRecord]
    pictures: Mapping[str, PictureRecord]
    refused: Mapping[str, Refused]


def publish_shard(
    storage: Storage,
    section: PublishConfig,
    selection: ScoreConfig,
    models: Mapping[str, str],
    spec: ShardSpec,
    artifacts: Mapping[str, StageArtifact],
    fingerprint: str,
    config_digest: str,
    may_write: Callable[[], None] = lambda: None,
) -> ShardManifest:
    """Write the dataset of one shard, its manifest last.

    Args:
        storage: the output.
        section: format of the images.
        selection: which images are kept.
        models: registry name by stage, of the stages that have a model.
        spec: the shard.
        artifacts: what every stage made, by stage.
        fingerprint: of the published shard.
        config_digest: of the run that publishes it.
        may_write: raises if this run must not write; asked first, and again before the manifest.
    """
    started = time.perf_counter()
    shard = read_shard_results(storage, spec.index, artifacts)
    kept, rejects = judge(shard, selection, section.blocked_words)
    may_write()
    images = ((_record(shard, row, models), _file(shard, row, section)) for row in kept)
    extras = read_extras(storage, spec)
    written = write_shard(storage, spec.index, images, section, extras)
    rejects_file = write_rejects(storage, spec.index, rejects)
    uri, seconds = storage.url(written.metadata.path), round(time.perf_counter() - started, 3)
    published = StageArtifact(uri, fingerprint, len(kept), seconds)
    manifest = ShardManifest(
        index=spec.index,
        fingerprint=fingerprint,
        config_digest=config_digest,
        prompts=spec.rows,
        images=len(shard.tokens),
        kept=len(kept),
        rejected=dict(Counter(row.reason for row in rejects)),
        image_bytes=written.image_bytes,
        metadata=written.metadata,
        rejects=rejects_file,
        stages={**artifacts, "publish": published},
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        archive=written.archive,
    )
    may_write()
    write_shard_manifest(storage, manifest)
    return manifest


def read_shard_results(
    storage: Storage, index: int, artifacts: Mapping[str, StageArtifact]
) -> Shard:
    """Read the artifacts of a shard; pictures are those of the last stage that made any."""
    pictures = artifacts.get("upscale", artifacts["decode"])
    cut = artifacts.get("cutout")
    scores = from_table(read_artifact(storage, artifacts["score"]), ScoreRecord)
    drawn: Sequence[PictureRecord]
    if cut is None:
        drawn = from_table(read_artifact(storage, pictures), PictureRecord)
    else:
        drawn = from_table(read_artifact(storage, cut), CutoutRecord)
    translated = read_artifact(storage, artifacts["translate"])
    translations = from_table(translated, TranslationRecord)
    tokens = read_artifact(storage, artifacts["generate"])
    return Shard(
        index=index,
        translations={row.prompt_id: row for row in translations},
        tokens=from_table(tokens, TokensRecord),
        scores={row.image_id: row for row in scores},
        pictures={row.image_id: row for row in drawn},
        refused={**refused_in(translated), **refused_in(tokens)},
    )


def judge(
    shard: Shard, selection: ScoreConfig, blocked_words: tuple[str, ...] = ()
) -> tuple[list[TokensRecord], list[RejectRecord]]:
    """The images that are kept, in order, and a reject for every other image or prompt."""
    kept: list[TokensRecord] = []
    rejects = list(_prompt_rejects(shard))
    weak = rejections(shard.scores.values(), selection)
    for row in shard.tokens:
        rejected = _image_reject(shard, row, weak, blocked_words)
        if rejected is None:
            kept.append(row)
        else:
            rejects.append(rejected)
    return kept, rejects


def _image_reject(
    shard: Shard, row: TokensRecord, weak: Mapping[str, Rejection], blocked_words: tuple[str, ...]
) -> RejectRecord | None:
    prompt = shard.translations[row.prompt_id]
    make = partial(reject, prompt_id=row.prompt_id, image_id=row.image_id, text=prompt.text)
    unsafe = refusal(blocked_words, prompt.text, prompt.text_ru)
    if unsafe is not None:
        return make(*unsafe, stage="publish")
    if row.image_id not in shard.scores:
        return make("decode_error", "the VQ-GAN gave pixels that are no numbers", stage="decode")
    why = weak.get(row.image_id)
    return None if why is None else make(*why, stage="score")


def _prompt_rejects(shard: Shard) -> Iterator[RejectRecord]:
    for row in shard.translations.values():
        make = partial(reject, prompt_id=row.prompt_id, text=row.text)
        if row.text_ru is None:
            detail = f"no sound translation from {row.lang!r}; give the prompt in Russian"
            failed = shard.refused.get(row.prompt_id, ("translation_failed", detail))
            yield make(*failed, stage="translate")
        elif row.prompt_id in shard.refused:
            yield make(*shard.refused[row.prompt_id], stage="generate")


def _record(shard: Shard, row: TokensRecord, models: Mapping[str, str]) -> ImageRecord:
    translation = shard.translations[row.prompt_id]
    picture, scored = shard.pictures[row.image_id], shard.scores[row.image_id]
    ground = picture.ground if isinstance(picture, CutoutRecord) else None
    return ImageRecord(
        image_id=row.image_id,
        prompt_id=row.prompt_id,
        replica=row.replica,
        shard=shard.index,
        text=translation.text,
        text_ru=translation.text_ru or "",
        lang=translation.lang,
        seed=row.seed,
        score=scored.score,
        rank=scored.rank,
        probability=scored.probability,
        logprob=row.logprob,
        ppl=row.ppl,
        width=picture.width,
        height=picture.height,
        temperature=row.temperature,
        top_k=row.top_k,
        top_p=row.top_p,
        truncated=row.truncated,
        guidance=row.guidance,
        image_prompt=row.image_prompt,
        image_prompt_borders=row.image_prompt_borders,
        translator=models["translate"] if translation.lang != "ru" else None,
        decoder=models["generate"],
        vqgan=models["decode"],
        scorer=models["score"],
        upscaler=models.get("upscale"),
        segmenter=models.get("cutout") if ground == "network" else None,
        ground=ground,
    )


def _file(shard: Shard, row: TokensRecord, section: PublishConfig) -> bytes:
    """The picture in the published format; stages keep it as PNG."""
    png = shard.pictures[row.image_id].picture or b""
    if section.image_format == "png":
        return png
    return encode_image(decode_image(png, keep_alpha=True), section.image_format, section.quality)
