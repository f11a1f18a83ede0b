"""A run with a process per device, on real networks: the same files as on one device.

The devices are pretended: every process computes on the CPU.
"""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rudalle_lib.dataset.manifests import read_shard_manifests
from rudalle_lib.generation.batch_size import SHARE, bytes_per_image
from rudalle_lib.models.dalle import DalleConfig
from rudalle_lib.prompts.known_prompts import CHOSEN_SIZE
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Event, Noticed, RoundFinished, Step, listener
from tests.support.image_numbers import in_rounds
from tests.support.pretended_cuda import MEMORY
from tests.support.tiny_run import configure, contents

pytestmark = pytest.mark.usefixtures("prefect_server")

ROOT = Path(__file__).resolve().parents[2]

PARTS = ("data", "plan", "rejects")


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices that compute on the CPU, with a process each."""
    monkeypatch.setattr("flows.runners.worker_devices", lambda _: ["cpu", "cpu"])


def russian(settings: dict[str, Any]) -> dict[str, object]:
    """A table of six prompts that need no translation, in six shards; rejects hold its path."""
    table = Path(settings["prompts"]["uri"]).with_name("russian.csv")
    rows = [f"{number} кругов на белом фоне,theme {number}" for number in range(6)]
    table.write_text("\n".join(["prompt,theme", *rows, ",empty", ""]), encoding="utf-8")
    return {"uri": str(table), "shard_size": 1}


def run(settings: dict[str, Any], output: Path | str, **changes: object) -> RunManifest:
    from flows.generate_dataset import generate_dataset

    changes = {"prompts": russian(settings), **changes}
    return generate_dataset(configure(settings, output, **changes))


@pytest.fixture(scope="module")
def one(
    prefect_server: None, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of one device."""
    folder = tmp_path_factory.mktemp("one") / "out"
    run(settings, folder)
    return folder


