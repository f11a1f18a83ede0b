"""Prompts are made ready for the decoder one by one; one that cannot be drawn stops no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig, WeightsConfig
from rudalle_lib.errors import ImageError, SettingsError, StorageError, TransientError
from rudalle_lib.generation.candidates import candidates_of
from rudalle_lib.generation.canvas import Canvas
from rudalle_lib.generation.requests import EncodeImagePrompt, Prepared, prepare
from rudalle_lib.schema.borders import Borders
from rudalle_lib.schema.records import Overrides, Prompt
from rudalle_lib.weights.loading import LoadedDecoder, load_decoder
from tests.support.tiny_stack import GRID, SIDE

PLAIN = Prompt("plain", "круг")
WIDE = Prompt("wide", "квадрат", overrides=Overrides(width=2 * SIDE))
CONTINUED = Prompt(
    "continued",
    "линия",
    overrides=Overrides(image_prompt="sketch.png", image_prompt_borders="up=1"),
)
LONG = Prompt("long", "очень длинный текст " * 20)


@pytest.fixture(scope="module")
def decoder(tiny_stack: Path) -> LoadedDecoder:
    return load_decoder("demo-dalle", WeightsConfig(folder=str(tiny_stack), offline=True))


def no_image_prompt(uri: str, borders: Borders, canvas: Canvas) -> Tensor:
    raise AssertionError("these prompts have no image prompt")


def raising(error: Exception) -> EncodeImagePrompt:
    def encode(uri: str, borders: Borders, canvas: Canvas) -> Tensor:
        raise error

    return encode


@pytest.fixture
def prepared(decoder: LoadedDecoder) -> Callable[..., Prepared]:
    def call(
        *prompts: Prompt,
        encode: EncodeImagePrompt = no_image_prompt,
        texts: dict[str, str] | None = None,
        **section: object,
    ) -> Prepared:
        if texts is None:
            texts = {prompt.prompt_id: prompt.text for prompt in prompts}
        generate = GenerateConfig.model_validate(section)
        architecture = decoder.model.config
        return prepare(prompts, texts, generate, decoder.tokenizer, architecture, encode)

    return call


def test_every_prompt_gets_its_text_and_canvas(prepared: Callable[..., Prepared]) -> None:
    ready = prepared(PLAIN, WIDE)
    assert list(ready.texts) == ["plain", "wide"] and ready.rejects == {}
    assert ready.canvases == {"plain": Canvas(GRID, GRID), "wide": Canvas(GRID, 2 * GRID)}
    assert ready.given == {}


def test_a_prompt_without_a_text_is_skipped(prepared: Callable[..., Prepared]) -> None:
    """Its translation failed, which is another stage's reject."""
    ready = prepared(PLAIN, WIDE, texts={"wide": "квадрат"})
    assert list(ready.texts) == ["wide"] and ready.rejects == {}


def test_an_image_prompt_is_encoded_for_its_canvas(prepared: Callable[..., Prepared]) -> None:
    asked: list[tuple[str, Borders, Canvas]] = []

    def encode(uri: str, borders: Borders, canvas: Canvas) -> Tensor:
        asked.append((uri, borders, canvas))
        return torch.zeros(canvas.rows, canvas.columns, dtype=torch.long)

    ready = prepared(PLAIN, CONTINUED, encode=encode)
    assert asked == [("sketch.png", Borders(up=1), Canvas(GRID, GRID))]
    assert list(ready.given) == ["continued"]
    candidates = list(candidates_of([PLAIN, CONTINUED], GenerateConfig(images=2), 0))
    requests = ready.requests(candidates)
    assert [request.prompt_index for request in requests] == [0, 0, 1, 1]
    assert [request.given is None for request in requests] == [True, True, False, False]
    assert [request.seed for request in requests] == [one.seed for one in candidates]


def test_a_long_text_is_cut_or_rejected(prepared: Callable[..., Prepared]) -> None:
    assert prepared(PLAIN, LONG).texts["long"].truncated
    ready = prepared(LONG, PLAIN, allow_truncation=False)
    assert list(ready.texts) == ["plain"]
    assert ready.rejects["long"].reason == "too_long"


def test_a_canvas_of_a_row_is_its_reject_and_one_of_the_run_an_error(
    prepared: Callable[..., Prepared],
) -> None:
    wrong = Prompt("wrong", "круг", overrides=Overrides(width=SIDE - 8))
    ready = prepared(wrong, PLAIN)
    assert list(ready.texts) == ["plain"]
    assert ready.rejects["wrong"].reason == "bad_override"
    with pytest.raises(SettingsError):
        prepared(PLAIN, width=SIDE - 8)


@pytest.mark.parametrize(
    "error", [ImageError("it is no image"), StorageError("it does not exist"), ValueError("odd")]
)
def test_an_image_prompt_that_cannot_be_used_is_a_reject(
    prepared: Callable[..., Prepared], error: Exception
) -> None:
    ready = prepared(CONTINUED, PLAIN, encode=raising(error))
    assert list(ready.texts) == ["plain"]
    assert ready.rejects["continued"] == ("bad_image_prompt", str(error))


def test_an_image_prompt_that_may_be_readable_later_is_no_reject(
    prepared: Callable[..., Prepared],
) -> None:
    with pytest.raises(TransientError, match=r"busy\. That is the image prompt of continued; run"):
        prepared(CONTINUED, PLAIN, encode=raising(TransientError("The server is busy.")))
