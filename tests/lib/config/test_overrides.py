"""YAML text and overrides become a plain dictionary, or an error that names the problem."""

from __future__ import annotations

import pytest

from rudalle_lib.config.run import RunConfig
from tests.support.configs import config_error


def test_an_override_reaches_into_a_mapping() -> None:
    config = RunConfig.parse("", ["prompts.columns.prompt=caption"])
    assert config.prompts.columns == {"prompt": "caption"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "run.yaml should hold settings as `key: value`, found list"),
        ("a: [", "run.yaml is not valid YAML: expected the node content"),
        ("!!python/object/apply:os.getcwd []", "run.yaml is not valid YAML"),
        ("x" * 1_000_001, "run.yaml is too large for a run configuration"),
        ("[" * 2_000, "run.yaml is not a run configuration: it is nested too deep"),
    ],
)
def test_text_that_is_not_yaml_with_settings_is_an_error(text: str, expected: str) -> None:
    assert expected in config_error(text)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("images", "expected key=value"),
        ("=3", "expected key=value"),
        ("generate..images=3", "expected key=value"),
        ("generate.imges=3", "Unknown key generate.imges (did you mean images?)"),
        ("name.first=3", "Cannot set name.first: name is a single value"),
        ("generate.images=[1", "Cannot read the value of the override"),
    ],
)
def test_an_invalid_override_is_named(override: str, expected: str) -> None:
    assert expected in config_error("name: x", override)


@pytest.mark.parametrize("key", ["a: &a{n} [*a{m}, *a{m}]", "a: &a{n} {{x: *a{m}, y: *a{m}}}"])
def test_an_alias_bomb_is_an_error(key: str) -> None:
    lines = ["a0: &a0 [x, x]"] + [
        f"a{n}: " + key.partition(": ")[2].format(n=n, m=n - 1) for n in range(1, 60)
    ]
    assert "has aliases that repeat more than 50,000 values (line" in config_error(
        "\n".join([*lines, "generate: {images: *a59}"])
    )


def test_a_merge_bomb_is_an_error() -> None:
    lines = ["a0: &a0 {k: 1}"] + [
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)
    ]
    assert "has aliases that repeat more than" in config_error("\n".join(lines))


def test_an_alias_for_itself_is_an_error() -> None:
    assert "has an alias for what it is part of (line 1" in config_error("a: &a [*a]")


def test_too_many_values_are_an_error() -> None:
    assert "has more than 50,000 values" in config_error("a: [" + "1," * 60_000 + "]")


def test_anchors_and_merge_keys_work() -> None:
    config = RunConfig.parse(
        "generate: &common {batch_size: 7}\n"
        "decode: {<<: *common}\n"
        "score: {<<: *common, batch_size: 9}\n"
    )
    assert (config.decode.batch_size, config.score.batch_size) == (7, 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nseed: 2", "gives the key seed twice, in line 1 and in line 2"),
        (
            "generate:\n  images: 4\nname: x\ngenerate:\n  top_k: 5\n",
            "gives the key generate twice, in line 1 and in line 4; join what belongs to it",
        ),
        ("score: {dtype: float32, dtype: float32}", "gives the key score.dtype twice, in line 1"),
        ("prompts: {columns: {prompt: a, prompt: b}}", "the key prompts.columns.prompt twice"),
        ("'name': a\nname: b", "gives the key name twice"),
    ],
)
def test_a_key_that_is_given_twice_is_an_error(text: str, expected: str) -> None:
    assert expected in config_error(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("+7", 7),
        ("1e3", 1000),
        ("12.0", 12),
        ("00", 0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(value: str, expected: int) -> None:
    assert RunConfig.parse(f"seed: {value}").seed == expected
    assert RunConfig.parse("", [f"seed={value}"]).seed == expected


@pytest.mark.parametrize(
    "value",
    ["1:30", "yes", "no", "on", "off", "y", "true", "false", "0b11", "2026-11-29", "Yes",
     "0o8", "1,000", "{}", "[]"],
)  # fmt: skip
def test_what_is_no_number_is_an_error_where_one_is_meant(value: str) -> None:
    assert "seed: " in config_error(f"seed: {value}")
    assert "seed: " in config_error("", f"seed={value}")
    assert "generate.temperature: " in config_error(f"generate:\n  temperature: {value}")


@pytest.mark.parametrize("value", ["true", "True", "TRUE", "false"])
def test_only_true_and_false_are_booleans(value: str) -> None:
    expected = value.lower() == "true"
    assert RunConfig.parse(f"publish: {{gallery: {value}}}").publish.gallery is expected
    assert RunConfig.parse("", [f"publish.gallery={value}"]).publish.gallery is expected


@pytest.mark.parametrize("value", ["yes", "no", "on", "Off", "y", "1", "0", "'true'", "1.0"])
def test_other_words_are_no_booleans(value: str) -> None:
    message = config_error(f"publish: {{gallery: {value}}}")
    assert "publish.gallery: expected true or false, found" in message
    assert "publish.gallery: expected" in config_error("", f"publish.gallery={value}")


def test_words_that_yaml_1_1_changes_are_texts() -> None:
    config = RunConfig.parse(
        "name: no\ntranslate: {language: no}\nscore: {negative_texts: [on, 1:30]}"
    )
    assert (config.name, config.translate.language) == ("no", "no")
    assert config.score.negative_texts == ("on", "1:30")
