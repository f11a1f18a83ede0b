"""The gallery of an output: which pictures and rejects it shows, and its files.

Made from the finished shards in storage alone, so it can be made again at any time. Rejected
pictures, and published ones that are no files of their own, are shown by thumbnails of what was
decoded, as long as that is still there. The page shows a bounded number, however large the dataset.
"""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

from PIL import Image

from rudalle_lib import layout
from rudalle_lib.errors import StorageError
from rudalle_lib.gallery import Entry, Gallery, render_chunk, render_gallery
from rudalle_lib.published import is_archive
from rudalle_lib.record_tables import from_table, schema
from rudalle_lib.records import (
    PictureRecord,
    RejectRecord,
    RunManifest,
    ScoreRecord,
    ShardManifest,
    TokensRecord,
)
from rudalle_lib.storage import Storage

Row = TypeVar("Row", ScoreRecord, PictureRecord, TokensRecord)

Linker = Callable[[str], str]
"""From the path of a picture to the URL that the page has for it."""

SHOWN_IMAGES = 10_000
"""Published pictures in the gallery, at most."""

SHOWN_REJECTS = 2_000
"""Rejected pictures in the gallery, and rejected prompts, at most."""

CHUNK = 1_000
"""Entries in one file of data."""

THUMBNAIL = 160
"""Longer side of a thumbnail in pixels."""

#: Columns that an entry has elsewhere, or that are the same as others.
SHOWN_ELSEWHERE = ("text", "text_ru", "score", "tokens")


