"""Rules over all shards: the same decisions however prompts are divided, in real runs too."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rudalle_lib import read_images, read_rejects
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import read_shard_manifests, require_run_manifest
from rudalle_lib.errors import ConfigError
from rudalle_lib.pipeline.diff import compare, finished_run, images_by_need
from rudalle_lib.pipeline.selected import decide
from rudalle_lib.pipeline.stages import weight_digests
from rudalle_lib.pipeline.tidy import tidy
from rudalle_lib.prompts.plan import plan_run
from rudalle_lib.schema.arrow import to_table
from rudalle_lib.schema.records import (
    Reject,
    ScoreRecord,
    ShardSpec,
    StageArtifact,
    TokensRecord,
    image_id,
)
from rudalle_lib.selection.across_shards import Scored, Selector
from rudalle_lib.selection.choices import Choices
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config
from tests.support.tiny_run import contents

RULES = {
    "rules": [
        {"keep_share": 0.6, "per": "category"},
        {"keep_best": 3, "per": ["category", "style"]},
        {"keep_best": 7, "per": "dataset"},
    ]
}


# --- decisions -----------------------------------------------------------------------------------


@st.composite
def prompts(draw: st.DrawFn) -> list[tuple[str, str | None, list[float]]]:
    names = draw(st.lists(st.sampled_from("abcdefghij"), unique=True, min_size=1))
    scores = st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=4)
    return [(name, draw(st.sampled_from(["x", "y", None])), draw(scores)) for name in names]


def decided(
    folder: Path, shards: list[list[tuple[str, str | None, list[float]]]]
) -> tuple[dict[str, Reject], list[Any]]:
    """What rules reject if prompts are divided like this."""
    storage = Storage(str(folder))
    config = RunConfig.model_validate({"select": RULES, "output": str(folder)})
    scored = []
    for index, own in enumerate(shards):
        plan, stages = f"plan/{index:05d}.parquet", [f"stages/{n}{index}" for n in ("t", "s")]
        categories = pa.array([category for _, category, _ in own], pa.string())
        names = [name for name, _, _ in own]
        columns = {"extra.category": categories, "extra.style": names}
        storage.write_table(plan, pa.table({"prompt_id": names, **columns}))
        rows = [(name, n, score) for name, _, scores in own for n, score in enumerate(scores)]
        tokens = [
            TokensRecord(image_id(p, n), p, n, 0, [n], -1.0, 2.0, 1.0, 0, 0.9, False)
            for p, n, _ in rows
        ]
        records = [ScoreRecord(image_id(p, n), p, score, 1) for p, n, score in rows]
        storage.write_table(stages[0], to_table(tokens, TokensRecord))
        storage.write_table(stages[1], to_table(records, ScoreRecord))
        made = [StageArtifact(storage.url(path), "", 1, 0.0) for path in stages]
        shard = ShardSpec(index, storage.url(plan), len(own))
        scored.append(Scored(shard, made[0], *made))  # translations are not read
    selector = Selector(config, storage, Choices())
    assert selector.read(reversed(scored)) == []
    choices = selector.decide()
    assert choices.across is not None
    rejects: dict[str, Reject] = {}
    for index in range(len(shards)):
        rejects |= choices.of(index).reasons
    return rejects, choices.across.outcome.counts


@settings(max_examples=10, deadline=None)
@given(prompts(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_decisions_do_not_depend_on_how_prompts_are_divided(
    found: list[tuple[str, str | None, list[float]]], size: int, random: Any
) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)
    divided = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        assert decided(Path(one), [found]) == decided(Path(other), divided)


# --- runs ----------------------------------------------------------------------------------------

TABLE = "prompt,prompt_id,category,style\n" + "".join(
    f"{text},p{number},{'figure' if number % 2 else 'line'},{'bold' if number < 3 else ''}\n"
    for number, text in enumerate(
        ("чёрный квадрат", "красный круг", "синий крест", "белая полоса", "жёлтый треугольник")
    )
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run without rules, which no test may change."""
    folder = tmp_path_factory.mktemp("drawn")
    config = tiny_config(folder, str(folder / "out"), TABLE)
    config = with_section(config, "score", keep_best=None)
    finish(config)
    return config


