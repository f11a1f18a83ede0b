"""Publish a shard: from stage artifacts to images, metadata, rejects and the manifest.

Every prompt of the shard has at least one row in the output: in the metadata for each image that is
kept, in the rejects, with a reason, for everything else.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from rudalle_lib.config.sections import PublishConfig, ScoreConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.leftovers import named_files, sweep_shard
from rudalle_lib.dataset.manifests import write_shard_manifest
from rudalle_lib.dataset.rejects import write_rejects
from rudalle_lib.dataset.splits import with_splits
from rudalle_lib.dataset.writer import write_shard
from rudalle_lib.images.codecs import compress_fully, decode_image, encode_image
from rudalle_lib.images.file_threads import AT_ONCE, map_ahead
from rudalle_lib.images.provenance import render_packet
from rudalle_lib.images.selection import contents_of
from rudalle_lib.pipeline.artifacts import read_artifact, rejects_in
from rudalle_lib.pipeline.image_columns import Drawn, image_columns
from rudalle_lib.pipeline.stages import last_image_stage
from rudalle_lib.prompts.plan import read_planned
from rudalle_lib.prompts.rows import extras_of, sources_of
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.decisions import Alike
from rudalle_lib.schema.reasons import stage_of
from rudalle_lib.schema.records import (
    CutoutRecord,
    ImageRecord,
    PixelsRecord,
    Reject,
    RejectRecord,
    ScoreRecord,
    ShardManifest,
    ShardSpec,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
    reject,
)
from rudalle_lib.schema.table_rows import TableRow
from rudalle_lib.selection.choices import NO_CHOICE, Choice
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.blocked_words import find_blocked_word
from rudalle_lib.text.confidence import UNCERTAIN


@dataclass(frozen=True)
class Shard:
    """The rows of a shard's artifacts.

    Attributes:
        index: of the shard.
        translations: by prompt id, in the order of the plan.
        tokens: one row per candidate, in order.
        scores, images: by image id.
        rejects: prompts that were not drawn, by prompt id.
        rows: of the prompt table, as far as they are known, by prompt id.
    """

    index: int
    translations: Mapping[str, TranslationRecord]
    tokens: Sequence[TokensRecord]
    scores: Mapping[str, ScoreRecord]
    images: Mapping[str, PixelsRecord]
    rejects: Mapping[str, Reject]
    rows: Mapping[str, TableRow] = field(default_factory=dict)


def publish_shard(
    storage: Storage,
    section: PublishConfig,
    selection: ScoreConfig,
    models: Mapping[str, str],
    spec: ShardSpec,
    artifacts: Mapping[str, StageArtifact],
    fingerprint: str,
    config_digest: str,
    term: int = 0,
    check_lease: Callable[[], None] = lambda: None,
    files: Executor = AT_ONCE,
    weights: Mapping[str, str] | None = None,
    choice: Choice = NO_CHOICE,
    on_reject: Callable[[RejectRecord], None] = lambda _: None,
) -> ShardManifest:
    """Write the dataset of one shard, its manifest last.

    Args:
        storage: the output.
        section: format of the dataset.
        selection: decides which images are kept.
        models: registry name by stage, of the stages that run a model.
        spec: the planned shard.
        artifacts: by stage.
        fingerprint: of the published shard.
        config_digest: of the run that publishes it.
        term: of the lease that is held.
        check_lease: raises if this run must not write any more; called before anything is written,
            before the manifest, and before files of an earlier manifest are deleted.
        files: encodes the images.
        weights: digests of the weights by stage, which images name.
        choice: what else decides which images are kept.
        on_reject: called with every whole prompt that is rejected.
    """
    started = time.perf_counter()
    planned = read_planned(storage, spec)
    shard = read_shard_results(storage, spec.index, artifacts, rows_of(planned))
    kept, rejects = select_images(shard, selection, section.blocked_words, choice)
    version = layout.version_of(fingerprint, term)
    before = named_files(storage, spec.index, term)
    check_lease()
    records = [_record(shard, row, models) for row in kept]
    decoder = (weights or {}).get("generate", "")
    encode = partial(_file, shard=shard, section=section, weights=decoder)
    images = zip(records, map_ahead(files, encode, records), strict=True)
    texts = {name: row.text for name, row in shard.translations.items()}
    own = extras_of(planned)
    extras = with_splits(own, texts, section.splits)
    scores, contents = list(shard.scores.values()), contents_of(shard.tokens)
    alike = choice.find_alike(scores, contents, selection)
    columns = image_columns([_drawn(shard, row, alike) for row in kept], section)
    written = write_shard(storage, spec.index, version, images, section, extras, columns)
    rejects_file = write_rejects(storage, spec.index, version, rejects, own)
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
        archives=written.archives,
        term=term,
        splits=section.splits or {},
    )
    check_lease()
    write_shard_manifest(storage, manifest)
    for row in rejects:
        if row.image_id is None:
            on_reject(row)
    check_lease()
    sweep_shard(storage, spec.index, before, term, section.splits or {})
    return manifest


def rows_of(planned: pa.Table) -> dict[str, TableRow]:
    """The rows of the prompt table of planned prompts, as far as they are known, by prompt id."""
    ids = planned.column("prompt_id").to_pylist()
    pairs = zip(ids, sources_of(planned), strict=True)
    return {prompt_id: row for prompt_id, row in pairs if row is not None}


def read_shard_results(
    storage: Storage,
    index: int,
    artifacts: Mapping[str, StageArtifact],
    rows: Mapping[str, TableRow] | None = None,
) -> Shard:
    """Read the artifacts of a shard; images are those of the last stage that made any.

    Args:
        storage: the output.
        index: of the shard.
        artifacts: by stage.
        rows: of the prompt table, by prompt id; rejects name them.
    """
    last = last_image_stage(artifacts)
    record = CutoutRecord if last == "cutout" else PixelsRecord
    images: Sequence[PixelsRecord] = from_table(read_artifact(storage, artifacts[last]), record)
    scores = from_table(read_artifact(storage, artifacts["score"]), ScoreRecord)
    translated = read_artifact(storage, artifacts["translate"])
    tokens = read_artifact(storage, artifacts["generate"])
    return Shard(
        index=index,
        translations={row.prompt_id: row for row in from_table(translated, TranslationRecord)},
        tokens=from_table(tokens, TokensRecord),
        scores={row.image_id: row for row in scores},
        images={row.image_id: row for row in images},
        rejects={**rejects_in(translated), **rejects_in(tokens)},
        rows=rows or {},
    )


def select_images(
    shard: Shard,
    selection: ScoreConfig,
    blocked_words: tuple[str, ...] = (),
    choice: Choice = NO_CHOICE,
) -> tuple[list[TokensRecord], list[RejectRecord]]:
    """The images that are kept, in order, and a reject for every other image or prompt."""
    kept: list[TokensRecord] = []
    rejects = list(_prompt_rejects(shard))
    scores, contents = list(shard.scores.values()), contents_of(shard.tokens)
    not_selected = choice.find_rejects(scores, contents, selection)
    for row in shard.tokens:
        rejected = _image_reject(shard, row, not_selected, blocked_words)
        if rejected is None:
            kept.append(row)
        else:
            rejects.append(rejected)
    return kept, rejects


def encode_published(png: bytes, section: PublishConfig, xmp: bytes = b"") -> bytes:
    """An image in the published format, from the PNG file that stages keep.

    Args:
        png: the file of a stage.
        section: format of the published images.
        xmp: packet that the file holds; none if it is empty.
    """
    if section.image_format == "png" and not xmp:
        return compress_fully(png)
    image = decode_image(png, keep_alpha=True)
    return encode_image(image, section.image_format, section.quality, xmp)


def _image_reject(
    shard: Shard,
    row: TokensRecord,
    not_selected: Mapping[str, Reject],
    blocked_words: tuple[str, ...],
) -> RejectRecord | None:
    prompt = shard.translations[row.prompt_id]
    make = partial(
        reject,
        prompt_id=row.prompt_id,
        image_id=row.image_id,
        text=prompt.text,
        text_ru=prompt.text_ru,
        score=shard.scores.get(row.image_id),
        row=shard.rows.get(row.prompt_id),
    )
    unsafe = find_blocked_word(blocked_words, prompt.text, prompt.text_ru)
    if unsafe is not None:
        return make(*unsafe, stage="publish")
    if row.image_id not in shard.scores:
        return make("decode_error", "the VQ-GAN returned NaN or infinite pixels", stage="decode")
    why = not_selected.get(row.image_id)
    return None if why is None else make(*why, stage=stage_of(why.reason))


def _prompt_rejects(shard: Shard) -> Iterator[RejectRecord]:
    for row in shard.translations.values():
        make = partial(
            reject,
            prompt_id=row.prompt_id,
            text=row.text,
            text_ru=row.text_ru,
            row=shard.rows.get(row.prompt_id),
        )
        if row.text_ru is None:
            detail = f"no good translation from {row.lang!r}; give the prompt in Russian"
            default = Reject("translation_failed", detail)
            yield make(*shard.rejects.get(row.prompt_id, default), stage="translate")
        elif row.prompt_id in shard.rejects:
            why = shard.rejects[row.prompt_id]
            yield make(*why, stage="translate" if why.reason == UNCERTAIN else "generate")


def _drawn(shard: Shard, row: TokensRecord, alike: Mapping[str, Alike]) -> Drawn:
    score, translation = shard.scores[row.image_id], shard.translations[row.prompt_id]
    return Drawn(row, score, translation, alike.get(row.image_id))


def _record(shard: Shard, row: TokensRecord, models: Mapping[str, str]) -> ImageRecord:
    translation = shard.translations[row.prompt_id]
    image, scored = shard.images[row.image_id], shard.scores[row.image_id]
    background = image.background if isinstance(image, CutoutRecord) else None
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
        width=image.width,
        height=image.height,
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
        segmenter=models.get("cutout") if background == "network" else None,
        background=background,
    )


def _file(record: ImageRecord, shard: Shard, section: PublishConfig, weights: str) -> bytes:
    xmp = render_packet(record, weights) if section.provenance else b""
    return encode_published(shard.images[record.image_id].image or b"", section, xmp)
