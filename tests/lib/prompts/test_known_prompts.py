"""Ids that a file system might take for one another name different prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import PromptsConfig
from rudalle_lib.prompts.plan import plan_run, read_plan, read_shard
from rudalle_lib.schema.records import image_id
from rudalle_lib.storage.storage import Storage
from tests.support.prompt_tables import write_table


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def plan(output: Storage, folder: Path, rows: list[tuple[str, str]]) -> dict[str, int]:
    """Plan rows of an id and a text; return the rejected rows by reason."""
    table = write_table(folder / "p.csv", [{"prompt_id": i, "prompt": text} for i, text in rows])
    config = RunConfig(output=output.url(), prompts=PromptsConfig(uri=table))
    return dict(plan_run(config, output).rejected)


def planned(output: Storage) -> dict[str, str]:
    """The planned texts by id."""
    return {
        prompt.prompt_id: prompt.text
        for shard in read_plan(output)
        for prompt in read_shard(output, shard)
    }


def names(ids: Any) -> list[str]:
    """The names of the ids' images, as a file system without case has them."""
    return [image_id(prompt_id, 0).lower() for prompt_id in ids]


@pytest.mark.parametrize("ids", [("A", "a"), ("a", "A"), ("Cat-1", "cat-1"), ("aB", "Ab", "AB")])
def test_ids_that_differ_only_in_case_get_different_names(
    output: Storage, tmp_path: Path, ids: tuple[str, ...]
) -> None:
    rows = [(prompt_id, f"text {number}") for number, prompt_id in enumerate(ids)]
    assert plan(output, tmp_path, rows) == {}
    found = planned(output)
    assert sorted(found.values()) == sorted(text for _, text in rows)
    assert len(set(names(found))) == len(rows)
    assert found[ids[0]] == "text 0"


def test_ids_keep_their_names_in_later_runs_whatever_the_order(
    output: Storage, tmp_path: Path
) -> None:
    rows = [("A", "one"), ("a", "two"), ("b", "three")]
    plan(output, tmp_path, rows)
    first = planned(output)
    for order in (rows, rows[::-1], [rows[1], rows[0], rows[2]]):
        assert plan(output, tmp_path, order) == {}
        assert planned(output) == first
    assert plan(output, tmp_path, [*rows, ("B", "four")]) == {}
    found = planned(output)
    assert len(set(names(found))) == len(found) == 4


def test_a_repeated_row_is_still_a_duplicate(output: Storage, tmp_path: Path) -> None:
    rows = [("A", "one"), ("a", "one"), ("a", "one"), ("A", "one"), ("a", "other")]
    assert plan(output, tmp_path, rows) == {"duplicate": 3}
    assert len(planned(output)) == 2


def test_a_changed_row_never_takes_the_name_of_another(output: Storage, tmp_path: Path) -> None:
    plan(output, tmp_path, [("A", "one"), ("b", "x")])
    plan(output, tmp_path, [("A", "two"), ("a", "two"), ("B", "x")])
    found = planned(output)
    assert sorted(found.values()) == ["one", "two", "two", "x", "x"]
    assert len(set(names(found))) == 5
    assert plan(output, tmp_path, [("a", "two"), ("A", "two"), ("B", "x")]) == {}
    assert planned(output) == found


def test_a_dataset_that_has_both_is_left_as_it_is(
    output: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Datasets of earlier versions on file systems with case are complete."""
    rows = [("A", "one"), ("a", "two")]
    with monkeypatch.context() as patch:
        patch.setattr(
            "rudalle_lib.prompts.known_prompts.KnownPrompts._differs_in_case", lambda *_: False
        )
        plan(output, tmp_path, rows)
    before = planned(output)
    assert before == {"A": "one", "a": "two"}
    assert plan(output, tmp_path, rows) == {}
    assert planned(output) == before
