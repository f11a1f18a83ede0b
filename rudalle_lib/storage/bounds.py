"""What the environment allows configurations to name, for a worker that runs those of others.

`RUDALLE_ALLOW_INPUTS`, `RUDALLE_ALLOW_OUTPUTS` and `RUDALLE_ALLOW_ENDPOINTS` hold prefixes,
separated by commas or, like `PATH`, by colons. A variable that is not set allows everything; an
empty one allows nothing. A prefix allows itself and what is below it. Local paths are compared
after all symbolic links are resolved.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rudalle_lib.storage.urls import WEB, is_local_url, local_path, public_url, scheme_of

INPUTS = "RUDALLE_ALLOW_INPUTS"
"""Prompt tables, image prompts and folders of weights."""

OUTPUTS = "RUDALLE_ALLOW_OUTPUTS"
"""Outputs of runs."""

ENDPOINTS = "RUDALLE_ALLOW_ENDPOINTS"
"""Mirrors of the Hugging Face Hub and addresses of Ray clusters."""

MEANING = {
    INPUTS: "tables, image prompts and weights are read from any file or URL that this machine "
    "can read",
    OUTPUTS: "datasets are written to any folder or URL that this machine can write to",
    ENDPOINTS: "weights are downloaded from any server, and any Ray cluster is used",
}
"""What is open if a variable is not set."""

PACKAGE = Path(__file__).parents[1]
"""The files of this package may always be read."""

SAME_SCHEME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
PORTS = {"http": 80, "https": 443}

_COLON = re.compile(r":(?=/(?!/)|[A-Za-z][A-Za-z0-9+.-]*://|[.~]|$)")
"""A colon that separates prefixes: it is part of neither a scheme nor a port."""


class BoundsError(ValueError):
    """A path or URL that the environment does not allow; the message names the variable."""


def check_allowed(url: str, variable: str) -> None:
    """Check a path or URL against the prefixes in a variable.

    Args:
        url: a path or URL that has passed `check_url`, or `host:port`.
        variable: INPUTS, OUTPUTS or ENDPOINTS.

    Raises:
        BoundsError: it is not below an allowed prefix.
    """
    value = os.environ.get(variable)
    if value is None:
        return
    place = _place(url)
    if variable == INPUTS and (scheme_of(url) == "demo" or _is_below(place, _place(str(PACKAGE)))):
        return
    if place is not None and any(_is_below(place, _place(one)) for one in prefixes(value)):
        return
    shown = ", ".join(map(public_url, prefixes(value))) or "nothing"
    raise BoundsError(f"{variable} does not allow it; it allows {shown}")


def is_named(url: str, variable: str) -> bool:
    """Whether a variable is set, and a prefix in it that names the host allows a URL."""
    place = _place(url)
    allowed = map(_place, prefixes(os.environ.get(variable, "")))
    return any(_is_below(place, one) for one in allowed if one is not None and len(one) > 1)


def open_bounds() -> list[str]:
    """For each variable that is not set: its name and what it leaves open."""
    return [f"{name}: {what}" for name, what in MEANING.items() if name not in os.environ]


def prefixes(value: str) -> list[str]:
    """The prefixes in the value of a variable."""
    parts = (part.strip() for part in value.split(","))
    split = (_COLON.split(part) if "://" in part else part.split(os.pathsep) for part in parts)
    return [item.strip() for items in split for item in items if item.strip()]


def _place(url: str) -> tuple[str, ...] | None:
    """Scheme, host and path of a URL, in a form that can be compared; None if it is ambiguous."""
    text = str.__str__(url)
    if is_local_url(text):
        path = os.path.realpath(os.path.expanduser(local_path(text)))
        return ("file", "", *_names(path))
    scheme, (host, _, path) = scheme_of(text), text.partition("://")[2].partition("/")
    if not host:  # a prefix that allows every host
        return (SAME_SCHEME.get(scheme, scheme),)
    if scheme in WEB:
        try:
            parts = urlsplit(text)
            host = f"{(parts.hostname or '').rstrip('.')}:{parts.port or PORTS[scheme]}"
        except ValueError:
            return None
        path = unquote(parts.path)
    if ".." in path.split("/") or "." in path.split("/") or "\\" in path:
        return None
    return (SAME_SCHEME.get(scheme, scheme), host, *_names(path))


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def _is_below(place: tuple[str, ...] | None, prefix: tuple[str, ...] | None) -> bool:
    return place is not None and prefix is not None and place[: len(prefix)] == prefix
