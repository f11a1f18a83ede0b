"""Another number of images: those that are drawn are kept, only those that are missing drawn."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from flows.cli.outlook import look_ahead
from flows.cli.tables import describe_difference
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.pipeline.artifacts import ROW
from rudalle_lib.pipeline.reuse import find_reuse, list_artifacts
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.prompts.plan import read_plan
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish
from tests.support.image_numbers import Killed, counting_images, killed_after, numbered, published


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbers")


@pytest.fixture(scope="module")
def scratch(folder: Path) -> dict[int, dict[str, bytes]]:
    """What runs from the start publish, by number of images."""
    made = {}
    for images in (2, 4):
        config = numbered(folder, f"scratch-{images}", generate={"images": images})
        finish(config)
        made[images] = published(config)
    return made


@pytest.fixture
def config(folder: Path, request: pytest.FixtureRequest) -> RunConfig:
    """A finished run with two images per prompt."""
    name = request.node.name.translate(dict.fromkeys(map(ord, "[]/ "), "-"))
    config = numbered(folder, name, generate={"images": 2})
    finish(config)
    return config


def with_images(config: RunConfig, images: int, **changes: Any) -> RunConfig:
    section = config.generate.model_copy(update={"images": images})
    return config.model_copy(update={"generate": section, **changes})


def without_row_fingerprints(config: RunConfig) -> None:
    """Make the artifacts of an output those of a version that did not name them."""
    storage = Storage(config.output)
    for path in storage.list("stages"):
        metadata = storage.read_metadata(path) or {}
        metadata.pop(ROW, None)
        storage.write_table(path, storage.read_table(path).replace_schema_metadata(), metadata)


@pytest.mark.parametrize("old", [False, True], ids=["now", "old output"])
def test_more_images_draw_only_those_that_are_missing(
    old: bool, config: RunConfig, scratch: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if old:
        without_row_fingerprints(config)
    with counting_images(monkeypatch) as drawn:
        run = finish(with_images(config, 4))
    assert sorted(image_id[-3:] for image_id in drawn) == ["002", "002", "003", "003"]
    assert published(config) == scratch[4]
    assert run.totals.images == 3 + 4 + 4
    reused = [m.stages["generate"].reused for m in read_shard_manifests(Storage(config.output))]
    assert sum(reused) == 3 + 2 + 2


def test_fewer_images_draw_nothing_and_no_network_runs(
    config: RunConfig, scratch: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(with_images(config, 4))
    for network in ("candidates.decoder", "decode.vqgan", "score.scorer"):
        monkeypatch.setattr(f"tasks.{network}", lambda *_: pytest.fail("a network was loaded"))
    finish(config)
    assert published(config) == scratch[2]


def test_kept_images_are_not_decoded_scored_or_enlarged_again(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}

    def count(name: str, function: Any, position: int) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            seen[name] = seen.get(name, 0) + len(arguments[position])
            return function(*arguments, **named)

        return counted

    for stage, function, position in (
        ("decode", "decode_rows", 1),
        ("score", "score_rows", 1),
        ("upscale", "upscale_rows", 1),
    ):
        module = importlib.import_module(f"tasks.{stage}")
        monkeypatch.setattr(module, function, count(stage, getattr(module, function), position))
    keep_all = config.score.model_copy(update={"keep_best": None})
    finish(with_images(config, 4, score=keep_all))
    assert seen == {"decode": 4, "score": 4, "upscale": 5}  # one of three had not been kept


def test_another_setting_as_well_draws_everything_anew(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = config.generate.model_copy(update={"temperature": 0.9, "images": 4})
    with counting_images(monkeypatch) as drawn:
        finish(config.model_copy(update={"generate": changed}))
    assert len(drawn) == 3 + 4 + 4


def test_a_killed_run_draws_no_image_twice(
    config: RunConfig, scratch: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = with_images(config, 4)
    with counting_images(monkeypatch) as drawn:
        for writes in (1, 2, 2, None):  # generate, decode, score and upscale are written one by one
            try:
                with killed_after(writes, monkeypatch):
                    finish(more)
            except Killed:
                continue
    assert sorted(image_id[-3:] for image_id in drawn) == ["002", "002", "003", "003"]
    assert published(config) == scratch[4]


def test_all_images_of_a_shard_are_drawn_with_equally_many_rows(config: RunConfig) -> None:
    before = [m.stages["generate"].batch_rows for m in read_shard_manifests(Storage(config.output))]
    section = config.generate.model_copy(update={"images": 4, "batch_size": 3})
    run = finish(config.model_copy(update={"generate": section}))
    after = [m.stages["generate"].batch_rows for m in read_shard_manifests(Storage(config.output))]
    assert before == after == [8, 8] and run.batch_rows == 8


def test_a_damaged_artifact_is_not_continued(config: RunConfig, scratch: dict[int, Any]) -> None:
    for path in Path(config.output).glob("stages/*/*"):
        path.write_bytes(path.read_bytes()[:-20] + b"PAR1" * 5)
    finish(with_images(config, 4))
    assert published(config) == scratch[4]


def test_what_is_kept_is_that_of_the_same_rows(config: RunConfig) -> None:
    storage, weights = Storage(config.output), weight_digests(config)
    shards = read_plan(storage)
    artifacts = list_artifacts(storage, {shard.index for shard in shards})
    for shard in shards:
        assert find_reuse(storage, config, weights, shard, artifacts).paths == {}
        more = find_reuse(storage, with_images(config, 4), weights, shard, artifacts)
        kept = {"generate", "decode", "score", "upscale"}  # the translations are the same
        assert more.paths.keys() == kept
        other = {**weights, "score": "other"}
        assert find_reuse(
            storage, with_images(config, 4), other, shard, artifacts
        ).paths.keys() == kept - {"score"}
    assert list_artifacts(storage, ()) == {}


@pytest.mark.parametrize("old", [False, True], ids=["now", "old output"])
def test_a_row_that_asks_for_more_images_gets_only_those_that_are_missing(
    old: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = numbered(folder, f"rows-{old}", generate={"images": 2})
    table = folder / f"rows-{old}.csv"
    config = config.model_copy(
        update={"prompts": config.prompts.model_copy(update={"uri": str(table)})}
    )
    rows = (
        "prompt,prompt_id,images\nчёрный квадрат,black,{}\nкрасный круг,red,\nсиний крест,blue,\n"
    )
    table.write_text(rows.format(3), encoding="utf-8")
    finish(config)
    if old:
        without_row_fingerprints(config)
    table.write_text(rows.format(5), encoding="utf-8")
    with counting_images(monkeypatch) as drawn:
        run = finish(config)
    assert drawn == ["black-003", "black-004"] and run.totals.images == 5 + 2 + 2
    fresh = config.model_copy(update={"output": f"{config.output}-fresh"})
    finish(fresh)
    assert published(fresh) == published(config)
    assert audit_output(Storage(config.output)).faults == []


def test_plan_says_what_is_kept_and_what_would_be_drawn(config: RunConfig) -> None:
    def said(changed: RunConfig) -> tuple[str, int, int]:
        found = look_ahead(changed)
        text = describe_difference(found.needs, found.plan, found.difference)
        return text, found.images, found.most_images

    assert said(with_images(config, 4)) == ("4 images to draw, 7 kept", 4, 4)
    assert said(with_images(config, 1)) == ("5 images kept", 0, 0)
    rounds = {"until_accepted": 2, "max_images": 6, "images": 2}
    limits = {"min_score": 1.0, "keep_best": None}
    changed = numbered(Path(config.prompts.uri).parent, "x", generate=rounds, score=limits)
    changed = changed.model_copy(update={"output": config.output})
    assert said(changed) == ("7 images to draw, 7 kept", 7, 11)
    new = changed.model_copy(update={"output": f"{config.output}-new"})
    assert said(new) == ("4 new prompts", 2 + 2 + 2 + 3, 4 * 6)
