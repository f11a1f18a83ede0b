"""Records of published images with made-up values, and the records that a shard holds."""

from __future__ import annotations

from typing import Any

from rudalle_lib.dataset.layout import metadata_path
from rudalle_lib.dataset.manifests import read_shard_manifest
from rudalle_lib.schema.arrow import from_table
from rudalle_lib.schema.records import ImageRecord, image_id
from rudalle_lib.storage.storage import Storage


def record(prompt_id: str, replica: int, **changes: Any) -> ImageRecord:
    """A record of shard 3 with every required field."""
    values: dict[str, Any] = {
        "image_id": image_id(prompt_id, replica),
        "prompt_id": prompt_id,
        "replica": replica,
        "shard": 3,
        "text": "a red circle",
        "text_ru": "красный круг",
        "lang": "en",
        "seed": 2**62,
        "score": 0.25,
        "rank": 1,
        "logprob": -0.5,
        "ppl": 2.0,
        "width": 256,
        "height": 256,
        "temperature": 1.0,
        "top_k": 2048,
        "top_p": 0.995,
        "truncated": False,
        "translator": "demo-marian",
        "decoder": "demo-dalle",
        "vqgan": "demo-vqgan",
        "scorer": "demo-ruclip",
        "upscaler": None,
    }
    return ImageRecord(**{**values, **changes})


VERSION = "0123456789abcdef"
"""The version of a published shard."""


def images(*ids: tuple[str, int]) -> list[tuple[ImageRecord, bytes]]:
    """Records with distinct bytes in place of encoded images, by prompt id and replica."""
    return [(record(*key), f"{key}".encode() * 100) for key in ids]


def read_records(storage: Storage, index: int) -> list[ImageRecord]:
    """The images of a shard, in order, published or only written."""
    manifest = read_shard_manifest(storage, index)
    path = metadata_path(index, VERSION) if manifest is None else manifest.metadata.path
    return from_table(storage.read_table(path), ImageRecord)