@pytest.fixture
def config(drawn: RunConfig, tmp_path: Path) -> RunConfig:
    """The same run with an output that the test may change."""
    shutil.copytree(drawn.output, tmp_path / "out")
    return drawn.model_copy(update={"output": str(tmp_path / "out")})


def with_section(config: RunConfig, name: str, **changes: Any) -> RunConfig:
    section = getattr(config, name).model_dump()
    return RunConfig.model_validate({**config.model_dump(), name: {**section, **changes}})


def with_rules(config: RunConfig, *rules: Mapping[str, Any]) -> RunConfig:
    return with_section(config, "select", rules=rules)


def stages(config: RunConfig) -> dict[str, bytes]:
    found = contents(Path(config.output), "stages")
    return {path: content for path, content in found.items() if "/upscale/" not in path}


def expected_best(frame: Any, count: int) -> set[str]:
    order = sorted(frame.index, key=lambda name: (-frame.loc[name, "score"], name))
    return set(order[:count])


def test_a_budget_is_for_all_shards_and_draws_nothing_again(config: RunConfig) -> None:
    all_images, before = read_images(config.output), stages(config)
    ruled = with_rules(config, {"keep_best": 6, "per": "dataset"})
    run = finish(ruled)
    kept = read_images(config.output)
    assert set(kept.index) == expected_best(all_images, 6)
    assert run.totals.rejected["over_budget"] == len(all_images) - 6
    assert stages(config) == before
    rejects = read_rejects(config.output)
    over = rejects[rejects["reason"] == "over_budget"]
    assert set(over["stage"]) == {"select"} and over["score"].notna().all()
    assert set(over["category"]) == {"figure", "line"}
    assert over["detail"].str.startswith("select.rules.0, keep_best 6 per dataset: place ").all()
    assert audit_output(Storage(config.output)).faults == []
    assert finished_run(ruled, weight_digests(ruled)) == run
    (counts,) = require_run_manifest(Storage(config.output)).selection.rules
    assert (counts.before, counts.kept) == (len(all_images), 6)
    card = (Path(config.output) / "README.md").read_text("utf-8")
    assert f"keep_best 6 per dataset | 6 of {len(all_images)} |" in card.replace("\\", "")


