"""Trying again what was rejected: prompts of finished shards are reopened, and nothing else is.

The artifact of the stage that rejected a prompt is marked with it; the stage then works on the
marked prompts alone and keeps the rest. What was made from the artifact is deleted, the shard's
manifest last of all, so that a retry which is killed can be asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from rudalle_lib import layout
from rudalle_lib.errors import ConfigError, DamagedError
from rudalle_lib.lease import hold
from rudalle_lib.manifest import read_shard_manifests
from rudalle_lib.record_tables import from_table
from rudalle_lib.records import REASONS, Prompt, RejectRecord, ShardManifest, ShardSpec
from rudalle_lib.stages import REOPENED, refused_in, with_refused
from rudalle_lib.storage import Storage

OF_THE_TABLE = ("empty_prompt", "bad_type", "bad_prompt_id", "duplicate")
"""Reasons that a row of the prompt table gets anew, or no longer, at every run."""

OF_CHOICE = ("below_threshold", "not_in_best_k")
"""Reasons of images that were made, scored and not chosen: drawn again they are the same."""

UNSAFE = "unsafe"
"""The reason of what the settings keep out: only changed settings can change that."""

HOPELESS = (*OF_THE_TABLE, *OF_CHOICE, UNSAFE)
"""Reasons for which trying again changes nothing."""

REMAKES = ("translate", "generate")
"""Stages that can work on some prompts of a shard alone."""

MADE_FROM_TOKENS = ("decode", "score")
"""Artifacts that a changed one before them makes stale. What `upscale` holds stays true."""


# --- asking for it -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Retry:
    """What was reopened."""

    prompts: int
    shards: tuple[int, ...]


def reopen_rejected(storage: Storage, reason: str, lease_seconds: float) -> Retry:
    """Let the next run try again what was rejected for a reason in finished shards.

    Args:
        storage: the output.
        reason: a code of `records.REASONS`.
        lease_seconds: time of the lease that is held meanwhile.

    Raises:
        ConfigError: an unknown reason, or one for which trying again changes nothing.
        LeaseError: a run is under way.
        ShardError, StorageError: a manifest, or a table of rejects, that is damaged.
    """
    check_reason(reason)
    prompts, shards = 0, []
    with hold(storage, lease_seconds):
        for manifest in read_shard_manifests(storage):
            if not manifest.rejected.get(reason) or manifest.rejects is None:
                continue
            rows = from_table(storage.read_table(manifest.rejects.path), RejectRecord)
            rejected = [row for row in rows if row.reason == reason]
            _reopen(storage, manifest, rejected)
            prompts += len({row.prompt_id for row in rejected})
            shards.append(manifest.index)
    return Retry(prompts, tuple(shards))


def check_reason(reason: str) -> None:
    """Raise `ConfigError` unless trying again can help what was rejected for this reason."""
    if reason in OF_THE_TABLE:
        raise ConfigError(
            f"Rows rejected as {reason} are judged anew at every run: correct the prompt table and "
            "run again."
        )
    if reason in OF_CHOICE:
        raise ConfigError(
            f"Images rejected as {reason} were drawn and scored, and would be the same again: "
            "change score.min_score or score.keep_best and run again; nothing is drawn anew."
        )
    if reason == UNSAFE:
        raise ConfigError(
            f"What was rejected as {reason} would be so again: change publish.blocked_words or "
            "score.max_unsafe and run again; what was drawn is not drawn anew."
        )
    if reason not in REASONS:
        known = (code for code in REASONS if code not in HOPELESS)
        raise ConfigError(f"There is no reason {reason!r}: expected one of {', '.join(known)}.")


def _reopen(storage: Storage, manifest: ShardManifest, rejected: Sequence[RejectRecord]) -> None:
    prompt_ids = sorted({row.prompt_id for row in rejected if row.prompt_id is not None})
    first = rejected[0].stage
    for stage in REMAKES[REMAKES.index(first) :] if first in REMAKES else ():
        _mark(storage, layout.stage_path(stage, manifest.index), prompt_ids)
    for stage in MADE_FROM_TOKENS:
        storage.delete(layout.stage_path(stage, manifest.index))
    storage.delete(layout.shard_manifest_path(manifest.index))


def _mark(storage: Storage, path: str, prompt_ids: Sequence[str]) -> None:
    """Mark prompts in an artifact; one that is gone or damaged is made anew anyway."""
    try:
        metadata = storage.read_metadata(path)
        table = None if metadata is None else storage.read_table(path)
    except DamagedError:
        return
    if table is not None and metadata is not None:
        earlier = json.loads(metadata.get(REOPENED, "[]"))
        marked = {**metadata, REOPENED: json.dumps(sorted({*earlier, *prompt_ids}))}
        storage.write_table(path, table, marked)


# --- doing it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remaining:
    """What a stage has to do of a shard: everything, or the prompts that were reopened.

    `before` is the whole artifact in which they were, `seconds` what it took.
    """

    before: pa.Table | None = None
    prompt_ids: frozenset[str] = frozenset()
    seconds: float = 0.0

    def of(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts to work on."""
        return [p for p in prompts if self.before is None or p.prompt_id in self.prompt_ids]

    def merge(self, made: pa.Table, prompts: Sequence[Prompt]) -> pa.Table:
        """What was made of them with the rows of all others, in the order of all prompts."""
        if self.before is None:
            return made
        place = {prompt.prompt_id: number for number, prompt in enumerate(prompts)}
        ids = self.before.column("prompt_id").to_pylist()
        kept = [row for row, prompt_id in enumerate(ids) if prompt_id not in self.prompt_ids]
        plain = self.before.take(pa.array(kept, pa.int64())).cast(made.schema)
        joined = pa.concat_tables([table.replace_schema_metadata() for table in (plain, made)])
        ids = joined.column("prompt_id").to_pylist()
        order = sorted(range(len(ids)), key=lambda row: place[ids[row]])
        refused = {
            prompt_id: why
            for prompt_id, why in refused_in(self.before).items()
            if prompt_id not in self.prompt_ids
        }
        merged = joined.take(pa.array(order, pa.int64()))
        both = refused | refused_in(made)
        return with_refused(merged, both) if both else merged


def find_remaining(storage: Storage, stage: str, shard: ShardSpec, expected: str) -> Remaining:
    """What is left to do of a shard whose artifact does not count as finished.

    `expected` is the fingerprint that the artifact would have.
    """
    path = layout.stage_path(stage, shard.index)
    metadata = storage.read_metadata(path)
    if metadata is None or metadata.get("fingerprint") != expected or REOPENED not in metadata:
        return Remaining()
    try:
        table = storage.read_table(path)
    except DamagedError:
        return Remaining()
    ids = frozenset(json.loads(metadata[REOPENED]))
    return Remaining(table, ids, float(metadata["seconds"]))
