"""URLs: which ones may be used, and their texts without secrets.

Every URL that comes from a row, a table name, a configuration, a `run.json` or a dataset passes
`check_url` before anything is requested. fsspec alone would accept much more: chains such as
`zip://a::http://b`, and protocols that execute templates or log in to other machines.

`Url` is text whose printed form has no user name, password, query or fragment. Only http and https
URLs have a query and a fragment; in other URLs `?` and `#` are part of a name.
"""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Collection
from hashlib import blake2b
from typing import Self
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

SCHEMES = ("file", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "https", "http", "hf")
"""Schemes of the URLs that may be read or written; a path without a scheme is local."""

STORAGE_SCHEMES = (*SCHEMES, "memory")
"""Schemes of storages; `memory` are files in the memory of this process."""

TABLE_SCHEMES = (*STORAGE_SCHEMES, "demo")
"""Schemes of prompt tables."""

MAX_LENGTH = 8192
"""The longest path or URL, in characters."""

WEB = ("http", "https")
AZURE = ("az", "abfs", "abfss")
KEYED = ("s3", "s3a", "gs", "gcs", *AZURE, "hf", "file", "memory", "demo")
"""Schemes whose URLs have no query: all after the host is a name."""

CREDENTIALS = (
    "a URL must not contain a user name or password; set credentials in the environment, for S3 as "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_LOOKS_LIKE_URL = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)(:/+)(.*)", re.DOTALL)
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}:/+[^\s'\"<>]+")
_CHAIN = re.compile(r"(?<=::)(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_SECRET_NAME = re.compile(
    r"^x-(amz|goog|oss|cos|obs|ms)-|^(sig|key-pair-id|policy|jwt|pwd|googleaccessid|awsaccesskeyid)$"
    r"|signature|token|secret|passw|credential|auth(?!or)|session|expires|hmac|api[-_]?key",
    re.IGNORECASE,
)
"""Parameters of a query that authorise a request, or are part of its signature."""

_SHARED_ACCESS = frozenset("se sp sr st sv ss srt spr sip skoid sktid skt ske sks skv".split())
"""Parameters of a shared access signature of Azure, next to `sig`."""

_PLAIN_VALUE = re.compile(r"\d{1,9}|[a-z]{1,8}|\d{1,4}x\d{1,4}")
"""Values of other parameters that are stored as they are: numbers, sizes and short words."""


class UrlError(ValueError):
    """A URL that may not be used; the message does not repeat it."""


class Url(str):
    """A path or URL. Printing, formatting and JSON of a configuration show it without secrets.

    Everything else, such as opening it or comparing it, uses the whole text.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """The URL with this text; of another `Url`, its whole text."""
        return super().__new__(cls, str.__str__(text))

    def __str__(self) -> str:
        return public_url(self)

    def __format__(self, spec: str) -> str:
        return format(public_url(self), spec)

    def __repr__(self) -> str:
        return repr(public_url(self))

    @property
    def full(self) -> str:
        """The whole text, with its secrets."""
        return str.__str__(self)

    @property
    def has_secrets(self) -> bool:
        """Whether the printed form lacks a part of the text."""
        return self.full != public_url(self)


# --- without secrets -----------------------------------------------------------------------------


def public_url(url: str) -> str:
    """The URL without user name, password, query and fragment, for people, logs and manifests.

    A chain of URLs, or one whose scheme is misspelt, is shown in the same way.
    """
    text = str.__str__(url)
    if ":/" not in text:
        return text
    return "".join(_public_part(part) for part in _CHAIN.split(text))


def hide_urls(text: str) -> str:
    """A text in which every URL is replaced by its public form."""
    if ":/" not in text:
        return text
    return _IN_TEXT.sub(lambda match: public_url(match.group()), text)


def _public_part(text: str) -> str:
    match = _LOOKS_LIKE_URL.fullmatch(text)
    if match is None:
        return text
    scheme, separator, rest = match.groups()
    kind = scheme.lower()
    rest = _without_user(kind, rest)
    if kind in KEYED:
        head, mark, query = rest.partition("?")
        if mark and any(map(_SECRET_NAME.search, dict(parse_qsl(query, keep_blank_values=True)))):
            rest = head
    else:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}{separator}{rest}"


def _without_user(scheme: str, rest: str) -> str:
    """The part after `://` without user name and password."""
    user = _user_of(scheme, rest)
    if user is None:
        return rest
    if scheme in AZURE and ":" not in user:  # a container
        return rest
    return rest[len(user) + 1 :]


def _user_of(scheme: str, rest: str) -> str | None:
    """What precedes the `@` of a host, None if there is none.

    AWS keys may contain slashes, so a `:` in the first part of the path makes all up to the next
    `@` credentials, unless it is a port or an ARN.
    """
    host = re.split(r"[/?#\\]" if scheme not in KEYED else "/", rest, maxsplit=1)[0]
    if "@" in host:
        return host.rpartition("@")[0]
    name, colon, port = host.rpartition(":")
    suspicious = colon and not port.isdecimal() and not name.startswith(("arn:", "["))
    if suspicious and "@" in rest:
        return rest.partition("@")[0]
    return None


# --- the gate ------------------------------------------------------------------------------------


def check_url(text: str, schemes: Collection[str] = SCHEMES) -> Url:
    """Check that a path or URL is of a kind that may be used; nothing is requested.

    Args:
        text: a local path or a URL.
        schemes: allowed schemes, besides local paths.

    Returns:
        The same; the scheme of a URL in lower case.

    Raises:
        UrlError: it is empty, misspelt, a chain, of another scheme, or contains credentials.
    """
    whole = str.__str__(text)
    url = whole.strip()
    if len(url) > MAX_LENGTH:
        raise UrlError(f"a path or URL has at most {MAX_LENGTH:,} characters, found {len(url):,}")
    if not url:
        raise UrlError("expected a folder or URL, found an empty text")
    if _CONTROL.search(url):
        raise UrlError("a path or URL must not contain control characters")
    scheme, separator, rest = url.partition("://")
    kind = scheme.lower()
    if "::" in re.sub(r"\[[^\]]*\]", "", url.partition("?")[0] if kind in WEB else url):
        raise UrlError("chains of URLs (::) are not supported; give one path or URL")
    if not separator:
        _check_local(url, schemes)
        return Url(whole)
    if _SCHEME.fullmatch(scheme) is None or kind not in schemes:
        raise _unknown_scheme(kind, schemes)
    user = _user_of(kind, rest)
    if user is not None and (kind not in AZURE or ":" in user):
        raise UrlError(CREDENTIALS)
    if kind == "file":
        _check_file(rest)
    elif kind in WEB:
        _check_web(url)
    elif not rest.partition("/")[0]:
        raise UrlError(f"{kind}:// names no bucket; expected {kind}://bucket/prefix")
    return Url(f"{kind}://{rest}")


def scheme_of(url: str) -> str:
    """The scheme of a checked URL in lower case; empty for a local path."""
    scheme, separator, _ = str.__str__(url).partition("://")
    return scheme.lower() if separator else ""


def is_local_url(url: str) -> bool:
    """Whether a checked URL is a local path or a `file:` URL."""
    return scheme_of(url) in ("", "file")


def local_path(url: str) -> str:
    """The path of a checked local URL; in `file:` URLs `%20` is a blank, as RFC 8089 has it."""
    text = str.__str__(url)
    if not scheme_of(text):
        return text
    return unquote("/" + text.partition("://")[2].partition("/")[2])


def path_of(url: str) -> str:
    """The path in any path or URL, without scheme, host and query, for example for its suffix."""
    text = str.__str__(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    if scheme.lower() not in KEYED:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return posixpath.join("/", rest.partition("/")[2])


def _check_local(path: str, schemes: Collection[str]) -> None:
    """Find misspelt URLs, which would become local folders of that name."""
    name, colon, _ = path.partition(":")
    if colon and (path[len(name) + 1 : len(name) + 2] in ("/", "\\")) and _SCHEME.fullmatch(name):
        raise UrlError(f"{name}:/ is not a URL; expected {_suggested(name, schemes)}")
    for scheme in (*TABLE_SCHEMES, "local"):
        if path.lower().startswith((f"{scheme}:", f"{scheme}//")):
            raise UrlError(f"this is not a URL; expected {_suggested(scheme, schemes)}")


def _unknown_scheme(scheme: str, schemes: Collection[str]) -> UrlError:
    close = difflib.get_close_matches(scheme, schemes, 1, 0.5)
    hint = f"; did you mean {close[0]}://?" if close else ""
    names = ", ".join(f"{name}://" for name in schemes if name not in ("s3a", "gcs", "memory"))
    found = f", found {scheme[:20]}://" if _SCHEME.fullmatch(scheme) else ""
    return UrlError(f"unknown kind of URL; expected a local path or one of {names}{found}{hint}")


def _suggested(scheme: str, schemes: Collection[str]) -> str:
    """An example of the URL that was probably meant."""
    close = difflib.get_close_matches(scheme.lower(), schemes, 1, 0.5)
    if not close:
        return "a path without a colon, or a URL such as s3://bucket/prefix"
    if close[0] == "file":
        return "file:///folder/name, or a path without a scheme"
    rest = "host/path" if close[0] in WEB else "bucket/prefix"
    return f"{close[0]}://{rest}"


def _check_file(rest: str) -> None:
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise UrlError("a file URL has three slashes, as in file:///folder/name")
    if "\0" in unquote(path):
        raise UrlError("a path or URL must not contain control characters")


def _check_web(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"[\s\\]", re.split(r"[/?#]", url[url.index("://") + 3 :])[0]):
        raise UrlError("this is not a URL of the form https://host/path")


# --- signatures ----------------------------------------------------------------------------------

_SIGNED: dict[bytes, str] = {}
"""Whole URLs by the digest of their stored form, in this process only."""


def storable_url(url: str) -> str:
    """The form of a row's URL that is stored in a plan: the same image, without credentials.

    Parameters that authorise a request are left out, so the form stays the same when a signature
    is renewed. Others that may be secret are replaced by a digest. The whole URL is remembered in
    this process: see `whole_url`.

    Args:
        url: a URL or path that has passed `check_url`.
    """
    text = str.__str__(url)
    if scheme_of(text) not in WEB or not ("?" in text or "#" in text):
        return text
    base, _, query = text.partition("#")[0].partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    signature = _SHARED_ACCESS if "sig" in dict(pairs) else ()
    kept = [
        (name, _storable(value)) if value else (_storable(name), "")
        for name, value in pairs
        if not _SECRET_NAME.search(name) and name not in signature
    ]
    stored = f"{base}?{urlencode(kept)}" if kept else base
    whole = f"{base}?{query}" if query else base
    if stored != whole:
        _SIGNED[_key(stored)] = whole
    return stored


def whole_url(stored: str) -> str:
    """The whole URL of a stored one, if this process has read it; otherwise the stored one."""
    return _SIGNED.get(_key(stored), stored)


def remember_urls(urls: Collection[str]) -> None:
    """Remember whole URLs, in a process that has not read the table itself."""
    for url in urls:
        storable_url(url)


def _storable(value: str) -> str:
    if _PLAIN_VALUE.fullmatch(value):
        return value
    return "~" + blake2b(value.encode(errors="replace"), digest_size=8).hexdigest()


def _key(stored: str) -> bytes:
    return blake2b(stored.encode(errors="replace"), digest_size=8).digest()
