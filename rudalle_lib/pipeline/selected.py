"""The images that are selected, from artifacts: of one shard, or over all shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import ScoreConfig
from rudalle_lib.images.selection import contents_in
from rudalle_lib.pipeline.artifacts import find_artifact, read_artifact
from rudalle_lib.pipeline.stages import fingerprints
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import ScoreRecord, ShardManifest, ShardSpec, StageArtifact
from rudalle_lib.selection.across_shards import Scored, Selector
from rudalle_lib.selection.choices import NO_CHOICE, Choice, Choices, load_choices
from rudalle_lib.storage.storage import Storage


def read_selected(
    storage: Storage,
    generated: StageArtifact,
    scored: StageArtifact,
    selection: ScoreConfig,
    choice: Choice = NO_CHOICE,
) -> set[str]:
    """The ids of the images that are kept.

    Args:
        storage: the output.
        generated: the tokens of the candidates.
        scored: their scores.
        selection: decides which images are kept.
        choice: what else decides about this shard.

    Raises:
        StorageError: an artifact is missing or damaged.
    """
    scores = from_table(read_artifact(storage, scored), ScoreRecord)
    contents = contents_in(read_artifact(storage, generated))
    rejects = choice.find_rejects(scores, contents, selection)
    return {row.image_id for row in scores} - rejects.keys()


def scored_shards(
    config: RunConfig,
    weights: Mapping[str, str],
    storage: Storage,
    shards: Iterable[ShardSpec],
    manifests: Iterable[ShardManifest],
) -> list[Scored]:
    """The shards that are drawn and scored as a configuration says; see `decide`."""
    finished = {manifest.index: manifest for manifest in manifests}
    found = []
    for shard in shards:
        expected, manifest = fingerprints(config, weights, shard), finished.get(shard.index)
        made: list[StageArtifact] = []
        for stage in ("translate", "generate", "score"):
            artifact = None if manifest is None else manifest.stages.get(stage)
            if artifact is None or artifact.fingerprint != expected[stage]:
                artifact = find_artifact(storage, stage, shard, expected[stage])
            if artifact is not None:
                made.append(artifact)
        if len(made) == 3:
            found.append(Scored(shard, *made))
    return found


def decide(
    config: RunConfig,
    weights: Mapping[str, str],
    storage: Storage,
    shards: Sequence[ShardSpec],
    manifests: Iterable[ShardManifest],
) -> tuple[Choices, Selector]:
    """What decides about planned shards, by the scores that there are. Writes nothing.

    Args:
        config: the run.
        weights: digests of the weights by stage.
        storage: the output.
        shards: whose plan files exist.
        manifests: of the finished shards.

    Returns:
        The choices, and the selector that holds the shards that are scored. It reads none unless
        there are rules that look across shards.
    """
    choices = load_choices(config, storage, shards)
    selector = Selector(config, storage, choices)
    if config.select.looks_across:
        selector.read(scored_shards(config, weights, storage, shards, manifests))
        choices = selector.decide()
    return choices, selector
