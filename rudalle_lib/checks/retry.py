"""Retry what was rejected: some prompts of finished shards are reopened, and nothing else is.

The artifacts of the stage that rejected a prompt, and of all stages after it, are marked with it.
These stages then process the marked prompts alone and keep the rest (`pipeline.reuse`). Last, the
manifest of the shard is deleted, so a retry that was killed can be started again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rudalle_lib.dataset import layout
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.manifests import delete_shard_manifests, read_shard_manifests
from rudalle_lib.errors import ConfigError, DamagedError
from rudalle_lib.pipeline.artifacts import REOPENED
from rudalle_lib.pipeline.stages import STAGES
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.reasons import SELECTION_REASONS
from rudalle_lib.schema.records import (
    REASONS,
    RejectRecord,
    ShardManifest,
    StageArtifact,
)
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.confidence import UNCERTAIN

TABLE_REASONS = ("empty_prompt", "bad_type", "bad_prompt_id", "duplicate")
"""Reasons that are decided again every time the prompt table is read."""

UNSAFE = "unsafe"
"""The reason that only changed settings can change."""

NOT_SELECTED = tuple(one for one in SELECTION_REASONS if one != UNSAFE)
"""Reasons of images that were drawn, scored and not selected: drawn again they are the same."""

FINAL_REASONS = (*TABLE_REASONS, *NOT_SELECTED, UNSAFE, UNCERTAIN)
"""Reasons for which a retry changes nothing."""

REDOES_PROMPTS = tuple(name for name, stage in STAGES.items() if stage.per != "kept image")
"""Stages that process reopened prompts again. Later ones find out themselves what is new."""


@dataclass(frozen=True)
class Retry:
    """What was reopened.

    Attributes:
        prompts: number of prompts.
        shards: indices of their shards.
        redrawn: images of these shards that are drawn again, because their tokens are gone.
    """

    prompts: int
    shards: tuple[int, ...]
    redrawn: int = 0


def reopen_rejected(storage: Storage, reason: str, lease_seconds: float) -> Retry:
    """Let the next run retry what finished shards rejected for a reason.

    Args:
        storage: the output.
        reason: a code of `schema.records.REASONS`.
        lease_seconds: duration of the lease that is held meanwhile.

    Raises:
        ConfigError: an unknown reason, or one for which a retry changes nothing.
        LeaseError: a run is writing to the output.
        ShardError: a damaged manifest.
        StorageError: a damaged table of rejects.
    """
    check_reason(reason)
    prompts, redrawn, shards = 0, 0, []
    with hold(storage, lease_seconds) as lease:
        for manifest in read_shard_manifests(storage):
            if not manifest.rejected.get(reason) or manifest.rejects is None:
                continue
            rows = from_table(storage.read_table(manifest.rejects.path), RejectRecord)
            rejected = [row for row in rows if row.reason == reason]
            _reopen(storage, manifest, rejected, lease.mark.term)
            prompts += len({row.prompt_id for row in rejected})
            shards.append(manifest.index)
            if not storage.exists(storage.relative(manifest.stages["generate"].uri)):
                redrawn += manifest.images
    return Retry(prompts, tuple(shards), redrawn)


def check_reason(reason: str) -> None:
    """Check that a retry can help what was rejected for this reason.

    Raises:
        ConfigError: it cannot, or there is no such reason.
    """
    if reason in TABLE_REASONS:
        raise ConfigError(
            f"Rows rejected as {reason} are checked again at every run: correct the prompt table "
            "and run again."
        )
    if reason == "by_hand":
        raise ConfigError(
            "Images rejected as by_hand would be rejected again: change their rows in curation.csv "
            "(`rudalle-flows curate`) and run again; nothing is drawn again."
        )
    if reason in NOT_SELECTED:
        raise ConfigError(
            f"Images rejected as {reason} were drawn and scored, and would be the same again: "
            "change score.min_score, score.keep_best or select.rules and run again; nothing is "
            "drawn again."
        )
    if reason == UNCERTAIN:
        raise ConfigError(
            f"Prompts rejected as {reason} would be rejected again: change "
            "translate.min_confidence and run again; only their images are drawn."
        )
    if reason == UNSAFE:
        raise ConfigError(
            f"What was rejected as {reason} would be rejected again: change publish.blocked_words "
            "or score.max_unsafe and run again; finished images are not drawn again."
        )
    if reason not in REASONS:
        known = (code for code in REASONS if code not in FINAL_REASONS)
        raise ConfigError(f"There is no reason {reason!r}: expected one of {', '.join(known)}.")


def _reopen(
    storage: Storage, manifest: ShardManifest, rejected: Sequence[RejectRecord], term: int
) -> None:
    prompt_ids = sorted({row.prompt_id for row in rejected if row.prompt_id is not None})
    for stage in REDOES_PROMPTS[REDOES_PROMPTS.index(rejected[0].stage) :]:
        _mark(storage, manifest.index, stage, manifest.stages[stage], prompt_ids, term)
    delete_shard_manifests(storage, manifest.index, manifest.term)


def _mark(
    storage: Storage,
    index: int,
    stage: str,
    artifact: StageArtifact,
    prompt_ids: Sequence[str],
    term: int,
) -> None:
    """Mark prompts in an artifact; one that is missing or damaged is made again anyway."""
    path = storage.relative(artifact.uri)
    try:
        metadata = storage.read_metadata(path)
        table = None if metadata is None else storage.read_table(path)
    except DamagedError:
        return
    if table is not None and metadata is not None:
        earlier = json.loads(metadata.get(REOPENED, "[]"))
        marked = {**metadata, REOPENED: json.dumps(sorted({*earlier, *prompt_ids}))}
        version = layout.version_of(artifact.fingerprint, term)
        storage.write_table(layout.stage_path(stage, index, version), table, marked)
