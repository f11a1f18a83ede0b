"""The gallery of an output: which images and rejects it shows, and the files it consists of.

It is built only from the finished shards in storage, so it can be rebuilt at any time. Tiles show
thumbnails (`derived.thumbnails`), except for small images that are files of their own. Rejected
images have them if their decoded images still exist. A page to share has them in itself, smaller.
The number of entries is bounded, however large the dataset.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.curation import read_curation
from rudalle_lib.dataset.reader import PublishedImages, is_archive
from rudalle_lib.dataset.rejects import plan_reject_files
from rudalle_lib.derived.thumbnails import SIDE, Thumbnails, make_thumbnail
from rudalle_lib.errors import StorageError
from rudalle_lib.images.likeness import unpack_vectors
from rudalle_lib.images.similar import most_similar
from rudalle_lib.pipeline.artifacts import read_artifact
from rudalle_lib.pipeline.image_columns import EMBEDDING, TOKENS, is_ours
from rudalle_lib.report.gallery_page import Entry, Gallery, render_chunk, render_gallery
from rudalle_lib.report.report_files import ReportFiles
from rudalle_lib.schema.arrow import from_table, schema, with_current_names
from rudalle_lib.schema.decisions import ByHand
from rudalle_lib.schema.records import (
    ImageRecord,
    PixelsRecord,
    RejectRecord,
    RunManifest,
    ScoreRecord,
    ShardManifest,
    TokensRecord,
)
from rudalle_lib.storage.storage import Storage

Row = TypeVar("Row", ScoreRecord, PixelsRecord, TokensRecord)

Linker = Callable[[str], str]
"""Returns the URL under which the page links an image, given its path."""

MAX_IMAGES = 100_000
"""Maximum number of published images in the gallery."""

MAX_SHARED = 10_000
"""The same in a page to share, which holds everything in itself."""

MAX_REJECTS = 2_000
"""Maximum number of rejected images in the gallery, and of rejected prompts."""

MAX_SIMILAR = 10_000
"""Images whose most similar ones are found: that compares each with each."""

CHUNK_SIZE = 1_000
"""Entries per chunk."""

SHARED_SIDE, SHARED_QUALITY = 160, 80
"""Longer side in pixels, and quality, of a thumbnail inside a page to share."""

OMITTED_COLUMNS = ("text", "text_ru", "score", "tokens")
"""Columns left out of an entry's details: the page shows them elsewhere or not at all."""


LONG_COLUMNS = (EMBEDDING, TOKENS)
"""Optional columns of ours that are not shown."""

SIMILAR_IMAGES = 8
"""Similar images that the page offers for an image."""

OUR_COLUMNS = frozenset(schema(ImageRecord).names)
"""Columns of the metadata that are not from the prompt table."""


