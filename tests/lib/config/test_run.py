"""A configuration is read strictly, frozen, and has a digest of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml

from rudalle_lib.config.run import RunConfig
from rudalle_lib.config.sections import DecodeConfig, GenerateConfig
from rudalle_lib.errors import StorageError
from tests.support.configs import config_error


def test_the_defaults_are_the_demo_models() -> None:
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
    assert config.output == "2024"  # a string stays a string, even if it looks like a number


def test_a_config_on_s3_is_read(s3_url: str) -> None:
    from rudalle_lib.storage.storage import Storage

    Storage(s3_url).write_bytes("run.yaml", b"seed: 7")
    assert RunConfig.load(f"{s3_url}/run.yaml").seed == 7


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"run configuration .*none.yaml: it does not exist"):
        RunConfig.load(str(tmp_path / "none.yaml"))


def test_a_password_is_rejected_and_not_repeated() -> None:
    message = config_error("output: s3://user:hunter2@bucket/x")
    assert "AWS_SECRET_ACCESS_KEY" in message and "hunter2" not in message
    with pytest.raises(pydantic.ValidationError) as error:
        RunConfig(output="s3://user:hunter2@bucket/x")
    assert "hunter2" not in str(error.value)


def test_the_public_dict_has_no_signatures() -> None:
    config = RunConfig.parse("", ["prompts.uri=https://host/a.csv?X-Amz-Signature=abc"])
    assert config.public_dict()["prompts"]["uri"] == "https://host/a.csv"


def test_the_digest_depends_on_the_settings_only() -> None:
    one = RunConfig.parse("generate: {images: 4, top_k: 9}\nseed: 1")
    two = RunConfig.parse("seed: 1\ngenerate: {top_k: 9, images: 4.0}")
    assert one.digest() == two.digest()
    assert one.digest() != RunConfig.parse("seed: 2\ngenerate: {top_k: 9, images: 4}").digest()


RECIPES = Path(__file__).parents[3] / "configs"

DIGESTS = {
    "demo": "3818a5d1b8d0295744e79ab598bce66a",
    "emojich": "39f36170c14a14b6da5dea5ec80ffe2b",
    "kandinsky": "68d483720bd733f83539771b50a1d445",
    "malevich": "a9e99ffa0a720c5caf010a2a65719a59",
    "malevich_dwt": "539edfee66a019adada20faaa0326fed",
    "surrealist": "2fc5e8239c854b6518ef5e12648abb39",
}


@pytest.mark.parametrize(("name", "digest"), DIGESTS.items())
def test_digests_never_change_between_releases(name: str, digest: str) -> None:
    """A changed digest means that existing datasets would not resume."""
    assert RunConfig.load(str(RECIPES / f"{name}.yaml")).digest() == digest


def test_the_digest_of_the_defaults_never_changes_between_releases() -> None:
    assert RunConfig().digest() == "21bd20d4be800c0577e34fdcb8ed0107"


def test_a_config_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        RunConfig().generate.images = 3


def test_all_settings_have_a_description() -> None:
    sections = [RunConfig, *(field.annotation for field in RunConfig.model_fields.values())]
    for section in sections:
        if isinstance(section, type) and issubclass(section, pydantic.BaseModel):
            for name, field in section.model_fields.items():
                assert field.description, f"{section.__name__}.{name}"


def test_a_config_survives_yaml() -> None:
    config = RunConfig.parse("", ["score.min_score=0.2", "score.templates=['a {}', '{}']"])
    assert RunConfig.parse(yaml.safe_dump(config.model_dump(mode="json"))) == config


def test_the_image_encoder_is_the_vqgan_that_decodes_unless_another_is_named() -> None:
    assert RunConfig().generate.image_encoder == "demo-vqgan"
    one = RunConfig.parse("decode: {model: vqgan-f8-dwt}")
    assert one.generate.image_encoder == "vqgan-f8-dwt"
    two = RunConfig.parse("decode: {model: vqgan-f8-dwt}\ngenerate: {image_encoder: vqgan-f8}")
    assert two.generate.image_encoder == "vqgan-f8"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"generate": {}},
        {"generate": {"image_encoder": None}},
        {"generate": GenerateConfig()},
        {"decode": DecodeConfig(), "generate": GenerateConfig(images=8)},
    ],
)
def test_the_image_encoder_is_filled_in_for_every_form_of_input(data: dict[str, Any]) -> None:
    assert RunConfig(**data) == RunConfig()
    assert RunConfig.model_validate(data).generate.image_encoder == "demo-vqgan"
    assert RunConfig.model_validate_json(RunConfig(**data).model_dump_json()) == RunConfig()


def test_an_invalid_section_is_one_error_in_spite_of_the_image_encoder() -> None:
    assert config_error("decode: {model: 5}").count("found 5") == 1
    assert config_error("decode: 5").count("found 5") == 1
    assert config_error("generate: 5").count("found 5") == 1
