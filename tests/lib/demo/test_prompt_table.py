"""The demo's prompt table: the committed file, its good rows and its bad rows."""

from __future__ import annotations

from pathlib import Path

import rudalle_lib.demo
from rudalle_lib.demo import prompt_table


def test_committed_table_equals_the_output_of_the_script() -> None:
    table = Path(rudalle_lib.demo.__file__).with_name("prompts.csv")
    assert table.read_text(encoding="utf-8") == prompt_table.to_csv()


def test_table_has_64_good_prompts_in_two_languages_and_six_bad_rows() -> None:
    rows = prompt_table.rows()
    good = [row for row in rows if not row["theme"].startswith("bad")]
    assert len({row["prompt"] for row in good}) == len(good) == 64
    assert sum(row["theme"] == "english" for row in good) == 22
    assert len(rows) - len(good) == 6
    assert "чёрный квадрат на белом фоне" in {row["prompt"] for row in good}


def test_no_figure_has_the_colour_of_its_background() -> None:
    for themes in (prompt_table.RUSSIAN, prompt_table.ENGLISH):
        for lines in themes.values():
            for line in lines.strip().splitlines():
                background = line.split("|")[-1].strip()
                assert f" {background} " not in f" {line.rpartition('|')[0]} "
