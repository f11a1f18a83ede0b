"""The demo's prompt table: committed as its script makes it, drawable, and bad where it says so."""

from __future__ import annotations

from pathlib import Path

import rudalle_lib.demo
from rudalle_lib.demo import prompt_table


def test_the_committed_table_is_what_the_script_writes() -> None:
    table = Path(rudalle_lib.demo.__file__).with_name("prompts.csv")
    assert table.read_text(encoding="utf-8") == prompt_table.to_csv()


def test_it_has_64_good_prompts_in_two_languages_and_six_bad_rows() -> None:
    rows = prompt_table.rows()
    good = [row for row in rows if not row["theme"].startswith("bad")]
    assert len({row["prompt"] for row in good}) == len(good) == 64
    assert sum(row["theme"] == "english" for row in good) == 22
    assert len(rows) - len(good) == 6
    assert "чёрный квадрат на белом фоне" in {row["prompt"] for row in good}


def test_every_good_prompt_can_be_drawn_on_its_ground() -> None:
    for themes in (prompt_table.RUSSIAN, prompt_table.ENGLISH):
        for lines in themes.values():
            for line in lines.strip().splitlines():
                ground = line.split("|")[-1].strip()
                assert f" {ground} " not in f" {line.rpartition('|')[0]} "
