"""Read the structure of PNG, JPEG and WebP files, and leave only the pixels to their decoders.

Untrusted files are read here first, with bounds on everything that costs memory or time other than
pixels: parts, scans of a JPEG, frames, metadata. Decoders then get a file of one image without
metadata. The orientation in the EXIF metadata, which cameras write, is read here too.

Specifications: PNG (third edition), ITU-T T.81 (JPEG), RFC 9649 (WebP), CIPA DC-008 (EXIF).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rudalle_lib.errors import ImageError
from rudalle_lib.storage.file_kinds import EMPTY, HEAD_BYTES, kind_of

MAX_PARTS = 65_536
"""Largest number of chunks or segments of a file."""

MAX_SCANNED_PIXELS = 2**31
"""Largest number of pixels times scans of a JPEG: each scan passes over all pixels.

Progressive files have about ten scans. 128 scans of 4096 x 4096 pixels take two seconds.
"""

FREE_SCANS = 32
"""Scans that a JPEG of any size may have."""

Buffer = bytes | memoryview

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks that hold pixels. Others are metadata, or further frames."""

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""A marker. After 0xff, 0 is a byte of pixels; d0 to d7 separate intervals of a scan."""

_TEM, _EOI, _SOS, _APP0, _APP1, _APP14, _APP15, _COM = 1, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE, 0xEF, 0xFE

_SOF = (0xC0, 0xC1, 0xC2)
"""Frame headers of baseline, extended and progressive JPEGs with Huffman coding.

Browsers decode no others. Arithmetic coding can make one byte as costly as a million pixels.
"""

_OTHER_SEGMENTS = (0xC4, 0xDB, 0xDC, 0xDD)
"""Huffman tables, quantisation tables, number of lines, restart interval."""

_WEBP_PIXELS = (b"VP8 ", b"VP8L")
_WEBP_METADATA_FLAGS = 0x20 | 0x08 | 0x04
"""Bits of a VP8X header that announce a colour profile, EXIF and XMP."""

_ORIENTATION_TAG = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""Formats of `struct` by EXIF type."""


@dataclass(frozen=True)
class Container:
    """An image file that holds pixels only.

    Attributes:
        image_format: "PNG", "JPEG" or "WEBP".
        width: of the pixels in the file, before they are turned.
        height: the same.
        orientation: of the EXIF metadata, 1 to 8: how pixels are turned to be upright; 1 is
            not at all.
        data: the file without metadata, further frames and what follows the image.
    """

    image_format: str
    width: int
    height: int
    orientation: int
    data: bytes


