"""The contact sheet: one PNG with the best images of a run, their prompts and scores.

It looks the same on every machine: the font (Manrope, Latin and Cyrillic, SIL Open Font License) is
part of the package, and Pillow's basic layout engine is used even if the system has Raqm.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from rudalle_lib.report.templates import read_template

PAPER, INK, QUIET, RED = "#F4F4F2", "#161616", "#8A8A86", "#D42A1E"
"""Colours of the background, the text, secondary text and the mark."""

MARGIN, GUTTER, COLUMN = 96, 36, 232
"""Page margin, space between images and width of an image, in pixels."""

CAPTION_LINES = 5
"""Maximum number of lines of a caption; longer captions are cut."""


@dataclass(frozen=True)
class Tile:
    """One tile of the sheet: an image, its caption (the prompt), and a short note (the score)."""

    image: Image.Image
    caption: str
    note: str = ""


def draw_contact_sheet(
    tiles: Sequence[Tile], title: str, facts: Sequence[str] = (), columns: int | None = None
) -> Image.Image:
    """Lay out `tiles` row by row, left to right, under a heading.

    Args:
        tiles: the images in reading order; may be empty.
        title: the heading, one line.
        facts: short lines at the right of the heading; only the first four are shown.
        columns: images per row; by default about as many as there are rows, between 4 and 8.

    Returns:
        An RGB image, about 2,300 pixels wide with eight columns.
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
        for column, index in enumerate(row):
            left = MARGIN + column * (COLUMN + GUTTER)
            _draw_tile(
                sheet, draw, tiles[index], captions[index], (left, top), caption_font, note_font
            )
        top += row_height
    return sheet


def encode_contact_sheet(sheet: Image.Image) -> bytes:
    """Encode the sheet as PNG, which names its maker; equal sheets give equal bytes."""
    buffer, maker = io.BytesIO(), PngInfo()
    maker.add_text("Software", "rudalle-flows")
    sheet.save(buffer, format="PNG", optimize=True, pnginfo=maker)
    return buffer.getvalue()


def load_font(size: int, weight: str = "Regular") -> ImageFont.FreeTypeFont:
    """Load the packaged font at `size` pixels; `weight` is "Regular" or "SemiBold"."""
    data = read_template(f"Manrope-{weight}.ttf")
    return ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Break `text` into at most `max_lines` lines of `width` pixels; cut text ends in "…"."""
    wrapped: list[str] = [""]
    # A prompt may have ten thousand characters; far fewer fit on a tile.
    for word in printable(text)[:400].split():
        for piece in _split_word(word, font, width):
            longer = f"{wrapped[-1]} {piece}".strip()
            if font.getlength(longer) <= width:
                wrapped[-1] = longer
            else:
                wrapped.append(piece)
    if len(wrapped) <= max_lines:
        return wrapped
    last = wrapped[max_lines - 1]
    while last and font.getlength(last + "…") > width:
        last = last[:-1]
    return [*wrapped[: max_lines - 1], last.rstrip(" ,.;:") + "…"]


def printable(text: str) -> str:
    """Put `text` on one line, with control and direction characters replaced by spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _split_word(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _image_size(image: Image.Image) -> tuple[int, int]:
    return COLUMN, max(1, round(COLUMN * image.height / image.width))


def _row_height(tiles: Sequence[Tile], captions: Sequence[list[str]]) -> int:
    image = max(_image_size(tile.image)[1] for tile in tiles)
    return image + 14 + 25 * max(len(lines) for lines in captions) + 24 + 40


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
    """Draw the project's mark, a black square and a small tilted red one, `side` pixels high."""
    scale = 8 * side / 56  # drawn at eight times the size, for smooth edges
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
    size = _image_size(tile.image)
    sheet.paste(tile.image.convert("RGB").resize(size, Image.Resampling.LANCZOS), corner)
    # A thin outline separates a white image background from the page.
    draw.rectangle((left - 1, top - 1, left + size[0], top + size[1]), outline="#DADAD6")
    top += size[1] + 14
    for number, line in enumerate(caption):
        draw.text((left, top + 25 * number), line, font=caption_font, fill=INK)
    draw.text((left, top + 25 * len(caption) + 3), tile.note, font=note_font, fill=QUIET)
