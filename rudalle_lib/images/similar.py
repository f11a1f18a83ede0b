"""The most similar images of each image, by embeddings: for pages that show a bounded number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 1000
"""Images that are compared with all others at a time."""

DIGITS = 4
"""Digits of similarities that are compared: further ones depend on the machine."""


def most_similar(
    embeddings: npt.NDArray[np.float16], count: int, least: float = -1.0
) -> list[list[int]]:
    """The most similar other images of each image.

    Args:
        embeddings: one per image, float16 [N, E]; at most some ten thousand.
        count: how many are wanted.
        least: cosine similarity below which images are left out.

    Returns:
        Up to `count` positions for each image, the most similar first; of equally similar images
        the earlier first.
    """
    points = embeddings.astype(np.float32)
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    points /= np.where(norms > 0, norms, 1)
    found: list[list[int]] = []
    for start in range(0, len(points), BLOCK):
        cosines = (points[start : start + BLOCK] @ points.T).round(DIGITS)
        for row, values in enumerate(cosines):
            values[start + row] = -2.0
            best = np.argsort(-values, kind="stable")[:count]
            found.append([int(other) for other in best if values[other] >= max(least, -1.0)])
    return found
