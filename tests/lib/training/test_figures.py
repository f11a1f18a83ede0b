"""The log of figures: lines that can be followed while they are written and cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.training.figures import FiguresLog, Follower, printer, read_figures


def test_steps_that_are_repeated_are_cut(tmp_path: Path) -> None:
    log = FiguresLog(tmp_path)
    for step in range(4):
        log.write(step, {"loss": step / 2})
    with log.path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    assert [line["step"] for line in read_figures(tmp_path)] == [0, 1, 2, 3]
    log.cut(2)
    log.write(2, {"loss": 9.0})
    assert read_figures(tmp_path) == [
        {"step": 0, "loss": 0.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 9.0},
    ]  # fmt: skip


def test_a_follower_sees_each_step_once(tmp_path: Path) -> None:
    follower, log = Follower(tmp_path), FiguresLog(tmp_path)
    assert follower.new() == []
    log.write(0, {"loss": 1.0})
    assert follower.new() == [(0, {"loss": 1.0})]
    log.write(1, {"loss": 0.5})
    with log.path.open("a") as file:
        file.write('{"step": 2')
    assert follower.new() == [(1, {"loss": 0.5})]
    assert follower.new() == []
    log.cut(1)  # a resumed training makes step 1 again
    log.write(1, {"loss": 0.5})
    log.write(2, {"loss": 0.25})
    assert follower.new() == [(2, {"loss": 0.25})]


def test_some_steps_and_all_measurements_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    show = printer(every=10)
    for step in range(21):
        show(step, {"loss": 0.123456, **({"held_out_loss": 1.0} if step == 5 else {})})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["0", "5", "10", "20"]
    assert lines[1].endswith("step 5  loss 0.12346  held_out_loss 1")
