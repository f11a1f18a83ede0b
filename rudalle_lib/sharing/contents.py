"""What is shared of an output: few large files instead of the many small ones of its shards.

The names of data files hold a digest of their content. So a file that the target has is the same,
and neither read nor sent again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.dataset.archives import Stream
from rudalle_lib.dataset.manifests import read_shard_manifests, require_run_manifest
from rudalle_lib.dataset.rejects import plan_reject_files
from rudalle_lib.derived.merging import MergedFile, merge_shards
from rudalle_lib.errors import StorageError
from rudalle_lib.pipeline.recorded_run import recorded_config, recorded_weights
from rudalle_lib.report.croissant import render_croissant
from rudalle_lib.report.dataset_card import render_dataset_card, used_models
from rudalle_lib.report.front_matter import DataForm
from rudalle_lib.report.report import Published, read_published
from rudalle_lib.report.worst_translations import render_translations
from rudalle_lib.schema.arrow import schema
from rudalle_lib.schema.records import RejectRecord, RunManifest, ShardManifest
from rudalle_lib.schema.tables import join_tables
from rudalle_lib.storage.sealed_parquet import to_parquet
from rudalle_lib.storage.storage import Storage

ROWS_PER_FILE = 5_000
"""Images per file unless the caller or the run says otherwise: 8 million images are 1,600 files."""

REJECTS_PER_FILE = 100_000
"""Rows per file of rejects."""

PAGES = (layout.CARD, layout.CROISSANT, layout.CONTACT_SHEET, layout.RUN_MANIFEST)
"""Files that are replaced by every push; the others have a digest in their names."""

_DATA = re.compile(
    r"(data/merged|data/metadata|rejects)/([a-z][a-z0-9_]{0,31}/)?\d{5,}\.[0-9a-f]{16}\."
    r"(tar|parquet)"
)


@dataclass(frozen=True)
class SharedFile:
    """A data file that is shared.

    Attributes:
        path: Its name in the target.
        size: About how many bytes it has.
        images: Number of images in it.
        write: Writes its content to a stream.
    """

    path: str
    size: int
    images: int
    write: Callable[[Stream | BinaryIO], object]


@dataclass(frozen=True)
class Contents:
    """A finished output, ready to be shared.

    Attributes:
        storage: The output.
        run: Its run manifest.
        config: The configuration of the run.
        manifests: Of its shards.
        published: What its metadata hold.
        rows: Images per file.
    """

    storage: Storage
    run: RunManifest
    config: RunConfig
    manifests: Sequence[ShardManifest]
    published: Published
    rows: int

    @property
    def form(self) -> DataForm:
        """The form in which it is shared; image files become Parquet, as they are too many."""
        section = self.config.publish
        form = "parquet" if section.format == "files" else section.format
        return DataForm(form, section.image_format, merged=True)

    def data_files(self) -> Iterator[SharedFile]:
        """All data files, without their content."""
        for merged in self._merged():
            yield SharedFile(merged.path, merged.image_bytes, merged.images, self._writer(merged))
            table = merged.table
            path = merged.path.replace(layout.MERGED_FOLDER, layout.METADATA_FOLDER, 1)
            path = f"{path.rpartition('.')[0]}.parquet"
            yield SharedFile(path, table.nbytes // 4, 0, _table_writer(table))
        for number, table in enumerate(_in_parts(self._rejects(), REJECTS_PER_FILE)):
            content = to_parquet(table)
            digest = hashlib.blake2b(content, digest_size=8).hexdigest()
            path = f"{layout.REJECTS_FOLDER}/{layout.shard_name(number, digest)}.parquet"
            yield SharedFile(path, len(content), 0, _table_writer(table))

    def pages(self) -> dict[str, bytes]:
        """The card, its machine-readable form, the contact sheet and `run.json`, by path."""
        run, columns, form = self.run, self.published.columns, self.form
        sizes = self.published.splits
        models = used_models(self.config, recorded_weights(run, self.config))
        worst = render_translations(self.published.worst_translations)
        sheet = self.storage.read_bytes_if_any(layout.CONTACT_SHEET)
        languages = sorted(self.published.languages)
        pages = {
            layout.CARD: render_dataset_card(
                run,
                models,
                languages,
                columns,
                sheet is not None,
                False,
                sizes,
                worst,
                form,
                shared=True,
            ).encode(),
            layout.CROISSANT: render_croissant(run, models, languages, columns, sizes, form),
            layout.RUN_MANIFEST: self.storage.read_bytes(layout.RUN_MANIFEST),
        }
        return pages if sheet is None else {**pages, layout.CONTACT_SHEET: sheet}

    def _merged(self) -> Iterator[MergedFile]:
        columns, form = self.published.columns, self.form.form
        return merge_shards(self.storage, self.manifests, columns, form, self.rows)

    def _writer(self, merged: MergedFile) -> Callable[[Stream | BinaryIO], object]:
        suffix = layout.image_suffix(self.config.publish.image_format)
        return lambda stream: merged.write(stream, self.storage, suffix)

    def _rejects(self) -> Iterator[pa.Table]:
        for path in plan_reject_files(self.storage):
            yield self.storage.read_table(path)
        for manifest in self.manifests:
            if manifest.rejects is not None:
                yield self.storage.read_table(manifest.rejects.path)


def read_contents(storage: Storage, rows: int | None = None) -> Contents:
    """Read what is shared of an output, without its images.

    Args:
        storage: The output.
        rows: Images per file; by default those of `publish.rows_per_file`, or `ROWS_PER_FILE`.

    Raises:
        StorageError: No run has finished there, or its report is older than its shards.
    """
    run, manifests = require_run_manifest(storage), read_shard_manifests(storage)
    if sum(manifest.kept for manifest in manifests) != run.totals.kept:
        raise StorageError(
            f"The report of {storage.public_path()} is not of its present shards: a run is in "
            "progress, or was interrupted. Push when it has finished."
        )
    if not run.totals.kept:
        raise StorageError(f"There is no image in {storage.public_path()}: nothing to push.")
    config = recorded_config(storage, run)
    published = read_published(storage, manifests)
    rows = rows or config.publish.rows_per_file or ROWS_PER_FILE
    return Contents(storage, run, config, manifests, published, rows)


def is_shared_data(path: str) -> bool:
    """Whether a file of a target has a name that only a push gives."""
    return _DATA.fullmatch(path) is not None


def _table_writer(table: pa.Table) -> Callable[[Stream | BinaryIO], object]:
    return lambda stream: stream.write(to_parquet(table))


def _in_parts(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of all tables in tables of a number of rows."""
    waiting = schema(RejectRecord).empty_table()
    for table in tables:
        waiting = join_tables([waiting, table.replace_schema_metadata()])
        while waiting.num_rows >= rows:
            yield waiting.slice(0, rows).combine_chunks()
            waiting = waiting.slice(rows)
    if waiting.num_rows:
        yield waiting.combine_chunks()
