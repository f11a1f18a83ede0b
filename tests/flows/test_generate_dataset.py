"""The whole flow on tiny models and a real Prefect server: complete, reproducible, resumable."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rudalle_lib.dataset.lease import hold
from rudalle_lib.dataset.lease_files import read_lease
from rudalle_lib.errors import LeaseError, LeaseLostError, ShardError
from rudalle_lib.schema.records import RunManifest
from rudalle_lib.storage.storage import Storage
from tasks.runtime.events import Planned, Selected, ShardFinished, listener
from tests.support.tiny_run import block_stage, configure, contents, snapshot
from tests.support.tiny_stack import SIDE

pytestmark = pytest.mark.usefixtures("prefect_server")

NETWORKS = ("translate", "generate", "decode", "score")
ONE_FAILED = r"1 of 3 shards failed.*\nshard 00001, decode \(rows 4 to 5 of \S+prompts\.csv\): "


def run(settings: dict[str, object], output: Path, **changes: object) -> RunManifest:
    from flows.generate_dataset import generate_dataset

    return generate_dataset(configure(settings, output, **changes))


@pytest.fixture(scope="module")
def output(
    prefect_server: None, settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of a finished run; tests only read it."""
    folder = tmp_path_factory.mktemp("run") / "out"
    run(settings, folder)
    return folder


def read(folder: Path) -> pa.Table:
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return pa.concat_tables(tables, promote_options="default")


