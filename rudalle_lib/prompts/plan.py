"""The plan: which prompts are in which shard, frozen on disk and only appended to.

`plan/<shard>.parquet` holds the prompts of a shard. Later runs read its ids, and put only prompts
that are in no shard yet into new files. So an interrupted plan continues where it stopped, and a
table with new rows adds only those rows. An existing file never gets or loses a prompt. All that
can change in it is how many images a prompt has, if its row has an id of its own and asks for
another number: the images that are drawn are the first ones of these. Any other row whose text or
overrides have changed is a new prompt. If it has an id of its own, that id is taken, so the new
prompt is called `<id>.<digest>`. Rows that were removed from the table are counted, but stay
planned. Rows that are not planned are in `rejects/plan-<table>.parquet`. Each run of the table
rewrites that file, and stores the counts of the reading in its metadata.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice
from types import TracebackType
from typing import Self

import pyarrow as pa

from rudalle_lib.config.inputs import SHARD_SIZE
from rudalle_lib.config.precision import record_precisions
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.errors import DamagedError, ShardError, TornError
from rudalle_lib.prompts.known_prompts import CHOSEN_SIZE, KnownPrompts, Renumbered, with_numbers
from rudalle_lib.prompts.rows import (
    count_images,
    count_most_images,
    extras_of,
    plan_fingerprint,
    prompts_of,
    read_table,
    reject_blocked,
    sources_of,
)
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import Prompt, RejectRecord, ShardSpec
from rudalle_lib.schema.table_rows import describe_rows
from rudalle_lib.schema.tables import join_tables
from rudalle_lib.storage.errors import public_url
from rudalle_lib.storage.sealed_parquet import from_parquet, to_parquet
from rudalle_lib.storage.storage import Storage

FILES_AT_ONCE = 256
"""Plan files that are read or written together."""

FINGERPRINT = "fingerprint"
"""Metadata key of a plan file: a digest of its prompts (`plan_fingerprint`)."""

IMAGE_PROMPTS = "image_prompts"
"""Metadata key of a plan file: how many of its prompts have an image prompt."""

SOURCE_ROWS = "source"
"""Metadata key of a plan file: its rows of the prompt table, in words (`describe_rows`)."""

ORIGIN = "origin"
"""Metadata key of a plan file: its fingerprint before rows asked for other numbers of images."""

TABLE, ROWS, REMOVED = "table", "rows", "removed"
"""Metadata keys of a table's rejects: its public URL, rows read, planned prompts that are gone."""

OnRowsRead = Callable[[int], None]
"""Called every few thousand rows with the number of rows read so far."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of an output folder, and what the last reading of the prompt table found.

    Attributes:
        shards: all shards, in order.
        new_shards: indices of the shards that this reading added.
        new_prompts: number of prompts in the new shards.
        new_images: number of candidate images of the new prompts; of the first round, if images are
            drawn in rounds.
        table: public URL of the table.
        rows: number of rows read.
        rejected: number of rows that were not planned, by reason.
        removed: number of planned prompts that are no longer in the table; they stay planned.
        most_new_images: number of candidate images that the new prompts have at most.
        shard_size: prompts per new shard, at most; None if there is none.
    """

    shards: tuple[ShardSpec, ...]
    new_shards: tuple[int, ...]
    new_prompts: int
    new_images: int
    table: str
    rows: int
    rejected: Mapping[str, int]
    removed: int
    most_new_images: int = 0
    shard_size: int | None = None

    @property
    def prompts(self) -> int:
        """Prompts in all shards."""
        return sum(shard.rows for shard in self.shards)


