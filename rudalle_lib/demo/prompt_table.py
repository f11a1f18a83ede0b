"""The demo's prompt table: compositions in Russian and English, and a few deliberately bad rows.

    python -m rudalle_lib.demo.prompt_table

This writes `prompts.csv` next to this file. Captions come from the demo grammar, so the demo
decoder can draw all good rows. The bad rows show how rows are rejected.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from rudalle_lib.demo.captions import english_caption, russian_caption
from rudalle_lib.demo.scenes import Figure, Scene

COLUMNS = ("prompt", "images", "seed", "top_p", "theme")
"""Columns of the table. `theme` is not a known column; it shows that others are passed through."""

Row = dict[str, str]

RUSSIAN = {
    "malevich": """
        black square | white
        black circle | white
        black cross | white
        red square | white
        big black square | left_of | small red square | white
        white square | beige
        big white cross | grey
        yellow bar | white
        small red square | above | big black bar | beige
        big black cross | above | red circle | white
    """,
    "lissitzky": """
        big red triangle | left_of | big white circle | black
        red triangle | right_of | black circle | white
        small black square | above | big red circle | beige
        white bar | below | big red square | black
        big black circle | left_of | small red bar | beige
        big white cross | right_of | red bar | black
    """,
    "popova": """
        big orange triangle | above | blue bar | beige
        violet square | left_of | green triangle | white
        big blue circle | left_of | yellow triangle | black
        yellow cross | above | big violet circle | grey
        small orange circle | right_of | big green square | white
        big red cross | left_of | small blue square | beige
        white triangle | below | orange bar | black
        green bar | right_of | big yellow circle | grey
        small yellow square | left_of | big black triangle | white
    """,
    "size": """
        small blue circle | white
        blue circle | white
        big blue circle | white
        small green square | black
        green square | black
        big green square | black
        small orange triangle | grey
        orange triangle | grey
        big orange triangle | grey
        small violet bar | beige
        big violet bar | beige
        big violet square | above | small violet square | white
        small yellow circle | below | big yellow circle | black
    """,
    "relation": """
        red circle | left_of | blue square | white
        red circle | right_of | blue square | white
        red circle | above | blue square | white
        red circle | below | blue square | white
    """,
}
"""Scenes with Russian captions, by theme. Each line is "figure | background" or
"figure | relation | figure | background"."""

ENGLISH = {
    "english": """
        black square | white
        big red circle | white
        small yellow triangle | black
        green cross | beige
        orange bar | grey
        violet circle | black
        big white square | black
        big blue triangle | beige
        small red cross | white
        white circle | grey
        big yellow square | grey
        blue bar | white
        big blue circle | left_of | yellow triangle | black
        red square | above | black bar | white
        small green circle | right_of | big orange square | beige
        white cross | below | big red circle | grey
        violet triangle | left_of | white bar | black
        big yellow cross | above | green circle | black
        orange circle | below | blue square | white
        small black circle | left_of | big violet cross | beige
        big green triangle | right_of | small red circle | grey
        yellow bar | above | violet square | black
    """
}
"""Scenes with English captions, in the same form."""

OVERRIDES = {
    "чёрный квадрат на белом фоне": {"images": "16"},
    "чёрный круг на белом фоне": {"images": "4"},
    "чёрный крест на белом фоне": {"images": "4", "seed": "1915"},
    "красный квадрат на белом фоне": {"top_p": "0.8"},
}
"""Values of other columns, by prompt."""

BAD: tuple[Row, ...] = (
    {"prompt": "", "theme": "bad: null"},
    {"prompt": "   ", "theme": "bad: empty"},
    {"prompt": "чёрный квадрат на белом фоне, " * 400, "theme": "bad: far too long"},
    {"prompt": "большой красный круг на сером фоне", "images": "many", "theme": "bad: override"},
    {"prompt": "большой синий крест на сером фоне", "top_p": "1.7", "theme": "bad: override"},
    {"prompt": "  чёрный  квадрат на белом фоне ", "images": "16", "theme": "bad: duplicate"},
)
"""Rows that are rejected."""


def rows() -> list[Row]:
    """Return the rows of the table, with the bad rows spread among the good ones."""
    table = [*_good(RUSSIAN, english=False), *_good(ENGLISH, english=True)]
    for number, bad in enumerate(BAD, start=1):
        table.insert(number * 11, bad)
    return table


def to_csv() -> str:
    """Return the table as CSV text. Cells without a value are empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows())
    return buffer.getvalue()


def _good(themes: dict[str, str], english: bool) -> Iterator[Row]:
    for theme, lines in themes.items():
        for line in lines.strip().splitlines():
            scene = _scene([part.strip() for part in line.split("|")])
            prompt = english_caption(scene) if english else russian_caption(scene)
            yield {"prompt": prompt, "theme": theme, **OVERRIDES.get(prompt, {})}


def _scene(parts: list[str]) -> Scene:
    *figures, background = parts
    if len(figures) == 1:
        return Scene(background, (_figure(figures[0]),))
    first, relation, second = figures
    return Scene(background, (_figure(first), _figure(second)), relation)


def _figure(text: str) -> Figure:
    *size, colour, shape = text.split()
    return Figure(shape, colour, size[0] if size else "medium")


if __name__ == "__main__":
    Path(__file__).with_name("prompts.csv").write_text(to_csv(), encoding="utf-8")
