"""The most similar images, by a bounded number of comparisons at a time."""

from __future__ import annotations

import numpy as np
import pytest

from rudalle_lib.images import similar
from rudalle_lib.images.similar import most_similar


@pytest.mark.parametrize("block", [1, 3, 100])
def test_the_nearest_come_first_and_no_image_is_similar_to_itself(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(similar, "BLOCK", block)
    angles = np.radians([0, 10, 90, 95, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    assert most_similar(points, 2) == [[1, 2], [0, 2], [3, 1], [2, 1], [3, 2]]
    assert most_similar(points, 2, least=0.9) == [[1], [0], [3], [2], []]


def test_equally_similar_images_keep_their_order() -> None:
    points = np.ones((4, 3), np.float16)
    assert most_similar(points, 2) == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert most_similar(np.empty((0, 3), np.float16), 2) == []
