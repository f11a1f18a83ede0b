"""How Prefect is set up before it is imported: embedded and quiet, unless the user says otherwise.

With `PREFECT_API_URL` in the environment the run goes to that server; without it Prefect starts one
of its own for the time of the run. Variables that are already set are left alone.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import MutableMapping

from rudalle_lib.errors import ConfigError
from rudalle_lib.storage_errors import public_url

DEFAULTS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # About 10 s on an idle machine; a busy one takes far longer.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # A server that writes task runs down one by one and events by twenty falls behind thousands of
    # them, and drops what tells of them once 10,000 messages wait.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    # A server whose database is slow for a moment answers with 500; that is tried again too.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    # Logs go to the server; the terminal belongs to the progress and to errors of ours.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def set_up_prefect(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Set what is not set; must be called before `prefect` is imported.

    Returns:
        Whether the server is an embedded one.

    Raises:
        ConfigError: the server that `PREFECT_API_URL` names does not answer.
    """
    for name, value in DEFAULTS.items():
        environment.setdefault(name, value)
    url = environment.get("PREFECT_API_URL")
    if url:
        _check_server(url)
    return not url


def embedded_address() -> str:
    """The address of the server that Prefect embeds in this process, for other processes."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # Prefect keeps one a process
    server.start()
    return server.api_url


def _check_server(url: str) -> None:
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=10):
            return
    except urllib.error.HTTPError:
        return  # it answers; what it asks for (a key) is Prefect's to give
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The Prefect server at {public_url(url)} does not answer ({error}); start it, or "
            "unset PREFECT_API_URL to use an embedded one."
        ) from None
