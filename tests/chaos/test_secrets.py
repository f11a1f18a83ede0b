"""A run needs only the documented permissions, and its credentials never appear in any output."""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.cli.options import PACKAGED
from rudalle_lib.storage.storage import Storage
from tests.chaos.attempts import assert_same, state_of
from tests.chaos.conftest import S3Site, Site, Undisturbed
from tests.chaos.fault_proxy import Fault, Request
from tests.support.web_servers import WebServer, web_server

pytestmark = pytest.mark.chaos

DENIED = (403, "AccessDenied", "Access Denied.")
CANARIES = {
    "HF_TOKEN": "hf_canaryCANARYcanaryCANARY",
    "AWS_CANARY_PASSWORD": "canary-of-another-service",
}


def allows(request: Request, bucket: str, dataset: str) -> bool:
    """Whether the S3 rights that `docs/operations.md` names allow a request."""
    if request.path.startswith(f"/{bucket}/{dataset}/"):
        return request.method in ("GET", "HEAD", "PUT", "DELETE", "POST")
    prefix = request.query.get("prefix", "")
    listing = request.method == "GET" and request.path.rstrip("/") == f"/{bucket}"
    return listing and prefix.startswith(f"{dataset}/")


def everything_logged(site: Site) -> dict[str, bytes]:
    """What a run has printed and what it has stored in Prefect's database."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    address = str(PREFECT_API_DATABASE_CONNECTION_URL.value())
    database = re.sub(r"^sqlite\+aiosqlite:///", "", address).partition("?")[0]
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    assert "generate-dataset" in dump
    printed = {path.name: path.read_bytes() for path in site.folder.iterdir() if path.is_file()}
    return {**printed, "the database of Prefect": dump.encode(errors="replace")}


def test_documented_permissions_suffice_and_secrets_appear_nowhere(
    site: S3Site, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    output, denied = site.new_output(), []
    bucket, dataset = site.server.bucket, output.rpartition("/")[2]

    def decide(request: Request) -> Fault | None:
        if allows(request, bucket, dataset):
            return None
        denied.append(f"{request.method} {request.path} {request.query}")
        return Fault("error", DENIED)

    site.proxy.decide = decide
    verbose = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG", **CANARIES}
    attempt = site.start(output, **verbose)
    assert attempt.wait(600) is None, denied
    written = everything_logged(site)
    site.proxy.decide = lambda _: Fault("error", DENIED)
    error = site.start(output, **verbose).wait()
    assert error is not None and "denies access" in error
    site.proxy.decide = lambda _: None

    assert denied == []
    assert_same(state_of(output), undisturbed.state)
    storage = Storage(output)
    written |= {path: storage.read_bytes(path) for path in storage.list()}
    written |= {f"denied {name}": content for name, content in everything_logged(site).items()}
    server = site.server
    for secret in (server.secret_key, server.access_key, *CANARIES.values()):
        assert [name for name, content in written.items() if secret.encode() in content] == []


# --- signed URLs ---------------------------------------------------------------------------------

SIGNATURES = {
    "table": "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=canary-of-the-table",
    "row": "token=canary-of-a-row",
    "endpoint": "sig=canary-of-the-endpoint",
}
"""Queries of URLs; what is secret in them begins with `canary`."""


def signed_settings(site: Site, server: WebServer) -> dict[str, Any]:
    """Settings whose table, image prompts and mirror have signed URLs; one row has a wrong one."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "PNG")
    server.files["/a.png"] = buffer.getvalue()
    rows = ["prompt,image_prompt,image_prompt_borders", "красный круг,,"]
    rows += [f"круг {n},{server.url}/{path}?{SIGNATURES['row']},up=1" for n, path in (
        (1, "a.png"), (2, "none.png"))]  # fmt: skip
    rows += [f"крест,http://me:canary-password@127.0.0.1:{server.port}/a.png,up=1"]
    rows += [f"полоса,reference://x::{server.url}/r?{SIGNATURES['row']},up=1"]
    server.files["/prompts.csv"] = "\n".join(rows).encode()
    prompts = {
        "uri": f"{server.url}/prompts.csv?{SIGNATURES['table']}",
        "shard_size": 2,
        "allow_private_hosts": True,
    }
    weights = {**site.settings["weights"], "endpoint": f"{server.url}/?{SIGNATURES['endpoint']}"}
    return {**site.settings, "prompts": prompts, "weights": weights, "upscale": {"model": None}}


def test_signatures_of_urls_appear_nowhere(site: Site) -> None:
    """Neither in the output, nor in Prefect's parameters, artifacts and logs, nor in errors."""
    with web_server() as server:
        site.settings = signed_settings(site, server)
        output = site.new_output()
        verbose = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG"}
        assert site.start(output, **verbose).wait(600) is None
        written = everything_logged(site)
        server.files["/prompts.csv"] += b"\x00"
        server.query = "the signature has expired"
        error = site.start(site.new_output(), **verbose).wait()
        assert error is not None and "403" in error and "canary" not in error
        written |= {f"failed {name}": content for name, content in everything_logged(site).items()}
        asked = {path for _, path, _ in server.requests}
    storage = Storage(output)
    written |= {path: storage.read_bytes(path) for path in storage.list()}
    for path in storage.list():
        if path.endswith(".parquet"):
            rows = pq.read_table(pa.BufferReader(storage.read_bytes(path))).to_pylist()
            written[f"rows of {path}"] = json.dumps(rows, default=str).encode()
    assert f"/prompts.csv?{SIGNATURES['table']}" in asked
    assert f"/a.png?{SIGNATURES['row']}" in asked and f"/none.png?{SIGNATURES['row']}" in asked
    assert not any(path.startswith("/r") for path in asked)
    assert [name for name, content in written.items() if b"canary-" in content] == []


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("run", "http://me:canary-password@127.0.0.1:9/api"),
        ("serve", "http://127.0.0.1:9/api?key=canary-key"),
    ],
)
def test_the_password_of_a_prefect_server_is_in_no_message(
    command: str, url: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", command, "demo", "--output", str(tmp_path / "out")],
        cwd=PACKAGED.parent, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if line.startswith("rudalle-flows: ")]
    assert done.returncode == 2 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "127.0.0.1:9/api" in done.stderr and "canary" not in done.stdout + done.stderr
