"""The S3 server of the tests is real, local, needs credentials, and stops with its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, sys
from rudalle_lib.storage.storage import Storage
storage = Storage(sys.argv[1])
storage.write_bytes("a", b"1")
print(storage.read_bytes("a").decode(), os.environ["AWS_ENDPOINT_URL"])
sys.exit(7)
"""


def test_a_server_runs_as_long_as_its_command() -> None:
    command = [sys.executable, "-m", "tests.support.s3_server", "--", sys.executable, "-c", SCRIPT]
    result = subprocess.run(
        [*command, "s3://$S3_BUCKET/x"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 7, result.stderr
    content, endpoint = result.stdout.split()
    assert content == "1"
    assert endpoint.startswith("http://127.0.0.1:")
    port = int(endpoint.rpartition(":")[2])
    with open("/proc/net/tcp") as connections:
        listening = [line.split()[1] for line in connections if line.split()[3] == "0A"]
    assert f"{port:04X}" not in [address.rpartition(":")[2] for address in listening]
