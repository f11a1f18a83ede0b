"""Drawing in rounds: whole runs that stop, are killed, changed and resumed, against others."""

from __future__ import annotations

import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.replay import replay
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, RoundFinished, Step, listener
from tests.support.finished_run import finish
from tests.support.image_numbers import Killed, counting_images, killed_after, numbered, published

MOST = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def threshold(folder: Path) -> float:
    """The median score of a fixed number of images: half of them are accepted."""
    config = numbered(folder, "fixed", generate={"images": MOST})
    finish(config)
    scores: list[float] = []
    for manifest in read_shard_manifests(Storage(config.output)):
        scores += pq.read_table(manifest.stages["score"].uri).column("score").to_pylist()
    return statistics.median(scores)


def adaptive(
    folder: Path, output: str, threshold: float, until: int = 2, **changes: dict[str, Any]
) -> RunConfig:
    """Rounds of one image until `until` are accepted; the first prompt has rounds of three."""
    own: dict[str, dict[str, Any]] = {
        "generate": {"images": 1, "until_accepted": until, "max_images": MOST},
        "score": {"min_score": threshold, "keep_best": None},
    }
    return numbered(folder, output, **{**own, **changes})


def rows(config: RunConfig) -> dict[str, tuple[Any, ...]]:
    """What is published of each image, whatever its shard."""
    return {
        row["image_id"]: (row["sha256"], row["score"], row["rank"], row["seed"])
        for manifest in read_shard_manifests(Storage(config.output))
        for row in Storage(config.output).read_table(manifest.metadata.path).to_pylist()
    }


def drawn_of(config: RunConfig) -> dict[str, int]:
    """How many images of each prompt were drawn and are in the dataset or its rejects."""
    counts: dict[str, int] = {}
    for manifest in read_shard_manifests(Storage(config.output)):
        ids = pq.read_table(manifest.stages["generate"].uri).column("prompt_id").to_pylist()
        for prompt_id in ids:
            counts[prompt_id] = counts.get(prompt_id, 0) + 1
    return counts


@pytest.fixture(scope="module")
def scratch(folder: Path, threshold: float) -> RunConfig:
    """A finished run in rounds."""
    config = adaptive(folder, "scratch", threshold)
    finish(config)
    return config


def test_prompts_stop_when_enough_images_are_accepted_or_at_the_most(
    scratch: RunConfig, folder: Path, threshold: float
) -> None:
    drawn, accepted = drawn_of(scratch), rows(scratch)
    for prompt_id, number in drawn.items():
        own = sum(image_id.startswith(prompt_id) for image_id in accepted)
        assert own >= 2 or number == MOST
    assert min(drawn.values()) < MOST
    fixed = numbered(folder, "fixed", generate={"images": MOST}, score={"min_score": threshold})
    every = fixed.model_copy(
        update={"score": scratch.score, "output": str(folder / "fixed of the same score")}
    )
    finish(every)
    same = {name: row[0] for name, row in rows(every).items()}
    assert {name: row[0] for name, row in accepted.items()}.items() <= same.items()


def test_every_image_that_is_drawn_has_a_row(scratch: RunConfig) -> None:
    storage = Storage(scratch.output)
    audit = audit_output(storage)
    assert audit.faults == [] and not audit.notes
    totals = [(manifest.images, manifest.kept, manifest.rejected) for manifest in audit.manifests]
    drawn = sum(images for images, _, _ in totals)
    assert drawn == sum(drawn_of(scratch).values())
    rejected = sum(sum(reasons.values()) for _, _, reasons in totals)
    assert drawn == sum(kept for _, kept, _ in totals) + rejected - 1  # a whole prompt


def test_every_published_image_can_be_replayed(scratch: RunConfig) -> None:
    storage = Storage(scratch.output)
    last = max(rows(scratch), key=lambda image_id: image_id[-3:])
    for image_id in {last, min(rows(scratch))}:
        assert replay(storage, image_id).identical


@pytest.mark.parametrize("shard_size", [1, 4])
def test_the_images_do_not_depend_on_shards_or_batches(
    shard_size: int, scratch: RunConfig, folder: Path, threshold: float
) -> None:
    prompts = {"shard_size": shard_size}
    config = adaptive(folder, f"shards of {shard_size}", threshold, prompts=prompts)
    section = config.generate.model_copy(update={"batch_size": 3})
    config = config.model_copy(update={"generate": section})
    finish(config)
    assert rows(config) == rows(scratch) and drawn_of(config) == drawn_of(scratch)


def test_a_run_killed_at_any_write_goes_on_and_draws_nothing_twice(
    scratch: RunConfig, folder: Path, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = adaptive(folder, "killed", threshold)
    with counting_images(monkeypatch) as drawn:
        runs, finished = 0, False
        while not finished:
            runs += 1
            with suppress(Killed), killed_after(3, monkeypatch):
                finish(config)
                finished = True
    assert published(config) == published(scratch)
    assert runs > 5
    lost = len(drawn) - len(set(drawn))  # drawn when the run ended before they were written
    assert len(set(drawn)) == sum(drawn_of(scratch).values()) and lost < len(drawn) / 2


def test_rounds_are_reported_and_progress_never_goes_back(folder: Path, threshold: float) -> None:
    events: list[Event] = []
    token = listener.set(events.append)
    try:
        finish(adaptive(folder, "reported", threshold))
    finally:
        listener.reset(token)
    for shard in (0, 1):
        ends = [
            event for event in events if isinstance(event, RoundFinished) and event.shard == shard
        ]
        assert [event.number for event in ends] == list(range(1, len(ends) + 1))
        assert [event.waiting == 0 for event in ends] == [False] * (len(ends) - 1) + [True]
        steps = [
            event.done / event.total
            for event in events
            if isinstance(event, Step) and event.shard == shard and event.stage == "generate"
        ]
        assert steps == sorted(steps) and 0 < steps[-1] <= 1
    assert str(ends[-1]).endswith("every prompt has enough")


CHANGES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries({
    "images": st.integers(1, 4),
    "until_accepted": st.sampled_from([None, 1, 2, 3]),
    "share": st.sampled_from([-0.02, 0.0, 0.02]),
    "keep_best": st.sampled_from([None, 3]),
    "writes": st.sampled_from([None, None, 1, 3, 6]),
})  # fmt: skip
"""A changed configuration, and after how many artifacts its run is killed."""


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_after_any_changes_a_dataset_is_that_of_a_run_from_the_start(
    folder: Path, threshold: float, data: st.DataObject
) -> None:
    number = len(list(folder.glob("changed-*")))
    changes = data.draw(st.lists(CHANGES, min_size=2, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        for output, todo in ((f"changed-{number}", changes), (f"fresh-{number}", changes[-1:])):
            for change in todo:
                generate = {
                    "images": change["images"], "until_accepted": change["until_accepted"],
                    "max_images": MOST,
                }  # fmt: skip
                score = {
                    "min_score": threshold + change["share"], "keep_best": change["keep_best"]
                }  # fmt: skip
                config = numbered(folder, output, generate=generate, score=score)
                try:
                    with killed_after(change["writes"], patch):
                        finish(config)
                except Killed:
                    pass
            finish(config)
    fresh = config.model_copy(update={"output": str(folder / f"changed-{number}")})
    assert published(fresh) == published(config)
    assert audit_output(Storage(fresh.output)).faults == []
