"""Images are encoded exactly and reproducibly; hostile files are rejected with a reason."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from rudalle_lib.errors import ImageError, SettingsError
from rudalle_lib.images.codecs import (
    compress_fully,
    decode_image,
    encode_for_stage,
    encode_image,
    to_floats,
    to_uint8,
)


@pytest.fixture
def image() -> Tensor:
    """Flat areas with a hard edge, like the demo images: uint8 [3, 24, 40]."""
    pixels = np.full((3, 24, 40), 240, dtype=np.uint8)
    pixels[:, 6:18, 10:30] = np.array([200, 30, 20], dtype=np.uint8)[:, None, None]
    return torch.from_numpy(pixels)


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def test_png_is_lossless(image: Tensor) -> None:
    assert decode_image(encode_image(image, "png")).equal(image)


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_lossy_formats_are_close_and_quality_matters(image: Tensor, image_format: str) -> None:
    good, poor = (encode_image(image, image_format, quality) for quality in (95, 5))
    assert (decode_image(good).int() - image.int()).abs().float().mean() < 4
    assert len(poor) < len(good)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_equal_pixels_give_equal_bytes(image: Tensor, image_format: str) -> None:
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert encode_image(image, image_format) == encode_image(strided, image_format)


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_alpha_is_kept_on_request_and_otherwise_composited_onto_white(
    image: Tensor, image_format: str
) -> None:
    alpha = torch.full((1, 24, 40), 255, dtype=torch.uint8)
    alpha[:, :, :20] = 0
    data = encode_image(torch.cat((image, alpha)), image_format, quality=100)
    assert decode_image(data, keep_alpha=True)[3:].equal(alpha)
    assert (decode_image(data)[:, :, :20] == 255).all()
    assert decode_image(encode_image(image), keep_alpha=True).equal(image)
    with pytest.raises(SettingsError, match="jpeg has no transparency"):
        encode_image(torch.cat((image, alpha)), "jpeg")


def test_an_unknown_format_is_an_error_that_names_the_known_ones(image: Tensor) -> None:
    with pytest.raises(SettingsError, match="unknown image format 'gif'; expected one of png"):
        encode_image(image, "gif")


def test_only_uint8_rgb_images_are_encoded() -> None:
    with pytest.raises(
        ValueError, match=r"uint8 \[3 or 4, H, W\], found torch.float32 \[3, 2, 2\]"
    ):
        encode_image(torch.zeros(3, 2, 2))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("RGB", (5, 4), (10, 200, 30)).convert(mode)
    decoded = decode_image(saved(source, "JPEG" if mode == "CMYK" else "PNG"))
    assert decoded.shape == (3, 4, 5)
    assert decoded.dtype == torch.uint8


def test_transparency_is_composited_onto_white() -> None:
    clear = decode_image(saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG"))
    assert clear.unique().tolist() == [255]


def bomb() -> bytes:
    """A small PNG file that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)


def test_sizes_are_checked_before_pixels_are_decoded(image: Tensor) -> None:
    data = encode_image(image)
    with pytest.raises(ImageError, match="cat.png has 40 x 24 pixels; at most 900 in total"):
        decode_image(data, max_pixels=900, name="cat.png")
    with pytest.raises(ImageError, match=r"has \d+ bytes; at most 50 are allowed"):
        decode_image(data, max_bytes=50)
    with pytest.raises(ImageError, match="far more than 67,108,864 pixels"):
        decode_image(bomb())


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(40), b"RIFF0000WEBP"],
)
def test_a_file_that_is_not_an_image_is_rejected(data: bytes) -> None:
    with pytest.raises(ImageError, match="scan.jpg is not a readable PNG, JPEG, WEBP file"):
        decode_image(data, name="scan.jpg")


def test_other_formats_are_not_decoded() -> None:
    """A GIF is valid, but untrusted bytes must not reach its decoder."""
    with pytest.raises(ImageError, match="not a readable"):
        decode_image(saved(Image.new("P", (2, 2)), "GIF"))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_files_are_decoded_or_raise_an_image_error(data: st.DataObject) -> None:
    file = bytearray(encode_image(torch.zeros(3, 9, 9, dtype=torch.uint8), "png"))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(file)))
    try:
        assert decode_image(bytes(file[:cut])).shape[0] == 3
    except ImageError as error:
        assert str(error)


def test_conversion_between_floats_and_uint8() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    for low, high in ((0.0, 1.0), (-1.0, 1.0)):
        floats = to_floats(levels, low, high)
        assert (floats.min().item(), floats.max().item()) == (low, high)
        assert to_uint8(floats, low, high).equal(levels)
    assert to_uint8(torch.tensor([-3.0, 0.5, 7.0])).tolist() == [0, 128, 255]


@pytest.mark.parametrize("channels", [3, 4])
def test_a_file_of_a_stage_is_published_as_if_it_had_been_encoded_for_that(channels: int) -> None:
    image = torch.randint(0, 40, (channels, 33, 50), dtype=torch.uint8)
    fast, full = encode_for_stage(image), encode_image(image)
    assert fast != full
    assert compress_fully(fast) == full
    assert compress_fully(full) is full  # as stages of earlier versions kept it
