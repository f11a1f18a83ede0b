"""Rules about near-duplicates: the first in the plan stays, in any shards, as datasets grow."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rudalle_lib import read_images, read_rejects
from rudalle_lib.checks.audit import audit_output
from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.selection import Rule
from rudalle_lib.errors import ConfigError
from rudalle_lib.schema.records import ScoreRecord
from rudalle_lib.selection.choices import load_choices
from rudalle_lib.selection.rules import Outcome, apply_rules, candidates
from rudalle_lib.storage.storage import Storage
from tests.support.finished_run import finish, tiny_config
from tests.support.tiny_run import configure


def image(name: str, score: float, degrees: float, phash: int = 0) -> ScoreRecord:
    """An image whose embedding points into a direction."""
    radians = np.radians(degrees)
    vector = np.array([np.cos(radians), np.sin(radians)], "<f2")
    prompt = name.partition("-")[0]
    return ScoreRecord(name, prompt, score, 1, embedding=vector.tobytes(), phash=f"{phash:016x}")


IMAGES = [
    image("b-000", 0.5, 0, 0b1),
    image("b-001", 0.9, 5, 0b11),
    image("a-000", 0.7, 8, 0b111),
    image("a-001", 0.6, 60, 0xFF00),
]
NEAR = 1 - np.cos(np.radians(7.0))


def applied(
    images: Sequence[ScoreRecord], *rules: dict[str, Any], by_hand: Sequence[str] = ()
) -> Outcome:
    given = [Rule.model_validate(rule) for rule in rules]
    table = candidates(images, {}, (), lambda row: row.image_id in by_hand, given)
    return apply_rules(given, table)


def test_the_best_of_a_prompt_comes_first_and_prompts_come_as_in_the_plan() -> None:
    """Not by id, nor by score: the plan's first prompt stays when others are added."""
    outcome = applied(IMAGES, {"min_distance": NEAR, "per": "dataset"})
    found = outcome.rejects()
    assert {name: why.reason for name, why in found.items()} == {
        "b-000": "near_duplicate",
        "a-000": "near_duplicate",
    }
    assert "from b-001" in found["b-000"].detail and "from b-001" in found["a-000"].detail
    assert found["a-000"].detail.startswith("select.rules.0, min_distance ")
    assert outcome.counts[0].before == 4 and outcome.counts[0].kept == 2


def test_per_prompt_only_its_own_images_are_compared() -> None:
    found = applied(IMAGES, {"min_distance": NEAR}).rejects()
    assert list(found) == ["b-000"]


def test_hashes_are_compared_by_bits() -> None:
    found = applied(IMAGES, {"min_hash_distance": 2, "per": "dataset"}).rejects()
    assert list(found) == ["b-000", "a-000"]
    assert found["a-000"].detail.endswith("1 bits from b-001")


def test_a_rule_that_flags_rejects_nothing() -> None:
    outcome = applied(IMAGES, {"min_distance": NEAR, "per": "dataset", "flag": True})
    assert outcome.rejects() == {}
    flagged = outcome.flagged()
    assert list(flagged) == ["b-000", "a-000"]
    near = flagged["a-000"]
    assert near.image_id == "b-001" and near.bits is None
    assert near.distance == pytest.approx(1 - np.cos(np.radians(3)), abs=1e-3)
    assert outcome.flagged(1, 3) == {"a-000": flagged["a-000"]}


def test_the_next_best_moves_up_if_the_rule_comes_before_keep_best() -> None:
    rules = [{"min_distance": NEAR, "per": "dataset"}, {"keep_best": 1}]
    kept = {row.image_id for row in IMAGES} - applied(IMAGES, *rules).rejects().keys()
    assert kept == {"b-001", "a-001"}


def test_images_kept_by_hand_are_never_rejected() -> None:
    found = applied(IMAGES, {"min_distance": NEAR, "per": "dataset"}, by_hand=["a-000"]).rejects()
    assert list(found) == ["b-000"]


def test_an_image_without_an_embedding_is_like_no_other() -> None:
    bare = ScoreRecord("c-000", "c", 0.9, 1)
    found = applied([bare, *IMAGES, bare], {"min_distance": 2, "per": "dataset"})
    assert "c-000" not in found.rejects()


