"""The plan: which prompts are in which shard, frozen on disk and only appended to.

`plan/<shard>.parquet` holds the prompts of a shard. A file that is there is never changed: a later
run reads the ids in it and puts prompts that are not in any shard yet into new ones. So a killed
plan goes on where it stopped, and a grown table adds only what is new. A row whose text or
overrides have changed is a new prompt; where it has an id of its own, that id is taken, so the new
prompt is `<id>.<digest>`. Rows that are gone from the table are counted and stay planned. What of a
table did not make it into the plan is in `rejects/plan-<table>.parquet`, made anew at every run of
that table, with what the reading counted in its metadata.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from rudalle_lib import layout
from rudalle_lib.blocked_words import refusal
from rudalle_lib.config import RunConfig
from rudalle_lib.digests import digest_of_bytes
from rudalle_lib.errors import DamagedError, ShardError
from rudalle_lib.prompts import EXTRA, STAGE, PromptBlock, prompts_of, read_prompt_blocks
from rudalle_lib.record_tables import to_table
from rudalle_lib.records import Prompt, RejectRecord, ShardSpec, reject
from rudalle_lib.sealed_tables import from_parquet, to_parquet
from rudalle_lib.storage import Storage
from rudalle_lib.storage_errors import public_url

#: Plan files that are handed to the storage, or asked of it, together.
FILES_AT_ONCE = 256

#: Metadata of a plan file: how many of its prompts have an image prompt.
IMAGE_PROMPTS = "image_prompts"

#: Metadata of the rejects of a table: its public URL, and what its last reading counted.
TABLE, ROWS, REMOVED = "table", "rows", "removed"

#: Called now and then with the number of rows read so far.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of an output folder, in order, and what the last reading of the table found.

    `new_shards` are the indices that this reading added, `new_prompts` counts the prompts in them,
    `new_images` the candidate images that those ask for.
    `table` is the public URL of the table, `rows` counts the rows read, `rejected` those of them
    that were not planned, by reason; `removed` counts planned prompts that the reading did not
    meet: they stay planned.
    """

    shards: tuple[ShardSpec, ...]
    new_shards: tuple[int, ...]
    new_prompts: int
    new_images: int
    table: str
    rows: int
    rejected: Mapping[str, int]
    removed: int

    @property
    def prompts(self) -> int:
        """Prompts in all shards."""
        return sum(shard.rows for shard in self.shards)


def plan_run(
    config: RunConfig,
    storage: Storage,
    *,
    write: bool = True,
    progress: Progress | None = None,
) -> Plan:
    """Read the prompt table and append its new prompts to the plan.

    With `write=False` nothing is written: the plan says what would be. Raises `PromptError` where
    the table cannot be read, `StorageError` where the output cannot be used, `ShardError` where a
    plan file is damaged.
    """
    known = _KnownPrompts()
    shards = list(_read_plan(storage, known))
    source = config.prompts
    table = public_url(source.uri)
    rejects: list[pa.Table] = []
    reasons: Counter[str] = Counter()
    rows = images = 0
    with _ShardWriter(storage, shards, source.shard_size, write) as writer:
        for block in read_prompt_blocks(source.uri, source.columns, source.limit):
            prompts, duplicates = known.sift(block, table)
            prompts, unsafe = _keep_out(prompts, config.publish.blocked_words)
            writer.add(prompts)
            images += _count_images(prompts, config.generate.images)
            refused = [*block.rejects, *duplicates, *unsafe]
            reasons.update(record.reason for record in refused)
            rejects.append(to_table(refused, RejectRecord))
            rows += len(block.numbers) + len(block.rejects)
            if progress is not None:
                progress(rows)
    if write:
        _write_rejects(storage, table, rejects, {ROWS: rows, REMOVED: known.unseen})
    return Plan(
        shards=tuple(sorted([*shards, *writer.made], key=lambda spec: spec.index)),
        new_shards=tuple(spec.index for spec in writer.made),
        new_prompts=sum(spec.rows for spec in writer.made),
        new_images=images,
        table=table,
        rows=rows,
        rejected=dict(reasons),
        removed=known.unseen,
    )


def plan_prompts(storage: Storage, prompts: pa.Table) -> ShardSpec:
    """Write prompts, in the columns of a plan file, as the only shard of an empty output."""
    with _ShardWriter(storage, [], prompts.num_rows, write=True) as writer:
        writer.add(prompts)
    (shard,) = writer.made
    return shard


def read_tables(storage: Storage) -> dict[str, dict[str, int]]:
    """What the last reading of every prompt table counted, by its public URL: rows, removed."""
    tables = {}
    for path in storage.list(layout.REJECTS_FOLDER):
        found = storage.read_metadata(path) if layout.index_of(path) is None else None
        if found is not None and TABLE in found:
            tables[found[TABLE]] = {name: int(found[name]) for name in (ROWS, REMOVED)}
    return tables