@pytest.fixture
def shards_of(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """By process, the shards that it reports steps of."""
    from tasks.runtime.process_worker import ProcessWorker

    found: defaultdict[int, set[int]] = defaultdict(set)
    receive = ProcessWorker._receive

    def watch(worker: ProcessWorker, report: Any) -> None:
        event = getattr(report, "event", None)
        if isinstance(event, Step) and worker.pid is not None:
            found[worker.pid].add(event.shard)
        receive(worker, report)

    monkeypatch.setattr(ProcessWorker, "_receive", watch)
    return found


def test_two_devices_make_the_same_files_and_a_killed_process_costs_nothing(
    two_devices: None,
    settings: dict[str, object],
    one: Path,
    tmp_path: Path,
    shards_of: dict[int, set[int]],
) -> None:
    killed: list[int] = []

    def kill_once(event: Event) -> None:
        """Kill the process that decodes shard 2 in the middle of it."""
        if isinstance(event, Step) and (event.stage, event.shard) == ("decode", 2) and not killed:
            killed.extend(pid for pid, shards in shards_of.items() if 2 in shards)
            os.kill(killed[0], signal.SIGKILL)

    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        kill_once(event)

    token = listener.set(listen)
    try:
        manifest = run(settings, tmp_path / "out")
    finally:
        listener.reset(token)
    assert contents(tmp_path / "out", *PARTS) == contents(one, *PARTS)
    assert manifest.totals.shards == 6
    assert any(2 in shards for pid, shards in shards_of.items() if pid not in killed)
    assert any(isinstance(event, Noticed) and "has died" in event.message for event in events)


@pytest.fixture(scope="module")
def rounds(one: Path, settings: dict[str, object]) -> dict[str, Any]:
    """Sections of a run in rounds."""
    return in_rounds(str(one))


@pytest.fixture(scope="module")
def one_in_rounds(
    one: Path,
    rounds: dict[str, Any],
    settings: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, bytes]:
    """The files of a run in rounds on one device."""
    folder = tmp_path_factory.mktemp("one_in_rounds") / "out"
    drawn = run(settings, folder, **rounds).totals
    assert 2 * 6 < drawn.images < 5 * 6 and drawn.kept < drawn.images
    return contents(folder, *PARTS)


@pytest.mark.parametrize("place", [pytest.param("local", marks=pytest.mark.slow), "s3"])
def test_rounds_on_two_devices_and_on_s3_go_on_where_a_killed_process_was(
    place: str,
    two_devices: None,
    settings: dict[str, object],
    rounds: dict[str, Any],
    one_in_rounds: dict[str, bytes],
    tmp_path: Path,
    shards_of: dict[int, set[int]],
    request: pytest.FixtureRequest,
) -> None:
    output = str(tmp_path / "out") if place == "local" else request.getfixturevalue("s3_url")
    killed: list[int] = []
    events: list[Event] = []

    def listen(event: Event) -> None:
        """Kill a process after the first round of a shard that needs another."""
        events.append(event)
        if isinstance(event, RoundFinished) and event.waiting and not killed:
            killed.extend(pid for pid, shards in shards_of.items() if event.shard in shards)
            os.kill(killed[0], signal.SIGKILL)

    token = listener.set(listen)
    try:
        run(settings, output, **rounds)
    finally:
        listener.reset(token)
    assert len(killed) == 1
    assert any(isinstance(event, Noticed) and "has died" in event.message for event in events)
    storage = Storage(output)
    made = {path: storage.read_bytes(path) for part in PARTS for path in storage.list(part)}
    assert made == one_in_rounds


PRETEND = """
import os, sys
if any("worker_process" in argument for argument in sys.orig_argv):
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from tests.support.pretended_cuda import counts, install

    class Seen(set):
        def add(self, device):
            (Path({folder!r}) / f"{{os.getpid()}} {{device}}").touch()

    install(2, memory={memory!r})
    counts.devices = Seen()
    from rudalle_lib.generation import shard_size

    shard_size.MIN_IMAGES = 1
"""
"""A `sitecustomize` module, with which the processes of devices pretend to have two GPUs."""


def memory_for(images: float, weights: Path) -> int:
    """Bytes of a GPU on which a batch has room for so many images; each prompt has four."""
    sizes = json.loads((weights / "demo-dalle" / "config.json").read_text())
    return int(images * bytes_per_image(DalleConfig(**sizes), 4, 4) / SHARE["cuda"])


def test_each_process_computes_on_its_own_gpu_in_batches_that_fit_onto_all(
    settings: dict[str, object],
    one: Path,
    tiny_stack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two pretended GPUs: no tensor is on a wrong one, and the tokens are those of a CPU.

    The second GPU has room for two images at a time, so the first one draws as many, and an
    automatic shard has one prompt; the first GPU would take all of them.
    """
    seen = tmp_path / "seen"
    seen.mkdir()
    memory = [MEMORY, memory_for(2.5, tiny_stack)]
    code = PRETEND.format(root=str(ROOT), folder=str(seen), memory=memory)
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RUDALLE_GPU_ENGINE", "0")
    monkeypatch.setattr("flows.runners.worker_devices", lambda _: ["cuda:0", "cuda:1"])
    prompts = {**russian(settings), "shard_size": "auto"}
    generate = {"batch_size": "auto"}
    manifest = run(settings, tmp_path / "out", generate=generate, prompts=prompts)
    assert manifest.totals.shards == 6 and manifest.batch_rows == 2
    storage = Storage(str(tmp_path / "out"))
    assert (storage.read_metadata("plan/00005.parquet") or {})[CHOSEN_SIZE] == "1"
    shards = read_shard_manifests(storage)
    assert {shard.stages["generate"].batch_rows for shard in shards} == {2}
    places = [path.name.split() for path in seen.iterdir()]
    assert sorted(device for _, device in places) == ["cuda:0", "cuda:1"]
    assert len({pid for pid, _ in places}) == 2
    assert drawn(tmp_path / "out") == drawn(one)


def drawn(output: Path) -> dict[str, list[int]]:
    """The tokens of every candidate."""
    tables = [pq.read_table(path) for path in (output / "stages" / "generate").glob("*.parquet")]
    return {row["image_id"]: row["tokens"] for row in pa.concat_tables(tables).to_pylist()}
