"""Reads the data of gallery pages and chunks, as the script of the page would."""

from __future__ import annotations

import json
import re
from typing import Any

from rudalle_lib.storage.storage import Storage


def page_data(page: str) -> dict[str, Any]:
    """Return the data that is embedded in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return dict(json.loads(found[1]))


def chunk_rows(chunk: str) -> list[dict[str, Any]]:
    """Return the entries of a chunk."""
    found = re.fullmatch(r"galleryRows\((.*)\);\n", chunk, re.S)
    assert found
    return list(json.loads(found[1]))


def gallery_rows(storage: Storage) -> list[dict[str, Any]]:
    """Return the entries of all chunks of an output's gallery."""
    chunks = [path for path in storage.list("gallery") if path.endswith(".js")]
    return [row for path in chunks for row in chunk_rows(storage.read_bytes(path).decode())]