def read_plan(storage: Storage) -> list[ShardSpec]:
    """The shards that are planned in an output folder, in order.

    Raises `ShardError` where a plan file is damaged.
    """
    return list(_read_plan(storage, None))


def read_shard(storage: Storage, shard: ShardSpec) -> list[Prompt]:
    """The prompts of a shard, in order."""
    return prompts_of(storage.read_table(storage.relative(shard.plan_uri)))


def count_images(storage: Storage, shard: ShardSpec, default: int) -> int:
    """Candidate images of a shard; prompts without a number of their own get `default`."""
    return _count_images(storage.read_table(storage.relative(shard.plan_uri), ["images"]), default)


def read_extras(storage: Storage, shard: ShardSpec) -> pa.Table:
    """The pass-through columns of a shard by their own names, after `prompt_id`, in order."""
    table = storage.read_table(storage.relative(shard.plan_uri))
    names = ["prompt_id", *(name for name in table.column_names if name.startswith(EXTRA))]
    return table.select(names).rename_columns(
        ["prompt_id", *(name.removeprefix(EXTRA) for name in names[1:])]
    )


def _count_images(prompts: pa.Table, default: int) -> int:
    return int(pc.sum(pc.fill_null(prompts.column("images"), default)).as_py() or 0)


def plan_fingerprint(table: pa.Table) -> str:
    """32 hex characters of the values of a plan table, whatever wrote it."""
    values = json.dumps(table.to_pydict(), ensure_ascii=True, sort_keys=True, default=str)
    return digest_of_bytes(values.encode())


class _KnownPrompts:
    """The prompts that are planned or were read before, to tell new ones from old and doubled."""

    def __init__(self) -> None:
        self._contents: dict[str, str] = {}  # by prompt_id
        self._unseen: set[str] = set()  # planned by earlier runs, not read in this one
        self._changed: dict[str, str] = {}  # contents by given id, read in this run, changed since

    @property
    def unseen(self) -> int:
        """How many prompts of earlier runs have not turned up in the table."""
        return len(self._unseen)

    def add_planned(self, table: pa.Table) -> None:
        """Note the prompts of a plan file."""
        contents = {i: i if i == content else content for i, content in _ids_and_contents(table)}
        self._contents.update(contents)
        self._unseen.update(contents)

    def sift(self, block: PromptBlock, table: str) -> tuple[pa.Table, list[RejectRecord]]:
        """The new prompts of a block, and a reject for each row that stood before."""
        new: list[int] = []
        renamed: dict[int, str] = {}
        duplicates: list[RejectRecord] = []
        for position, (prompt_id, content) in enumerate(_ids_and_contents(block.prompts)):
            before = self._contents.get(prompt_id)
            if prompt_id in self._unseen and before != content and prompt_id not in self._changed:
                self._changed[prompt_id] = content
                prompt_id = renamed[position] = changed_id(prompt_id, content)
                before = self._contents.get(prompt_id)
            elif prompt_id in self._changed:
                other = "has an earlier row" if self._changed[prompt_id] != content else None
                duplicates.append(_duplicate(block, position, table, other))
                continue
            if before is None:
                # One object for both where they are equal: half the memory of a million ids.
                self._contents[prompt_id] = prompt_id if prompt_id == content else content
                new.append(position)
            elif prompt_id in self._unseen:
                self._unseen.remove(prompt_id)
                if before != content:
                    duplicates.append(_duplicate(block, position, table, "was planned before"))
            else:
                other = "has an earlier row" if before != content else None
                duplicates.append(_duplicate(block, position, table, other))
        prompts = _rename(block.prompts, renamed)
        whole = len(new) == prompts.num_rows
        return prompts if whole else prompts.take(pa.array(new, pa.int64())), duplicates


def changed_id(prompt_id: str, content: str) -> str:
    """The id of a row whose own id was planned with another content: at most 64 characters."""
    return f"{prompt_id[: 63 - len(content)]}.{content}"


def _rename(prompts: pa.Table, ids: Mapping[int, str]) -> pa.Table:
    if not ids:
        return prompts
    column = prompts.column("prompt_id").to_pylist()
    names = [ids.get(position, prompt_id) for position, prompt_id in enumerate(column)]
    place = prompts.schema.get_field_index("prompt_id")
    return prompts.set_column(place, prompts.schema.field(place), pa.array(names, pa.string()))


def _ids_and_contents(table: pa.Table) -> Iterator[tuple[str, str]]:
    ids = table.column("prompt_id").to_pylist()
    contents = table.column("content").to_pylist()
    return zip(ids, contents, strict=True)


def _keep_out(prompts: pa.Table, blocked: tuple[str, ...]) -> tuple[pa.Table, list[RejectRecord]]:
    """Prompts that hold no blocked word, and a reject for each that does."""
    if not blocked:
        return prompts, []
    rows = prompts.select(["prompt_id", "text"]).to_pylist()
    found = [refusal(blocked, row["text"]) for row in rows]
    rejects = [
        reject(*why, stage=STAGE, **row)
        for row, why in zip(rows, found, strict=True)
        if why is not None
    ]
    return prompts.filter(pa.array([why is None for why in found], pa.bool_())), rejects


