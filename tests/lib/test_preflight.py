"""What is wrong is known before anything is written, the cheapest first."""

from __future__ import annotations

from pathlib import Path

import pytest

from rudalle_lib.config import RunConfig
from rudalle_lib.errors import (
    ConfigError,
    PromptError,
    RudalleError,
    SettingsError,
    StorageError,
    WeightsError,
)
from rudalle_lib.preflight import check_inputs, check_run
from tests.tiny_run import configure
from tests.tiny_stack import SIDE, write_tiny_stack, write_tiny_vqgan


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("run")
    table = folder / "prompts.csv"
    table.write_text("prompt\nкруг\n", encoding="utf-8")
    weights = {"folder": str(write_tiny_stack(folder / "weights")), "offline": True}
    return {"prompts": {"uri": str(table)}, "weights": weights, "runtime": {"devices": "cpu"}}


def test_a_good_run_gives_a_digest_for_every_model(
    settings: dict[str, object], tmp_path: Path
) -> None:
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
def test_what_is_wrong_is_named_and_nothing_is_left_behind(
    changes: dict[str, object],
    error: type[RudalleError],
    settings: dict[str, object],
    tmp_path: Path,
) -> None:
    with pytest.raises(error):
        check_run(configure(settings, tmp_path / "out", **changes))
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert left == []


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"model": "opus-mt-ru-en"}, "translate.model, opus-mt-ru-en, writes 'en'.*reads 'ru'"),
        ({"language": "de"}, "reads 'en'; expected auto, ru or en.*such as opus-mt-de-ru"),
    ],
)
def test_a_translator_of_other_languages_is_known_before_any_work(
    section: dict[str, str], words: str
) -> None:
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
def test_a_canvas_that_the_decoder_cannot_draw_is_known_before_any_work(
    canvas: dict[str, object], words: str, settings: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=words):
        check_run(configure(settings, tmp_path / "out", generate=canvas))


@pytest.mark.parametrize("key", ["decode.model", "generate.image_encoder"])
def test_a_vqgan_of_another_codebook_is_known_before_any_work(
    key: str, settings: dict[str, object], tmp_path: Path
) -> None:
    """Either the decoder of pictures or the reader of image prompts is another one."""
    folder = write_tiny_stack(tmp_path / "weights")
    section, setting = key.split(".")
    other = {"model": "demo-vqgan"} if section == "decode" else {setting: "vqgan-f8"}
    if section == "decode":
        write_tiny_vqgan(folder, codes=64)
    else:
        (folder / "rudalle-utils").mkdir()
        (folder / "rudalle-utils" / "vqgan.gumbelf8-sber.model.ckpt").write_bytes(b"not read")
    weights = {"folder": str(folder)}
    with pytest.raises(SettingsError, match=f"{key}, .*does not belong.*expected 32 codes, found"):
        check_run(configure(settings, tmp_path / "out", weights=weights, **{section: other}))


def test_an_output_that_cannot_be_written_is_known_at_once(
    settings: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        check_run(configure(settings, tmp_path / "file" / "out"))


def test_inputs_are_checked_without_weights_or_output(tmp_path: Path) -> None:
    check_inputs(RunConfig(output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
