"""Kinds of image files, captions and names that people have: the right image, or a reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.storage.storage import Storage
from rudalle_lib.training.data.encode import encode_data
from tests.support.image_data import image_bytes, write_tar
from tests.support.tiny_stack import SIDE

Tuning = Callable[..., FineTuneConfig]

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)

ROTATED = 6
"""EXIF orientation of an image that was taken with the camera turned to the left."""


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(mode: str, colour: Any) -> Image.Image:
    return Image.new(mode, (40, 40), colour)


def palette() -> Image.Image:
    """A palette with red and a transparent colour, all of it transparent."""
    image = Image.new("P", (40, 40), 1)
    image.putpalette([*RED, 0, 0, 255])
    return image


def upper_half_red() -> Image.Image:
    """Red above, green below: turned by its EXIF, red is at the right."""
    image = plain("RGB", GREEN)
    image.paste(RED, (0, 0, 40, 20))
    return image


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = ROTATED
    return file_of(upper_half_red(), "PNG", exif=exif)


def animated(form: str) -> bytes:
    return file_of(plain("RGB", RED), form, save_all=True, append_images=[plain("RGB", GREEN)])


GREY_16 = Image.fromarray(np.full((40, 40), 65_535, np.uint16))

RIGHT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "cmyk.jpg": (file_of(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED),
    "16-bit.png": (file_of(GREY_16, "PNG"), WHITE),
    "palette.png": (file_of(palette(), "PNG", transparency=1), WHITE),
    "opaque.png": (file_of(plain("RGBA", (*RED, 255)), "PNG"), RED),
    "transparent.webp": (file_of(plain("RGBA", (*RED, 0)), "WEBP", lossless=True), WHITE),
    "grey.png": (file_of(plain("L", 255), "PNG"), WHITE),
    "bits.png": (file_of(plain("1", 1), "PNG"), WHITE),
    "grey-alpha.png": (file_of(plain("LA", (0, 0)), "PNG"), WHITE),
    "animated.png": (animated("PNG"), RED),
    "moving.webp": (animated("WEBP"), RED),
    "UPPER.PNG": (file_of(plain("RGB", RED), "PNG"), RED),
    "jpeg-inside.png": (file_of(plain("RGB", RED), "JPEG", quality=100), RED),
    "rotated.png": (rotated(), RED),
}
"""Files that are read, and the colour at the right edge of their image."""

WRONG = {
    "gif.png": animated("GIF"),
    "bmp.png": file_of(plain("RGB", RED), "BMP"),
    "tiff.jpg": file_of(plain("RGB", RED), "TIFF"),
    "cut.webp": file_of(plain("RGB", RED), "WEBP")[:-20],
    "text.jpg": "красный круг".encode(),
}
"""Files that are no images, or of other formats."""


def encoded(config: FineTuneConfig) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows that are learnt from, and the reasons of the others, by key."""
    storage = Storage(config.output)
    data = encode_data(config, storage)
    rows = [row for shard in data.shards for row in storage.read_table(shard.path).to_pylist()]
    rejects = [
        row for s in data.shards if s.rejects for row in storage.read_table(s.rejects).to_pylist()
    ]
    rejected = {row["row"]: row["reason"] for row in rejects}
    return {row["key"]: row for row in rows if row["key"] not in rejected}, rejected


def test_kinds_of_image_files(tuning: Tuning, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in [*((n, file) for n, (file, _) in RIGHT.items()), *WRONG.items()]:
        (folder / name).write_bytes(content)
    found, rejected = encoded(tuning(folder, trains="vqgan"))
    assert rejected == dict.fromkeys(WRONG, "bad_image")
    assert set(found) == set(RIGHT)
    for name, row in found.items():
        pixels = np.frombuffer(row["image"], np.uint8).reshape(3, SIDE, SIDE)
        assert pixels[:, SIDE // 2, -1].tolist() == pytest.approx(RIGHT[name][1], abs=3), name


CAPTIONS: list[tuple[Any, str | None]] = [
    ("красный круг", None),
    ("  красный \n круг\t", "duplicate"),
    ("7", None),
    ("nan", None),
    ("None", None),
    ("", "no_caption"),
    (" \t\n ", "no_caption"),
    ("\u200b\u200b", "no_caption"),
    (None, "no_caption"),
    ("круг " * 5000, None),
]
"""Captions of a column of texts, and why a row with one of them is rejected."""


def test_kinds_of_captions(tuning: Tuning, tmp_path: Path) -> None:
    images = [image_bytes(1)] * len(CAPTIONS)
    table = pa.table({"text": [text for text, _ in CAPTIONS], "image": images})
    pq.write_table(table, tmp_path / "t.parquet")
    found, rejected = encoded(tuning(tmp_path / "t.parquet"))
    expected = {f"t.parquet, row {n}": why for n, (_, why) in enumerate(CAPTIONS, 1) if why}
    assert rejected == expected
    assert len(found) == len(CAPTIONS) - len(rejected)


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ([1.5, float("nan"), None], ["bad_caption", "no_caption", "no_caption"]),
        ([7, 8, None], ["bad_caption", "bad_caption", "no_caption"]),
        ([["a", "b"], [], None], ["bad_caption", "bad_caption", "no_caption"]),
        ([True, False, None], ["bad_caption", "bad_caption", "no_caption"]),
        ([b"\xff\xfe", b"", None], ["bad_caption", "no_caption", "no_caption"]),
    ],
)
def test_columns_that_hold_no_texts(
    tuning: Tuning, tmp_path: Path, values: list[Any], reasons: list[str]
) -> None:
    good = {"text": "круг", "image": image_bytes(1)}
    pq.write_table(pa.Table.from_pylist([good]), tmp_path / "a.parquet")
    table = pa.table({"text": values, "image": [image_bytes(2)] * 3})
    pq.write_table(table, tmp_path / "b.parquet")
    found, rejected = encoded(tuning(tmp_path / "a.parquet", tmp_path / "b.parquet"))
    assert list(found) == ["a.parquet, row 1"]
    assert rejected == {f"b.parquet, row {n}": why for n, why in enumerate(reasons, 1)}


def test_paths_in_tars(tuning: Tuning, tmp_path: Path) -> None:
    names = ["./a/001", "a/b.c/001", "b/001", "../up/001", "/root/001", "a/001", "__x/é"]
    members = []
    for number, name in enumerate(names):
        members += [(f"{name}.png", image_bytes(number)), (f"{name}.txt", b"x")]
    members += [("z/1.png", image_bytes(9)), ("z/2.png", image_bytes(8)), ("z/1.txt", b"x")]
    found, rejected = encoded(tuning(write_tar(tmp_path / "t.tar", members)))
    assert list(found) == [f"t.tar, {name}" for name in names]
    assert rejected == {"t.tar, z/1": "same_name", "t.tar, z/2": "no_caption"}