@pytest.mark.parametrize(
    ("rule", "score", "says"),
    [
        ("{min_distance: 0.1}", "{}", "min_distance needs score.embeddings: true"),
        ("{min_hash_distance: 5}", "{}", "min_hash_distance needs score.hashes: true"),
        ("{keep_best: 2, flag: true}", "{}", "flag and against go with min_distance or"),
        ("{min_distance: 0.1, against: [x]}", "{embeddings: true}", "against goes with per: data"),
    ],
)
def test_rules_that_cannot_be_are_one_sentence(rule: str, score: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig.parse(f"select: {{rules: [{rule}]}}\nscore: {score}")


# --- runs ----------------------------------------------------------------------------------------

TABLE = "prompt\n" + "".join(f"{word} круг\n" for word in ("один", "два", "три", "пять", "шесть"))
MORE = TABLE + "семь круг\nодин крест\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run with embeddings, and a limit that about half of its images are within."""
    folder = tmp_path_factory.mktemp("alike")
    config = tiny_config(folder, str(folder / "plain"), TABLE)
    settings = config.model_dump(mode="json")
    config = configure(settings, config.output, score={"embeddings": True, "hashes": True})
    finish(config)
    return config


def with_rule(plain: RunConfig, output: Path, rule: dict[str, Any], **more: Any) -> RunConfig:
    shutil.copytree(plain.output, output)
    settings = plain.model_dump(mode="json")
    return configure(settings, str(output), select={"rules": [rule]}, **more)


def limit_of(plain: RunConfig) -> float:
    """A cosine distance that separates the images into near-duplicates and others."""
    points = np.stack(read_images(plain.output)["embedding"]).astype(np.float64)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    apart = 1 - points @ points.T
    return float(np.quantile(apart[np.triu_indices(len(apart), 1)], 0.2)) + 1e-7


@pytest.mark.parametrize("flag", [False, True])
def test_a_run_keeps_the_same_images_in_any_shards_and_as_it_grows(
    plain: RunConfig, tmp_path: Path, flag: bool
) -> None:
    rule = {"min_distance": limit_of(plain), "per": "dataset", "flag": flag}
    config = with_rule(plain, tmp_path / "out", rule)
    finish(config)
    kept, before = read_images(config.output), read_images(plain.output)
    if flag:
        assert list(kept.index) == list(before.index) and kept["duplicate_of"].notna().any()
        near = kept[kept["duplicate_of"].notna()]
        assert (near["duplicate_distance"] < rule["min_distance"]).all()
        assert set(near["duplicate_of"]) <= set(kept[kept["duplicate_of"].isna()].index)
    else:
        assert 0 < len(kept) < len(before)
        rejects = read_rejects(config.output)
        assert (rejects["reason"] == "near_duplicate").sum() == len(before) - len(kept)
    assert audit_output(Storage(config.output)).faults == []
    whole = config.model_copy(
        update={
            "output": str(tmp_path / "whole"),
            "prompts": config.prompts.model_copy(update={"shard_size": 100}),
        }
    )
    finish(whole)
    columns = ["sha256", "text", *(["duplicate_of"] if flag else [])]
    assert read_images(whole.output)[columns].equals(kept[columns])
    (tmp_path / "more.csv").write_text(MORE, encoding="utf-8")
    prompts = config.prompts.model_copy(update={"uri": str(tmp_path / "more.csv")})
    finish(config.model_copy(update={"prompts": prompts}))
    grown = read_images(config.output)
    assert list(grown.index)[: len(kept)] == list(kept.index)
    assert grown.iloc[: len(kept)]["sha256"].equals(kept["sha256"])


def test_images_of_an_earlier_dataset_come_first(plain: RunConfig, tmp_path: Path) -> None:
    rule = {"min_distance": 1e-5, "per": "dataset", "against": [plain.output]}
    config = with_rule(plain, tmp_path / "out", rule)
    finish(config)
    rejects = read_rejects(config.output)
    near = rejects[rejects["reason"] == "near_duplicate"]
    assert len(near) == len(read_images(plain.output)) and not len(read_images(config.output))
    assert near["detail"].str.endswith(f" in {Storage(plain.output).public_path()}").all()


def test_an_earlier_dataset_that_cannot_be_compared_is_one_sentence(
    plain: RunConfig, tmp_path: Path
) -> None:
    def check(against: str, **score: object) -> None:
        rule = {"min_distance": 0.1, "per": "dataset", "against": [against]}
        settings = plain.model_dump(mode="json")
        config = configure(settings, str(tmp_path / "new"), select={"rules": [rule]}, score=score)
        load_choices(config, Storage(config.output), ())

    with pytest.raises(ConfigError, match="select.rules.0.against: .* holds no finished run"):
        check(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="is the output itself"):
        check(str(tmp_path / "new"))
    with pytest.raises(ConfigError, match="are of demo-ruclip, those of this run of ruclip-small"):
        check(plain.output, model="ruclip-small")
    fixture = Path(__file__).parents[2] / "data" / "before_rooms" / "dataset"
    with pytest.raises(ConfigError, match="have no embeddings; set score.embeddings: true there"):
        check(str(fixture))


def test_columns_of_measures_are_kept_only_for_rules_that_need_them() -> None:
    table = candidates(IMAGES, {}, (), lambda row: False, [Rule(keep_best=1)])
    assert not {"embedding", "phash"} & set(table.column_names)
    table = candidates(IMAGES, {}, (), lambda row: False, [Rule(min_distance=0.1)])
    assert table.schema.field("embedding").type == pa.large_binary()