def write_gallery(
    storage: Storage,
    run: RunManifest,
    manifests: Sequence[ShardManifest],
    models: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> None:
    """Write `gallery/index.html` and the chunks beside it; chunks of larger ones are deleted."""
    entries = read_entries(storage, manifests, lambda path: "../" + quote(path))
    chunks: list[str] = []
    while part := list(islice(entries, CHUNK)):
        path = layout.gallery_chunk_path(len(chunks))
        storage.write_bytes(path, render_chunk(part).encode())
        chunks.append(path)
    for path in storage.list(layout.GALLERY_DATA_FOLDER):
        if path not in chunks:
            storage.delete(path)
    folder = layout.GALLERY_PAGE.rpartition("/")[0] + "/"
    beside = [path.removeprefix(folder) for path in chunks]
    gallery = replace(_whole(storage, run, models, facts), chunks=beside)
    storage.write_bytes(layout.GALLERY_PAGE, render_gallery(gallery).encode())


def render_single_page(
    storage: Storage,
    run: RunManifest,
    manifests: Sequence[ShardManifest],
    models: Sequence[str],
    facts: Sequence[tuple[str, str]],
    seconds: int,
) -> str:
    """The gallery as one page to pass on: rows inside, pictures by URLs signed for some seconds."""
    entries = read_entries(storage, manifests, lambda path: storage.link(path, seconds))
    return render_gallery(replace(_whole(storage, run, models, facts), rows=list(entries)))


def _whole(
    storage: Storage,
    run: RunManifest,
    models: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> Gallery:
    """What the page says of the run, still without entries."""
    return Gallery(
        title=run.name,
        facts=facts,
        models=models,
        rejected_totals=run.totals.rejected,
        replay=f"rudalle-flows replay {shlex.quote(storage.public_path())} {{id}}",
    )


def read_entries(
    storage: Storage, manifests: Sequence[ShardManifest], link: Linker
) -> Iterator[Entry]:
    """What the gallery shows, shard by shard, in the order of the plan."""
    prompts = images = published = 0
    for path in plan_reject_files(storage):
        rejected = from_table(storage.read_table(path), RejectRecord)[: SHOWN_REJECTS - prompts]
        prompts += len(rejected)
        yield from (_rejected_prompt(row) for row in rejected)
    for manifest in manifests:
        shard = _ShardPictures(storage, manifest.index)
        rows = _metadata_rows(storage, manifest)[: SHOWN_IMAGES - published]
        published += len(rows)
        yield from (_published(row, shard, link) for row in rows)
        rejects = _rejects(storage, manifest)
        of_images = [row for row in rejects if row.image_id is not None][: SHOWN_REJECTS - images]
        of_prompts = [row for row in rejects if row.image_id is None][: SHOWN_REJECTS - prompts]
        images, prompts = images + len(of_images), prompts + len(of_prompts)
        yield from (_rejected_image(row, shard) for row in of_images)
        yield from (_rejected_prompt(row) for row in of_prompts)
        if published >= SHOWN_IMAGES and images >= SHOWN_REJECTS:
            return


def plan_reject_files(storage: Storage) -> list[str]:
    """The files of rows that did not make it into the plan, one a prompt table."""
    files = storage.list(layout.REJECTS_FOLDER)
    return [path for path in files if layout.index_of(path) is None and path.endswith(".parquet")]


class _ShardPictures:
    """What the stages made of a shard, read when it is first asked for; all may be gone."""

    def __init__(self, storage: Storage, index: int) -> None:
        self._storage, self._index = storage, index
        self._found: dict[str, Mapping[str, Any]] = {}

    def of(self, stage: str, record: type[Row], image_id: str | None) -> Row | None:
        """The row of an image."""
        if stage not in self._found:
            path, names = layout.stage_path(stage, self._index), schema(record).names
            try:
                rows = from_table(self._storage.read_table(path, names), record)
            except StorageError:
                rows = []
            self._found[stage] = {row.image_id: row for row in rows}
        return self._found[stage].get(image_id or "")

    def thumbnail(self, image_id: str) -> str | None:
        """A small picture as data URI."""
        row = self.of("decode", PictureRecord, image_id)
        return None if row is None or row.picture is None else make_thumbnail(row.picture)


def _metadata_rows(storage: Storage, manifest: ShardManifest) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = storage.read_table(manifest.metadata.path).to_pylist()
    return rows


def _rejects(storage: Storage, manifest: ShardManifest) -> list[RejectRecord]:
    if manifest.rejects is None:
        return []
    return from_table(storage.read_table(manifest.rejects.path), RejectRecord)


def _published(row: Mapping[str, Any], shard: _ShardPictures, link: Linker) -> Entry:
    return Entry(
        image_id=row["image_id"],
        prompt_id=row["prompt_id"],
        caption=row["text"],
        translation=row["text_ru"] if row["text_ru"] != row["text"] else None,
        score=row["score"],
        seed=row["seed"],
        model=row["decoder"],
        source=shard.thumbnail(row["image_id"]) if is_archive(row["path"]) else link(row["path"]),
        details=_details(row),
    )


def _rejected_image(row: RejectRecord, shard: _ShardPictures) -> Entry:
    scored = shard.of("score", ScoreRecord, row.image_id)
    drawn = shard.of("generate", TokensRecord, row.image_id)
    known = {name: getattr(drawn, name) for name in schema(TokensRecord).names} if drawn else {}
    return Entry(
        image_id=row.image_id,
        prompt_id=row.prompt_id,
        caption=row.text or "",
        reason=row.reason,
        detail=row.detail,
        score=scored.score if scored else None,
        seed=drawn.seed if drawn else None,
        source=shard.thumbnail(row.image_id or ""),
        details=_details({**known, "rank": scored.rank if scored else None, "stage": row.stage}),
    )


def _rejected_prompt(row: RejectRecord) -> Entry:
    known = {"prompt_id": row.prompt_id, "stage": row.stage, "reason": row.reason}
    return Entry(
        None, row.prompt_id, row.text or "", None, row.reason, row.detail, details=_details(known)
    )


def _details(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if value is not None and name not in SHOWN_ELSEWHERE
    }


def make_thumbnail(picture: bytes) -> str:
    """A picture file as a small WebP in a data URI."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
