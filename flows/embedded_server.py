"""Prefect's embedded server: in a session of its own, watched, and started again if it dies.

Prefect starts its server as a child in the same process group. Ctrl-C in a terminal then ends the
server first, and the run retries every request to it for minutes. So `use_detached_server` replaces
how Prefect starts the process (`SubprocessASGIServer._run_uvicorn_command`, in Prefect 3.8, 3.9);
everything else in Prefect stays as it is. The server

- runs `server_process.py`: no signal of a terminal or a supervisor reaches it, and it ends by
  itself when the process that started it is gone, even by SIGKILL;
- listens on a socket that this process keeps open, so requests wait while a server that died is
  started again, instead of failing;
- has a database in a temporary folder if it cannot use the one in Prefect's home.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from flows import watchdog as watching
from flows.prefect_settings import in_one_line
from flows.watchdog import RESUME_HINT, Ending
from rudalle_lib.errors import ConfigError

HOST = "127.0.0.1"
"""Address that the server listens on: loopback only."""

SCRIPT = Path(__file__).with_name("server_process.py")

MAX_RESTARTS = 3
"""How often a server that died is started again."""

SILENCE = 20.0
"""Seconds of waiting for the server after which the user is told."""

TAIL = 20_000
"""Bytes of the server's log that are searched for the reason of its death."""

DATABASE_VARIABLES = ("PREFECT_API_DATABASE_", "PREFECT_SERVER_DATABASE_")
"""Prefixes of variables that name a database; if one is set, no other database is used."""


def print_report(message: str) -> None:
    """Print a sentence on stderr."""
    print(f"rudalle-flows: {message}", file=sys.stderr, flush=True)


class Process(subprocess.Popen[bytes]):
    """A process of the server.

    Args:
        listening: The socket that it serves.
        environment: Its environment variables.
        folder: A folder that it deletes at its end, if any.
        log: A file for its output; by default a temporary one.
    """

    def __init__(
        self,
        listening: socket.socket,
        environment: Mapping[str, str],
        folder: str | None = None,
        log: IO[bytes] | None = None,
    ) -> None:
        self.stopping = False
        self.on_stop: Callable[[], object] = lambda: None
        self.log = log or _temporary_file()
        descriptor = listening.fileno()
        super().__init__(
            [sys.executable, "-P", str(SCRIPT), str(descriptor), *([folder] if folder else [])],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL if self.log is None else self.log,
            stderr=subprocess.STDOUT,
            bufsize=0,
            pass_fds=[descriptor],
            start_new_session=True,
        )

    def terminate(self) -> None:
        """Ask the process to stop; it does so within a few seconds."""
        self.stopping = True
        if self.stdin is not None and not self.stdin.closed:
            with contextlib.suppress(OSError):
                self.stdin.write(b"q")
        self.close()

    def kill(self) -> None:
        """End the process at once."""
        self.stopping = True
        super().kill()
        self.close()

    def close(self) -> None:
        """Close the files of a process that ends or has ended."""
        for file in (self.stdin, self.log):
            if file is not None:
                file.close()
        if self.stopping:
            self.on_stop()

    def stop(self, seconds: float = 5.0) -> None:
        """Ask the process to stop, wait, and kill it if it takes longer than `seconds`."""
        self.terminate()
        try:
            self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()

    def explain_end(self) -> str:
        """Return why it ended: its last error, or the signal."""
        if self.returncode is not None and self.returncode < 0:
            number = -self.returncode
            hint = ", perhaps because memory ran out" if number == signal.SIGKILL else ""
            return f"killed by signal {number}{hint}"
        error = last_error(self._log_tail())
        return error or f"exit code {self.returncode}"

    def _log_tail(self) -> str:
        if self.log is None:
            return ""
        size = os.fstat(self.log.fileno()).st_size
        tail = os.pread(self.log.fileno(), TAIL, max(0, size - TAIL))
        return tail.decode(errors="replace")


