"""A plan is frozen and only appended to: no prompt is lost, planned twice or moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import PromptsConfig
from rudalle_lib.dataset.layout import plan_rejects_path
from rudalle_lib.errors import PromptError, ShardError
from rudalle_lib.prompts.known_prompts import CHOSEN_SIZE
from rudalle_lib.prompts.plan import (
    Plan,
    plan_run,
    read_extras,
    read_plan,
    read_shard,
    read_tables,
)
from rudalle_lib.prompts.rows import content_digest, plan_fingerprint
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import Overrides, RejectRecord
from rudalle_lib.storage.storage import Storage


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "prompts.parquet"


def write(path: Path, rows: list[Any]) -> None:
    """Write rows: texts, or dictionaries of columns."""
    full = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    names = dict.fromkeys(name for row in full for name in row)
    pq.write_table(
        pa.table({name: [row.get(name) for row in full] for name in names}), path, row_group_size=5
    )


def plan(storage: Storage, table: Path, shard_size: int | str = 4, **options: Any) -> Plan:
    limit = options.pop("limit", None)
    prompts = PromptsConfig.model_validate(
        {"uri": str(table), "shard_size": shard_size, "limit": limit}
    )
    return plan_run(RunConfig(output=storage.url(), prompts=prompts), storage, **options)


def planned(storage: Storage) -> list[list[str]]:
    """The texts of each shard."""
    return [[prompt.text for prompt in read_shard(storage, spec)] for spec in read_plan(storage)]


def rejects(storage: Storage, table: Path) -> list[RejectRecord]:
    return from_table(storage.read_table(plan_rejects_path(str(table))), RejectRecord)


def texts(first: int, last: int) -> list[str]:
    return [f"prompt {number}" for number in range(first, last + 1)]


def test_prompts_are_cut_into_shards_in_order(storage: Storage, table: Path) -> None:
    write(table, texts(1, 10))
    made = plan(storage, table)
    assert planned(storage) == [texts(1, 4), texts(5, 8), texts(9, 10)]
    assert made.shards == tuple(read_plan(storage))
    assert made.new_shards == (0, 1, 2)
    assert (made.prompts, made.new_prompts, made.rows, made.removed) == (10, 10, 10, 0)
    assert made.shards[2].plan_uri == storage.url("plan/00002.parquet")


def test_a_prompt_keeps_its_settings_and_other_columns(storage: Storage, table: Path) -> None:
    row = {"prompt": "круг", "prompt_id": "p", "lang": "ru", "images": 3, "top_p": 0.5}
    write(table, [{**row, "tags": ["a", "b"], "text": "mine"}])
    plan(storage, table)
    (spec,) = read_plan(storage)
    (prompt,) = read_shard(storage, spec)
    assert (prompt.prompt_id, prompt.text, prompt.lang) == ("p", "круг", "ru")
    assert prompt.overrides == Overrides(images=3, top_p=0.5)
    assert prompt.extra == {"tags": ["a", "b"], "text": "mine"}
    extras = read_extras(storage, spec)
    assert extras.column_names == ["prompt_id", "tags", "text"]
    assert extras.to_pylist() == [{"prompt_id": "p", "tags": ["a", "b"], "text": "mine"}]


def test_duplicates_are_rejected_and_counted(storage: Storage, table: Path) -> None:
    write(table, ["a", "b", " a ", {"prompt": "a", "images": 2}, "a"])
    made = plan(storage, table)
    assert planned(storage) == [["a", "b", "a"]]
    assert made.rejected == {"duplicate": 2}
    assert [row.detail for row in rejects(storage, table)] == [
        f"row {number} of {table}: duplicate of an earlier row, which is kept" for number in (3, 5)
    ]


def test_two_prompts_with_one_id_keep_the_first(storage: Storage, table: Path) -> None:
    write(table, [{"prompt": "a", "prompt_id": "x"}, {"prompt": "b", "prompt_id": "x"}])
    plan(storage, table)
    assert planned(storage) == [["a"]]
    (row,) = rejects(storage, table)
    assert (row.prompt_id, row.text, row.reason) == ("x", "b", "duplicate")
    assert "the id x has an earlier row with different text" in row.detail


def test_bad_rows_are_rejects_of_the_plan(storage: Storage, table: Path) -> None:
    write(table, ["a", None, "  ", "x" * 20_000, {"prompt": "b", "images": -1}])
    made = plan(storage, table)
    assert made.rejected == {"empty_prompt": 2, "too_long": 1, "bad_override": 1}
    found = rejects(storage, table)
    assert [row.reason for row in found] == ["empty_prompt", "empty_prompt", "too_long"] + [
        "bad_override"
    ]
    assert {row.stage for row in found} == {"plan"}


def test_planning_again_changes_nothing(storage: Storage, table: Path) -> None:
    write(table, ["a", "b", "a", None, "c", "d", "e"])
    first = plan(storage, table)
    files = {path: storage.read_bytes(path) for path in storage.list()}
    again = plan(storage, table)
    assert {path: storage.read_bytes(path) for path in storage.list()} == files
    assert (again.new_shards, again.new_prompts) == ((), 0)
    assert (again.shards, again.rejected, again.rows) == (first.shards, first.rejected, first.rows)


def test_a_grown_table_appends_only_what_is_new(storage: Storage, table: Path) -> None:
    write(table, texts(1, 6))
    first = plan(storage, table)
    write(table, ["before", *texts(1, 3), "between", *texts(4, 8)])
    again = plan(storage, table)
    assert planned(storage) == [
        texts(1, 4),
        texts(5, 6),
        ["before", "between", "prompt 7", "prompt 8"],
    ]
    assert again.shards[:2] == first.shards
    assert (again.new_shards, again.new_prompts, again.removed) == ((2,), 4, 0)


def test_changed_rows_are_new_and_removed_rows_stay(storage: Storage, table: Path) -> None:
    write(table, ["a", "b", {"prompt": "c", "prompt_id": "c"}])
    plan(storage, table)
    write(table, ["a", "B", {"prompt": "C", "prompt_id": "c"}])
    again = plan(storage, table)
    assert planned(storage) == [["a", "b", "c"], ["B", "C"]]
    assert (again.new_prompts, again.removed, rejects(storage, table)) == (2, 2, [])
    assert read_tables(storage) == {str(table): {"rows": 3, "removed": 2}}
    (_, spec) = again.shards
    assert [prompt.prompt_id[:2] for prompt in read_shard(storage, spec)][1] == "c."

    assert plan(storage, table).new_prompts == 0  # keyed by content: known under its new id
    write(table, [{"prompt": "c", "prompt_id": "c"}, {"prompt": "C", "prompt_id": "c"}, "b", "a"])
    back = plan(storage, table)
    assert (back.new_prompts, back.removed) == (0, 2)
    (row,) = rejects(storage, table)
    assert "the id c has an earlier row with different text" in row.detail


def test_a_changed_row_that_occurs_twice_is_planned_once(storage: Storage, table: Path) -> None:
    long = "i" * 64
    write(table, [{"prompt": "a", "prompt_id": long}])
    plan(storage, table)
    changed = {"prompt": "b", "prompt_id": long}
    write(table, [changed, changed, {"prompt": "c", "prompt_id": long}])
    again = plan(storage, table)
    assert planned(storage) == [["a"], ["b"]]
    assert [row.detail.partition("row ")[2][0] for row in rejects(storage, table)] == ["2", "3"]
    (prompt,) = read_shard(storage, again.shards[1])
    assert len(prompt.prompt_id) == 64
    assert plan(storage, table).new_prompts == 0


def test_a_row_that_asks_for_another_number_of_images_stays_the_same_prompt(
    storage: Storage, table: Path
) -> None:
    row = {"prompt": "a", "prompt_id": "own", "images": 3, "seed": 7}
    write(table, [row, {"prompt": "b", "prompt_id": "other"}, *texts(1, 9)])
    before = plan(storage, table)
    for images in (5, None, 3):
        write(
            table, [{**row, "images": images}, {"prompt": "b", "prompt_id": "other"}, *texts(1, 9)]
        )
        dry = plan(storage, table, write=False)
        again = plan(storage, table)
        assert dry == again and again.shards == tuple(read_plan(storage))
        assert (again.new_prompts, again.removed) == (0, 0) and not rejects(storage, table)
        first = read_shard(storage, again.shards[0])
        assert [prompt.prompt_id for prompt in first[:2]] == ["own", "other"]
        assert first[0].overrides == Overrides(images=images, seed=7)
        assert again.shards[1:] == before.shards[1:]
        assert (again.shards[0].origin, again.shards[0].fingerprint) == (
            before.shards[0].fingerprint,
            plan_fingerprint(storage.read_table("plan/00000.parquet")),
        )
        assert plan(storage, table).shards == again.shards
    assert again.shards[0].fingerprint == before.shards[0].fingerprint


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "c"}, {"top_p": 0.5}])
def test_a_row_that_changes_something_else_too_is_a_new_prompt(
    change: dict[str, object], storage: Storage, table: Path
) -> None:
    row = {"prompt": "a", "prompt_id": "own", "images": 3, "seed": 7}
    write(table, [row])
    plan(storage, table)
    write(table, [{**row, "images": 5, **change}])
    assert plan(storage, table).new_prompts == 1
    write(table, [{**row, "images": 4}])
    assert plan(storage, table).new_prompts == 0


def test_a_number_that_an_earlier_version_planned_as_a_new_prompt_stays_one(
    storage: Storage, table: Path
) -> None:
    row = {"prompt": "a", "prompt_id": "own", "images": 3}
    content = content_digest("a", {"images": 5})
    write(table, [row, {"prompt": "a", "prompt_id": f"own.{content}", "images": 5}])
    before = plan(storage, table)
    write(table, [{**row, "images": 5}])
    again = plan(storage, table)
    assert again.shards == before.shards and again.removed == 1


def test_a_different_shard_size_moves_no_prompt(storage: Storage, table: Path) -> None:
    write(table, texts(1, 6))
    plan(storage, table, shard_size=4)
    write(table, texts(1, 9))
    plan(storage, table, shard_size=2)
    assert planned(storage) == [texts(1, 4), texts(5, 6), texts(7, 8), texts(9, 9)]


def test_an_automatic_size_is_chosen_once_and_kept(storage: Storage, table: Path) -> None:
    def never() -> int:
        raise AssertionError("the size is known, or not needed")

    write(table, [None])
    assert plan(storage, table, shard_size="auto", choose_size=never).shard_size is None
    write(table, texts(1, 7))
    dry = plan(storage, table, shard_size="auto", choose_size=lambda: 3, write=False)
    first = plan(storage, table, shard_size="auto", choose_size=lambda: 3)
    assert dry == first and first.shard_size == 3
    whole = {path: storage.read_bytes(path) for path in storage.list()}

    # Interrupted, resumed where the choice would be another one.
    storage.delete("plan/00000.parquet")
    storage.delete("plan/00002.parquet")
    assert plan(storage, table, shard_size="auto", choose_size=never).shards == first.shards
    assert {path: storage.read_bytes(path) for path in storage.list()} == whole

    write(table, texts(1, 11))
    grown = plan(storage, table, shard_size="auto", choose_size=never)
    assert grown.shards[:3] == first.shards and grown.shard_size == 3
    assert planned(storage)[3:] == [texts(8, 10), texts(11, 11)]

    write(table, texts(1, 13))  # a number has the last word, and is not kept
    assert plan(storage, table, shard_size=1, choose_size=never).shard_size == 1
    write(table, texts(1, 17))
    plan(storage, table, shard_size="auto", choose_size=never)
    assert planned(storage)[5:] == [texts(12, 12), texts(13, 13), texts(14, 16), texts(17, 17)]


def test_a_plan_of_a_fixed_size_is_kept_by_an_automatic_one(storage: Storage, table: Path) -> None:
    write(table, texts(1, 5))
    fixed = plan(storage, table, shard_size=2)
    assert CHOSEN_SIZE not in (storage.read_metadata("plan/00000.parquet") or {})
    write(table, texts(1, 10))
    grown = plan(storage, table, shard_size="auto", choose_size=lambda: 4)
    assert grown.shards[:3] == fixed.shards
    assert planned(storage)[3:] == [texts(6, 9), texts(10, 10)]


def test_another_number_of_images_keeps_the_automatic_size(storage: Storage, table: Path) -> None:
    row = {"prompt": "a", "prompt_id": "own", "images": 3}
    write(table, [row])
    plan(storage, table, shard_size="auto", choose_size=lambda: 2)
    write(table, [{**row, "images": 5}, *texts(1, 3)])
    assert plan(storage, table, shard_size="auto").shard_size == 2


def test_an_interrupted_plan_is_completed_as_if_it_had_not_been_interrupted(
    storage: Storage, table: Path, tmp_path: Path
) -> None:
    write(table, texts(1, 18))
    plan(storage, table)
    whole = {path: storage.read_bytes(path) for path in storage.list()}
    for lost in ("plan/00001.parquet", "plan/00003.parquet", "plan/00004.parquet"):
        storage.delete(lost)
    storage.delete(plan_rejects_path(str(table)))
    again = plan(storage, table)
    assert again.new_shards == (1, 3, 4)
    assert {path: storage.read_bytes(path) for path in storage.list()} == whole


def test_a_limit_can_be_raised(storage: Storage, table: Path) -> None:
    write(table, texts(1, 9))
    plan(storage, table, limit=3)
    plan(storage, table)
    assert planned(storage) == [texts(1, 3), texts(4, 7), texts(8, 9)]


def test_a_dry_run_writes_nothing(storage: Storage, table: Path) -> None:
    write(table, texts(1, 5) + [""])
    dry = plan(storage, table, write=False)
    assert storage.list() == []
    assert dry == plan(storage, table)


def test_two_tables_share_an_output(storage: Storage, table: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    write(table, ["a", None])
    write(other, ["b", None, None])
    plan(storage, table)
    made = plan(storage, other)
    assert planned(storage) == [["a"], ["b"]]
    assert made.removed == 1
    assert (len(rejects(storage, table)), len(rejects(storage, other))) == (1, 2)


def test_progress_is_reported(storage: Storage, table: Path) -> None:
    write(table, texts(1, 20))
    seen: list[int] = []
    plan(storage, table, on_rows_read=seen.append)
    assert seen[-1] == 20


def test_an_empty_table_is_an_empty_plan(storage: Storage, table: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), table)
    made = plan(storage, table)
    assert (made.shards, made.prompts, made.rows) == ((), 0, 0)


def test_a_bad_table_leaves_nothing_behind(storage: Storage, table: Path) -> None:
    table.write_bytes(b"no")
    with pytest.raises(PromptError):
        plan(storage, table)
    assert storage.list() == []


def test_a_plan_file_that_holds_something_else_is_named(storage: Storage, table: Path) -> None:
    write(table, texts(1, 5))
    plan(storage, table)
    whole = storage.read_bytes("plan/00001.parquet")
    for content in (Path(table).read_bytes(), whole[:40] + b"?" + whole[41:]):
        storage.write_bytes("plan/00001.parquet", content)
        with pytest.raises(ShardError, match=r"plan/00001.parquet cannot be used: .* Delete it"):
            plan(storage, table)


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_plan_files_that_a_power_cut_left_torn_are_written_again(
    storage: Storage, table: Path, kept: int
) -> None:
    write(table, texts(1, 5))
    made = plan(storage, table)
    whole = {path: storage.read_bytes(path) for path in storage.list("plan")}
    for path in [*whole][1:]:
        storage.write_bytes(path, whole[path][:kept])
    notices: list[str] = []
    again = plan(storage, table, notice=notices.append)
    assert again.shards == made.shards
    assert {path: storage.read_bytes(path) for path in whole} == whole
    assert len(notices) == 1 and "plan/00001.parquet" in notices[0]


def test_columns_that_first_appear_in_a_later_row_are_kept(
    storage: Storage, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' * 1 + '{"prompt": "b", "x": 1}\n')
    plan(storage, path)
    (spec,) = read_plan(storage)
    assert [prompt.extra for prompt in read_shard(storage, spec)] == [{"x": None}, {"x": "1"}]


def test_the_fingerprint_depends_on_the_values_only() -> None:
    table = pa.table({"prompt_id": ["a", "b"], "extra.x": [1.5, float("nan")]})
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert plan_fingerprint(chunked) == plan_fingerprint(table)
    assert plan_fingerprint(table.slice(0, 1)) != plan_fingerprint(table)