def _duplicate(block: PromptBlock, position: int, table: str, other: str | None) -> RejectRecord:
    prompt_id = block.prompts.column("prompt_id")[position].as_py()
    what = (
        "the same prompt stands in an earlier row; the first is kept"
        if other is None
        else f"the id {prompt_id} {other} with another text or other overrides; that one is kept"
    )
    return reject(
        "duplicate",
        f"row {block.numbers[position]} of {table}: {what}",
        stage=STAGE,
        prompt_id=prompt_id,
        text=block.prompts.column("text")[position].as_py(),
    )


class _ShardWriter:
    """Cuts prompts into shards and writes them, many at once, with free indices in order.

    Free indices below the last come first: they are what a killed run left unwritten, and get
    exactly the prompts that they would have had. While some shards are sent, the next are made.
    """

    def __init__(
        self, storage: Storage, planned: Iterable[ShardSpec], shard_size: int, write: bool
    ) -> None:
        taken = {spec.index for spec in planned}
        self._storage = storage
        self._indices = (index for index in count() if index not in taken)
        self._shard_size = shard_size
        self._write = write
        self._waiting: pa.Table | None = None
        self._files: dict[str, bytes] = {}
        self._sender = ThreadPoolExecutor(1)
        self._sent: Future[None] | None = None
        self.made: list[ShardSpec] = []

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
                self._settle()

    def add(self, prompts: pa.Table) -> None:
        """Take some prompts, and write the shards that are full."""
        if prompts.num_rows == 0:
            return
        if self._waiting is not None:
            prompts = pa.concat_tables([self._waiting, prompts], promote_options="default")
        self._waiting = prompts.combine_chunks()
        self._cut(self._shard_size)

    def _cut(self, least: int) -> None:
        """Make shards while at least so many prompts wait."""
        while self._waiting is not None and self._waiting.num_rows >= least:
            shard = self._waiting.slice(0, self._shard_size)
            rest = self._waiting.slice(shard.num_rows)
            self._waiting = rest if rest.num_rows else None
            self.made.append(self._make(next(self._indices), shard))
            if len(self._files) == FILES_AT_ONCE:
                self._send()

    def _make(self, index: int, table: pa.Table) -> ShardSpec:
        path = layout.plan_path(index)
        fingerprint = plan_fingerprint(table)
        pictures = table.num_rows - table.column("image_prompt").null_count
        if self._write:
            metadata = {"fingerprint": fingerprint, IMAGE_PROMPTS: str(pictures)}
            self._files[path] = to_parquet(table, metadata)
        return ShardSpec(
            index, self._storage.url(path), table.num_rows, fingerprint, bool(pictures)
        )

    def _send(self) -> None:
        """Send off what has been made, once what was sent before has arrived."""
        self._settle()
        self._sent = self._sender.submit(self._storage.write_many, self._files)
        self._files = {}

    def _settle(self) -> None:
        if self._sent is not None:
            self._sent.result()


def _read_plan(storage: Storage, known: _KnownPrompts | None) -> Iterator[ShardSpec]:
    paths = iter([p for p in storage.list(layout.PLAN_FOLDER) if layout.index_of(p) is not None])
    while some := list(islice(paths, FILES_AT_ONCE)):
        for path, content in zip(some, storage.read_many(some), strict=True):
            spec, prompts = _parse(storage, path, content)
            if known is not None:
                known.add_planned(prompts)
            yield spec


def _parse(storage: Storage, path: str, content: bytes) -> tuple[ShardSpec, pa.Table]:
    """The shard that is in a plan file, and the ids and contents of its prompts."""
    try:
        prompts = from_parquet(content, storage.public_path(path), ["prompt_id", "content"])
    except DamagedError as error:
        raise _damaged(storage, path, str(error)) from None
    metadata = prompts.schema.metadata or {}
    fingerprint, index = metadata.get(b"fingerprint"), layout.index_of(path)
    if index is None or fingerprint is None or prompts.num_columns != 2:
        raise _damaged(storage, path, "It is not a plan file.")
    pictures = metadata.get(IMAGE_PROMPTS.encode(), b"0") != b"0"
    url = storage.url(path)
    return ShardSpec(index, url, prompts.num_rows, fingerprint.decode(), pictures), prompts


def _damaged(storage: Storage, path: str, why: str) -> ShardError:
    return ShardError(
        f"The plan file {storage.public_path(path)} cannot be used: {why} Delete it, and the next "
        "run plans its prompts again."
    )


def _write_rejects(
    storage: Storage, table: str, rejects: list[pa.Table], counts: Mapping[str, int]
) -> None:
    content = pa.concat_tables([to_table([], RejectRecord), *rejects])
    metadata = {TABLE: table, **{name: str(number) for name, number in counts.items()}}
    storage.write_table(layout.plan_rejects_path(table), content, metadata)
