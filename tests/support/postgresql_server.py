"""A real PostgreSQL server on a free local port, from the system's package, for tests.

    with PostgresqlServer.start() as server:
        ...  # server.url, with a password that is random at every start

PostgreSQL refuses to run as root, so for root it runs as the user `postgres`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.servers import free_ports

USER, DATABASE = "prefect", "prefect"


@dataclass(frozen=True)
class PostgresqlServer:
    """Port and password of a running server."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """The database URL for Prefect."""
        return f"postgresql+asyncpg://{USER}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    def query(self, sql: str) -> str:
        """The result of a query, as psql prints it."""
        command = [program("psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER]
        command += ["-d", DATABASE, "-tAc", sql]
        environment = {**os.environ, "PGPASSWORD": self.password}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    @staticmethod
    @contextlib.contextmanager
    def start() -> Iterator[PostgresqlServer]:
        """Start a server with one empty database, wait until it answers, and stop it at the end."""
        folder = Path(tempfile.mkdtemp(prefix="rudalle-postgresql-"))
        account = "postgres" if os.geteuid() == 0 else None
        server = PostgresqlServer(free_ports(1)[0], secrets.token_hex(16))

        def run(name: str, *arguments: str, **variables: str) -> None:
            environment = {**os.environ, "HOME": str(folder), **variables}
            command = [program(name), *arguments]
            subprocess.run(
                command,
                cwd=folder,
                env=environment,
                user=account,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
            )

        data, settings = folder / "data", f"-p {server.port} -h 127.0.0.1 -k {folder}"
        (folder / "password").write_text(server.password)
        if account is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, account)
        try:
            scram = ("--auth=scram-sha-256", f"--pwfile={folder / 'password'}")
            run("initdb", "-D", str(data), "-U", USER, "-E", "UTF8", "--no-sync", *scram)
            run("pg_ctl", "-D", str(data), "-o", settings, "-l", f"{folder}/log", "-w", "start")
            try:
                connection = ("-h", "127.0.0.1", "-p", str(server.port), "-U", USER)
                run("createdb", *connection, DATABASE, PGPASSWORD=server.password)
                yield server
            finally:
                run("pg_ctl", "-D", str(data), "-m", "fast", "-w", "stop")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def program(name: str) -> str:
    """The path of a PostgreSQL program; Debian does not put those of the server on PATH."""
    found = shutil.which(name)
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if found is None and not versions:
        raise RuntimeError(f"`{name}` was not found; install the package postgresql")
    return found or str(versions[-1])