class DetachedServer:
    """The embedded server of this process.

    Args:
        port: Preferred port.
        environment: Environment variables of the server.
        report: Called with sentences for the user.
    """

    def __init__(
        self, port: int, environment: Mapping[str, str], report: Callable[[str], None]
    ) -> None:
        self.report = report
        self._environment = dict(environment)
        self._folder: str | None = None
        self._listening = _listen(port)
        self._on_restart: Callable[[Process], None] = lambda _: None
        self.process = self._new_process()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listening.getsockname()[1])

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until the server answers.

        Args:
            timeout: Maximum number of seconds.

        Raises:
            ConfigError: The server ended, also with a temporary database, or takes too long.
        """
        if self._answers_within(timeout):
            return
        reason = self.process.explain_end()
        if not any(name.startswith(DATABASE_VARIABLES) for name in self._environment):
            home = self._environment.get("PREFECT_HOME") or "~/.prefect"
            self.report(
                f"Prefect's server cannot use its database in {home} ({reason}). This run uses a "
                "temporary one; to keep the history of runs, set PREFECT_HOME to another folder."
            )
            self._folder = tempfile.mkdtemp(prefix="rudalle-flows-prefect-")
            self._environment["PREFECT_HOME"] = self._folder
            self._start()
            if self._answers_within(timeout):
                return
            reason = self.process.explain_end()
        self.kill()
        raise ConfigError(
            f"Prefect's embedded server did not start: {reason}. Correct this, or start a server "
            "with `prefect server start` and set its address in PREFECT_API_URL."
        )

    def watch(self, on_restart: Callable[[Process], None]) -> None:
        """Start the server again whenever it dies, in a thread; `on_restart` gets the process."""
        self._on_restart = on_restart
        threading.Thread(target=self._watch, name="embedded server", daemon=True).start()

    def kill(self) -> None:
        """End the server at once."""
        self.process.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _answers_within(self, timeout: float) -> bool:
        """Wait until the server answers; False if it ended.

        Raises:
            ConfigError: It takes longer than `timeout`.
        """
        started, is_told = time.monotonic(), False
        while not _answers(self.port):
            if self.process.poll() is not None:
                return False
            waited = time.monotonic() - started
            if waited > SILENCE and not is_told:
                is_told = True
                self.report(f"Waiting for Prefect's embedded server, for up to {timeout:.0f} s.")
            if waited > timeout:
                self.kill()
                raise ConfigError(
                    f"Prefect's embedded server has not answered within {timeout:.0f} s; is this "
                    "machine very busy? PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS sets how "
                    "long to wait."
                )
            time.sleep(0.1)
        return True

    def _new_process(self) -> Process:
        process = Process(self._listening, self._environment, self._folder)
        process.on_stop = self._listening.close
        return process

    def _start(self) -> None:
        """Start another process in place of the one that ended."""
        self.process.close()
        self.process = self._new_process()

    def _watch(self) -> None:
        for _ in range(MAX_RESTARTS):
            self.process.wait()
            if self.process.stopping:
                return
            reason = self.process.explain_end()
            self.report(f"Prefect's embedded server ended ({reason}); it is started again.")
            self._start()
            self._on_restart(self.process)
        self.process.wait()
        if not self.process.stopping:
            self._listening.close()  # requests fail from now on
            _give_up(
                self.report,
                f"Prefect's embedded server ended {MAX_RESTARTS + 1} times "
                f"({self.process.explain_end()}). {RESUME_HINT}",
            )


def use_detached_server() -> None:
    """Let Prefect start its embedded server as a `DetachedServer`, unless another one is named.

    A process that uses another server, such as each run of a deployment, need not import Prefect's,
    which takes two seconds.
    """
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    from prefect.server.api.server import SubprocessASGIServer

    SubprocessASGIServer._run_uvicorn_command = _start  # type: ignore[assignment,method-assign]


_launched: DetachedServer | None = None
_report: Callable[[str], None] = print_report


def launch() -> None:
    """Start the embedded server already, while this process imports other packages."""
    global _launched
    if _launched is None:
        _launched = DetachedServer(0, _environment(), print_report)
        _end_with_this_process(_launched)


def start(report: Callable[[str], None] = print_report) -> str:
    """Start the embedded server if needed, and wait until it answers.

    Args:
        report: Called with sentences for the user, also later, from another thread.

    Returns:
        The address of its API.

    Raises:
        ConfigError: It does not start.
    """
    global _report
    from prefect.server.api.server import SubprocessASGIServer

    _report = report
    use_detached_server()
    server = SubprocessASGIServer()  # one per process, kept by Prefect
    server.start()
    return server.api_url


def _start(owner: Any) -> Process:
    """Replaces `SubprocessASGIServer._run_uvicorn_command`."""
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    global _launched
    server, _launched = _launched, None
    if server is None:
        server = DetachedServer(owner.port, _environment(), _report)
        _end_with_this_process(server)
    server.report = _report
    server.wait_until_ready(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    owner.port = server.port

    def restarted(process: Process) -> None:
        owner.server_process = process

    server.watch(restarted)
    return server.process


def _environment() -> dict[str, str]:
    """The environment of the server, the same as Prefect gives to it except for errors.

    Warnings of its packages are none of the user's, who may have made warnings errors.
    """
    from prefect.settings import get_current_settings

    return {
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}",  # no web site may read the runs
        **{name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"},
        "PREFECT_UI_ENABLED": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
        **get_current_settings().to_environment_variables(exclude_unset=True),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # `Process` keeps it to explain its end
    }


def _end_with_this_process(server: DetachedServer) -> None:
    if watching.watchdog is not None:
        watching.watchdog.cleanups.append(server.kill)


def _give_up(report: Callable[[str], None], message: str) -> None:
    if watching.watchdog is None:
        report(message)
    else:
        watching.watchdog.end_soon(Ending(1, message))


def _listen(port: int) -> socket.socket:
    listening = socket.socket()
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError:  # the port is in use
            listening.bind((HOST, 0))
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"Prefect's embedded server cannot listen on {HOST} ({error.strerror or error}). "
            "Start a server elsewhere, and set its address in PREFECT_API_URL."
        ) from None
    return listening


def _answers(port: int) -> bool:
    """Whether the server is healthy. Asks it directly, whatever proxies are configured."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def last_error(log: str) -> str | None:
    """Return the last error in a log with tracebacks, in one line without secrets."""
    errors = re.findall(r"^[\w.]*(?:Error|Exception|Exit)\b: ?.*$", log, re.MULTILINE)
    if not errors:
        return None
    return in_one_line(re.sub(r"\b(?:\w+\.)+(?=\w+(?:Error|Exception|Exit)\b)", "", errors[-1]))


def _temporary_file() -> IO[bytes] | None:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no folder for temporary files
        return None