def write_gallery(
    storage: Storage,
    files: ReportFiles,
    run: RunManifest,
    manifests: Sequence[ShardManifest],
    models: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> None:
    """Write `gallery/index.html` and its chunks.

    Args:
        storage: the output.
        files: writes them.
        run: the finished run.
        manifests: manifests of the finished shards.
        models: registry names of the models.
        facts: pairs of a figure and a label for the head of the page.
    """
    folder = layout.GALLERY_PAGE.rpartition("/")[0] + "/"
    thumbnails = Thumbnails(storage)
    entries = read_entries(storage, manifests, lambda path: "../" + quote(path), thumbnails)
    chunks: list[str] = []
    while part := list(islice(entries, CHUNK_SIZE)):
        path = layout.gallery_chunk_path(len(chunks))
        files.write(path, render_chunk(part).encode())
        chunks.append(path)
    thumbnails.sweep()
    urls = [path.removeprefix(folder) for path in chunks]
    gallery = replace(_empty_gallery(storage, run, models, facts), chunks=urls)
    files.write(layout.GALLERY_PAGE, render_gallery(gallery).encode())


def render_single_page(
    storage: Storage,
    run: RunManifest,
    manifests: Sequence[ShardManifest],
    models: Sequence[str],
    facts: Sequence[tuple[str, str]],
    seconds: int,
) -> str:
    """Render the gallery as a single page to share, with embedded entries and signed URLs.

    Args:
        storage: the output.
        run: the finished run.
        manifests: manifests of the finished shards.
        models: registry names of the models.
        facts: pairs of a figure and a label for the head of the page.
        seconds: how long the signed URLs of the images are valid.

    Raises:
        StorageError: when the storage cannot sign URLs.
    """
    entries = read_entries(storage, manifests, lambda path: storage.link(path, seconds))
    return render_gallery(replace(_empty_gallery(storage, run, models, facts), rows=list(entries)))


def _empty_gallery(
    storage: Storage,
    run: RunManifest,
    models: Sequence[str],
    facts: Sequence[tuple[str, str]],
) -> Gallery:
    return Gallery(
        title=run.name,
        facts=facts,
        models=models,
        rejected_totals=run.totals.rejected,
        replay=f"rudalle-flows replay {shlex.quote(storage.public_path())} {{id}}",
    )


def read_entries(
    storage: Storage,
    manifests: Sequence[ShardManifest],
    link: Linker,
    thumbnails: Thumbnails | None = None,
) -> Iterator[Entry]:
    """Yield the entries of the gallery, shard by shard, in the order of the plan.

    Args:
        storage: the output.
        manifests: manifests of the finished shards.
        link: returns the URL of a file.
        thumbnails: makes thumbnails, which entries link; without it, those that are needed are
            data URIs.
    """
    limit = MAX_SHARED if thumbnails is None else MAX_IMAGES
    similar = find_similar(storage, manifests)
    prompts = images = published = 0
    by_hand = read_curation(storage).decisions
    for path in plan_reject_files(storage):
        rejected = from_table(storage.read_table(path), RejectRecord)[: MAX_REJECTS - prompts]
        prompts += len(rejected)
        yield from (_rejected_prompt(row) for row in rejected)
    for manifest in manifests:
        shard = _StageRows(storage, manifest)
        table = _metadata(storage, manifest).slice(0, limit - published)
        published += table.num_rows
        ours = {*OUR_COLUMNS, *(field.name for field in table.schema if is_ours(field))}
        rows = table.to_pylist()
        rejects = _rejects(storage, manifest)
        rejected_images = [one for one in rejects if one[0].image_id is not None]
        rejected_images = rejected_images[: MAX_REJECTS - images]
        rejected_prompts = [one for one in rejects if one[0].image_id is None]
        rejected_prompts = rejected_prompts[: MAX_REJECTS - prompts]
        images, prompts = images + len(rejected_images), prompts + len(rejected_prompts)
        if thumbnails is not None:
            images_of = [row for row, _ in rejected_images]
            shard.thumbnails = _add(thumbnails, storage, manifest, shard, rows, images_of)
        linked = thumbnails is not None
        for row in rows:
            entry = _published(row, ours, shard, link, linked, by_hand.get(row["image_id"]))
            yield replace(entry, similar=similar.get(row["image_id"], ()))
        shown = partial(_thumbnail, shard, link if linked else None)
        yield from (_rejected_image(row, own, shard, shown) for row, own in rejected_images)
        yield from (_rejected_prompt(row, own) for row, own in rejected_prompts)
        if published >= limit and images >= MAX_REJECTS:
            return


class _StageRows:
    """Rows that the stages wrote for a shard, read on first use; empty if the files are gone."""

    def __init__(self, storage: Storage, manifest: ShardManifest) -> None:
        self._storage, self._stages = storage, manifest.stages
        self._published = PublishedImages(storage)
        self._rows: dict[str, Mapping[str, Any]] = {}
        self.thumbnails: Mapping[str, str] = {}
        """Paths of thumbnails by image id."""

    def get(self, stage: str, record: type[Row], image_id: str | None) -> Row | None:
        """Return the row of an image in the output of a stage; None if missing."""
        if stage not in self._rows:
            try:
                rows = from_table(read_artifact(self._storage, self._stages[stage]), record)
            except StorageError:
                rows = []
            self._rows[stage] = {row.image_id: row for row in rows}
        return self._rows[stage].get(image_id or "")

    def decoded(self, image_id: str) -> bytes | None:
        """Return the file of a decoded image; None if missing."""
        row = self.get("decode", PixelsRecord, image_id)
        return None if row is None else row.image

    def published(self, row: Mapping[str, Any]) -> bytes | None:
        """Return the file of a published image; None if it cannot be read, as `verify` says."""
        try:
            return self._published.read(row["path"], row["image_id"])
        except StorageError:
            return None


def find_similar(
    storage: Storage, manifests: Sequence[ShardManifest]
) -> dict[str, tuple[str, ...]]:
    """The ids of the most similar images of each image in the gallery that has an embedding."""
    ids: list[str] = []
    found: list[npt.NDArray[np.float16]] = []
    for manifest in manifests:
        table = storage.read_table(manifest.metadata.path)
        field = table.schema.field(EMBEDDING) if EMBEDDING in table.column_names else None
        if field is None or not is_ours(field):
            continue
        table = table.slice(0, MAX_SIMILAR - len(ids))
        table = table.filter(pc.is_valid(table.column(EMBEDDING)))
        vectors = unpack_vectors(table.column(EMBEDDING))
        if found and vectors.shape[1:] != found[0].shape[1:]:
            continue  # of another scorer
        ids += table.column("image_id").to_pylist()
        found.append(vectors)
    if not found:
        return {}
    neighbours = most_similar(np.concatenate(found), SIMILAR_IMAGES)
    return {
        one: tuple(ids[position] for position in positions)
        for one, positions in zip(ids, neighbours, strict=True)
    }


def _metadata(storage: Storage, manifest: ShardManifest) -> pa.Table:
    """The metadata of a shard, without long columns that the gallery does not show."""
    table = with_current_names(storage.read_table(manifest.metadata.path), ImageRecord)
    long = [field.name for field in table.schema if field.name in LONG_COLUMNS and is_ours(field)]
    return table.drop_columns(long)


def _rejects(
    storage: Storage, manifest: ShardManifest
) -> list[tuple[RejectRecord, dict[str, Any]]]:
    """The rejects of a shard with the pass-through columns of their prompts."""
    if manifest.rejects is None:
        return []
    table, ours = storage.read_table(manifest.rejects.path), schema(RejectRecord).names
    own = table.select([name for name in table.column_names if name not in ours]).to_pylist()
    return list(zip(from_table(table, RejectRecord), own or [{}] * table.num_rows, strict=True))


def _add(
    thumbnails: Thumbnails,
    storage: Storage,
    manifest: ShardManifest,
    shard: _StageRows,
    rows: Sequence[Mapping[str, Any]],
    rejects: Sequence[RejectRecord],
) -> Mapping[str, str]:
    """Make the thumbnails of a shard; return their paths by image id."""
    kept = [row for row in rows if is_archive(row["path"]) or _is_large(row)]
    names = [row["image_id"] for row in kept]
    rejected = [row.image_id or "" for row in rejects if row.reason != "decode_error"]
    images = chain(map(shard.published, kept), map(shard.decoded, rejected))
    return thumbnails.add(manifest, [*names, *rejected], images)


def _thumbnail(
    shard: _StageRows,
    link: Linker | None,
    image_id: str,
    read: Callable[[], bytes | None] = lambda: None,
) -> str | None:
    """The URL of a thumbnail, or a data URI of the decoded or else the read image; None without."""
    if link is not None:
        path = shard.thumbnails.get(image_id)
        return None if path is None else link(path)
    image = shard.decoded(image_id) or read()
    return None if image is None else as_data_uri(image)


def _published(
    row: Mapping[str, Any],
    our_names: Collection[str],
    shard: _StageRows,
    link: Linker,
    linked: bool,
    by_hand: ByHand | None,
) -> Entry:
    """The entry of an image; `linked` says whether thumbnails are files."""
    kept = None if by_hand is None else ": ".join(filter(None, by_hand))
    ours = {name: value for name, value in row.items() if name in our_names}
    thumbnail = None
    packed = is_archive(row["path"])
    if packed or (linked and _is_large(row)):
        read = partial(shard.published, row)
        thumbnail = _thumbnail(shard, link if linked else None, row["image_id"], read)
    return Entry(
        image_id=row["image_id"],
        prompt_id=row["prompt_id"],
        caption=row["text"],
        translation=row["text_ru"] if row["text_ru"] != row["text"] else None,
        score=row["score"],
        seed=row["seed"],
        model=row["decoder"],
        source=None if packed else link(row["path"]),
        thumbnail=thumbnail,
        details=_details({**ours, "by_hand": kept}),
        columns=_details({name: value for name, value in row.items() if name not in ours}),
    )


def _rejected_image(
    row: RejectRecord,
    own: Mapping[str, Any],
    shard: _StageRows,
    shown: Callable[[str], str | None],
) -> Entry:
    scored = shard.get("score", ScoreRecord, row.image_id) if row.score is None else row
    drawn = shard.get("generate", TokensRecord, row.image_id)
    known = {name: getattr(drawn, name) for name in schema(TokensRecord).names} if drawn else {}
    return Entry(
        image_id=row.image_id,
        prompt_id=row.prompt_id,
        caption=row.text or "",
        translation=row.text_ru if row.text_ru != row.text else None,
        reason=row.reason,
        detail=row.detail,
        score=scored.score if scored else None,
        seed=drawn.seed if drawn else None,
        thumbnail=shown(row.image_id or ""),
        details=_details({**known, "rank": scored.rank if scored else None, "stage": row.stage}),
        columns=_details(own),
    )


def _rejected_prompt(row: RejectRecord, own: Mapping[str, Any] | None = None) -> Entry:
    known = {"prompt_id": row.prompt_id, "stage": row.stage, "reason": row.reason}
    return Entry(
        image_id=None,
        prompt_id=row.prompt_id,
        caption=row.text or "",
        reason=row.reason,
        detail=row.detail,
        details=_details(known),
        columns=_details(own or {}),
    )


def _is_large(row: Mapping[str, Any]) -> bool:
    return max(row["width"], row["height"]) > SIDE


def _details(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in row.items()
        if value is not None and name not in OMITTED_COLUMNS
    }


def as_data_uri(image: bytes) -> str:
    """Encode the contents of an image file as a small WebP thumbnail in a data URI."""
    small = make_thumbnail(image, SHARED_SIDE, SHARED_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(small).decode()}"
