"""An invalid configuration is described in one line that names each key and its valid values."""

from __future__ import annotations

import pytest

from tests.support.configs import config_error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("generat: 1", "Unknown key generat (did you mean generate?)"),
        ("generate: {imges: 1}", "Unknown key generate.imges (did you mean images?); the keys in"),
        ("generate: {images: many}", "generate.images: expected a valid integer"),
        (
            "generate: {images: 1.0e+19}",
            "generate.images: expected a valid integer of at most 64 bits",
        ),
        ("generate: {images: 0}", "generate.images: expected greater than or equal to 1; found 0"),
        ("generate: {top_p: 1.5}", "generate.top_p: expected less than or equal to 1; found 1.5"),
        ("generate: {temperature: 0}", "generate.temperature: expected greater than 0; found 0"),
        ("generate: 5", "generate is a section with the keys model, images"),
        (
            "runtime: {dtype: fp8}",
            "'auto', 'float32', 'bfloat16', 'float16', 'int8' or 'int8_dynamic'; found 'fp8'",
        ),
        ("runtime: {devices: tpu}", "expected auto, cpu, cuda or one device as cuda:0"),
        ("score: {templates: [plain]}", "a template holds {} exactly once, found 'plain'"),
        ("prompts: {columns: {promt: a}}", "unknown name 'promt'; the names are prompt"),
        ("prompts: {columns: {prompt: a, lang: a}}", "two names are mapped to the same column"),
        ("output: ''", "expected a folder or URL"),
        (
            "{cutout: {transparent: true}, publish: {image_format: jpeg}}",
            "publish.image_format must be png or webp",
        ),
    ],
)
def test_an_error_names_the_key_and_its_valid_values(text: str, expected: str) -> None:
    assert expected in config_error(text)


def test_all_errors_are_reported_together() -> None:
    message = config_error("generate: {images: many, top_p: 2}")
    assert "generate.images" in message and "generate.top_p" in message


def test_only_the_first_ten_errors_are_reported() -> None:
    unknown = "{" + ", ".join(f"key{number}: 1" for number in range(12)) + "}"
    message = config_error(unknown)
    assert message.count("Unknown key") == 10 and message.endswith("And 2 more.")
