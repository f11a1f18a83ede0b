"""Small datasets of images with captions, in the layouts that people have, and configurations."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.config.inputs import SourceConfig

CAPTIONS = ("красный круг", "синий квадрат", "белая полоса", "зелёный крест", "чёрный овал")
"""Captions of the images of `image_bytes`, in order."""


def image_bytes(number: int, width: int = 40, height: int = 36, form: str = "PNG") -> bytes:
    """An image file of noise that its number determines."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def write_folder(folder: Path, count: int = 5, first: int = 0) -> Path:
    """Images with a text file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:03}.png").write_bytes(image_bytes(number))
        caption = f"{CAPTIONS[number % len(CAPTIONS)]} {number}"
        (folder / f"{number:03}.txt").write_text(caption, encoding="utf-8")
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar with these files in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def source(uri: object, **settings: Any) -> SourceConfig:
    """A dataset in a configuration."""
    return SourceConfig.model_validate({"uri": str(uri), **settings})


def fine_tuning(stack: Path, output: object, *uris: object, **settings: Any) -> FineTuneConfig:
    """A fine-tuning of the tiny models in a folder; `data` items may be URIs or settings."""
    data = [uri if isinstance(uri, dict) else {"uri": str(uri)} for uri in uris]
    return FineTuneConfig.model_validate({
        "output": str(output),
        "data": data,
        "weights": {"folder": str(stack), "offline": True},
        **settings,
    })  # fmt: skip
