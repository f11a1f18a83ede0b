"""What a published image file says of itself: made by a model, which one, of what, and how.

It is an XMP packet (ISO 16684-1) with properties of IPTC's Photo Metadata Standard 2025.1
(https://www.iptc.org/std/photometadata/specification), which agencies, search engines and
`exiftool` read, and a few of our own. It holds no time, so equal images have equal files.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from xml.sax.saxutils import escape

from PIL import Image

from rudalle_lib.schema.records import ImageRecord

SYSTEM = "rudalle-flows"

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's code for media that a trained model made."""

OWN_NAMESPACE = "urn:rudalle-flows:xmp:1.0:"
"""Namespace of the properties that no standard has."""

MAX_TEXT = 2000
"""Most characters of a prompt in a packet: a JPEG segment has 64 KiB. The metadata has all."""

_TEMPLATE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:rudalle="{namespace}">
{properties}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document can hold."""


def render_packet(record: ImageRecord, weights: str = "") -> bytes:
    """Describe a published image as an XMP packet.

    Args:
        record: its row of the metadata.
        weights: digest of the decoder's weights; empty if it is unknown.
    """
    lines = (f"   <{name}>{value}</{name}>" for name, value in _properties(record, weights))
    return _TEMPLATE.format(namespace=OWN_NAMESPACE, properties="\n".join(lines)).encode()


def find_packet(file: bytes) -> bytes:
    """The XMP packet in a PNG, JPEG or WebP file; empty if there is none."""
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG", "WEBP")) as image:
            found = image.info.get("xmp", b"")
    except Exception:  # Pillow's readers raise nearly any exception for bad bytes
        return b""
    return found if isinstance(found, bytes) else b""


def _properties(record: ImageRecord, weights: str) -> Iterator[tuple[str, str]]:
    prompt = _text(record.text)
    model = f"{record.decoder} {weights[:16]}".strip()
    yield "Iptc4xmpExt:DigitalSourceType", SOURCE_TYPE
    yield "Iptc4xmpExt:AISystemUsed", SYSTEM
    yield "Iptc4xmpExt:AISystemVersionUsed", _text(model)
    yield "Iptc4xmpExt:AIPromptInformation", prompt
    yield "dc:description", f'<rdf:Alt><rdf:li xml:lang="x-default">{prompt}</rdf:li></rdf:Alt>'
    yield "dc:identifier", _text(record.image_id)
    own = {
        "ImageId": record.image_id,
        "PromptLanguage": record.lang,
        "PromptRussian": record.text_ru,
        "Seed": str(record.seed),
        "Model": record.decoder,
        "ModelVersion": weights[:16],
        "ImageDecoder": record.vqgan,
        "Upscaler": record.upscaler or "",
        "Translator": record.translator or "",
    }
    for name, value in own.items():
        if value:
            yield f"rudalle:{name}", _text(value)


def _text(value: str) -> str:
    """A value as XML text, shortened to `MAX_TEXT` characters."""
    shortened = value if len(value) <= MAX_TEXT else f"{value[: MAX_TEXT - 3]}..."
    return escape(_NOT_XML.sub("\ufffd", shortened))