def test_a_share_of_each_category_and_the_same_for_any_shard_size(
    config: RunConfig, tmp_path: Path
) -> None:
    all_images = read_images(config.output)
    finish(with_rules(config, {"keep_share": 0.6, "per": "category"}))
    kept = read_images(config.output)
    for category, size in all_images["category"].value_counts().items():
        own = all_images[all_images["category"] == category]
        best = expected_best(own, -(-size * 6 // 10))
        assert set(kept[kept["category"] == category].index) == best
    one = with_section(config, "prompts", shard_size=64)
    one = one.model_copy(update={"output": str(tmp_path / "one")})
    finish(with_rules(one, {"keep_share": 0.6, "per": "category"}))
    other = read_images(one.output)
    assert dict(other["sha256"]) == dict(kept["sha256"])
    rejects = [
        frame.sort_values("image_id")[["image_id", "reason", "detail"]].values.tolist()
        for frame in map(read_rejects, (config.output, one.output))
    ]
    assert rejects[0] == rejects[1]


def test_minimum_scores_by_category_publish_only_the_shards_they_change(
    config: RunConfig, tmp_path: Path
) -> None:
    all_images = read_images(config.output)
    table = tmp_path / "min.csv"
    table.write_text("style,min_score\nbold,1\n", encoding="utf-8")
    ruled = with_rules(config, {"min_scores": str(table)})
    finish(ruled)
    bold = all_images["style"] == "bold"
    assert set(read_images(config.output).index) == set(all_images[~bold].index)
    rejects = read_rejects(config.output)
    low = rejects[rejects["reason"] == "below_threshold"]
    assert len(low) == bold.sum()
    assert low["detail"].str.endswith("is below min_score 1.000 of style=bold").all()
    before = contents(Path(config.output), "shards")
    table.write_text("style,min_score\nbold,-1\n", encoding="utf-8")
    assert finished_run(ruled, weight_digests(ruled)) is None
    notes = audit_output(Storage(config.output)).notes
    assert "2 shards (00000, 00001) would keep other images now; run again" in notes
    finish(ruled)
    after = contents(Path(config.output), "shards")
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {"shards/00000.json", "shards/00001.json"}  # p0 to p3; p4 is not bold
    assert set(read_images(config.output).index) == set(all_images.index)


def test_rules_within_a_prompt_need_no_other_shard(config: RunConfig) -> None:
    all_images = read_images(config.output)
    ruled = with_rules(config, {"keep_share": 0.5}, {"keep_best": 1})
    finish(ruled)
    kept = read_images(config.output)
    best = all_images.groupby("prompt_id").apply(lambda own: min(expected_best(own, 1)))
    assert set(kept.index) == set(best)
    shards = read_shard_manifests(Storage(config.output))
    assert all("place" in row for row in read_rejects(config.output)["detail"])
    choices, selector = decide(
        ruled, weight_digests(ruled), Storage(config.output), plan(ruled), shards
    )
    assert choices.across is None and not selector.indices


def test_growth_decides_anew_and_publishes_only_what_changes(config: RunConfig) -> None:
    ruled = with_rules(config, {"keep_best": 6, "per": "dataset"})
    finish(ruled)
    table = Path(config.prompts.uri)
    grown = table.with_name("grown.csv")
    grown.write_text(table.read_text("utf-8") + "зелёный овал,p9,figure,\n", encoding="utf-8")
    ruled = with_section(ruled, "prompts", uri=str(grown))
    finish(ruled)
    whole = ruled.model_copy(update={"output": f"{config.output}-whole"})
    finish(whole)
    assert dict(read_images(ruled.output)["sha256"]) == dict(read_images(whole.output)["sha256"])


def test_decisions_by_hand_take_places_before_rules(config: RunConfig) -> None:
    ruled = with_rules(config, {"keep_best": 2, "per": "dataset"})
    all_images = read_images(config.output)
    order = all_images.sort_values("score")
    worst, best = order.index[0], order.index[-1]
    Storage(config.output).write_bytes(
        "curation.csv", f"image_id,decision\n{worst},keep\n{best},reject\n".encode()
    )
    finish(ruled)
    second = min(expected_best(all_images.drop(best), 1))
    assert set(read_images(config.output).index) == {worst, second}


def test_prompts_that_are_never_published_take_no_places(config: RunConfig) -> None:
    all_images = read_images(config.output)
    blocked = with_section(config, "publish", blocked_words=["квадрат"])
    finish(with_rules(blocked, {"keep_best": 6, "per": "dataset"}))
    others = all_images[all_images["prompt_id"] != "p0"]
    assert set(read_images(config.output).index) == expected_best(others, 6)


def test_scores_that_rules_need_are_not_tidied_away(config: RunConfig) -> None:
    ruled, storage = with_rules(config, {"keep_best": 6, "per": "dataset"}), Storage(config.output)
    run = finish(ruled)
    with pytest.raises(ConfigError, match="every run reads their scores: keep tokens"):
        tidy(storage, "nothing", 60)
    tidy(storage, "tokens", 60)
    assert finished_run(ruled, weight_digests(ruled)) == run
    finish(with_rules(config, {"keep_best": 3}))
    tidy(storage, "nothing", 60, dry_run=True)


def test_a_plan_tells_what_rules_would_keep(config: RunConfig) -> None:
    ruled = with_rules(config, {"keep_best": 6, "per": "dataset"})
    storage, weights = Storage(config.output), weight_digests(config)
    before = contents(Path(config.output), "")
    manifests = read_shard_manifests(storage)
    choices, selector = decide(ruled, weights, storage, plan(ruled), manifests)
    difference = compare(ruled, weights, plan(ruled), manifests, choices)
    needs = images_by_need(storage, ruled, difference, manifests, choices)
    assert needs == {"publish": 6, "withdrawn": selector.scored - 6}
    assert contents(Path(config.output), "") == before


def test_a_column_that_no_prompt_has_is_an_error(config: RunConfig) -> None:
    ruled = with_rules(config, {"keep_best": 1, "per": "categry"})
    with pytest.raises(ConfigError, match=r"select.rules.0.per names the column 'categry'"):
        finish(ruled)


def plan(config: RunConfig) -> tuple[ShardSpec, ...]:
    return plan_run(config, Storage(config.output), write=False).shards
