"""The lines about a fine-tuning."""

from __future__ import annotations

import pytest

from flows.console import SafeConsole
from flows.training.view import TrainingView
from tasks.training.events import Encoded, Event, Exporting, Stepped


def test_lines_at_measurements_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    events: list[tuple[float, Event]] = [
        (1, Encoded(10, 1, 1, 0)),
        (40, Encoded(20, 1, 2, 0)),
        (41, Stepped(1, 10, {"loss": 3.0})),
        (43, Stepped(2, 10, {"loss": 2.5, "held_out_loss": 2.75})),
        (45, Stepped(3, 10, {"loss": 2.25})),
        (90, Stepped(4, 10, {"loss": 2.0})),
        (91, Exporting()),
    ]
    clock = [0.0]
    with TrainingView(SafeConsole(stderr=True), "mine", lambda: clock[0]) as view:
        for clock[0], event in events:
            view(event)
    assert capsys.readouterr().err.splitlines() == [
        "mine: encoding, 20 images, 1 rejected",
        "mine: step 2 of 10, loss 2.5000, held-out loss 2.7500, 16 s left",
        "mine: step 4 of 10, loss 2.0000, held-out loss 2.7500, 1 min 38 s left",
        "mine: writing the weights",
    ]
