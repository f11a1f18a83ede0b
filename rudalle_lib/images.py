"""Pictures as bytes: PNG, WebP and JPEG files to uint8 tensors and back, and uint8 to floats.

Tensors are RGB, or RGBA where it is said, channels first. Equal pixels give equal bytes on the same
Pillow; nothing but pixels is written (no time, no software name).
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rudalle_lib.errors import ImageError, SettingsError

#: Options of Pillow's encoders. JPEG: full-size colour channels, or edges of flat colours smear.
ENCODERS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 6},
    "webp": {"format": "WEBP", "method": 4},
    "jpeg": {"format": "JPEG", "subsampling": 0},
}
#: The only decoders that untrusted bytes can reach.
ACCEPTED = ("PNG", "JPEG", "WEBP")
SUFFIXES = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 2**20


def encode_image(image: Tensor, image_format: str = "png", quality: int = 95) -> bytes:
    """One picture uint8 [3, H, W], or [4, H, W] with alpha, as the bytes of a file.

    Args:
        image: RGB or RGBA pixels.
        image_format: "png" (exact), "webp" or "jpeg"; the suffixes are in `SUFFIXES`.
        quality: 1 to 100, for webp and jpeg.

    Raises:
        SettingsError: an unknown format, or alpha in one that has none.
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
    buffer = io.BytesIO()
    to_pil(image).save(buffer, **options)
    return buffer.getvalue()


def decode_image(
    data: bytes,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    name: str = "picture",
    keep_alpha: bool = False,
) -> Tensor:
    """The bytes of a PNG, JPEG or WebP file as uint8 [3, H, W].

    Transparency is laid on white, of an animation the first frame is taken. The bytes are not
    trusted: sizes are checked before any pixel is decoded.

    Args:
        data: the file.
        max_bytes, max_pixels: what is allowed.
        name: what to call the picture in errors.
        keep_alpha: give a picture with transparency as it is, uint8 [4, H, W].

    Raises:
        ImageError: not such a file, damaged, or too large.
    """
    if len(data) > max_bytes:
        raise ImageError(f"{name} has {len(data):,} bytes, at most {max_bytes:,} are allowed")
    try:
        image = Image.open(io.BytesIO(data), formats=ACCEPTED)
        _check_pixels(image.size, max_pixels, name)
        if keep_alpha and image.has_transparency_data:
            return _from_pil(image, "RGBA")
        return from_pil(_flatten(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has far more than {max_pixels:,} pixels: {error}") from error
    except Exception as error:  # on hostile bytes Pillow's decoders raise nearly anything
        raise ImageError(
            f"{name} is not a readable {', '.join(ACCEPTED)} file ({type(error).__name__}: {error})"
        ) from error


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [3, H, W] to a Pillow RGB image, [4, H, W] to RGBA."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (3, 4):
        raise ValueError(f"expected uint8 [3 or 4, H, W], found {image.dtype} {list(image.shape)}")
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def from_pil(image: Image.Image) -> Tensor:
    """A Pillow image of any mode to uint8 [3, H, W]; transparency is dropped."""
    return _from_pil(image, "RGB")


def to_uint8(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Floats to uint8 of the same shape: `low` becomes 0, `high` 255; clamped and rounded."""
    scaled = (images.float() - low) * (255.0 / (high - low))
    return scaled.round().clamp(0, 255).to(torch.uint8)


def to_floats(images: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """uint8 to float32 of the same shape: 0 becomes `low`, 255 `high`."""
    return images.float() * ((high - low) / 255.0) + low


def _from_pil(image: Image.Image, mode: str) -> Tensor:
    pixels = np.array(image.convert(mode), dtype=np.uint8)  # [H, W, C]
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _check_pixels(size: tuple[int, int], max_pixels: int, name: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, at most {max_pixels:,} in all are allowed"
        )


def _flatten(image: Image.Image) -> Image.Image:
    """RGB, with what is transparent laid on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
