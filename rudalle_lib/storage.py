"""Files on any fsspec URL: the only module that imports fsspec.

A path without a scheme is a local path. S3 (`s3://bucket/key`, through s3fs) takes its endpoint
and credentials from the standard environment variables: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import fsspec

from rudalle_lib.errors import StorageError


def public_url(url: str) -> str:
    """The URL without user name, password, query and fragment, for logs and manifests."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_text(path_or_url: str, what: str = "file") -> str:
    """Read a small UTF-8 text; `what` names it in errors."""
    try:
        with fsspec.open(path_or_url, "rb") as stream:
            return str(stream.read().decode("utf-8"))
    except OSError as error:
        raise StorageError(f"Cannot read the {what} {public_url(path_or_url)}: {error}.") from None
