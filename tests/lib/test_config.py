"""Configurations are read strictly, and what is wrong with one is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest
import yaml

from rudalle_lib.config import OVERRIDE_NAMES, GenerateConfig, RunConfig, ScoreConfig
from rudalle_lib.errors import ConfigError, StorageError
from rudalle_lib.prompts import RANGES
from rudalle_lib.record_tables import schema
from rudalle_lib.records import Overrides


def fault(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        RunConfig.parse(text, overrides, "run.yaml")
    message = str(error.value)
    assert "\n" not in message
    return message


def test_nothing_given_is_the_demo_stack() -> None:
    config = RunConfig.parse("")
    assert config == RunConfig()
    assert config.prompts.uri == "demo://prompts"
    assert config.generate.model == "demo-dalle"
    assert (config.generate.images, config.generate.top_k, config.generate.top_p) == (
        8,
        2048,
        0.995,
    )


def test_a_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: nightly\ngenerate:\n  images: 4\nprompts:\n", encoding="utf-8")
    config = RunConfig.load(
        str(path), ["generate.images=2", "prompts.uri=a.csv", "upscale.model=null", "output=2024"]
    )
    assert (config.name, config.generate.images, config.prompts.uri) == ("nightly", 2, "a.csv")
    assert config.upscale.model is None
    assert config.output == "2024"  # a text stays a text, whatever it looks like


def test_a_config_on_s3_is_read(s3_url: str) -> None:
    from rudalle_lib.storage import Storage

    Storage(s3_url).write_bytes("run.yaml", b"seed: 7")
    assert RunConfig.load(f"{s3_url}/run.yaml").seed == 7


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"run configuration .*none.yaml: it does not exist"):
        RunConfig.load(str(tmp_path / "none.yaml"))


def test_an_override_reaches_into_a_mapping() -> None:
    config = RunConfig.parse("", ["prompts.columns.prompt=caption"])
    assert config.prompts.columns == {"prompt": "caption"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("generat: 1", "Unknown key generat (did you mean generate?)"),
        ("generate: {imges: 1}", "Unknown key generate.imges (did you mean images?); the keys in"),
        ("generate: {images: many}", "generate.images: expected a valid integer"),
        ("generate: {images: 0}", "generate.images: expected greater than or equal to 1; found 0"),
        ("generate: {top_p: 1.5}", "generate.top_p: expected less than or equal to 1; found 1.5"),
        ("generate: {temperature: 0}", "generate.temperature: expected greater than 0; found 0"),
        ("generate: 5", "generate is a section with the keys model, images"),
        (
            "runtime: {dtype: fp8}",
            "expected 'float32', 'bfloat16', 'float16', 'int8' or 'int8_dynamic'; found 'fp8'",
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
        ("[1, 2]", "run.yaml should hold settings as `key: value`, found list"),
        ("a: [", "run.yaml is not valid YAML: expected the node content"),
        ("!!python/object/apply:os.getcwd []", "run.yaml is not valid YAML"),
        ("x" * 1_000_001, "run.yaml is too large for a run configuration"),
        ("[" * 2_000, "run.yaml is not a run configuration: it is nested too deep"),
    ],
)
def test_a_fault_names_the_key_and_what_it_may_be(text: str, expected: str) -> None:
    assert expected in fault(text)


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
def test_a_bad_override_is_named(override: str, expected: str) -> None:
    assert expected in fault("name: x", override)


def test_a_bomb_of_aliases_does_no_harm() -> None:
    lines = ["a: &a [x, x]"] + [
        f"a{i}: &a{i} [*a{i - 1 or ''}, *a{i - 1 or ''}]" for i in range(1, 60)
    ]
    assert "generate.images: expected a valid integer" in fault(
        "\n".join([*lines, "generate: {images: *a59}"])
    )


def test_all_faults_are_told_at_once() -> None:
    message = fault("generate: {images: many, top_p: 2}")
    assert "generate.images" in message and "generate.top_p" in message


def test_a_password_is_refused_and_not_repeated() -> None:
    message = fault("output: s3://user:hunter2@bucket/x")
    assert "AWS_SECRET_ACCESS_KEY" in message and "hunter2" not in message
    with pytest.raises(pydantic.ValidationError) as error:
        RunConfig(output="s3://user:hunter2@bucket/x")
    assert "hunter2" not in str(error.value)


def test_the_public_form_has_no_signatures() -> None:
    config = RunConfig.parse("", ["prompts.uri=https://host/a.csv?X-Amz-Signature=abc"])
    assert config.public_dict()["prompts"]["uri"] == "https://host/a.csv"


def test_device_is_another_spelling_of_devices() -> None:
    assert RunConfig.parse("runtime: {device: 'cuda:1'}").runtime.device == "cuda:1"
    assert "device and devices" in fault("runtime: {device: cpu, devices: cpu}")


def test_the_digest_is_of_the_settings_alone() -> None:
    one = RunConfig.parse("generate: {images: 4, top_k: 9}\nseed: 1")
    two = RunConfig.parse("seed: 1\ngenerate: {top_k: 9, images: 4.0}")
    assert one.digest() == two.digest()
    assert one.digest() != RunConfig.parse("seed: 2\ngenerate: {top_k: 9, images: 4}").digest()


def test_what_steers_only_the_speed_is_no_part_of_a_stage_identity() -> None:
    assert GenerateConfig(batch_size=1).identity() == GenerateConfig(batch_size=64).identity()
    assert GenerateConfig(top_k=1).identity() != GenerateConfig(top_k=2).identity()
    scored = {"model", "dtype", "templates", "negative_texts", "unsafe_texts"}
    chosen = ["min_score", "keep_best", "max_unsafe"]
    assert set(ScoreConfig().identity(exclude=chosen)) == scored


def test_a_config_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        RunConfig().generate.images = 3  # type: ignore[misc]


def test_every_setting_is_explained() -> None:
    sections = [RunConfig, *(field.annotation for field in RunConfig.model_fields.values())]
    for section in sections:
        if isinstance(section, type) and issubclass(section, pydantic.BaseModel):
            for name, field in section.model_fields.items():
                assert field.description, f"{section.__name__}.{name}"


def test_a_config_survives_yaml() -> None:
    config = RunConfig.parse("", ["score.min_score=0.2", "score.templates=['a {}', '{}']"])
    assert RunConfig.parse(yaml.safe_dump(config.model_dump(mode="json"))) == config


def test_a_row_may_override_within_the_limits_of_the_config() -> None:
    for name in ("images", "temperature", "top_p", "top_k", "guidance"):
        limits = GenerateConfig.model_json_schema()["properties"][name]
        assert limits.get("maximum", RANGES[name].high) == RANGES[name].high
        assert limits.get("minimum", limits.get("exclusiveMinimum")) == RANGES[name].low
        assert ("exclusiveMinimum" in limits) == RANGES[name].above


def test_image_prompts_are_read_by_the_vqgan_that_decodes_unless_another_is_named() -> None:
    assert RunConfig().generate.image_encoder == "demo-vqgan"
    one = RunConfig.parse("decode: {model: vqgan-f8-dwt}")
    assert one.generate.image_encoder == "vqgan-f8-dwt"
    two = RunConfig.parse("decode: {model: vqgan-f8-dwt}\ngenerate: {image_encoder: vqgan-f8}")
    assert two.generate.image_encoder == "vqgan-f8"


def test_every_override_has_a_name_in_the_config() -> None:
    assert schema(Overrides).names == list(OVERRIDE_NAMES)


def test_a_canvas_in_pixels_is_a_whole_number_of_tokens() -> None:
    assert "height in pixels is a multiple of 8, found 300" in fault("generate: {height: 300}")
    assert RunConfig.parse("generate: {height: 61, size_unit: tokens}").generate.height == 61
