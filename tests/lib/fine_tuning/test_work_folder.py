"""Where a fine-tuning works: in a local output, or beside one that is a URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rudalle_lib.fine_tuning.work_folder import WorkFolder
from rudalle_lib.storage.storage import Storage


def write_steps(work: WorkFolder, steps: int) -> None:
    """A training that has made some steps."""
    work.training.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"step": step}) + "\n" for step in range(steps))
    (work.training / "figures.jsonl").write_text(lines)
    (work.training / "checkpoint.pt").write_text(f"after {steps}")


def test_a_local_output_is_worked_in(tmp_path: Path) -> None:
    work = WorkFolder(Storage(str(tmp_path)), "v1")
    assert work.root == tmp_path and work.training == tmp_path / "checkpoints" / "v1"
    write_steps(work, 2)
    work.fetch()
    work.send()
    work.publish_figures()
    assert len((tmp_path / "figures.jsonl").read_text().splitlines()) == 2
    work.discard(["checkpoint.pt"])
    assert [path.name for path in work.training.iterdir()] == ["figures.jsonl"]
    assert not work.is_trained


def test_a_new_training_deletes_only_what_an_earlier_one_has_written(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for path in ("samples/step-00000002.png", "samples/mine.png", "checkpoints/v1/checkpoint.pt"):
        storage.write_bytes(path, b"x")
    work = WorkFolder(storage, "v2")
    work.begin()
    assert storage.list() == ["checkpoints/v1/checkpoint.pt", "samples/mine.png"]
    write_steps(work, 1)
    storage.write_bytes("samples/step-00000001.png", b"x")
    work.begin()
    assert storage.exists("samples/step-00000001.png")


def test_another_machine_fetches_a_training_that_is_further(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(s3_url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    first = WorkFolder(storage, "v1")
    assert str(first.root).startswith(str(tmp_path / "one"))
    write_steps(first, 3)
    (first.training / "checkpoint.pt.new").write_text("half")
    first.send()
    assert storage.list() == ["checkpoints/v1/checkpoint.pt", "checkpoints/v1/figures.jsonl"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    second = WorkFolder(storage, "v1")
    second.fetch()
    assert (second.training / "checkpoint.pt").read_text() == "after 3"
    write_steps(second, 5)
    second.fetch()  # it is further than the output
    assert (second.training / "checkpoint.pt").read_text() == "after 5"
    second.send()
    second.discard(["checkpoint.pt"])
    assert storage.list() == ["checkpoints/v1/figures.jsonl"]