def metadata(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(output / "data" / "metadata").to_pylist()
    return rows


def rejects(output: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read(output / "rejects").to_pylist()
    return rows


def opened(path: Path) -> Image.Image:
    return Image.open(io.BytesIO(path.read_bytes()))


def test_every_row_and_every_image_is_published_or_has_a_reason(output: Path) -> None:
    reasons = sorted(row["reason"] for row in rejects(output))
    dropped = ["not_in_best_k"] * (1 + 2 + 2 + 2)
    bad = ["bad_override", "duplicate", "empty_prompt"]
    assert reasons == sorted([*bad, "translation_failed", *dropped])
    assert len(metadata(output)) == 4 * 2
    ids = [row["image_id"] for row in metadata(output) + rejects(output) if row["image_id"]]
    assert len(ids) == len(set(ids)) == 3 + 4 + 4 + 4


def test_the_best_of_each_prompt_are_published(output: Path) -> None:
    for row in metadata(output):
        assert row["rank"] in (1, 2)
    assert {row["rank"] for row in metadata(output)} == {1, 2}


def test_published_files_match_their_rows(output: Path) -> None:
    for row in metadata(output):
        content = (output / row["path"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        assert opened(output / row["path"]).size == (row["width"], row["height"])
        assert row["width"] == 2 * SIDE
    on_disk = {path.relative_to(output).as_posix() for path in (output / "data").rglob("*.png")}
    assert on_disk == {row["path"] for row in metadata(output)}


def test_columns_of_the_table_are_copied_and_overrides_are_recorded(output: Path) -> None:
    by_text = {row["text"]: row for row in metadata(output)}
    assert by_text["чёрный квадрат на белом фоне"]["theme"] == "malevich"
    assert by_text["синий крест на бежевом фоне"]["top_p"] == 0.5
    assert {row["lang"] for row in by_text.values()} == {"ru"}


def test_the_report_has_the_totals(output: Path) -> None:
    run_json = json.loads((output / "run.json").read_text())
    totals = run_json["totals"]
    assert (totals["prompts"], totals["images"], totals["kept"], totals["shards"]) == (5, 15, 8, 3)
    assert totals["rejected"]["duplicate"] == 1
    assert set(totals["seconds"]) == {*NETWORKS, "upscale", "publish"}
    assert "8 images drawn from 5 prompts" in (output / "README.md").read_text()
    assert opened(output / "contact_sheet.png").format == "PNG"
    page = (output / "gallery" / "data" / "00000.js").read_text()
    assert all(f"../{row['path']}" in page for row in metadata(output))


def test_two_runs_make_identical_files(
    output: Path, settings: dict[str, object], tmp_path: Path
) -> None:
    run(settings, tmp_path / "again")
    parts = ("data", "rejects", "plan")
    assert contents(tmp_path / "again", *parts) == contents(output, *parts)
    assert (tmp_path / "again" / "contact_sheet.png").read_bytes() == (
        output / "contact_sheet.png"
    ).read_bytes()


def test_shard_and_batch_size_do_not_change_tokens_and_images(
    output: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    prompts = {**settings["prompts"], "shard_size": 64}
    run(settings, tmp_path / "one", prompts=prompts, generate={"batch_size": 3})
    first, second = (
        {row["image_id"]: row["tokens"] for row in read(folder / "stages" / "generate").to_pylist()}
        for folder in (output, tmp_path / "one")
    )
    assert first == second
    drawn = [
        {row["image_id"]: row["sha256"] for row in metadata(folder)}
        for folder in (output, tmp_path / "one")
    ]
    assert drawn[0] == drawn[1]


def test_a_second_run_writes_nothing(settings: dict[str, object], tmp_path: Path) -> None:
    first = run(settings, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    assert run(settings, tmp_path / "out") == first
    after = snapshot(tmp_path / "out")
    changed = {path for path in after if before.get(path) != after[path]}
    assert {path.partition("/")[0] for path in changed} <= {"lease", "rejects"}
    assert {path for path in changed if path.startswith("rejects/0")} == set()


def test_another_threshold_runs_only_the_upscaler_again(
    settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(settings, out)
    before = snapshot(out / "stages")
    manifest = run(settings, out, score={"keep_best": 1})
    assert snapshot(out / "stages") == before
    assert manifest.totals.kept == 4 and len(metadata(out)) == 4
    on_disk = {path.relative_to(out).as_posix() for path in (out / "data").rglob("*.png")}
    assert on_disk == {row["path"] for row in metadata(out)}

    run(settings, out, score={"keep_best": 3})
    after = snapshot(out / "stages")
    assert {path for path in after if after[path] != before[path]} <= {
        path for path in after if path.startswith("upscale/")
    }
    assert len(metadata(out)) == 12


def test_a_grown_table_adds_only_new_files(
    settings: dict[str, Any], table: Path, tmp_path: Path
) -> None:
    out, grown = tmp_path / "out", tmp_path / "grown.csv"
    run(settings, out)
    before = contents(out, "data", "plan")
    grown.write_text(table.read_text() + "белый круг на чёрном фоне,,,,new\n", encoding="utf-8")
    prompts = {**settings["prompts"], "uri": str(grown)}
    manifest = run(settings, out, prompts=prompts)
    assert manifest.totals.prompts == 6
    after = contents(out, "data", "plan")
    listed = "data/images/metadata.parquet"  # of the report: lists all images
    assert before.pop(listed) != after[listed]
    assert before.items() <= after.items()
    assert len(after) - 1 == len(before) + 2 + 2  # a plan, a metadata file, two images


def test_a_failed_shard_is_reported_and_the_others_finish(
    settings: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    blocked = block_stage(configure(settings, out), "decode", 1)
    with pytest.raises(ShardError, match=ONE_FAILED):
        run(settings, out)
    ours = re.compile(r"decode 00001 failed; it has shard 00001 \(rows 4 to 5 of \S+\)")
    assert any(map(ours.fullmatch, caplog.messages))  # what Prefect's page of the task shows
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["00000.json", "00002.json"]
    assert json.loads((out / "run.json").read_text())["totals"]["shards"] == 2

    (blocked / "in the way").rmdir()
    blocked.rmdir()
    assert run(settings, out).totals.shards == 3


def test_rules_across_shards_decide_when_all_are_scored(
    settings: dict[str, object], tmp_path: Path
) -> None:
    out, events = tmp_path / "out", list[object]()
    rules = {"rules": [{"keep_best": 2, "per": "theme"}, {"keep_best": 3, "per": "dataset"}]}
    changes: dict[str, Any] = {"score": {"keep_best": None}, "select": rules}
    blocked = block_stage(configure(settings, out, **changes), "decode", 1)
    with pytest.raises(ShardError, match=ONE_FAILED):
        run(settings, out, **changes)
    assert {path.name for path in (out / "shards").iterdir()} == {"00000.json", "00002.json"}
    (blocked / "in the way").rmdir()
    blocked.rmdir()

    token = listener.set(events.append)
    try:
        manifest = run(settings, out, **changes)
    finally:
        listener.reset(token)
    assert manifest.totals.kept == len(metadata(out)) == 3
    kinds = [type(event) for event in events]
    assert ShardFinished not in kinds[: kinds.index(Selected)]
    (chosen,) = (event for event in events if isinstance(event, Selected))
    same = manifest.totals.rejected.get("same_image", 0)
    assert (chosen.images, chosen.kept) == (manifest.totals.images - same, 3)
    assert 1 in chosen.prompts
    assert run(settings, out, **changes) == manifest
    whole = tmp_path / "whole"
    run(settings, whole, **changes)
    drawn = [{row["image_id"]: row["sha256"] for row in metadata(one)} for one in (out, whole)]
    assert drawn[0] == drawn[1]


def test_a_run_with_a_high_failure_rate_stops_early(
    settings: dict[str, object], tmp_path: Path
) -> None:
    table, out = tmp_path / "many.csv", tmp_path / "out"
    table.write_text("prompt\n" + "".join(f"{n} кругов\n" for n in range(12)), encoding="utf-8")
    changes = {"prompts": {"uri": str(table), "shard_size": 1}, "generate": {"images": 1}}
    for shard in range(2, 12):
        block_stage(configure(settings, out, **changes), "translate", shard)
    with pytest.raises(ShardError) as raised:
        run(settings, out, **changes)
    first, second, *failed = str(raised.value).splitlines()
    assert re.match(r"Stopped early, \d shards not started: \d\d% of the work of the last", first)
    assert "runtime.max_failed_share allows 50%" in first
    assert second.startswith(f"{len(failed)} of ") and 3 <= len(failed) < 10
    assert sorted(path.name for path in (out / "shards").iterdir()) == ["00000.json", "00001.json"]
    assert json.loads((out / "run.json").read_text())["totals"]["shards"] == 2


def test_the_first_shard_is_published_while_later_ones_wait(
    settings: dict[str, object], tmp_path: Path
) -> None:
    table, out = tmp_path / "six.csv", tmp_path / "out"
    table.write_text("prompt\n" + "".join(f"{n} кругов\n" for n in range(6)), encoding="utf-8")
    started: list[int] = []

    def count(event: object) -> None:
        if isinstance(event, ShardFinished):
            started.append(len(list((out / "stages" / "translate").glob("*.parquet"))))

    token = listener.set(count)
    try:
        prompts = {"uri": str(table), "shard_size": 1}
        run(settings, out, prompts=prompts, generate={"images": 1})
    finally:
        listener.reset(token)
    assert len(started) == 6
    assert all(count <= 2 + finished for finished, count in enumerate(started))


def test_without_an_upscaler_images_are_published_as_drawn(
    settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cutout = {"transparent": True}
    run(settings, out, upscale={"model": None}, cutout=cutout, publish={"image_format": "webp"})
    assert {path.name for path in (out / "stages").iterdir()} == {*NETWORKS, "cutout"}
    rows = metadata(out)
    assert {row["width"] for row in rows} == {SIDE}
    assert {row["upscaler"] for row in rows} == {None}
    assert all(opened(out / row["path"]).format == "WEBP" for row in rows)


def test_a_run_on_s3_makes_the_same_images_as_one_on_disk(
    output: Path, settings: dict[str, object], s3_url: str
) -> None:
    from flows.generate_dataset import generate_dataset

    config = configure(settings, output).model_copy(update={"output": s3_url})
    manifest = generate_dataset(config)
    storage = Storage(s3_url)
    on_s3 = {path: storage.read_bytes(path) for path in storage.list("data")}
    assert on_s3 == contents(output, "data")
    assert manifest.totals.kept == 8
    assert storage.exists("gallery/index.html") and storage.exists("contact_sheet.png")
    assert generate_dataset(config) == manifest


def test_a_concurrent_run_is_an_error_and_writes_nothing(
    settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with hold(Storage(str(out)), 60):
        with pytest.raises(LeaseError, match="Another run writes to .*renewed .* ago"):
            run(settings, out)
        assert [path for path in snapshot(out) if not path.startswith("lease/")] == []
    assert run(settings, out).totals.kept == 8


def test_a_run_that_loses_its_lease_stops_publishing(
    settings: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def take_over(event: object) -> None:
        if isinstance(event, ShardFinished):
            lease = read_lease(Storage(str(out)))
            assert lease is not None and not lease.free
            other = {**asdict(lease), "number": lease.number + 1, "holder": "another run"}
            (out / "lease" / "00002.json").write_text(json.dumps(other))

    token = listener.set(take_over)
    try:
        with pytest.raises(LeaseLostError, match="another run does"):
            run(settings, out, runtime={"shards_in_flight": 1})
    finally:
        listener.reset(token)
    assert [path.name for path in (out / "shards").iterdir()] == ["00000.json"]
    assert not (out / "run.json").exists()


def test_a_terminated_run_releases_its_lease(settings: dict[str, object], tmp_path: Path) -> None:
    from prefect.exceptions import TerminationSignal

    out = tmp_path / "out"

    def terminate(event: object) -> None:
        if isinstance(event, Planned):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Prefect sends it again at the end
    token = listener.set(terminate)
    try:
        with pytest.raises(TerminationSignal):
            run(settings, out)
    finally:
        listener.reset(token)
        signal.signal(signal.SIGTERM, before)
    lease = read_lease(Storage(str(out)))
    assert lease is not None and lease.free
    assert run(settings, out).totals.kept == 8
