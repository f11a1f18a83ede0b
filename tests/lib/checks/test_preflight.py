"""Mistakes are found before anything is written, by the cheapest checks first."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib import registry
from rudalle_lib.checks.preflight import check_inputs, check_run, check_weights
from rudalle_lib.config.run import RunConfig
from rudalle_lib.errors import (
    ConfigError,
    PromptError,
    RudalleError,
    SettingsError,
    StorageError,
    WeightsError,
)
from rudalle_lib.pipeline.stages import weight_digests
from tests.support.tiny_run import configure
from tests.support.tiny_stack import SIDE, write_tiny_stack, write_tiny_vqgan


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("run")
    table = folder / "prompts.csv"
    table.write_text("prompt\nкруг\n", encoding="utf-8")
    weights = {"folder": str(write_tiny_stack(folder / "weights")), "offline": True}
    return {"prompts": {"uri": str(table)}, "weights": weights, "runtime": {"devices": "cpu"}}


def test_a_valid_run_has_a_digest_per_model(settings: dict[str, object], tmp_path: Path) -> None:
    digests = check_run(configure(settings, tmp_path / "out"))
    assert list(digests) == ["translate", "generate", "decode", "score", "upscale"]
    assert len(set(digests.values())) == 5


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"decode": {"model": "nothing"}}, ConfigError),
        ({"prompts": {"uri": "missing.csv"}}, StorageError),
        ({"prompts": {"columns": {"prompt": "caption"}}}, PromptError),
        ({"runtime": {"devices": "cuda:77"}}, SettingsError),
        ({"runtime": {"dtype": "float16"}}, SettingsError),
        ({"upscale": {"model": "realesrgan-x8"}}, WeightsError),
        ({"generate": {"width": SIDE - 8}}, SettingsError),
    ],
)
def test_a_mistake_is_an_error_and_nothing_is_left_behind(
    changes: dict[str, object],
    error: type[RudalleError],
    settings: dict[str, object],
    tmp_path: Path,
) -> None:
    with pytest.raises(error):
        check_run(configure(settings, tmp_path / "out", **changes))
    remaining = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert remaining == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"model": "opus-mt-ru-en"},
            "translate.model, opus-mt-ru-en, translates into 'en'.*needs 'ru'",
        ),
        (
            {"language": "de"},
            "translates from 'en'; expected auto, ru or en.*such as opus-mt-de-ru",
        ),
    ],
)
def test_a_translator_of_other_languages_is_an_error(section: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        check_inputs(RunConfig.model_validate({"translate": section}))
    german = {"model": "opus-mt-de-ru", "language": "de"}
    check_inputs(RunConfig.model_validate({"translate": german}))


@pytest.mark.parametrize(
    ("canvas", "words"),
    [
        ({"width": SIDE - 8}, f"generate.width: expected at least {SIDE} pixels.*found {SIDE - 8}"),
        ({"height": 1, "size_unit": "tokens"}, "generate.height: expected at least 4 tokens"),
        ({"width": 8192, "height": 8192}, "generate.width and height: expected at most 256 image"),
    ],
)
def test_a_canvas_that_the_decoder_cannot_draw_is_an_error(
    canvas: dict[str, object], words: str, settings: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=words):
        check_run(configure(settings, tmp_path / "out", generate=canvas))


@pytest.mark.parametrize("key", ["decode.model", "generate.image_encoder"])
def test_a_vqgan_of_another_codebook_is_an_error(
    key: str, settings: dict[str, object], tmp_path: Path
) -> None:
    """Either VQ-GAN: the one that decodes images, or the one that encodes image prompts."""
    folder = write_tiny_stack(tmp_path / "weights")
    section, setting = key.split(".")
    other = {"model": "demo-vqgan"} if section == "decode" else {setting: "vqgan-f8"}
    if section == "decode":
        write_tiny_vqgan(folder, codes=64)
    else:
        (folder / "rudalle-utils").mkdir()
        (folder / "rudalle-utils" / "vqgan.gumbelf8-sber.model.ckpt").write_bytes(b"not read")
    weights = {"folder": str(folder)}
    with pytest.raises(SettingsError, match=f"{key}, .*does not fit.*expected 32 codes, found"):
        check_run(configure(settings, tmp_path / "out", weights=weights, **{section: other}))


def test_an_output_that_cannot_be_written_is_an_error(
    settings: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        check_run(configure(settings, tmp_path / "file" / "out"))


def test_inputs_are_checked_without_weights_or_output(tmp_path: Path) -> None:
    check_inputs(RunConfig(output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "a Git LFS po"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"", "it is empty"),
    ],
)
@pytest.mark.parametrize("stage", ["translate", "generate", "decode", "score", "upscale", "cutout"])
def test_weights_of_any_stage_that_are_something_else_are_found_before_anything_is_drawn(
    stage: str, content: bytes, kind: str, settings: dict[str, object], tmp_path: Path
) -> None:
    """Weights of the last stages are needed hours later."""
    folder = write_tiny_stack(tmp_path / "weights")
    changes: dict[str, object] = {"weights": {"folder": str(folder), "offline": True}}
    config = configure(settings, tmp_path / "out", **changes)
    entry = registry.get("emojich-unet")
    if stage == "cutout":
        changes["cutout"] = {"model": entry.name, "transparent": True}
        config = configure(settings, tmp_path / "out", **changes)
    else:
        entry = registry.get(getattr(config, stage).model)
    path = folder / (entry.repository or entry.name).split("/")[-1] / entry.files["weights"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path} is not a readable .*{kind}") as raised:
        check_run(config)
    assert "weights_only" not in str(raised.value)


def test_the_encoder_of_image_prompts_is_checked(
    settings: dict[str, object], tmp_path: Path
) -> None:
    folder = write_tiny_stack(tmp_path / "weights")
    config = configure(settings, tmp_path / "out", weights={"folder": str(folder)})
    check_weights(config, weight_digests(config))
    encoder = config.generate.model_copy(update={"image_encoder": "vqgan-f8"})
    path = folder / "rudalle-utils" / "vqgan.gumbelf8-sber.model.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="vqgan.gumbelf8-sber.model.ckpt .*an HTML page"):
        other = config.model_copy(update={"generate": encoder})
        check_weights(other, weight_digests(other))
