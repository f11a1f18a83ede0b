"""The structure of image files is read with bounds, whatever the bytes are."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from rudalle_lib.errors import ImageError
from rudalle_lib.images.codecs import decode_image
from rudalle_lib.images.containers import MAX_PARTS, PNG_SIGNATURE, open_container
from tests.support.limited_process import Outcome, call_limited

FORMATS = ("PNG", "JPEG", "WEBP")


def picture(width: int = 70, height: int = 50, seed: int = 0) -> Image.Image:
    """A smooth image without symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return decode_image(data).permute(1, 2, 0).numpy()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        *more,
        chunk(b"IDAT", zlib.compress(rows)),
        chunk(b"IEND", b""),
    ]
    return PNG_SIGNATURE + b"".join(parts)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def riff(*parts: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for kind, content in parts
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


# --- what decoders get -------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_that_of_pillow(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", orientation
    data = saved(picture(), image_format, exif=exif.tobytes())
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(pixels(data), np.asarray(upright))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "form"), [(1, "B3x"), (3, "H2x"), (4, "I")])
def test_orientation_is_read_in_both_byte_orders_and_all_integers(
    order: str, kind: int, form: str
) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHI{form}", 0x0112, kind, 1, 6)
    exif = mark + struct.pack(f"{order}IH", 8, 1) + entry
    assert open_container(saved(picture(), "WEBP", exif=exif)).orientation == 6
    assert open_container(saved(picture(), "WEBP", exif=exif[:-4])).orientation == 1


@pytest.mark.parametrize("image_format", FORMATS)
def test_metadata_does_not_reach_decoders(image_format: str) -> None:
    plain = saved(picture(), image_format)
    metadata = {"exif": b"Exif\0\0" + b"x" * 999, "icc_profile": b"secret profile" * 9_000}
    full = saved(picture(), image_format, **metadata, xmp=b"<secret/>")
    assert len(full) > len(plain) + 500
    assert len(open_container(full).data) <= len(open_container(plain).data) + 18  # a header
    assert np.array_equal(pixels(full), pixels(plain))


def animated(image_format: str) -> bytes:
    frames = [picture(seed=seed) for seed in range(3)]
    return saved(frames[0], image_format, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "MPO"])
def test_only_the_first_frame_reaches_decoders(image_format: str) -> None:
    data = animated(image_format)
    assert len(open_container(data).data) < 0.5 * len(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("image_format", FORMATS)
def test_what_follows_the_image_does_not_matter(image_format: str) -> None:
    data = saved(picture(), image_format)
    assert open_container(data + b"\xff\xda" * 5_000).data == open_container(data).data


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [True, False])
def test_jpegs_keep_their_colours(mode: str, progressive: bool) -> None:
    data = saved(picture().convert(mode), "JPEG", progressive=progressive, comment=b"c")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(pixels(data), expected)


# --- bits and transparency ---------------------------------------------------------------------


def test_grey_of_16_bits_is_scaled() -> None:
    levels = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = pixels(saved(Image.fromarray(levels), "PNG"))
    assert np.array_equal(found, np.repeat(np.rint(levels / 257)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "levels"),
    [
        (1, 0, b"\x40", ">H 1", [0, 255]),
        (2, 0, b"\x60", ">H 2", [85, 170]),
        (4, 0, b"\x3c", ">H 12", [51, 204]),
        (8, 0, b"\x0a\x50", ">H 80", [10, 80]),
        (16, 0, b"\x10\x00\x50\x00", ">H 20480", [16, 80]),
        (8, 2, b"\1\2\3\x50\x50\x50", ">HHH 80 80 80", [2, 80]),
        (16, 2, b"\x10\0" * 3 + b"\x50\1" * 3, ">HHH 20481 20481 20481", [16, 80]),
    ],
)
def test_a_transparent_colour_of_any_depth(
    depth: int, colour: int, row: bytes, clear: str, levels: list[int]
) -> None:
    form, *values = clear.split()
    transparent = chunk(b"tRNS", struct.pack(form, *map(int, values)))
    data = png(2, 1, depth, colour, b"\0" + row, transparent)
    found = decode_image(data, keep_alpha=True)
    assert found[3].tolist() == [[255, 0]]
    assert found[1].tolist() == [levels]
    assert decode_image(data)[1].tolist() == [[levels[0], 255]]


