"""Shape fitting: true silhouettes are recognised and measured, others are malformed."""

from __future__ import annotations

import numpy as np
import pytest

from rudalle_lib.demo.drawing import figure_mask
from rudalle_lib.demo.fitting import fit_shape, polygon
from rudalle_lib.demo.scenes import SIDES, boxes

ALL_SIDES = list(SIDES.values())


@pytest.mark.parametrize("shape", ["square", "circle", "triangle", "cross"])
@pytest.mark.parametrize("side", ALL_SIDES)
def test_true_silhouettes_fit_their_shape(shape: str, side: int) -> None:
    fit = fit_shape(figure_mask(shape, side, side) >= 0.5)
    assert fit.shape == shape
    assert fit.side == pytest.approx(side, abs=0.3)
    assert fit.centre == pytest.approx((side / 2, side / 2), abs=0.5)
    assert fit.overlap > 0.99
    assert fit.flaw == 0
    assert not fit.malformed


@pytest.mark.parametrize("size", SIDES)
@pytest.mark.parametrize("angle", [0, 45, 90, 135])
def test_true_bars_fit_at_all_angles(size: str, angle: int) -> None:
    (box,) = (box for box in boxes("bar", size) if box[2] == angle)
    fit = fit_shape(figure_mask("bar", *box) >= 0.5)
    assert fit.shape == "bar"
    assert fit.side == pytest.approx(SIDES[size], abs=0.5)
    assert not fit.malformed


@pytest.mark.parametrize("shape", ["square", "circle", "triangle", "cross"])
@pytest.mark.parametrize("side", [26, 31, 45])
def test_sides_that_are_not_on_the_grid_fit_too(shape: str, side: int) -> None:
    fit = fit_shape(figure_mask(shape, side, side) >= 0.5)
    assert (fit.shape, fit.malformed) == (shape, False)
    assert fit.side == pytest.approx(side, abs=0.5)


@pytest.mark.parametrize("side", [24, 40, 56])
def test_silhouettes_of_no_ideal_shape_are_malformed(side: int) -> None:
    triangle = figure_mask("triangle", side, side) >= 0.5
    rectangle = np.ones((side, side * 3 // 2), bool)
    line = np.ones((4, side + 8), bool)
    frame = np.pad(np.zeros((side - 8, side - 8), bool), 4, constant_values=True)
    corner = np.tri(side, dtype=bool)
    for silhouette in (triangle[::-1], triangle.T, rectangle, line, frame, corner):
        assert fit_shape(silhouette).malformed


@pytest.mark.parametrize("side", [24, 28, 40, 56])
def test_shape_between_square_and_circle_is_malformed(side: int) -> None:
    """A square whose corners are rounded with a radius of 0.3 sides."""
    y, x = np.abs(np.mgrid[:side, :side] + 0.5 - side / 2)
    radius = 0.3 * side
    inner = side / 2 - radius
    rounded = np.hypot(np.maximum(x - inner, 0), np.maximum(y - inner, 0)) <= radius
    assert fit_shape(rounded).malformed


def test_single_pixel_can_be_fitted() -> None:
    assert fit_shape(np.ones((1, 1), bool)).side <= 2


def test_single_noisy_pixels_on_the_edge_are_tolerated() -> None:
    square = np.pad(np.ones((36, 36), bool), 2)
    square[1, 10] = square[20, 39] = True
    square[2, 30] = False
    fit = fit_shape(square)
    assert (fit.shape, fit.malformed) == ("square", False)


def test_distance_from_a_polygon_is_that_from_its_nearest_edge() -> None:
    corners = np.array([(0, 0), (8, 0), (8, 8), (4, 4), (0, 8)], float)  # concave at (4, 4)
    x, y = np.array([[-3.0, 4.0, 11.0]]), np.array([[1.0], [6.0]])
    expected = [[3, -1, 3], [3, 2 / 2**0.5, 3]]
    assert polygon(corners, x, y) == pytest.approx(np.array(expected))
