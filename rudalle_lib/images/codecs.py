"""Encode and decode PNG, WebP and JPEG files, and convert uint8 images to floats and back.

Tensors are channels first: RGB [3, H, W], or RGBA [4, H, W] for images with transparency. With the
same version of Pillow, equal pixels give equal bytes: files hold pixels, without a time or the name
of the software, and the XMP packet that the caller gives.
"""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rudalle_lib.errors import ImageError, SettingsError
from rudalle_lib.images.containers import open_container

ENCODERS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "method": 4},
    "jpeg": {"format": "JPEG", "subsampling": 0},
}
"""Options of Pillow's encoders. JPEG without chroma subsampling, which smears flat colours."""

STAGE_LEVEL = 1
"""Compression level of candidates as PNG files: a third of the time of level 6, and 6% more bytes.
Most candidates are not published; those that are get the level of `ENCODERS`."""

ACCEPTED = ("PNG", "JPEG", "WEBP")
"""Formats that are decoded; untrusted bytes reach no other decoder of Pillow."""

MAX_BYTES = 32 * 2**20
"""Largest file that `decode_image` accepts by default."""

MAX_PIXELS = 64 * 2**20
"""Largest image that `decode_image` accepts by default, as width times height."""

BAND_PIXELS = 2**20
"""Pixels that are converted together, so that large images are not in memory several times."""

_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
"""An object in a message of Pillow. Its address differs from run to run."""


def encode_image(
    image: Tensor, image_format: str = "png", quality: int = 95, xmp: bytes = b""
) -> bytes:
    """Encode one image as the bytes of a file.

    Args:
        image: uint8 [3, H, W], RGB, or [4, H, W], RGBA, on any device.
        image_format: "png" (lossless), "webp" or "jpeg".
        quality: 1 to 100, for webp and jpeg.
        xmp: packet of XMP metadata; none if it is empty. Up to 60 KiB for jpeg.

    Raises:
        SettingsError: an unknown format, or alpha in a format without transparency.
        ValueError: an image of another type or shape.
    """
    if image_format not in ENCODERS:
        raise SettingsError(
            f"unknown image format {image_format!r}; expected one of {', '.join(ENCODERS)}"
        )
    if image_format == "jpeg" and image.shape[0] == 4:
        raise SettingsError("jpeg has no transparency; expected png or webp")
    options = dict(ENCODERS[image_format])
    if image_format != "png":
        options["quality"] = quality
    if xmp:
        options |= {"pnginfo": _png_text(xmp)} if image_format == "png" else {"xmp": xmp}
    buffer = io.BytesIO()
    to_pil(image).save(buffer, **options)
    return buffer.getvalue()


def _png_text(xmp: bytes) -> PngInfo:
    """The chunk of a PNG file that holds XMP (XMP specification, part 3, 1.1.5)."""
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return info


