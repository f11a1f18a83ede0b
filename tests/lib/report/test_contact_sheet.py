"""The contact sheet: Cyrillic is drawn, captions fit, and equal tiles give equal bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rudalle_lib.report.contact_sheet import (
    COLUMN,
    Tile,
    draw_contact_sheet,
    encode_contact_sheet,
    load_font,
    printable,
    wrap,
)


def tiles(count: int) -> list[Tile]:
    image = Image.new("RGB", (128, 128), "#D42A1E")
    return [Tile(image, f"красный квадрат {i}", "0.312") for i in range(count)]


@pytest.mark.parametrize("letter", "жщёЖЫЯabc…·—«№")
def test_the_font_has_every_letter_that_captions_use(letter: str) -> None:
    missing, drawn = (load_font(40).getmask(text) for text in ("\uffff", letter))
    assert bytes(drawn) != bytes(missing)


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_any_number_of_images_makes_a_sheet(count: int) -> None:
    sheet = draw_contact_sheet(tiles(count), "demo", ["12 prompts"])
    red = (np.asarray(sheet) == (0xD4, 0x2A, 0x1E)).all(axis=2).sum()
    assert red >= count * COLUMN**2


def test_equal_tiles_give_equal_bytes_and_a_valid_png() -> None:
    first, second = (encode_contact_sheet(draw_contact_sheet(tiles(5), "demo")) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).format == "PNG"


def test_long_and_hostile_captions_stay_inside_their_column() -> None:
    font = load_font(19)
    for text in ("х" * 100_000, "a\u202eb\x00c\n" * 50, "слово " * 90, ""):
        lines = wrap(text, font, COLUMN, 3)
        assert 1 <= len(lines) <= 3
        assert all(font.getlength(line) <= COLUMN for line in lines)
    assert wrap("слово " * 90, font, COLUMN, 3)[-1].endswith("…")


def test_control_characters_become_spaces() -> None:
    assert printable("a\tb\n\u202ec\x00") == "a b c"
