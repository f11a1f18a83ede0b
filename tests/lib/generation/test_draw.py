"""The generate stage: candidates of prompts, with their seeds, settings, image prompts, rejects."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rudalle_lib.config.sections import GenerateConfig, WeightsConfig
from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.canvas import Canvas
from rudalle_lib.generation.draw import draw_candidates, drawing_batch_size, image_prompt_encoder
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.images.codecs import encode_image
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.schema.borders import Borders
from rudalle_lib.schema.records import Overrides, Prompt, Reject, TokensRecord
from rudalle_lib.weights.loading import LoadedDecoder, load_decoder, load_vqgan
from tests.support.tiny_stack import CODES, GRID, SIDE

SECTION = GenerateConfig(images=2)
PROMPTS = [
    Prompt("black", "чёрный квадрат", overrides=Overrides(images=3)),
    Prompt("red", "красный круг", overrides=Overrides(seed=7, top_p=0.5)),
    Prompt("long", "длинный " * 20),
]
TEXTS = {prompt.prompt_id: prompt.text for prompt in PROMPTS}


@pytest.fixture(scope="module")
def weights(tiny_stack: Path) -> WeightsConfig:
    return WeightsConfig(folder=str(tiny_stack), offline=True)


@pytest.fixture(scope="module")
def decoder(weights: WeightsConfig) -> LoadedDecoder:
    return load_decoder("demo-dalle", weights)


def no_image_prompt(uri: str, borders: Borders, canvas: Canvas) -> Tensor:
    raise AssertionError("these prompts have no image prompt")


def draw(
    decoder: LoadedDecoder,
    prompts: list[Prompt],
    section: GenerateConfig = SECTION,
    batch_size: int = 8,
    replicas: range | None = None,
) -> tuple[list[TokensRecord], dict[str, Reject]]:
    return draw_candidates(
        decoder, prompts, TEXTS, section, 3, no_image_prompt, batch_size, replicas=replicas
    )


def test_ids_seeds_and_settings_are_those_of_the_prompts(decoder: LoadedDecoder) -> None:
    rows, rejects = draw(decoder, PROMPTS)
    assert rejects == {}
    assert [row.image_id for row in rows] == [
        *("black-000", "black-001", "black-002"),
        *("red-000", "red-001"),
        *("long-000", "long-001"),
    ]
    assert [row.seed for row in rows[:3]] == [image_seed(3, "black", n) for n in range(3)]
    assert [row.seed for row in rows[3:5]] == [image_seed(7, "red", n) for n in range(2)]
    assert [row.top_p for row in rows] == [0.995] * 3 + [0.5] * 2 + [0.995] * 2
    assert [row.truncated for row in rows] == [False] * 5 + [True] * 2
    assert {(row.rows, row.columns, len(row.tokens)) for row in rows} == {(GRID, GRID, GRID**2)}
    assert len({tuple(row.tokens) for row in rows}) == len(rows)
    assert all(0 <= token < CODES for row in rows for token in row.tokens)


def test_an_image_depends_on_its_own_prompt_and_number_only(decoder: LoadedDecoder) -> None:
    rows, _ = draw(decoder, PROMPTS)
    by_id = {row.image_id: row.tokens for row in rows}
    alone, _ = draw(decoder, PROMPTS[1:2], batch_size=1, replicas=range(1, 2))
    assert [(row.image_id, row.tokens) for row in alone] == [("red-001", by_id["red-001"])]


def test_prompts_without_a_text_are_skipped(decoder: LoadedDecoder) -> None:
    rows, rejects = draw(decoder, [Prompt("english", "a red circle"), PROMPTS[1]])
    assert {row.prompt_id for row in rows} == {"red"} and rejects == {}
    assert draw(decoder, []) == ([], {})


def test_a_text_that_must_not_be_truncated_is_rejected(decoder: LoadedDecoder) -> None:
    rows, rejects = draw(decoder, PROMPTS, GenerateConfig(images=1, allow_truncation=False))
    assert {row.prompt_id for row in rows} == {"black", "red"}
    assert {name: reject.reason for name, reject in rejects.items()} == {"long": "too_long"}


def test_progress_counts_tokens(decoder: LoadedDecoder) -> None:
    steps: list[tuple[int, int]] = []
    draw_candidates(
        decoder, PROMPTS[:1], TEXTS, SECTION, 3, no_image_prompt, 2,
        lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps == sorted(steps) and steps[-1] == (3 * GRID**2, 3 * GRID**2)


def test_images_begin_with_the_tokens_of_their_image_prompt(
    decoder: LoadedDecoder, weights: WeightsConfig, tmp_path: Path
) -> None:
    pixels = torch.arange(3 * SIDE * SIDE).view(3, SIDE, SIDE).remainder(251).to(torch.uint8)
    path = tmp_path / "image.png"
    path.write_bytes(encode_image(pixels))
    overrides = Overrides(image_prompt=str(path), image_prompt_borders="up=1")
    vqgan = load_vqgan("demo-vqgan", weights).model
    encode = image_prompt_encoder(lambda: vqgan, SECTION, CODES)
    prompt = Prompt("black", "чёрный квадрат", overrides=overrides)
    rows, _ = draw_candidates(decoder, [prompt], TEXTS, SECTION, 3, encode, 8)
    given = encode(str(path), Borders(up=1), Canvas(GRID, GRID))[0].tolist()
    assert [row.tokens[:GRID] for row in rows] == [given] * 2
    assert rows[0].tokens[GRID:] != rows[1].tokens[GRID:]
    assert {row.image_prompt_borders for row in rows} == {"up=1"}
    assert {row.image_prompt for row in rows} == {str(path)}


def test_an_image_encoder_with_another_codebook_is_an_error(weights: WeightsConfig) -> None:
    loaded: list[VqGan] = []

    def load() -> VqGan:
        loaded.append(load_vqgan("demo-vqgan", weights).model)
        return loaded[-1]

    encode = image_prompt_encoder(load, SECTION, CODES + 1)
    assert loaded == [], "a run without image prompts needs no encoder"
    with pytest.raises(SettingsError, match=r"image_encoder does not belong .* found 32;"):
        encode("image.png", Borders(up=1), Canvas(GRID, GRID))


def test_the_batch_size_is_that_of_the_section(decoder: LoadedDecoder) -> None:
    devices = [torch.device("cpu")]
    assert drawing_batch_size(GenerateConfig(batch_size=5), decoder.model, devices) == 5
    auto = GenerateConfig(batch_size="auto")
    assert drawing_batch_size(auto, decoder.model, devices) > 5


def test_guidance_of_a_single_prompt_counts_in_the_batch_size(
    monkeypatch: pytest.MonkeyPatch, decoder: LoadedDecoder
) -> None:
    auto, devices = GenerateConfig(batch_size="auto", images=1), [torch.device("cpu")]
    monkeypatch.setattr("rudalle_lib.generation.batch_size.free_bytes", lambda _: 4_000_000)
    guided = Prompt("a", "text", overrides=Overrides(guidance=3.0))
    plain = Prompt("b", "text")
    sizes = [
        drawing_batch_size(auto, decoder.model, devices, prompts)
        for prompts in ([], [plain], [plain, guided])
    ]
    assert sizes[0] == sizes[1] == pytest.approx(2 * sizes[2], abs=1) and sizes[2] > 2