def encode_for_stage(image: Tensor) -> bytes:
    """Encode a candidate, uint8 [3, H, W] or [4, H, W], as a PNG file that only stages read."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", compress_level=STAGE_LEVEL)
    return buffer.getvalue()


def compress_fully(png: bytes) -> bytes:
    """A PNG file of a stage as it is published: with the level of `ENCODERS`, and equal pixels.

    Files of earlier versions have that level already and are returned unchanged.

    Raises:
        ImageError: the file is damaged.
    """
    start = png.find(b"IDAT") + 4
    # The two bits of zlib's header for the level (RFC 1950): 0 is the fastest.
    if start < 4 or png[start + 1] >> 6:
        return png
    return encode_image(decode_image(png, keep_alpha=True))


def decode_image(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    name: str = "image",
    keep_alpha: bool = False,
) -> Tensor:
    """Decode a PNG, JPEG or WebP file.

    The image is turned upright if its EXIF metadata says how it was taken. Transparent pixels are
    blended with white. Only the first frame of an animation is decoded. 16 bits per channel are
    scaled to 8.

    The bytes are not trusted: the structure of the file is checked before any pixel is decoded
    (see `containers`), and memory is at most 16 bytes per pixel.

    Args:
        data: the file.
        max_bytes: largest accepted size of the file.
        max_pixels: largest accepted number of pixels.
        name: what to call the image in errors.
        keep_alpha: return an image that has transparency with its alpha channel.

    Returns:
        uint8 [3, H, W], RGB, or [4, H, W], RGBA, on the CPU.

    Raises:
        ImageError: the file has another format, is damaged, or is too large.
    """
    if len(data) > max_bytes:
        raise ImageError(f"{name} has {len(data):,} bytes; at most {max_bytes:,} are allowed")
    try:
        container = open_container(data)
    except ImageError as error:
        raise ImageError(f"{name} is not a readable {', '.join(ACCEPTED)} file ({error})") from None
    _check_pixels((container.width, container.height), max_pixels, name)
    try:
        image = Image.open(io.BytesIO(container.data), formats=(container.image_format,))
        _check_pixels(image.size, max_pixels, name)
        image.load()
        pixels = _planes(image, keep_alpha)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any exception for bad bytes
        reason = _ADDRESS.sub("...", f"{type(error).__name__}: {error}")
        if isinstance(error, UnidentifiedImageError):
            reason = "its header is damaged"
        raise ImageError(
            f"{name} is not a readable {', '.join(ACCEPTED)} file ({reason})"
        ) from None
    del image
    return _upright(torch.from_numpy(pixels), container.orientation)


def to_pil(image: Tensor) -> Image.Image:
    """Convert uint8 [3, H, W] to a Pillow RGB image, or [4, H, W] to an RGBA image.

    Raises:
        ValueError: an image of another type or shape.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (3, 4):
        raise ValueError(f"expected uint8 [3 or 4, H, W], found {image.dtype} {list(image.shape)}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """Convert a Pillow image of any mode to uint8 [3, H, W]; transparency is dropped."""
    return _from_pil(image, "RGB")


def to_uint8(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Convert floats to uint8: `low` becomes 0 and `high` 255; clamped, then rounded to even."""
    scaled = (images.float() - low) * (255.0 / (high - low))
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_floats(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Convert uint8 to float32: 0 becomes `low` and 255 `high`."""
    return images.float() * ((high - low) / 255.0) + low


def _from_pil(image: Image.Image, mode: str) -> Tensor:
    pixels = np.array(image.convert(mode), dtype=np.uint8)  # [H, W, C]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > 2 * max_pixels:
        raise ImageError(f"{name} has far more than {max_pixels:,} pixels: {width:,} x {height:,}")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels; at most {max_pixels:,} in total are allowed"
        )


def _planes(image: Image.Image, keep_alpha: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image of any mode: uint8 [C, H, W], RGBA on request, if it has alpha."""
    width, height = image.size
    keep_alpha = keep_alpha and image.has_transparency_data
    planes = np.empty((4 if keep_alpha else 3, height, width), np.uint8)
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        band = image if rows >= height else image.crop((0, top, width, bottom))
        band = _in_8_bits(band)
        converted = band.convert("RGBA") if keep_alpha else _flatten(band)
        planes[:, top:bottom] = np.asarray(converted).transpose(2, 0, 1)
    return planes


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey images of 16 bits, which Pillow would clip at 255."""
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((levels * 255 + 32895) >> 16).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    alpha = Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _flatten(image: Image.Image) -> Image.Image:
    """An RGB image with transparent pixels blended with white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _upright(image: Tensor, orientation: int) -> Tensor:
    """Turn or mirror an image [C, H, W] according to the orientation in its EXIF metadata."""
    if orientation >= 5:
        image = image.transpose(1, 2)
    flips = {2: [2], 3: [1, 2], 4: [1], 6: [2], 7: [1, 2], 8: [1]}.get(orientation, [])
    return image.flip(flips) if flips else image.contiguous()
