"""Image files say that a model made them, to other readers too, and are equal for equal images."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rudalle_lib.images.codecs import decode_image, encode_image
from rudalle_lib.images.provenance import MAX_TEXT, SOURCE_TYPE, find_packet, render_packet
from tests.support.image_records import record

FORMATS = ("png", "jpeg", "webp")
WEIGHTS = "0123456789abcdef0123456789abcdef"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
OWN = "{urn:rudalle-flows:xmp:1.0:}"
HOSTILE = 'красный <b> & "круг" ]]>\x00\x1b[31m 🙂'


def pixels(channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (channels, 16, 24), dtype=torch.uint8, generator=generator)


def properties(packet: bytes) -> dict[str, str]:
    """The properties of a packet by an XML parser."""
    (description,) = ElementTree.fromstring(packet.decode()).iter(f"{RDF}Description")
    return {item.tag: "".join(item.itertext()).strip() for item in description}


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_packet_is_in_the_file_and_the_pixels_are_the_same(image_format: str) -> None:
    packet = render_packet(record("a", 1), WEIGHTS)
    bare = encode_image(pixels(), image_format)
    file = encode_image(pixels(), image_format, xmp=packet)
    assert find_packet(file) == packet and find_packet(bare) == b""
    assert file == encode_image(pixels(), image_format, xmp=packet) != bare
    assert torch.equal(decode_image(file), decode_image(bare))


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_transparent_images_have_one_too(image_format: str) -> None:
    packet = render_packet(record("a", 1))
    file = encode_image(pixels(4), image_format, xmp=packet)
    assert find_packet(file) == packet
    assert decode_image(file, keep_alpha=True).shape == (4, 16, 24)


def test_it_names_source_system_model_prompt_language_seed_and_id() -> None:
    found = properties(render_packet(record("a", 1, text="a red circle"), WEIGHTS))
    assert found[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE
    assert found[f"{IPTC}AISystemUsed"] == "rudalle-flows"
    assert found[f"{IPTC}AISystemVersionUsed"] == "demo-dalle 0123456789abcdef"
    assert found[f"{IPTC}AIPromptInformation"] == "a red circle"
    own = {name.removeprefix(OWN): text for name, text in found.items() if name.startswith(OWN)}
    assert own == {
        "ImageId": "a-001",
        "PromptLanguage": "en",
        "PromptRussian": "красный круг",
        "Seed": str(2**62),
        "Model": "demo-dalle",
        "ModelVersion": "0123456789abcdef",
        "ImageDecoder": "demo-vqgan",
        "Translator": "demo-marian",
    }


@given(st.text())
def test_any_prompt_makes_a_valid_packet(text: str) -> None:
    found = properties(render_packet(record("a", 1, text=f"x{text}y"), WEIGHTS))
    assert found[f"{IPTC}AIPromptInformation"].startswith("x")
    assert found[f"{OWN}ImageId"] == "a-001"


@pytest.mark.parametrize("letter", ["&", "🙂", "ж"])
def test_the_longest_prompt_fits_into_every_format(letter: str) -> None:
    long = record("a", 1, text=letter * 10_000, text_ru=letter * 10_000)
    packet = render_packet(long, WEIGHTS)
    text = properties(packet)[f"{IPTC}AIPromptInformation"]
    assert text == letter * (MAX_TEXT - 3) + "..."
    for image_format in FORMATS:
        assert find_packet(encode_image(pixels(), image_format, xmp=packet)) == packet


@pytest.mark.parametrize("file", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1"])
def test_a_file_that_cannot_be_read_has_no_packet(file: bytes) -> None:
    assert find_packet(file) == b""


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="apt install libimage-exiftool-perl")
@pytest.mark.parametrize("image_format", FORMATS)
def test_exiftool_reads_it(tmp_path: Path, image_format: str) -> None:
    path = tmp_path / f"image.{image_format}"
    packet = render_packet(record("a", 1, text=HOSTILE), WEIGHTS)
    path.write_bytes(encode_image(pixels(), image_format, xmp=packet))
    command = ["exiftool", "-json", "-warning", "-XMP:all", "-validate", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    (found,) = json.loads(done.stdout)
    assert found["DigitalSourceType"].rpartition("/")[2] == "trainedAlgorithmicMedia"
    assert found["AISystemUsed"] == "rudalle-flows"
    assert found["AISystemVersionUsed"] == "demo-dalle 0123456789abcdef"
    assert found["Description"] == HOSTILE.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    own = (found["ImageId"], found["PromptLanguage"], str(found["Seed"]))
    assert own == ("a-001", "en", str(2**62))
    assert found["Identifier"] == "a-001" and "Warning" not in found
