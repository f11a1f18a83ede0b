"""The hub's faults are sentences without the token; a killed push goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, constants

from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import StorageError, TransientError
from rudalle_lib.sharing.contents import read_contents
from rudalle_lib.sharing.hub import HubTarget, is_hub_url
from rudalle_lib.sharing.push import push
from rudalle_lib.storage.storage import Storage
from tests.support.hub_server import TOKEN, HubServer

NAME = "somebody/squares"
ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"
)
"""huggingface_hub uploads as httpx no longer wants it."""


def to_hub(config: RunConfig) -> None:
    push(read_contents(Storage(config.output), 2), HubTarget(f"hf://datasets/{NAME}"))


@pytest.mark.parametrize(
    "url",
    [
        "hf://datasets/name",
        "hf://models/owner/name",
        "hf://owner/name",
        "hf://datasets/a/b/c",
        "hf://datasets/../b",
    ],
)
def test_only_names_of_datasets_are_taken(url: str, hub: HubServer) -> None:
    assert is_hub_url(url)
    with pytest.raises(StorageError, match="expected hf://datasets/owner/name"):
        HubTarget(url)


def test_without_a_token_nothing_is_requested(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(StorageError, match="set HF_TOKEN"):
        HubTarget(f"hf://datasets/{NAME}")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (403, StorageError, "needs write access"),
        (500, TransientError, "answered: "),
        (400, StorageError, "as the test wants it"),
    ],
)
def test_refusals_are_one_sentence(
    config: RunConfig, hub: HubServer, status: int, kind: type[Exception], says: str
) -> None:
    hub.status = status
    with pytest.raises(kind, match=says) as error:
        to_hub(config)
    assert TOKEN not in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_token_and_a_hub_that_is_away_are_named(
    config: RunConfig, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(StorageError, match="does not accept the token") as error:
        to_hub(config)
    assert "hf_of_somebody_else" not in str(error.value)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError, match="does not answer"):
        to_hub(config)


@pytest.mark.parametrize("offers_xet", [False, True])
def test_xet_is_used_where_it_is_installed_and_the_server_has_it(
    offers_xet: bool, config: RunConfig, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `hf_xet` itself does is not tested: it has no stand-in."""
    pytest.importorskip("hf_xet")
    by_xet: list[str] = []

    def upload(additions: list[CommitOperationAdd], **_: object) -> None:
        for one in additions:
            with one.as_file() as stream:
                hub.objects[one.upload_info.sha256.hex()] = stream.read()
            by_xet.append(one.path_in_repo)

    monkeypatch.setattr("huggingface_hub._commit_api._upload_xet_files", upload)
    hub.offers_xet = offers_xet
    to_hub(config)
    large = [path for path in hub.files(NAME) if path.endswith((".parquet", ".png"))]
    assert len(large) > 3 and bool(hub.uploads) != offers_xet
    assert sorted(by_xet) == (sorted(large) if offers_xet else [])


def test_a_killed_push_is_resumed_without_sending_a_file_twice(
    config: RunConfig, hub: HubServer
) -> None:
    hub.hold_after = 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = ["push", config.output, f"hf://datasets/{NAME}", "--rows-per-file", "2"]
    command = [sys.executable, "-m", "flows.cli", *arguments]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert hub.held.wait(120)  # in the middle of the fourth file
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(hub.objects) == 3 and hub.files(NAME) == {}  # nobody sees half of it
    hub.hold_after = None
    hub.released.set()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert set(hub.uploads.values()) == {1}
    assert {"README.md", "croissant.json"} <= hub.files(NAME).keys()
    assert done.stdout.splitlines()[-1].endswith(f"{hub.url}/datasets/{NAME}")