def open_container(data: bytes) -> Container:
    """Read the structure of an image file. No pixel is decoded.

    Raises:
        ImageError: the file has another format, is damaged, or has too many parts. The message is
            a clause such as "it is truncated".
    """
    try:
        if data.startswith(PNG_SIGNATURE):
            return _open_png(data)
        if data.startswith(b"\xff\xd8"):
            return _open_jpeg(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _open_webp(data)
    except struct.error:
        raise ImageError("it is truncated") from None
    kind = kind_of(data[:HEAD_BYTES])
    found = "its first bytes are those of no known format" if kind is None else f"it is {kind}"
    raise ImageError("it is empty" if kind == EMPTY else found)


# --- PNG ---------------------------------------------------------------------------------------


def _open_png(data: bytes) -> Container:
    parts: list[Buffer] = [PNG_SIGNATURE]
    header, pixels, orientation = b"", list[memoryview](), 1
    for kind, body in _png_chunks(memoryview(data)):
        if not header and kind != b"IHDR":
            raise ImageError("it does not begin with a header")
        if kind == b"IHDR":
            if header:
                raise ImageError("it has two headers")
            header = bytes(body)
            width, height, depth, colour = struct.unpack(">IIBB", header[:10])
            parts += _png_chunk(kind, [header])
        elif kind == b"eXIf" and orientation == 1:
            orientation = _orientation(bytes(body))
        elif kind == b"IDAT":
            pixels.append(body)
        elif kind == b"tRNS" and not pixels:
            parts += _png_chunk(kind, [_transparent_in_8_bits(bytes(body), depth, colour)])
        elif kind == b"PLTE" and not pixels:
            parts += _png_chunk(kind, [body])
    if not header or not pixels:
        raise ImageError("it is truncated: it holds no pixels")
    parts += [*_png_chunk(b"IDAT", pixels), *_png_chunk(b"IEND", [])]
    return Container("PNG", width, height, orientation, b"".join(parts))


def _png_chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The chunks that are needed, up to the end of the image."""
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if position >= len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        body = data[start : start + length]
        (checksum,) = struct.unpack_from(">I", data, start + length)
        if kind in _PNG_PARTS and zlib.crc32(body, zlib.crc32(kind)) != checksum:
            raise ImageError(f"it is damaged: the checksum of a part {kind.decode()} is wrong")
        if kind == b"IEND":
            return
        if kind in _PNG_PARTS or kind == b"eXIf":
            yield kind, body
        position = start + length + 4
    raise ImageError(f"it has more than {MAX_PARTS:,} parts")


def _png_chunk(kind: bytes, bodies: Sequence[Buffer]) -> list[Buffer]:
    """The pieces of a chunk."""
    length, checksum = 0, zlib.crc32(kind)
    for body in bodies:
        length, checksum = length + len(body), zlib.crc32(body, checksum)
    return [struct.pack(">I", length), kind, *bodies, struct.pack(">I", checksum)]


def _transparent_in_8_bits(body: bytes, depth: int, colour: int) -> bytes:
    """The transparent colour of an image whose pixels Pillow converts to 8 bits.

    Pillow converts pixels of 2, 4 or 16 bits, but compares them with the colour as it is stored.
    Grey images of 16 bits keep theirs.
    """
    if colour == 0 and depth in (2, 4):
        (grey,) = struct.unpack(">H", body)
        return struct.pack(">H", (grey & 2**depth - 1) * 255 // (2**depth - 1))
    if colour == 2 and depth == 16:
        return struct.pack(">HHH", *(level >> 8 for level in struct.unpack(">HHH", body)))
    return body


# --- JPEG --------------------------------------------------------------------------------------


def _open_jpeg(data: bytes) -> Container:
    pieces, kept_from, position = list[bytes](), 0, 2
    size: tuple[int, int] | None = None
    orientation, scans, kept = 1, 0, set[int]()
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or (marker := found[1][0]) == _EOI:
            break
        position = found.end()
        if marker == _TEM:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        end = position + length
        if length < 2 or end > len(data):
            raise ImageError("it is truncated")
        body = data[position + 2 : end]
        if marker in _SOF:
            if size is not None:
                raise ImageError("it has more than one frame header")
            height, width = struct.unpack_from(">HH", body, 1)
            size = width, height
        elif marker == _SOS:
            scans += 1
            _check_scans(scans, size)
        elif marker == _COM or _APP0 <= marker <= _APP15:
            if marker == _APP1 and orientation == 1:
                orientation = _orientation(body)
            if marker in kept or not _needed_to_decode(marker, body):
                pieces.append(data[kept_from : found.start()])
                kept_from = end
            else:
                kept.add(marker)
        elif marker not in _OTHER_SEGMENTS:
            raise ImageError(
                f"it has a segment of type {marker:#x}; expected a baseline or progressive JPEG "
                "with Huffman coding"
            )
        position = end
    else:
        raise ImageError(f"it has more than {MAX_PARTS:,} parts")
    if size is None or scans == 0:
        raise ImageError("it is truncated: it holds no pixels")
    pieces.append(data[kept_from : len(data) if found is None else found.end()])
    return Container("JPEG", *size, orientation, b"".join(pieces))


def _check_scans(scans: int, size: tuple[int, int] | None) -> None:
    if size is None or scans <= FREE_SCANS:
        return
    if scans * size[0] * size[1] > MAX_SCANNED_PIXELS:
        raise ImageError(
            f"it has {scans:,} scans or more of {size[0]:,} x {size[1]:,} pixels; progressive "
            "files have about ten"
        )


def _needed_to_decode(marker: int, body: bytes) -> bool:
    """Whether an application segment says how the colours of the pixels are stored."""
    return (marker == _APP0 and body.startswith(b"JFIF\0")) or (
        marker == _APP14 and body.startswith(b"Adobe")
    )


# --- WebP --------------------------------------------------------------------------------------


def _open_webp(data: bytes) -> Container:
    parts = _riff_parts(data, 12, min(len(data), 8 + struct.unpack_from("<I", data, 4)[0]))
    if not parts:
        raise ImageError("it is truncated: it holds no pixels")
    (kind, body), orientation = parts[0], 1
    if kind in _WEBP_PIXELS:
        kept = [(kind, body)]
        width, height = _webp_frame_size(kind, body)
    elif kind == b"VP8X":
        flags, *sizes = struct.unpack("<B3x3s3s", body[:10])
        width, height = (int.from_bytes(size, "little") + 1 for size in sizes)
        kept = [(kind, bytes([flags & ~_WEBP_METADATA_FLAGS]) + body[1:10]), *_first_frame(parts)]
        orientation = _orientation(next((body for kind, body in parts if kind == b"EXIF"), b""))
    else:
        raise ImageError("its first part is not an image")
    packed = b"".join(
        name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
        for name, content in kept
    )
    file = b"RIFF" + struct.pack("<I", 4 + len(packed)) + b"WEBP" + packed
    return Container("WEBP", width, height, orientation, file)


def _riff_parts(data: bytes, position: int, end: int) -> list[tuple[bytes, bytes]]:
    parts: list[tuple[bytes, bytes]] = []
    while position + 8 <= end:
        if len(parts) == MAX_PARTS:
            raise ImageError(f"it has more than {MAX_PARTS:,} parts")
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if start + length > end:
            raise ImageError("it is truncated")
        parts.append((kind, data[start : start + length]))
        position = start + length + length % 2
    return parts


def _first_frame(parts: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """What the first frame of an extended WebP file needs: of an animation, or a still image."""
    first = {kind: (kind, body) for kind, body in reversed(parts)}
    if b"ANIM" in first and b"ANMF" in first:
        return [first[b"ANIM"], first[b"ANMF"]]
    pixels = [part for part in parts if part[0] in _WEBP_PIXELS][:1]
    has_alpha = b"ALPH" in first and pixels and pixels[0][0] == b"VP8 "
    return [first[b"ALPH"], *pixels] if has_alpha else pixels


def _webp_frame_size(kind: bytes, body: bytes) -> tuple[int, int]:
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    (bits,) = struct.unpack_from("<I", body, 1)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


# --- EXIF --------------------------------------------------------------------------------------


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF metadata, 1 to 8; 1 if it has none, or cannot be read."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, entry)
            if tag == _ORIENTATION_TAG and kind in _INTEGERS and count == 1:
                (value,) = struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
