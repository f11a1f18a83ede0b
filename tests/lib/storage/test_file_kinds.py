"""Files are named by their first bytes."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.storage.file_kinds import kind_of


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "empty"),
        (bytes(99), "nothing but zeros"),
        (b" \r\n\t", "nothing but blanks"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "a Git LFS pointer"),
        (b"\r\n <!doctype HTML>", "an HTML page"),
        (b"\xef\xbb\xbf<html lang='en'>", "an HTML page"),
        ("\ufeff<html>".encode("utf-16-le"), "an HTML page"),
        (b"<!-- saved --><head>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (b'{"error":"Repository not found"}', "JSON"),
        (b"[1, 2]", "JSON"),
        (b"Invalid username or password.", "text"),
        ("Доступ запрещён".encode()[:-1], "text"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"RIFF\0\0\0\0WEBP", "a WebP image"),
        (b"\0\0\0\x18ftypheic", "a HEIC image"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (bytes(257) + b"ustar", "a tar archive"),
        (pickle.dumps({}), None),
        (b"\x04\0\0\0\0\0\0\0{}", None),
    ],
)
def test_files_are_named(head: bytes, kind: str | None) -> None:
    assert kind_of(head) == kind


@given(st.binary(max_size=50) | st.text(max_size=50).map(str.encode))
def test_any_bytes_have_a_short_name_or_none(head: bytes) -> None:
    kind = kind_of(head)
    assert kind is None or (0 < len(kind) < 30 and kind.isascii())
