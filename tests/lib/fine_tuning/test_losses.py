"""The losses of a training as a picture."""

from __future__ import annotations

from xml.etree import ElementTree

from rudalle_lib.fine_tuning.losses import POINTS, describe, draw_losses, loss_lines

FIGURES = [
    {"step": step, "loss": 5.0 - step / 1000} | ({} if (step + 1) % 500 else {"held_out_loss": 4.0})
    for step in range(2_000)
]  # fmt: skip


def test_lines_are_thinned_to_means_and_held_out_losses_are_all_there() -> None:
    lines = loss_lines(FIGURES)
    assert len(lines["loss"]) <= POINTS and lines["loss"][-1][0] == 2_000
    assert lines["held-out loss"] == [(step, 4.0) for step in (500, 1000, 1500, 2000)]


def test_the_picture_is_valid_and_always_the_same() -> None:
    picture = draw_losses(loss_lines(FIGURES), "<mine> & yours")
    root = ElementTree.fromstring(picture)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<mine> & yours" in texts and "held-out loss" in texts and "2,000" in texts
    assert picture == draw_losses(loss_lines(FIGURES), "<mine> & yours")
    assert ElementTree.fromstring(draw_losses({"loss": [(1.0, 2.0)]}, "one step")) is not None


def test_figures_are_described_by_their_losses() -> None:
    assert describe({"loss": 1.0, "held_out_loss": 2.0, "seconds": 3.0}) == (
        "loss 1.0000, held out loss 2.0000"
    )