def plan_run(
    config: RunConfig,
    storage: Storage,
    *,
    write: bool = True,
    choose_size: Callable[[], int] = lambda: SHARD_SIZE,
    on_rows_read: OnRowsRead | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Read the prompt table and append its new prompts to the plan.

    Args:
        config: the configuration of the run.
        storage: the output folder.
        write: if False, nothing is written, and the result is what would have been planned.
        choose_size: called if `prompts.shard_size` is auto and the output has no shard that was
            planned so; only if there are new prompts.
        on_rows_read: called every few thousand rows.
        notice: called with one sentence if plan files are empty or cut off, as after a power cut.
            They count as missing, so their prompts are planned again.

    Raises:
        PromptError: the table cannot be read.
        StorageError: the output folder cannot be read or written.
        ShardError: a plan file is damaged.
    """
    known = KnownPrompts()
    torn: list[str] = []
    shards = list(_read_plan(storage, known, torn.append))
    if torn:
        names = ", ".join(torn[:5]) + (f" and {len(torn) - 5:,} more" if len(torn) > 5 else "")
        notice(f"Plan files that are empty or cut off are planned again: {names}.")
    for path in torn if write else []:
        storage.delete(path)
    source = config.prompts
    table = public_url(source.uri)
    rejects: list[pa.Table] = []
    reasons: Counter[str] = Counter()
    rows = images = most = 0

    def size() -> int:
        number = source.shard_size
        return (known.shard_size or choose_size()) if number == "auto" else number

    with _ShardWriter(storage, shards, size, write, source.shard_size == "auto") as writer:
        for block in read_table(source):
            prompts, duplicates = known.select_new(block)
            prompts, blocked = reject_blocked(prompts, config.publish.blocked_words)
            writer.add(prompts)
            images += count_images(prompts, config.generate)
            most += count_most_images(prompts, config.generate)
            records = [*block.rejects, *duplicates, *blocked]
            reasons.update(record.reason for record in records)
            if records:
                rejects.append(to_table(records, RejectRecord))
            rows += len(block.numbers) + len(block.rejects)
            if on_rows_read is not None:
                on_rows_read(rows)
    shards = list(_renumber(storage, shards, known.renumbered, write))
    if write:
        record_precisions(storage, config.precisions())
        _write_rejects(storage, table, rejects, {ROWS: rows, REMOVED: known.unseen})
        storage.sync()
    return Plan(
        shards=tuple(sorted([*shards, *writer.made], key=lambda spec: spec.index)),
        new_shards=tuple(spec.index for spec in writer.made),
        new_prompts=sum(spec.rows for spec in writer.made),
        new_images=images,
        table=table,
        rows=rows,
        rejected=dict(reasons),
        removed=known.unseen,
        most_new_images=most,
        shard_size=writer.shard_size,
    )


def plan_prompts(storage: Storage, prompts: pa.Table) -> ShardSpec:
    """Write prompts, a table with the columns of a plan file, as the only shard of an output."""
    with _ShardWriter(storage, [], lambda: prompts.num_rows, write=True) as writer:
        writer.add(prompts)
    (shard,) = writer.made
    return shard


def read_tables(storage: Storage) -> dict[str, dict[str, int]]:
    """The counts of the last reading of each prompt table, by its public URL.

    Returns:
        For each table `rows`, the rows read, and `removed`, the planned prompts that are gone.
    """
    tables = {}
    for path in storage.list(layout.REJECTS_FOLDER):
        name = layout.parse(path)
        plan_rejects = name is not None and name.kind == "plan rejects"
        metadata = storage.read_metadata(path) if plan_rejects else None
        if metadata is not None and TABLE in metadata:
            tables[metadata[TABLE]] = {name: int(metadata[name]) for name in (ROWS, REMOVED)}
    return tables


def read_plan(storage: Storage) -> list[ShardSpec]:
    """The planned shards of an output folder, in order.

    Raises:
        ShardError: a plan file is damaged.
    """
    return list(_read_plan(storage, None))


def frozen_plan(config: RunConfig, storage: Storage) -> Plan | None:
    """The plan that a run of this table has written; None if none has.

    Raises:
        ShardError: a plan file is damaged.
    """
    table = public_url(config.prompts.uri)
    counts = read_tables(storage).get(table)
    if counts is None:
        return None
    shards = tuple(read_plan(storage))
    return Plan(shards, (), 0, 0, table, counts[ROWS], {}, counts[REMOVED])


def read_planned(storage: Storage, shard: ShardSpec) -> pa.Table:
    """The rows of the plan file of a shard, in order."""
    return storage.read_table(storage.relative(shard.plan_uri))


def read_shard(storage: Storage, shard: ShardSpec) -> list[Prompt]:
    """The prompts of a shard, in order."""
    return prompts_of(read_planned(storage, shard))


def read_extras(storage: Storage, shard: ShardSpec) -> pa.Table:
    """`extras_of` a shard."""
    return extras_of(read_planned(storage, shard))


def _renumber(
    storage: Storage,
    shards: Iterable[ShardSpec],
    renumbered: Mapping[str, Renumbered],
    write: bool,
) -> Iterator[ShardSpec]:
    """The shards, with the numbers of images that rows of the table ask for now."""
    for spec in shards:
        path = storage.relative(spec.plan_uri)
        found = storage.read_table(path, ["prompt_id"]).column(0).to_pylist() if renumbered else ()
        if renumbered.keys().isdisjoint(found):
            yield spec
            continue
        table = with_numbers(storage.read_table(path), renumbered)
        origin, fingerprint = spec.origin or spec.fingerprint, plan_fingerprint(table)
        if write:
            metadata = {**(storage.read_metadata(path) or {}), ORIGIN: origin}
            metadata[FINGERPRINT] = fingerprint
            storage.write_table(path, table.replace_schema_metadata(), metadata)
        yield replace(spec, fingerprint=fingerprint, origin=origin)


class _ShardWriter:
    """Divides prompts into shards and writes them concurrently, under free indices in order.

    Free indices below the last used one come first: they are those that an interrupted run did not
    write, and get exactly the prompts that they would have had. While some shards are sent to the
    storage, the next ones are prepared.
    """

    def __init__(
        self, storage: Storage, planned: Iterable[ShardSpec], size: Callable[[], int], write: bool,
        record_size: bool = False,
    ) -> None:  # fmt: skip
        taken = {spec.index for spec in planned}
        self._storage = storage
        self._indices = (index for index in count() if index not in taken)
        self._size, self._record_size, self._write = size, record_size, write
        self._waiting: pa.Table | None = None
        self._files: dict[str, bytes] = {}
        self._sender = ThreadPoolExecutor(1)
        self._sending: Future[None] | None = None
        self.made: list[ShardSpec] = []
        self.shard_size: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._sender:
            if error is None:
                self._cut(1)
                self._send()
                self._wait()

    def add(self, prompts: pa.Table) -> None:
        """Add prompts, and write the shards that are full."""
        if prompts.num_rows == 0:
            return
        if self._waiting is not None:
            prompts = join_tables([self._waiting, prompts])
        self._waiting = prompts.combine_chunks()
        self.shard_size = self.shard_size or self._size()
        self._cut(self.shard_size)

    def _cut(self, min_rows: int) -> None:
        """Make shards while at least this many prompts are waiting."""
        while self._waiting is not None and self._waiting.num_rows >= min_rows:
            shard = self._waiting.slice(0, self.shard_size)
            rest = self._waiting.slice(shard.num_rows)
            self._waiting = rest if rest.num_rows else None
            self.made.append(self._make(next(self._indices), shard))
            if len(self._files) == FILES_AT_ONCE:
                self._send()

    def _make(self, index: int, table: pa.Table) -> ShardSpec:
        path, fingerprint = layout.plan_path(index), plan_fingerprint(table)
        images = table.num_rows - table.column("image_prompt").null_count
        source = describe_rows(filter(None, sources_of(table)))
        if self._write:
            metadata = {FINGERPRINT: fingerprint, IMAGE_PROMPTS: str(images), SOURCE_ROWS: source}
            if self._record_size:
                metadata[CHOSEN_SIZE] = str(self.shard_size)
            self._files[path] = to_parquet(table, metadata)
        url = self._storage.url(path)
        return ShardSpec(index, url, table.num_rows, fingerprint, bool(images), "", source)

    def _send(self) -> None:
        """Write the prepared files in the background, once the previous ones are written."""
        self._wait()
        self._sending = self._sender.submit(self._storage.create_many, self._files)
        self._files = {}

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.result()


def _read_plan(
    storage: Storage,
    known: KnownPrompts | None,
    on_torn: Callable[[str], None] = lambda _: None,
) -> Iterator[ShardSpec]:
    files = storage.list(layout.PLAN_FOLDER)
    paths = iter([path for path in files if layout.index_of(path, "plan") is not None])
    while group := list(islice(paths, FILES_AT_ONCE)):
        for path, content in zip(group, storage.read_many(group), strict=True):
            try:
                spec, prompts = _parse(storage, path, content)
            except TornError:
                on_torn(path)
                continue
            if known is not None:
                known.add_planned(prompts)
            yield spec


def _parse(storage: Storage, path: str, content: bytes) -> tuple[ShardSpec, pa.Table]:
    """The shard in a plan file, and the columns `prompt_id` and `content` of its prompts."""
    try:
        columns = ["prompt_id", "content", "images"]
        prompts = from_parquet(content, storage.public_path(path), columns)
    except TornError:
        raise
    except DamagedError as error:
        raise _damaged(storage, path, str(error)) from None
    metadata = prompts.schema.metadata or {}
    fingerprint, index = metadata.get(FINGERPRINT.encode()), layout.index_of(path, "plan")
    if index is None or fingerprint is None or prompts.num_columns != len(columns):
        raise _damaged(storage, path, "It is not a plan file.")
    images = metadata.get(IMAGE_PROMPTS.encode(), b"0") != b"0"
    url = storage.url(path)
    origin, source = (metadata.get(key.encode(), b"").decode() for key in (ORIGIN, SOURCE_ROWS))
    spec = ShardSpec(index, url, prompts.num_rows, fingerprint.decode(), images, origin, source)
    return spec, prompts


def _damaged(storage: Storage, path: str, why: str) -> ShardError:
    return ShardError(
        f"The plan file {storage.public_path(path)} cannot be used: {why} Delete it; the next run "
        "plans its prompts again."
    )


def _write_rejects(
    storage: Storage, table: str, rejects: list[pa.Table], counts: Mapping[str, int]
) -> None:
    content = pa.concat_tables([to_table([], RejectRecord), *rejects])
    metadata = {TABLE: table, **{name: str(number) for name, number in counts.items()}}
    storage.write_table(layout.plan_rejects_path(table), content, metadata)
