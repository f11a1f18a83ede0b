"""Datasets become tokens and ids, shard by shard.

A shard is some consecutive rows of a dataset. Its file is named after a fingerprint of these rows
and of all that its content depends on. So a run that was killed goes on with the first shard that
has no file, another VQ-GAN or setting encodes anew, and of a dataset that has grown at its end only
the last shard and the new ones are encoded.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from itertools import islice

import pyarrow as pa
import torch
from torch import Tensor

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.inputs import SourceConfig
from rudalle_lib.dataset import layout
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import (
    DataError,
    ImageError,
    StoppedError,
    StorageError,
    TransientError,
)
from rudalle_lib.generation.image_prompts import MAX_PIXELS
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.images.file_threads import map_ahead
from rudalle_lib.pipeline.artifacts import find_artifact, write_artifact
from rudalle_lib.pipeline.stages import fingerprint
from rudalle_lib.prompts.text_streams import storable
from rudalle_lib.schema.records import ShardSpec, StageArtifact
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.duplicates import Duplicates, row_digest, with_digests
from rudalle_lib.training.data.encoders import CPU, Encoder, make_encoder
from rudalle_lib.training.data.manifest import (
    EncodedData,
    EncodedShard,
    EncodedSource,
    without,
    write_manifest,
)
from rudalle_lib.training.data.rejects import (
    RejectedError,
    RejectedRow,
    publish_rejects,
    rejects_in,
    with_rejects,
)
from rudalle_lib.training.data.rows import BadRow, FoundRow, Row, caption_of
from rudalle_lib.training.data.shards import Shard, read_shards

STAGE = "encode"
"""Folder of the encoded shards in `stages/`."""

VERSION = 2
"""Raised when new code encodes otherwise."""

READERS = 16
"""Images that are read at once: web servers and object storage take long to answer."""

DECODERS = threading.BoundedSemaphore(4)
"""Those of them that are decoded at once; each may need 16 bytes per pixel."""

OUTAGE = 10
"""The fewest images of a shard whose servers do not answer for which the network is to blame."""

TEXT_TYPE = pa.list_(pa.int32())
"""Type of the column of caption ids."""


@dataclass(frozen=True)
class Progress:
    """How far the encoding is: counts of images, rejects and shards so far.

    `reused` of the shards were encoded by an earlier run. `source` is the number of the dataset
    that is read, from 1, and `sources` the number of all.
    """

    source: int
    sources: int
    images: int = 0
    rejects: int = 0
    shards: int = 0
    reused: int = 0


@dataclass(frozen=True)
class Share:
    """The shards that one of several processes encodes: every `of`-th, from number `number`."""

    number: int = 0
    of: int = 1


def encode_data(
    config: FineTuneConfig,
    storage: Storage,
    device: torch.device = CPU,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    notice: Callable[[str], None] = lambda _: None,
    share: Share | None = None,
    term: int = 0,
) -> EncodedData:
    """Encode what is not encoded yet, and write the manifest.

    Several processes, on any machines, may each encode a share; afterwards a call without a share
    finds everything done and writes the manifest. Files are the same however many they were.

    Args:
        config: the fine-tuning.
        storage: its output.
        device: of the VQ-GAN.
        on_progress: called after each batch and each shard; it may raise to stop the work.
        stop: asked between batches.
        notice: called with a sentence about anything unusual, such as a damaged file.
        share: encode only these shards, and write no manifest.
        term: of the lease that is held.

    Returns:
        What is encoded; with a share, only that.

    Raises:
        DataError: a dataset cannot be read, or there is no usable row at all.
        StoppedError: `stop` returned true. What is finished stays finished.
        TransientError: the storage of a dataset, or most web servers that it names, do not answer.
        StorageError: a dataset or the output cannot be read or written.
    """
    encoder = make_encoder(config, device)
    work = _Work(config, storage, encoder, on_progress, stop, notice, share or Share(), term)
    sources = [work.encode_source(source) for source in config.data]
    data = EncodedData(
        config.trains, encoder.height, encoder.width, encoder.text_length, encoder.tokens,
        tuple(sources),
    )  # fmt: skip
    if share is None:
        data, duplicates = _without_duplicates(storage, data)
        publish_rejects(storage, data, duplicates)
        if not data.rows:
            raise DataError(_nothing(storage, data))
        write_manifest(storage, data)
    return data


def _without_duplicates(
    storage: Storage, data: EncodedData
) -> tuple[EncodedData, list[list[RejectedRow]]]:
    """The data whose duplicates count as rejects, and those of each shard."""
    found = Duplicates(storage, [shard.path for shard in data.shards])
    names = [source.uri for source in data.sources for _ in source.shards]
    rejects = [found.rejects(number, names) for number in range(len(data.shards))]
    marked = iter([
        without(shard, len(rows), digest_of([shard.path, number, [astuple(row) for row in rows]]))
        for number, (shard, rows) in enumerate(zip(data.shards, rejects, strict=True))
    ])  # fmt: skip
    sources = tuple(
        replace(source, shards=tuple(islice(marked, len(source.shards)))) for source in data.sources
    )
    return replace(data, sources=sources), rejects


class _Work:
    """The encoding of all datasets of a configuration."""

    def __init__(
        self,
        config: FineTuneConfig,
        storage: Storage,
        encoder: Encoder,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], bool],
        notice: Callable[[str], None],
        share: Share,
        term: int,
    ) -> None:
        self._config = config
        self._storage = storage
        self._encoder = encoder
        self._report = on_progress
        self._stop = stop
        self._notice = notice
        self._share = share
        self._term = term
        self._progress = Progress(0, len(config.data))
        self._seen = 0  # shards of all datasets so far

    def encode_source(self, source: SourceConfig) -> EncodedSource:
        """Encode the shards of a dataset that are not finished."""
        self._advance(source=1)
        shards: list[EncodedShard] = []
        captions = self._encoder.encode_text is not None
        for shard in read_shards(source, captions, self._config.encoding.shard_size):
            self._check_stop()
            mine = self._seen % self._share.of == self._share.number
            self._seen += 1
            if mine:
                shards.append(self._find_or_encode(source, shard))
        return EncodedSource(public_url(source.uri), source.repeats, tuple(shards))

    def _find_or_encode(self, source: SourceConfig, shard: Shard) -> EncodedShard:
        encoding, encoder = self._config.encoding, self._encoder
        settings = {
            "source": public_url(source.uri),
            "trains": encoder.trains,
            "size": [encoder.height, encoder.width, encoder.text_length],
            "fit": encoding.fit,
            "long_captions": encoding.long_captions,
            **encoder.identity,
        }
        version = fingerprint(STAGE, VERSION, settings, shard.identity())
        found = self._find(shard, version)
        if found is not None:
            rejects = sum(found.rejected.values())
            self._advance(images=found.rows, rejects=rejects, shards=1, reused=1)
            return found
        return self._encode(source, shard, version)

    def _find(self, shard: Shard, version: str) -> EncodedShard | None:
        spec = ShardSpec(shard.index, "", len(shard.rows), version)
        artifact = find_artifact(self._storage, STAGE, spec, version, self._notice, self._term)
        if artifact is None:
            return None
        return self._described(shard, version, artifact)

    def _described(self, shard: Shard, version: str, artifact: StageArtifact) -> EncodedShard:
        path = self._storage.relative(artifact.uri)
        counts = Counter(row.reason for row in rejects_in(self._storage, path))
        rejects = layout.rejects_path(shard.index, layout.version_of(version)) if counts else None
        return EncodedShard(path, artifact.rows, dict(sorted(counts.items())), rejects)

    def _encode(self, source: SourceConfig, shard: Shard, version: str) -> EncodedShard:
        started = time.monotonic()
        rejects: list[RejectedRow] = []
        digests: list[str] = []
        batches: list[pa.Table] = []
        outages: list[StorageError] = []

        def reject(row: Row, error: RejectedError) -> None:
            uri, key = public_url(source.uri), storable(row.key)
            rejects.append(RejectedRow(uri, key, error.reason, storable(error.detail)))

        with ThreadPoolExecutor(READERS, "training-images") as threads:
            for batch in self._batches(shard.rows, threads, reject, digests, outages):
                batches.append(batch)
                self._advance(images=batch.num_rows)
                self._check_stop()
        if len(outages) >= OUTAGE and 2 * len(outages) > len(shard.rows):
            raise TransientError(
                f"{len(outages):,} of {len(shard.rows):,} images of {public_url(source.uri)} "
                f"could not be asked for, so the network may be down. The first: {outages[0]}"
            )
        table = pa.concat_tables(batches) if batches else self._columns().empty_table()
        table = with_rejects(with_digests(table, digests), rejects)
        spec = ShardSpec(shard.index, "", len(shard.rows), version)
        seconds = time.monotonic() - started
        artifact = write_artifact(
            self._storage, STAGE, spec, version, table, seconds, term=self._term
        )
        self._advance(rejects=len(rejects), shards=1)
        return self._described(shard, version, artifact)

    def _batches(
        self,
        rows: Sequence[Row],
        threads: Executor,
        reject: Callable[[Row, RejectedError], None],
        digests: list[str],
        outages: list[StorageError],
    ) -> Iterator[pa.Table]:
        """The encoded rows in batches; rejects and digests are noted in the order of the rows."""
        size = self._config.encoding.batch_size
        ready: list[_Ready] = []
        for row, found in map_ahead(threads, self._prepare, rows, READERS):
            if isinstance(found, _Ready):
                ready.append(found)
                digests.append(found.digest)
            else:
                reject(row, found)
                if isinstance(found.__cause__, StorageError):
                    outages.append(found.__cause__)
            if len(ready) == size:
                yield self._encode_batch(ready)
                ready = []
        if ready:
            yield self._encode_batch(ready)

    def _prepare(self, row: Row) -> tuple[Row, _Ready | RejectedError]:
        """Read a row; runs in a thread."""
        try:
            if isinstance(row, BadRow):
                raise RejectedError(row.reason, row.detail)
            return row, _prepare(row, self._encoder, self._config)
        except RejectedError as error:
            return row, error

    def _encode_batch(self, rows: Sequence[_Ready]) -> pa.Table:
        images = self._encoder.encode_images(torch.stack([row.image for row in rows]))
        columns = [[storable(row.key) for row in rows], [row.caption for row in rows]]
        if self._encoder.encode_text is not None:
            columns.append([row.ids for row in rows])
        fields = self._columns()
        arrays = [pa.array(c, f.type) for c, f in zip(columns, fields, strict=False)]
        return pa.table([*arrays, images], schema=fields)

    def _columns(self) -> pa.Schema:
        """The columns of an encoded shard."""
        text = [("text", TEXT_TYPE)] if self._encoder.encode_text is not None else []
        image = ("image", self._encoder.image_type)
        return pa.schema([("key", pa.string()), ("caption", pa.string()), *text, image])

    def _advance(self, **counts: int) -> None:
        old = self._progress
        new = {name: getattr(old, name) + count for name, count in counts.items()}
        self._progress = replace(old, **new)
        self._report(self._progress)

    def _check_stop(self) -> None:
        if self._stop():
            raise StoppedError("The encoding of the data was asked to stop.")


@dataclass(frozen=True)
class _Ready:
    """A row that can be encoded."""

    key: str
    caption: str | None
    ids: Sequence[int] | None
    image: Tensor
    digest: str


def _prepare(row: FoundRow, encoder: Encoder, config: FineTuneConfig) -> _Ready:
    """Read the caption and image of a row.

    Raises:
        RejectedError: it cannot be used. Its cause is a `StorageError` if a web server did not
            answer, which may be an outage.
        TransientError: the storage does not answer.
    """
    caption, ids = None, None
    if encoder.encode_text is not None:
        caption = _caption(row)
        ids = encoder.ids_of(caption, config.encoding.long_captions)
    try:
        content = row.image() if callable(row.image) else row.image
        with DECODERS:
            image = decode_image(content, max_pixels=MAX_PIXELS, name="it")
            fitted = encoder.image_of(image, config.encoding.fit == "exact")
    except TransientError as error:
        if not row.on_web:
            raise
        raise RejectedError("unreadable_image", str(error)) from error
    except StorageError as error:
        raise RejectedError("unreadable_image", str(error)) from None
    except ImageError as error:
        raise RejectedError("bad_image", str(error)) from None
    return _Ready(row.key, caption, ids, fitted, row_digest(caption, content))


def _caption(row: FoundRow) -> str:
    try:
        return caption_of(row.caption() if callable(row.caption) else row.caption)
    except TransientError:
        raise
    except StorageError as error:
        raise RejectedError("no_caption", str(error)) from None


def _nothing(storage: Storage, data: EncodedData) -> str:
    """The sentence for data without a usable row."""
    names = ", ".join(source.uri for source in data.sources)
    path = next((shard.rejects for shard in data.shards if shard.rejects), None)
    if path is None:
        return f"{names} has no image to learn from: it is empty."
    first = storage.read_table(path).slice(0, 1).to_pylist()[0]
    return (
        f"{names} has no image to learn from; {sum(data.rejected.values()):,} rows were rejected, "
        f"see {storage.public_path(layout.REJECTS_FOLDER)}. The first: {first['row']}: "
        f"{first['detail']}."
    )
