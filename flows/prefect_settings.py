"""Prefect's settings: an embedded server and no console logs, unless the user sets otherwise.

If Prefect's settings name a server - `PREFECT_API_URL`, the active profile, `prefect.toml`,
`pyproject.toml` or `.env` - runs use that one. Otherwise Prefect starts its own server for the
duration of the run. Variables that are already set are not changed; empty ones count as not set.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager, redirect_stderr, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rudalle_lib.errors import ConfigError
from rudalle_lib.escaping import safe_text
from rudalle_lib.storage.errors import mask_secrets, public_url
from rudalle_lib.storage.hosts import ProxyError, check_proxies
from rudalle_lib.storage.urls import UrlError, check_url
from tasks.runtime.environment import TELEMETRY_OFF, exempt_loopback

if TYPE_CHECKING:
    from prefect.settings import Settings

SIZE_VARIABLE = "PREFECT_SERVER_API_MAX_PARAMETER_SIZE"
"""Variable of the most bytes that the parameters of a flow run may have, as JSON."""

USUAL_SIZE = 524_288
"""Its value on servers that set nothing else."""

DEFAULTS = {
    **TELEMETRY_OFF,
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    # It takes about 10 s on an idle machine, and much longer on a busy one.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # By default the server stores task runs one by one and events in batches of 20. It cannot keep
    # up with thousands of them, and drops messages once 10,000 are queued.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "500",
    # The parameters of a run are its whole configuration, also with 10,000 blocked words.
    SIZE_VARIABLE: "8388608",
    # The server answers 500 while its database is slow, so that is retried, too.
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
    # Logs go to the server; the terminal shows only our progress and errors.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}
"""Default values of environment variables."""

ANSWER_TIMEOUT = 10.0
"""Seconds within which a server must answer."""


def set_up_prefect(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Set the variables that are not set. Must be called before `prefect` is imported.

    Returns:
        Whether Prefect uses an embedded server.

    Raises:
        ConfigError: when Prefect's settings or a proxy in the environment are not valid, or the
            server that they name does not answer.
    """
    for name in [n for n, value in environment.items() if not value.strip()]:
        if name.startswith("PREFECT_"):  # Prefect takes an empty address for one
            del environment[name]
    for name, value in DEFAULTS.items():
        if name != SIZE_VARIABLE:
            environment.setdefault(name, value)
    exempt_loopback(environment)
    try:
        check_proxies()  # Prefect's client tries them all, even if it needs none
    except ProxyError as error:
        raise ConfigError(f"{error}.") from None
    url, source = environment.get("PREFECT_API_URL"), "PREFECT_API_URL"
    if not url and environment is os.environ and _may_name_a_server():
        url = load_settings().api.url
        source = "the address in Prefect's profile or settings file"
    if url:
        _check_server(url, source)
    else:  # another server has its own limit
        environment.setdefault(SIZE_VARIABLE, DEFAULTS[SIZE_VARIABLE])
    return not url


