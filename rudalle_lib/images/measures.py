"""What else is measured of an image: probes by texts, its embedding, and its perceptual hash.

Probes: Radford et al., "CLIP", arXiv 2103.00020, section 3.1 (zero-shot classification).
Hash: "pHash" of the package `imagehash`, the signs of the low frequencies of a cosine transform.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.images.codecs import to_pil


class ClipModel(Protocol):
    """A network that compares images with texts: a `scoring.Scorer`, or one of another library."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit-length features of texts, float32 [N, E] on the CPU."""

    def image_features(self, images: Tensor) -> Tensor:
        """Unit-length features of images, uint8 [N, 3, H, W]; float32 [N, E] on the CPU."""


class Second(NamedTuple):
    """The second scorer, and the texts that it compares images with, by prompt id."""

    model: ClipModel
    texts: Mapping[str, str]


class TextReader(Protocol):
    """The part of a `scoring.Scorer` that reads texts."""

    def can_read(self, text: str) -> bool:
        """Whether its tokenizer knows all characters of a text."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit-length features of texts, float32 [N, E] on the CPU."""


def probe(features: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
    """The value of a probe for each image.

    Args:
        features: unit-length features of images, float32 [N, E].
        texts: unit-length features of the probe's texts, float32 [M, E].
        logit_scale: factor of the cosines, the exponential of the model's parameter.

    Returns:
        float32 [N]: the probability of the first text among all, in [0, 1]; the cosine similarity
        if there is only one, in [-1, 1].
    """
    cosines = features @ texts.T
    return cosines[:, 0] if len(texts) == 1 else (logit_scale * cosines).softmax(dim=1)[:, 0]


def probe_all(
    features: Tensor, probes: Mapping[str, Tensor], logit_scale: float
) -> list[dict[str, float]]:
    """The values of all probes, by name, for each image; see `probe`."""
    values = {name: probe(features, texts, logit_scale).tolist() for name, texts in probes.items()}
    return [
        {name: found[index] for name, found in values.items()} for index in range(len(features))
    ]


def pack_embeddings(features: Tensor) -> list[bytes]:
    """Features, float32 [N, E], as stored: float16, little-endian."""
    rows = features.to(torch.float16).numpy().astype("<f2", copy=False)
    return [row.tobytes() for row in rows]


def hash_images(images: Tensor) -> list[str]:
    """Perceptual hashes of images, uint8 [N, 3, H, W]: 16 hex digits each.

    Raises:
        SettingsError: the package imagehash is not installed.
    """
    hash_one = hasher()
    return [hash_one(to_pil(image)) for image in images]


@cache
def hasher() -> Callable[[Image.Image], str]:
    """The function that hashes an image.

    Raises:
        SettingsError: the package imagehash is not installed.
    """
    try:
        from imagehash import phash
    except ImportError:
        raise SettingsError(
            "score.hashes needs the package imagehash, which is not installed: "
            "pip install 'rudalle-flows[duplicates]'"
        ) from None
    return lambda image: str(phash(image))


def compare_translations(
    scorer: TextReader, pairs: Mapping[str, tuple[str, str]]
) -> dict[str, float]:
    """How alike ruCLIP finds prompts and their translations.

    Args:
        scorer: a ruCLIP with the templates of the run.
        pairs: prompts as given and in Russian, by prompt id.

    Returns:
        The cosine of the features of both texts, by prompt id. Pairs with characters that the
        scorer's tokenizer does not know are left out.
    """
    readable = {name: pair for name, pair in pairs.items() if all(map(scorer.can_read, pair))}
    given, russian = (
        scorer.text_features([pair[side] for pair in readable.values()]) for side in (0, 1)
    )
    return dict(zip(readable, (given * russian).sum(dim=1).tolist(), strict=True))
