"""The contact sheet: one PNG with the best pictures of a run, their prompts and scores.

It looks the same on any machine: the font (Manrope, Latin and Cyrillic, SIL Open Font License)
travels with the package and is laid out by Pillow's own basic engine, whatever the system has.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from rudalle_lib.templating import read_template

PAPER, INK, QUIET, RED = "#F4F4F2", "#161616", "#8A8A86", "#D42A1E"
MARGIN, GUTTER, COLUMN = 96, 36, 232  # pixels: page edge, between pictures, picture width
CAPTION_LINES = 5


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet: an image, the prompt under it, a short note (score) under that."""

    image: Image.Image
    caption: str
    note: str = ""


def draw_contact_sheet(
    tiles: Sequence[Tile], title: str, facts: Sequence[str] = (), columns: int | None = None
) -> Image.Image:
    """Lay `tiles` out row by row, left to right, under a heading.

    Args:
        tiles: the pictures in reading order; any number, none included.
        title: heading, one line.
        facts: short lines of figures at the right of the heading, at most four are shown.
        columns: pictures a row; by default about as many as rows, between 4 and 8.

    Returns:
        An RGB image, about 2,200 pixels wide with eight columns.
    """
    columns = columns or min(8, max(4, math.ceil(math.sqrt(len(tiles)))))
    caption_font, note_font = load_font(19), load_font(17)
    captions = [wrap(tile.caption, caption_font, COLUMN, CAPTION_LINES) for tile in tiles]
    starts = range(0, len(tiles), columns)
    rows = [range(start, min(start + columns, len(tiles))) for start in starts]
    heights = [_row_height([tiles[i] for i in row], [captions[i] for i in row]) for row in rows]

    heading = 236
    width = 2 * MARGIN + columns * COLUMN + (columns - 1) * GUTTER
    height = heading + sum(heights) + MARGIN - 28
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_heading(sheet, title, facts[:4])
    top = heading
    for row, row_height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            left = MARGIN + place * (COLUMN + GUTTER)
            _draw_tile(
                sheet, draw, tiles[index], captions[index], (left, top), caption_font, note_font
            )
        top += row_height
    return sheet


def encode_contact_sheet(sheet: Image.Image) -> bytes:
    """The sheet as PNG bytes; equal sheets give equal bytes."""
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def load_font(size: int, weight: str = "Regular") -> ImageFont.FreeTypeFont:
    """The packaged font at `size` pixels; weight is "Regular" or "SemiBold"."""
    data = read_template(f"Manrope-{weight}.ttf")
    return ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> list[str]:
    """Break `text` into at most `lines` lines of `width` pixels; a cut text ends in an ellipsis."""
    wrapped: list[str] = [""]
    # A prompt may have ten thousand characters: far fewer fit on a tile.
    for word in printable(text)[:400].split():
        for piece in _split_word(word, font, width):
            longer = f"{wrapped[-1]} {piece}".strip()
            if font.getlength(longer) <= width:
                wrapped[-1] = longer
            else:
                wrapped.append(piece)
    if len(wrapped) <= lines:
        return wrapped
    last = wrapped[lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*wrapped[: lines - 1], last.rstrip(" ,.;:") + "…"]


def printable(text: str) -> str:
    """`text` on one line, control and direction characters replaced by spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _split_word(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _picture_size(image: Image.Image) -> tuple[int, int]:
    return COLUMN, max(1, round(COLUMN * image.height / image.width))


def _row_height(tiles: Sequence[Tile], captions: Sequence[list[str]]) -> int:
    picture = max(_picture_size(tile.image)[1] for tile in tiles)
    return picture + 14 + 25 * max(len(lines) for lines in captions) + 24 + 40


def _draw_heading(sheet: Image.Image, title: str, facts: Sequence[str]) -> None:
    draw, width = ImageDraw.Draw(sheet), sheet.width
    sheet.paste(draw_mark(56), (MARGIN, 84))
    font = load_font(46, "SemiBold")
    (line,) = wrap(title, font, (width - 2 * MARGIN) * 6 // 10, 1)
    draw.text((MARGIN + 128, 139), line, font=font, fill=INK, anchor="ls")
    small = load_font(19)
    for number, fact in enumerate(reversed(facts)):
        draw.text((width - MARGIN, 139 - 27 * number), fact, font=small, fill=QUIET, anchor="rs")


def draw_mark(side: int) -> Image.Image:
    """The project's mark, a black square and a small tilted red one, `side` pixels high."""
    scale = 8 * side / 56  # drawn eight times too large, for smooth edges
    mark = Image.new("RGB", (round(112 * scale), round(56 * scale)), PAPER)
    draw = ImageDraw.Draw(mark)
    draw.rectangle((0, 0, 56 * scale - 1, 56 * scale - 1), fill=INK)
    corners = [(71, 20), (101, 26), (95, 55), (65, 49)]
    draw.polygon([(x * scale, y * scale) for x, y in corners], fill=RED)
    return mark.resize((2 * side, side), Image.Resampling.LANCZOS)


def _draw_tile(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: Tile,
    caption: Sequence[str],
    corner: tuple[int, int],
    caption_font: ImageFont.FreeTypeFont,
    note_font: ImageFont.FreeTypeFont,
) -> None:
    left, top = corner
    size = _picture_size(tile.image)
    sheet.paste(tile.image.convert("RGB").resize(size, Image.Resampling.LANCZOS), corner)
    # A hairline, so that a white ground does not melt into the paper.
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline="#DADAD6")
    top += size[1] + 14
    for number, line in enumerate(caption):
        draw.text((left, top + 25 * number), line, font=caption_font, fill=INK)
    draw.text((left, top + 25 * len(caption) + 3), tile.note, font=note_font, fill=QUIET)
