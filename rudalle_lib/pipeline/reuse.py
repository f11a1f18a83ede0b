"""Rows of stage artifacts that exist already, so that a stage makes only what is missing.

Stages make their rows one by one. So an artifact can be continued: by more images of a prompt
(`generate.images` from 8 to 16 draws numbers 8 to 15), by fewer, or by prompts that were reopened
(`checks.retry`). It is either unfinished, or that of a run which differs only in how many images
it draws. A row says nothing about the others, except for its rank, which is found anew.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset import layout
from rudalle_lib.errors import DamagedError
from rudalle_lib.generation.image_counts import most_images_of
from rudalle_lib.pipeline.artifacts import (
    REOPENED,
    ROW,
    USE,
    artifact_of,
    earlier_paths,
    find_artifact,
    read_artifact,
    rejects_in,
    stage_path,
)
from rudalle_lib.pipeline.stages import (
    CONFIDENCE,
    STAGES,
    fingerprints,
    original,
    row_fingerprints,
)
from rudalle_lib.prompts.plan import read_shard
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import (
    NO_DEVICE,
    DeviceUse,
    Prompt,
    Reject,
    ScoreRecord,
    ShardSpec,
    StageArtifact,
    TokensRecord,
    TranslationRecord,
)
from rudalle_lib.selection.rounds import needed_images
from rudalle_lib.storage.storage import Storage
from rudalle_lib.text.confidence import UNCERTAIN, find_all_uncertain

Record = TypeVar("Record")

CONTINUED = tuple(STAGES)[:-1]
"""Stages whose results can be continued: all but "publish"."""

Artifacts = Mapping[tuple[str, int], Sequence[str]]
"""Paths of artifacts by stage and shard."""


# --- finding artifacts -------------------------------------------------------------------------


@dataclass(frozen=True)
class Reuse:
    """What a shard's stages may keep of earlier runs.

    Attributes:
        rows: the fingerprint of a row by stage (`row_fingerprints`).
        paths: by stage, an artifact that has such rows, of another number of images.
    """

    rows: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)


NOTHING = Reuse()
"""Nothing is kept but what an unfinished artifact has."""


def list_artifacts(storage: Storage, shards: Collection[int]) -> Artifacts:
    """All artifacts of some shards; lists the storage once, and not at all for no shard."""
    found: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
    for path in storage.list(layout.STAGES_FOLDER) if shards else ():
        name = layout.parse(path)
        if name is None or name.kind != "stage" or name.number is None:
            continue
        if name.number in shards:
            found[path.split("/")[1], name.number].append(path)
    return found


def find_reuse(
    storage: Storage,
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    artifacts: Artifacts,
) -> Reuse:
    """What a shard's stages may keep of runs that differ only in how many images they draw.

    That includes which prompts they draw, by the certainty of their translations.

    Args:
        storage: the output.
        config: the run.
        weights: digests of the weights by stage.
        shard: the planned shard.
        artifacts: those of the output, or at least those of this shard.
    """
    expected = fingerprints(config, weights, shard)
    rows = row_fingerprints(config, weights, shard)
    paths: dict[str, str] = {}
    older: list[dict[str, str]] | None = None
    for stage in CONTINUED:
        most = 0
        for path, metadata in _others(storage, artifacts, stage, shard, expected[stage]):
            if ROW in metadata:
                fits = metadata[ROW] == rows[stage]
            else:
                older = older or list(_older(storage, config, weights, shard, artifacts))
                fits = metadata.get("fingerprint") in {prints[stage] for prints in older}
            count = int(metadata.get("rows", 0))
            if fits and count > most:
                paths[stage], most = path, count
    return Reuse(rows, paths)


def _others(
    storage: Storage, artifacts: Artifacts, stage: str, shard: ShardSpec, expected: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """The artifacts of a stage with other fingerprints than the expected one, and their metadata.

    The expected one is found by its name, also if it is unfinished.
    """
    for path in artifacts.get((stage, shard.index), ()):
        name = layout.parse(path)
        if name is None or name.version.startswith(layout.version_of(expected)):
            continue
        metadata = storage.read_metadata(path)
        if metadata is not None and metadata.get("fingerprint") != expected:
            yield path, metadata


def _older(
    storage: Storage,
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    artifacts: Artifacts,
) -> Iterator[dict[str, str]]:
    """Fingerprints of runs before artifacts named those of rows; their tokens tell the numbers."""
    numbers: set[int] = set()
    for path in artifacts.get(("generate", shard.index), ()):
        metadata = storage.read_metadata(path)
        with suppress(DamagedError):
            if metadata is not None and ROW not in metadata:
                ids = storage.read_table(path, ["prompt_id"]).column(0).to_pylist()
                numbers |= set(Counter(ids).values())
    before = original(shard)
    for number in sorted(numbers):
        section = config.generate.model_copy(update={"images": number})
        translate = config.translate.model_copy(update={CONFIDENCE: None})  # there was none then
        sections = {"generate": section, "translate": translate}
        yield fingerprints(config.model_copy(update=sections), weights, before)


# --- reading them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made(Generic[Record]):
    """What exists already of a stage's result for a shard.

    Attributes:
        rows: by image id, or by prompt id if the stage has a row per prompt.
        rejects: the prompts that the stage rejected.
        seconds: how long it took.
        use: the devices that it held.
        saved: the unfinished artifact of these rows under its own name, if they are all of it.
    """

    rows: Mapping[str, Record] = field(default_factory=dict)
    rejects: Mapping[str, Reject] = field(default_factory=dict)
    seconds: float = 0.0
    use: DeviceUse = NO_DEVICE
    saved: StageArtifact | None = None

    def use_with(self, use: DeviceUse) -> DeviceUse:
        """The device use to record when rows were added that used devices like this, or none."""
        return use if use.devices else self.use


def find_made(
    storage: Storage,
    stage: str,
    shard: ShardSpec,
    expected: str,
    record: type[Record],
    reuse: Reuse = NOTHING,
    term: int = 0,
) -> Made[Record]:
    """What exists already of a stage's result that has no finished artifact.

    Args:
        storage: the output.
        stage: name of the stage.
        shard: the planned shard.
        expected: the fingerprint that the artifact will have.
        record: type of its rows.
        reuse: what may be kept of earlier runs.
        term: of the lease that is held.
    """
    own = stage_path(stage, shard, expected, term)
    for path in (own, *earlier_paths(stage, shard, expected, term)):
        metadata = storage.read_metadata(path)
        if metadata is None or metadata.get("fingerprint") != expected or REOPENED not in metadata:
            continue
        made = _read(storage, path, metadata, stage, record)
        if made is not None:
            whole = path == own and json.loads(metadata[REOPENED]) == []
            return replace(made, saved=artifact_of(storage, path, metadata)) if whole else made
    earlier = reuse.paths.get(stage)
    metadata = None if earlier is None else storage.read_metadata(earlier)
    if earlier is None or metadata is None:
        return Made()
    return _read(storage, earlier, metadata, stage, record) or Made()


def _read(
    storage: Storage, path: str, metadata: Mapping[str, str], stage: str, record: type[Record]
) -> Made[Record] | None:
    """What an artifact holds, without the prompts that are reopened; None if it is damaged."""
    try:
        table = storage.read_table(path)
    except DamagedError:
        return None
    reopened = set(json.loads(metadata.get(REOPENED, "[]")))
    key = "prompt_id" if STAGES[stage].per == "prompt" else "image_id"
    rows: list[Any] = from_table(table, record)
    rejects = rejects_in(table).items()
    return Made(
        {getattr(row, key): row for row in rows if row.prompt_id not in reopened},
        {prompt_id: reject for prompt_id, reject in rejects if prompt_id not in reopened},
        float(metadata["seconds"]),
        DeviceUse(**json.loads(metadata.get(USE, "{}"))),
    )


# --- what is missing ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """Images of a shard.

    Attributes:
        kept: images that are drawn already and still wanted.
        at_least: images that a run would draw at least.
        at_most: images that it would draw at most: more if they are drawn in rounds.
    """

    kept: int = 0
    at_least: int = 0
    at_most: int = 0


def count_missing(
    storage: Storage,
    config: RunConfig,
    weights: Mapping[str, str],
    shard: ShardSpec,
    reuse: Reuse,
) -> Missing:
    """Count the images of a planned shard that are drawn, and those that are not.

    Args:
        storage: the output.
        config: the run.
        weights: digests of the weights by stage.
        shard: the planned shard.
        reuse: what its stages may keep of runs that drew another number of images.
    """
    expected = fingerprints(config, weights, shard)
    done = find_artifact(storage, "generate", shard, expected["generate"])
    if done is not None:
        return Missing(kept=done.rows)
    made = find_made(storage, "generate", shard, expected["generate"], TokensRecord, reuse)
    scored = find_made(storage, "score", shard, expected["score"], ScoreRecord, reuse)
    uncertain = _uncertain(storage, config, shard, expected["translate"])
    prompts = [one for one in read_shard(storage, shard) if one.prompt_id not in uncertain]
    needed = needed_images(
        prompts, config.generate, config.score, [*made.rows.values()], [*scored.rows.values()]
    )
    return _sum(config, _drawable(prompts, made), needed, made)


def _drawable(prompts: Sequence[Prompt], made: Made[TokensRecord]) -> list[Prompt]:
    """The prompts that are drawn: all, or those that earlier runs drew or may draw now."""
    drawn = {row.prompt_id for row in made.rows.values()}
    drawn |= {name for name, why in made.rejects.items() if why.reason == UNCERTAIN}
    return [prompt for prompt in prompts if not drawn or prompt.prompt_id in drawn]


def _uncertain(
    storage: Storage, config: RunConfig, shard: ShardSpec, fingerprint: str
) -> Collection[str]:
    """The prompts that are not drawn because of their translations, if there are any yet."""
    least = config.translate.min_confidence
    if least is None:
        return ()
    artifact = find_artifact(storage, "translate", shard, fingerprint)
    if artifact is None:
        return ()
    rows = from_table(read_artifact(storage, artifact), TranslationRecord)
    return find_all_uncertain(rows, least)


def _sum(
    config: RunConfig, prompts: Sequence[Prompt], needed: Mapping[str, int],
    made: Made[TokensRecord],
) -> Missing:  # fmt: skip
    drawn = Counter(row.prompt_id for row in made.rows.values())
    kept = at_least = at_most = 0
    for prompt in prompts:
        have, wanted = drawn[prompt.prompt_id], needed[prompt.prompt_id]
        kept += min(have, wanted)
        if wanted > have:
            at_least += wanted - have
            at_most += most_images_of(prompt, config.generate) - have
    return Missing(kept, at_least, at_most)
