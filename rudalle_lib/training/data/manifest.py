"""The manifest of encoded data: which shards of which datasets there are, written last.

Its name in the output is `data.json`. It holds a SHA-256 of itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.manifests import sealed_json, unsealed
from rudalle_lib.digests import digest_of
from rudalle_lib.errors import DamagedError
from rudalle_lib.storage.storage import Storage

DATA_MANIFEST = "data.json"
"""Name of the manifest in the output of a fine-tuning."""


@dataclass(frozen=True, slots=True)
class EncodedShard:
    """Some consecutive rows of a dataset, encoded.

    Attributes:
        path: the Parquet file, relative to the output; its name holds its version.
        rows: number of rows in it that are learnt from.
        rejected: number of rows that are not learnt from, by reason: those of `duplicate` are in
            the file, the others are not.
        rejects: the Parquet file that lists them, None if there are none.
    """

    path: str
    rows: int
    rejected: Mapping[str, int]
    rejects: str | None

    @property
    def duplicates(self) -> int:
        """Number of rows in the file that are not learnt from."""
        return self.rejected.get("duplicate", 0)


def without(shard: EncodedShard, duplicates: int, name: str) -> EncodedShard:
    """A shard some of whose rows are duplicates.

    Args:
        shard: the shard as it is encoded.
        duplicates: the number of these rows.
        name: digest of their rejects, for the file that lists them: what is a duplicate depends on
            other shards.
    """
    if not duplicates:
        return shard
    rejected = {**shard.rejected, "duplicate": duplicates}
    index = layout.index_of(shard.path, "stage")
    assert index is not None
    return EncodedShard(
        shard.path, shard.rows - duplicates, dict(sorted(rejected.items())),
        layout.rejects_path(index, layout.version_of(name)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class EncodedSource:
    """A dataset, encoded: its public URL, how often each of its rows is seen, and its shards."""

    uri: str
    repeats: int
    shards: Sequence[EncodedShard]


@dataclass(frozen=True, slots=True)
class EncodedData:
    """All datasets of a fine-tuning, encoded.

    Attributes:
        trains: the kind of network: decoder, vqgan or scorer.
        height: of an image in pixels.
        width: of an image in pixels.
        text_length: ids per caption; 0 if there are none.
        tokens: tokens per image; 0 if images are kept as pixels.
        sources: the datasets in the order of the configuration.
    """

    trains: str
    height: int
    width: int
    text_length: int
    tokens: int
    sources: Sequence[EncodedSource]

    @property
    def shards(self) -> list[EncodedShard]:
        """All shards in order."""
        return [shard for source in self.sources for shard in source.shards]

    @property
    def rows(self) -> int:
        """Number of encoded rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def rejected(self) -> dict[str, int]:
        """Number of rows that are not learnt from, by reason."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts.update(shard.rejected)
        return dict(sorted(counts.items()))

    def digest(self) -> str:
        """32 hex digits that change if any row does; how often rows are seen is no part of it."""
        names = [shard.path for shard in self.shards]
        sizes = [self.height, self.width, self.text_length, self.tokens]
        return digest_of([self.trains, sizes, names])


def write_manifest(storage: Storage, data: EncodedData) -> None:
    """Write the manifest, after all files that it names."""
    storage.commit(DATA_MANIFEST, sealed_json(asdict(data)))


def read_manifest(storage: Storage) -> EncodedData | None:
    """The manifest of an output, None if its data is not encoded yet.

    Raises:
        DamagedError: the file exists and is no such manifest.
    """
    content = storage.read_bytes_if_any(DATA_MANIFEST)
    if content is None:
        return None
    try:
        return _parse(unsealed(content))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"{storage.public_path(DATA_MANIFEST)} is no manifest of encoded data ({error}); "
            "delete it and run again, which encodes nothing twice."
        ) from None


def _parse(data: dict[str, Any]) -> EncodedData:
    sources = tuple(
        EncodedSource(**{**source, "shards": tuple(EncodedShard(**s) for s in source["shards"])})
        for source in data.pop("sources")
    )
    return EncodedData(**data, sources=sources)