def check_size(
    settings: Mapping[str, Mapping[str, object] | object],
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Check that a Prefect server accepts a configuration as the parameter of a flow.

    Args:
        settings: the configuration as plain JSON values.
        environment: may name the limit of the server, if it is not the usual one.

    Raises:
        ConfigError: when it is too large, with the name of its largest setting, or the variable is
            no number.
    """
    limit = _number(SIZE_VARIABLE, environment.get(SIZE_VARIABLE) or str(USUAL_SIZE))
    size = len(json.dumps({"config": settings}, separators=(",", ":")))
    if 0 < limit < size:
        sizes = {
            f"{section}.{key}": len(json.dumps(value))
            for section, values in settings.items()
            for key, value in (values.items() if isinstance(values, Mapping) else ())
        }
        largest = max(sizes, key=sizes.__getitem__, default="them")
        raise ConfigError(
            f"The settings have {size:,} bytes as JSON, and the Prefect server accepts at most "
            f"{limit:,}. Shorten {largest} ({sizes.get(largest, size):,} bytes), or raise "
            f"{SIZE_VARIABLE} of the server, and set it here to the same value."
        )


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of bytes.") from None


def load_settings() -> Settings:
    """Import Prefect and return its settings.

    Raises:
        ConfigError: when they are not valid, or allow no server at all.
    """
    try:
        # Prefect warns about a home that is not writable, and prints errors before it raises them.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from prefect.settings import get_current_settings

            settings = get_current_settings()
            if settings.logging.config_path is not None and settings.logging.config_path.exists():
                from prefect.logging.configuration import setup_logging

                setup_logging()  # Prefect does so when it is imported, with a traceback
    except (ImportError, OSError, RuntimeError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"Prefect's settings are not valid: {in_one_line(_first_problem(error))}. Correct the "
            "variable, the profile or prefect.toml."
        ) from None
    if not settings.api.url and not settings.server.ephemeral.enabled:
        raise ConfigError(
            "Prefect's settings forbid an embedded server (PREFECT_SERVER_ALLOW_EPHEMERAL_MODE) "
            "and name no other one. Set PREFECT_API_URL to the address of a server."
        )
    return settings


def _may_name_a_server() -> bool:
    """Whether Prefect has settings besides variables; importing it takes a second."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    if "prefect.settings" in sys.modules or profiles.is_file() or Path("prefect.toml").is_file():
        return True
    with suppress(OSError):
        shared = {Path("pyproject.toml"): b"tool.prefect", Path(".env"): b"prefect_"}
        return any(
            file.is_file() and mark in file.read_bytes().lower() for file, mark in shared.items()
        )
    return True


def _first_problem(error: Exception) -> str:
    """Return the first problem of a validation error, without the values that were found."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}"


def _check_server(url: str, source: str) -> None:
    try:
        check_url(url, ("http", "https"))
    except UrlError:
        raise ConfigError(
            f"{source} is {public_url(url)}; expected a URL such as http://127.0.0.1:4200/api, "
            "without a user name or password. Those belong into PREFECT_API_AUTH_STRING."
        ) from None
    address = f"{url.rstrip('/')}/health"
    try:
        with urllib.request.urlopen(address, timeout=ANSWER_TIMEOUT) as answer:
            if answer.headers.get_content_type() != "text/html":
                return
    except urllib.error.HTTPError as answer:
        answer.close()
        return  # it answers; Prefect itself handles authentication
    except (OSError, ValueError, HTTPException) as error:
        raise ConfigError(
            f"The Prefect server at {public_url(url)} does not answer "
            f"({mask_secrets(str(error))}). Start it, or unset {source} to use an embedded one."
        ) from None
    raise ConfigError(
        f"The Prefect server at {public_url(url)} answers with a web page. The address of its API "
        f"has a path, such as http://127.0.0.1:4200/api; correct {source}."
    )


@contextmanager
def translate_server_errors() -> Iterator[None]:
    """Turn errors of requests to Prefect's server in the block into one sentence.

    Raises:
        ConfigError: the server does not answer any more, or answers with an error.
    """
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except httpx.TransportError as error:
        reason = in_one_line(f"{type(error).__name__}: {error}")
        raise ConfigError(f"The Prefect server does not answer any more ({reason}).") from error
    except PrefectHTTPStatusError as error:
        problem = in_one_line(_problem(error.response.text))
        raise ConfigError(
            f"The Prefect server rejects a request ({error.response.status_code}: {problem})."
        ) from error


def _problem(text: str) -> str:
    """Return the problem that an answer of Prefect's server names, or the answer."""
    try:
        return str(json.loads(text)["exception_detail"][0]["msg"])
    except (ValueError, LookupError, TypeError):
        return text[:200]


def in_one_line(text: str) -> str:
    """Return a text of another package in one line, without secrets in URLs."""
    words = " ".join(text.split()).rstrip(".")
    without = re.sub(r"\w[\w+.-]*://[^\s'\"]+", lambda url: public_url(url[0]), words)
    return safe_text(mask_secrets(without))[:400]