@pytest.mark.parametrize("transparency", [0, bytes(range(0, 240, 80))])
def test_a_transparent_palette(transparency: object) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    found = decode_image(saved(image, "PNG", transparency=transparency), keep_alpha=True)
    assert found[:3].permute(1, 2, 0).tolist() == [[[200, 0, 0], [0, 200, 0], [0, 0, 200]]]
    assert found[3].tolist() == [[0, 255, 255] if transparency == 0 else [0, 80, 160]]


def test_bands_do_not_change_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture().convert("RGBA")
    image.putalpha(picture(seed=1).getchannel(0))
    grey = Image.fromarray(np.arange(3500, dtype=np.uint16).reshape(50, 70))
    files = [saved(image, "PNG"), saved(picture().quantize(9), "PNG", transparency=3),
             saved(grey, "PNG")]  # fmt: skip
    expected = [(decode_image(file), decode_image(file, keep_alpha=True)) for file in files]
    monkeypatch.setattr("rudalle_lib.images.codecs.BAND_PIXELS", 150)
    for file, (flat, full) in zip(files, expected, strict=True):
        assert decode_image(file).equal(flat) and decode_image(file, keep_alpha=True).equal(full)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"GIF89a" + bytes(20), "it is a GIF image"),
        (b"II*\0" + bytes(20), "it is a TIFF image"),
        (b"\0\0\0\x20ftypavif" + bytes(20), "it is an AVIF image"),
        (b" <!DOCTYPE html><html>", "it is an HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "it is an SVG image"),
        (b'{"error": "not found"}', "it is JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"%PDF-1.7", "it is a PDF document"),
        (b"\x01\x99\xfe", "its first bytes are those of no known format"),
    ],
)
def test_another_file_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as raised:
        decode_image(data, name="cat.png")
    assert str(raised.value) == f"cat.png is not a readable PNG, JPEG, WEBP file ({reason})"


@pytest.mark.parametrize("image_format", [*FORMATS, "MPO"])
def test_a_truncated_file_is_rejected_or_whole_and_errors_do_not_change(image_format: str) -> None:
    """Errors are published as rejects, so they are the same in every run."""
    whole = saved(picture(), image_format)
    expected = decode_image(whole)
    for length in range(0, len(whole), 7):
        messages = set()
        for _ in range(2):
            try:
                assert decode_image(whole[:length]).equal(expected)
            except ImageError as error:
                messages.add(str(error))
        assert len(messages) <= 1 and not any(" at 0x" in message for message in messages)
        assert messages or length > 0.9 * len(whole)


@pytest.mark.parametrize("image_format", FORMATS)
@settings(deadline=20_000, max_examples=120)
@given(st.data())
def test_a_damaged_file_is_an_image_or_an_image_error(
    image_format: str, data: st.DataObject
) -> None:
    options: dict[str, object] = data.draw(
        st.sampled_from([{}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1"}, {"progressive": True}])
    )
    if image_format != "JPEG" and data.draw(st.booleans()):
        file = bytearray(animated(image_format))
    else:
        file = bytearray(saved(picture(9, 7), image_format, **options))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(file) - 1))
        size = data.draw(st.integers(0, 4))
        file[position : position + size] = data.draw(st.binary(max_size=6))
    try:
        assert decode_image(bytes(file), max_pixels=2**20).shape[0] == 3
    except ImageError as error:
        assert " at 0x" not in str(error) and len(str(error)) < 400


# --- bombs -------------------------------------------------------------------------------------


def many_scans(scans: int, side: int = 4096) -> bytes:
    """A progressive JPEG whose last scan is repeated, 178 KB for 2,000 scans."""
    data = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + scans * data[start:end] + data[end:]


def hidden_scans() -> bytes:
    """Scans in what looks like a segment, but is skipped by decoders inside of a scan."""
    data = many_scans(0)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    scans = 2_000 * data[start:end]
    restart = segment(0xDD, b"\0\1")
    hidden = b"".join(b"\xff\x02\xff\xff" + scans[i : i + 65_533] for i in range(0, 65_533, 65_533))
    return data[:2] + restart + data[2:end] + hidden + data[end:]


