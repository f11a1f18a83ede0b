"""A run with no more rights than it needs leaves its credentials nowhere, whatever it logs."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from rudalle_lib.storage import Storage
from tests.chaos.attempts import assert_same, state_of
from tests.chaos.conftest import Site, Undisturbed
from tests.chaos.fault_proxy import Fault, Request

pytestmark = pytest.mark.chaos

DENIED = (403, "AccessDenied", "Access Denied.")
CANARIES = {
    "HF_TOKEN": "hf_canaryCANARYcanaryCANARY",
    "AWS_CANARY_PASSWORD": "canary-of-another-service",
}


def allows(request: Request, bucket: str, dataset: str) -> bool:
    """The policy of the README, as S3 would apply it."""
    if request.path.startswith(f"/{bucket}/{dataset}/"):
        return request.method in ("GET", "HEAD", "PUT", "DELETE", "POST")
    prefix = request.query.get("prefix", "")
    listing = request.method == "GET" and request.path.rstrip("/") == f"/{bucket}"
    return listing and prefix.startswith(f"{dataset}/")


def everything_said(site: Site) -> dict[str, bytes]:
    """What a run wrote anywhere but to its output: its terminal, and Prefect's database."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    address = str(PREFECT_API_DATABASE_CONNECTION_URL.value())
    database = re.sub(r"^sqlite\+aiosqlite:///", "", address).partition("?")[0]
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    assert "generate-dataset" in dump
    said = {path.name: path.read_bytes() for path in site.folder.iterdir() if path.is_file()}
    return {**said, "the database of Prefect": dump.encode(errors="replace")}


def test_the_least_rights_are_enough_and_secrets_appear_nowhere(
    site: Site, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    output, denied = site.new_output(), []
    bucket, dataset = site.server.bucket, output.rpartition("/")[2]

    def decide(request: Request) -> Fault | None:
        if allows(request, bucket, dataset):
            return None
        denied.append(f"{request.method} {request.path} {request.query}")
        return Fault("answer", DENIED)

    site.proxy.decide = decide
    loud = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_LOGGING_ROOT_LEVEL": "DEBUG", **CANARIES}
    attempt = site.start(output, **loud)
    assert attempt.wait(600) is None, denied
    written = everything_said(site)
    site.proxy.decide = lambda _: Fault("answer", DENIED)
    refused = site.start(output, **loud).wait()
    assert refused is not None and "denies access" in refused
    site.proxy.decide = lambda _: None

    assert denied == []
    assert_same(state_of(output), undisturbed.state)
    storage = Storage(output)
    written |= {path: storage.read_bytes(path) for path in storage.list()}
    written |= {f"refused {name}": content for name, content in everything_said(site).items()}
    server = site.server
    for secret in (server.secret_key, server.access_key, *CANARIES.values()):
        assert [name for name, content in written.items() if secret.encode() in content] == []
