"""Decisions by hand in a finished run: they override rules, in the shards that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rudalle_lib import read_images, read_rejects
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.curation import Curation, parse_curation
from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.manifests import require_run_manifest
from rudalle_lib.errors import ConfigError, LeaseError, StorageError
from rudalle_lib.pipeline.curate import Curated, add_decisions
from rudalle_lib.pipeline.diff import finished_run
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish
from tests.support.tiny_run import contents


def table(decisions: Mapping[str, str], note: str = "") -> Curation:
    rows = "".join(f"{name},{decision},{note}\n" for name, decision in decisions.items())
    return parse_curation(f"image_id,decision,note\n{rows}".encode(), "c.csv")


def add(config: RunConfig, decisions: Mapping[str, str], note: str = "") -> Curated:
    return add_decisions(Storage(config.output), table(decisions, note), False, 60)


def test_decisions_override_the_selection_and_touch_only_their_shards(config: RunConfig) -> None:
    storage, images = Storage(config.output), read_images(config.output)
    rejects = read_rejects(config.output)
    first = images[images["shard"] == 0]
    best = first.index[0]
    prompt = first["prompt_id"].iloc[0]
    worst = rejects[rejects["prompt_id"] == prompt]["image_id"].iloc[-1]
    published = set(images.index)
    before = contents(Path(config.output), "data/images", "data/metadata", "rejects", "shards")

    assert add(config, {best: "reject"}, "two squares") == Curated(0, 1, 1, 0)
    assert finished_run(config, weight_digests(config)) is None
    assert any("curation.csv" in note for note in audit_output(storage).notes)
    run = finish(config)
    assert run.totals.rejected["by_hand"] == 1
    found = read_rejects(config.output).set_index("image_id").loc[best]
    assert tuple(found[["stage", "reason", "detail"]]) == ("select", "by_hand", "two squares")
    moved_up = set(read_images(config.output).index) - published
    assert len(moved_up) == 1 and next(iter(moved_up)).startswith(prompt)
    after = contents(Path(config.output), "data/images", "data/metadata", "rejects", "shards")
    others = {path for path in before if "/00000" not in path and "metadata.parquet" not in path}
    assert others and all(before[path] == after[path] for path in others)

    assert add(config, {worst: "keep", best: "keep"}) == Curated(2, 0, 1, 1)
    finish(config)
    kept = read_images(config.output)
    assert set(kept[kept["prompt_id"] == prompt].index) == {worst, best}
    audit = audit_output(storage)
    assert audit.faults == [] and not any("curation" in note for note in audit.notes)
    digest = require_run_manifest(storage).selection.curation
    assert len(digest) == 64 and finished_run(config, weight_digests(config)) is not None


def test_without_decisions_again_the_dataset_is_what_it_was(config: RunConfig) -> None:
    parts = ("data", "rejects")
    before = contents(Path(config.output), *parts)
    first = read_images(config.output).index[0]
    add(config, {first: "reject"})
    finish(config)
    add_decisions(Storage(config.output), table({}), True, 60)
    finish(config)
    assert contents(Path(config.output), *parts) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing-000", "no prompt of the plan has it"),
        ("{prompt}-004", "its prompt has 4 images, numbered from 0"),
        ("{prompt}-1", "the ids of its prompt are like {prompt}-000"),
        ("{prompt}", "no prompt of the plan has it"),
    ],
)
def test_an_unknown_image_is_an_error_that_names_the_line(
    config: RunConfig, name: str, why: str
) -> None:
    row = read_images(config.output).iloc[-1]
    name, why = (text.format(prompt=row["prompt_id"]) for text in (name, why))
    decisions = {str(row.name): "keep", name: "keep"}
    with pytest.raises(ConfigError) as raised:
        add(config, decisions)
    assert str(raised.value) == (
        f"c.csv, line 3: there is no image {name!r} in this output ({why}); correct or remove the "
        "row."
    )
    content = f"image_id,decision\n{name},keep\n"
    Storage(config.output).write_bytes("curation.csv", content.encode())
    with pytest.raises(ConfigError, match=r"curation.csv, line 2: there is no image"):
        finish(config)


def test_decisions_are_not_added_beside_a_run_or_where_none_was(
    config: RunConfig, tmp_path: Path
) -> None:
    first = read_images(config.output).index[0]
    with hold(Storage(config.output), 60), pytest.raises(LeaseError):
        add(config, {first: "keep"})
    with pytest.raises(StorageError, match="There is no run in"):
        add_decisions(Storage(str(tmp_path / "empty")), table({}), False, 60)
