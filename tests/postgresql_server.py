"""A real PostgreSQL server on a free loopback port, from the system's package, for tests.

    with PostgresqlServer.start() as server:
        ...  # server.url, with a password that is made anew at every start

PostgreSQL refuses to run as root, so for root it runs as the package's own user.
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

from tests.servers import free_ports

USER, DATABASE = "prefect", "prefect"


@dataclass(frozen=True)
class PostgresqlServer:
    """A running server: where it is, and how to get in."""

    port: int
    password: str

    @property
    def url(self) -> str:
        """The database, as Prefect wants it named."""
        return f"postgresql+asyncpg://{USER}:{self.password}@127.0.0.1:{self.port}/{DATABASE}"

    def ask(self, query: str) -> str:
        """The answer to a query, as psql prints it."""
        command = [program("psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", USER]
        command += ["-d", DATABASE, "-tAc", query]
        environment = {**os.environ, "PGPASSWORD": self.password}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    @staticmethod
    @contextlib.contextmanager
    def start() -> Iterator[PostgresqlServer]:
        """Start a server with one empty database, wait until it answers, stop it at the end."""
        folder = Path(tempfile.mkdtemp(prefix="rudalle-postgresql-"))
        account = "postgres" if os.geteuid() == 0 else None
        server = PostgresqlServer(free_ports(1)[0], secrets.token_hex(16))

        def run(name: str, *words: str, **environment: str) -> None:
            given = {**os.environ, "HOME": str(folder), **environment}
            command = [program(name), *words]
            output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
            subprocess.run(command, cwd=folder, env=given, user=account, check=True, **output)

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
                place = ("-h", "127.0.0.1", "-p", str(server.port), "-U", USER)
                run("createdb", *place, DATABASE, PGPASSWORD=server.password)
                yield server
            finally:
                run("pg_ctl", "-D", str(data), "-m", "fast", "-w", "stop")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def program(name: str) -> str:
    """One of PostgreSQL's programs; Debian keeps those of the server out of the path."""
    found = shutil.which(name)
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if found is None and not versions:
        raise RuntimeError(f"`{name}` was not found; install the package postgresql")
    return found or str(versions[-1])
