"""Tell what a file is by its first bytes, for errors about files that are something else.

What is downloaded is often not what was wanted: the pointer of a large file in a Git repository,
the page of a server that asks for a password, an error as JSON, or nothing.
"""

from __future__ import annotations

import re

CONTENT_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "md": "text/markdown; charset=utf-8",
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "tar": "application/x-tar",
}
"""Content type by file name extension, so that a browser can display objects of a store."""

HEAD_BYTES = 1024
"""First bytes of a file that `kind_of` looks at."""

LFS_POINTER = "a Git LFS pointer"
HTML_PAGE = "an HTML page"
JSON_TEXT = "JSON"
EMPTY = "empty"

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs.github.com/", LFS_POINTER),
    (b"version https://hawser.github.com/", LFS_POINTER),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x00\x00\x01\x00", "an icon"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"8BPS", "a Photoshop image"),
    (b"%PDF-", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GGUF", "a GGUF model"),
    (b"SQLite format 3", "an SQLite database"),
)
"""First bytes of files, and what they are."""

_HTML = re.compile(rb"<!doctype\s+html|<html|<head|<body", re.IGNORECASE)
_SVG = re.compile(rb"<svg[\s>]", re.IGNORECASE)
_BOX_BRANDS = {b"avif": "an AVIF image", b"heic": "a HEIC image", b"heix": "a HEIC image",
               b"mif1": "a HEIC image"}  # fmt: skip
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1f\x7f]")
"""Bytes that no text has."""

_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


def kind_of(head: bytes) -> str | None:
    """What a file is by its first `HEAD_BYTES` bytes, with an article: "an HTML page".

    None if it cannot be told. Files are not checked any further, so the rest may be damaged.
    """
    if not head:
        return EMPTY
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[:4] == b"RIFF":
        return "a WebP image" if head[8:12] == b"WEBP" else "a RIFF file"
    if head[4:8] == b"ftyp":
        return _BOX_BRANDS.get(head[8:12], "a video")
    if head[257:262] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "nothing but zeros"
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str | None:
    for mark in _MARKS:
        head = head.removeprefix(mark)
    text = head.replace(b"\0", b"").lstrip()  # UTF-16 becomes ASCII
    if not text:
        return "nothing but blanks"
    if text[:1] == b"<":
        if _SVG.search(text):
            return "an SVG image"
        return HTML_PAGE if _HTML.search(text) else "an XML document"
    if text[:1] in b"{[":
        return JSON_TEXT
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else only the last character is cut
            return None
    return None if CONTROL.search(head) else "text"
