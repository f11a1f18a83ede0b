"""Which shards are left, and which of them a run takes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.layout import ShardRange
from rudalle_lib.pipeline.open_shards import OpenShards, next_shards, settings_digest
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.storage.storage import Storage


def test_finished_shards_are_not_looked_at_again(config: RunConfig) -> None:
    storage, weights = Storage(config.output), weight_digests(config)
    shards = read_plan(storage)
    manifest = Path(config.output, "shards", "00001.json")
    content = manifest.read_bytes()
    manifest.unlink()
    left = OpenShards(config, weights, storage, shards)
    assert [shard.index for shard in left.find()] == [1]
    Path(config.output, "shards", "00000.json").unlink()  # nobody does this meanwhile
    assert [shard.index for shard in left.find()] == [1]
    manifest.write_bytes(content)
    assert left.find() == []


def test_shards_of_other_settings_are_left(config: RunConfig) -> None:
    storage, weights = Storage(config.output), weight_digests(config)
    shards = read_plan(storage)
    other = config.model_copy(update={"seed": config.seed + 1})
    assert len(OpenShards(other, weights, storage, shards).find()) == len(shards)
    assert settings_digest(other, weights) != settings_digest(config, weights)
    slower = config.model_copy(update={"runtime": config.runtime.model_copy(update={"threads": 2})})
    assert settings_digest(slower, weights) == settings_digest(config, weights)


def test_few_shards_are_divided_fairly() -> None:
    assert next_shards(range(100), [], most=8, at_once=2) == ShardRange(0, 7)
    assert next_shards(range(8, 20), [ShardRange(0, 7)], most=8, at_once=2) == ShardRange(8, 10)
    assert next_shards([18, 19], [ShardRange(0, 17)], most=8, at_once=2) == ShardRange(18, 18)
    assert next_shards([0, 1, 2], [], most=8, at_once=2) == ShardRange(0, 1)
    assert next_shards([], [ShardRange(0, 17)], most=8, at_once=2) is None
    assert next_shards([3, 4], [ShardRange(0, 17)], most=8, at_once=2) is None


@given(
    todo=st.sets(st.integers(0, 60)),
    busy=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=4),
    most=st.integers(1, 20),
    at_once=st.integers(1, 8),
)
def test_what_is_taken_is_open_and_in_the_end_nothing_is_left(
    todo: set[int], busy: list[tuple[int, int]], most: int, at_once: int
) -> None:
    taken = [ShardRange(first, first + more) for first, more in busy]
    others = [index for index in todo if any(shards.holds(index) for shards in taken)]
    left = set(todo)
    while (shards := next_shards(left, taken, most, at_once)) is not None:
        assert not any(shards.overlaps(other) for other in taken)
        own = {index for index in left if shards.holds(index)}
        assert 1 <= len(own) <= most
        left -= own
    assert left == set(others)