def directory(entries: int, size: int) -> bytes:
    """EXIF metadata with many entries that share their value."""
    table = b"".join(
        struct.pack("<HHII", number, 1, size, 8) for number in range(1, min(entries, 65_535) + 1)
    )
    return b"II*\0" + struct.pack("<IH", 8, entries & 65_535) + table + bytes(size)


def frames(count: int) -> bytes:
    data = animated("WEBP")
    start = data.index(b"ANMF")
    size = 8 + struct.unpack_from("<I", data, start + 4)[0]
    body = data[12:start] + count * data[start : start + size]
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "2,000 scans": (lambda: many_scans(2_000), "129 scans or more of 4,096 x 4,096 pixels"),
    "2,000 scans of a small image": (lambda: many_scans(2_000, 64), None),
    "scans in a false segment": (hidden_scans, "a segment of type 0x2"),
    "scans after a comment": (
        lambda: many_scans(2_000).replace(b"\xff\xda", segment(0xFE, b"c" * 9) + b"\xff\xda"),
        "129 scans or more",
    ),
    "arithmetic coding": (
        lambda: many_scans(0).replace(b"\xff\xc2", b"\xff\xca"),
        "a segment of type 0xca",
    ),
    "four million comments": (
        lambda: many_scans(0, 64)[:2] + 4_000_000 * segment(0xFE, b"") + many_scans(0, 64)[2:],
        f"more than {MAX_PARTS:,} parts",
    ),
    "EXIF of a JPEG": (
        lambda: saved(picture(), "JPEG")[:2]
        + 400 * segment(0xE1, b"Exif\0\0" + directory(5_000, 5_000))
        + saved(picture(), "JPEG")[2:],
        None,
    ),
    "EXIF of a PNG": (lambda: saved(picture(), "PNG", exif=directory(65_535, 2**20)), None),
    "EXIF of a WebP": (lambda: saved(picture(), "WEBP", exif=directory(65_535, 2**20)), None),
    "a huge JPEG": (
        lambda: many_scans(0, 16).replace(b"\0\x10\0\x10", b"\xff\xdc\xff\xdc", 1),
        "far more than 16,777,216 pixels",
    ),
    "a huge PNG": (
        lambda: png(60_000, 60_000, 1, 0, bytes(2**20)),
        "far more than 16,777,216 pixels",
    ),
    "zeros in a PNG": (lambda: png(4_096, 4_096, 8, 6, bytes(4 * 4_097 * 4_096)), None),
    "more zeros than pixels": (lambda: png(8, 8, 8, 6, bytes(2**27)), None),
    "a PNG of two rows": (lambda: png(2**23, 2, 1, 0, bytes(2**21 + 2)), None),
    "a PNG of two columns": (lambda: png(2, 2**23, 1, 0, bytes(2**24)), None),
    "compressed text": (
        lambda: png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28)))),
        None,
    ),
    "a compressed profile": (
        lambda: png(1, 1, 8, 0, b"\0\0", chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28)))),
        None,
    ),
    "two million chunks": (
        lambda: png(1, 1, 8, 0, b"\0\0", 2_000_000 * chunk(b"teXt", b"")),
        f"more than {MAX_PARTS:,} parts",
    ),
    "a WebP with a huge canvas": (
        lambda: riff((b"VP8X", b"\2\0\0\0" + b"\xff\x3f\0\xff\x3f\0"), (b"ANIM", bytes(6)),
                     (b"ANMF", bytes(24))),
        "far more than 16,777,216 pixels",
    ),
    "a huge lossless WebP": (
        lambda: riff((b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(99))),
        "far more than 16,777,216 pixels",
    ),
    "a WebP of 16,000,000 pixels": (
        lambda: saved(Image.new("RGBA", (4_000, 4_000)), "WEBP", lossless=True, method=0), None
    ),
    "an animation of 50,000 frames": (lambda: frames(50_000), None),
}  # fmt: skip


def decode_limited(data: bytes) -> list[int]:
    return list(decode_image(data, max_pixels=16 * 2**20, name="bomb").shape)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_image_or_one_sentence(name: str) -> None:
    make, reason = BOMBS[name]
    found: Outcome = call_limited(decode_limited, make())
    assert found.seconds < 5 and found.megabytes < 600
    if reason is None:
        assert found.error is None and found.value[0] == 3
    else:
        assert found.error is not None and reason in found.error
