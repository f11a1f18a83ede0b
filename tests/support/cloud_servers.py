"""Emulators of Google Cloud Storage and of Azure's blob storage, on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import PATIENCE, free_ports, kill_group, wait_until_answering

BUCKET = "datasets"

# The account and key that every Azurite has, see its documentation.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def google_server(folder: Path) -> Iterator[dict[str, str]]:
    """Start an emulator of Google Cloud Storage with an empty bucket; it has no preconditions.

    Args:
        folder: for its log.

    Yields:
        The environment variables that lead to it.
    """
    (port,) = free_ports(1)
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory", f"--default-bucket={BUCKET}"]
    address = f"http://127.0.0.1:{port}"
    with _running([str(program), "start", *options], folder) as (process, log):
        wait_until_answering(f"{address}/storage/v1/b", process, log)
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google what kind of bucket it is
        }


def azurite() -> str | None:
    """The program that emulates Azure, if `make azurite` has installed it."""
    own = Path(__file__).parents[2] / ".azurite" / "node_modules" / ".bin"
    return shutil.which("azurite-blob") or shutil.which("azurite-blob", path=str(own))


@contextmanager
def azure_server(folder: Path) -> Iterator[dict[str, str]]:
    """Start an emulator of Azure's blob storage with an empty container; needs `azurite`.

    Args:
        folder: for its log.

    Yields:
        The environment variables that lead to it.
    """
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}/{ACCOUNT}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
        f"BlobEndpoint={address};"
    )
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    command = [str(azurite()), *options, "--blobHost=127.0.0.1", f"--blobPort={port}"]
    with _running(command, folder) as (process, log):
        _create_container(connection, process, log)
        yield {"AZURE_STORAGE_CONNECTION_STRING": connection}


def _create_container(connection: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Create the container as soon as the server answers; without a key it answers nothing."""
    from azure.core.exceptions import ServiceRequestError
    from azure.storage.blob import BlobServiceClient

    deadline = time.monotonic() + PATIENCE
    with BlobServiceClient.from_connection_string(connection, retry_total=0) as client:
        while True:
            try:
                client.create_container(BUCKET)
                return
            except ServiceRequestError:
                log_tail = log.read_text(errors="replace")[-2000:]
                assert process.poll() is None and time.monotonic() < deadline, log_tail
                time.sleep(0.2)


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process, log
    finally:
        kill_group(process)
