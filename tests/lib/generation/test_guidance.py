"""Guided tokens equal those of a naive loop over two forward passes, also next to unguided rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rudalle_lib.errors import SettingsError
from rudalle_lib.generation.noise import gumbel_noise
from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder

EMPTY = torch.tensor([2, 3, 0, 0, 0, 0])
STRENGTHS = (1.0, 3.0, 0.0, 1.0, 1.5, 7.0)
PROMPT_INDEX = torch.tensor([0, 0, 0, 1, 1, 2])
SEEDS = torch.arange(6) * 7_919 + 5


def build(version: str = "v3") -> Dalle:
    torch.manual_seed(0)
    model = Dalle(DalleConfig(3, 16, 2, 30, 6, 12, 4, 3, version=version))
    model.init_weights(0.2, 0.5, 0.3, 0.7)
    return model.eval()


def prompts() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 24, (3, 6))


def settings() -> list[SamplingSettings]:
    return [SamplingSettings(1.1, 0, 1.0, strength) for strength in STRENGTHS]


def last_logits(model: Dalle, text: Tensor, image: Tensor) -> Tensor:
    tokens = torch.cat((text, image), dim=1)
    return model(tokens)[:, -1, model.config.text_vocab_size :]


def naive(model: Dalle) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities of the model, with two forward passes per step and no cache."""
    text, strength = prompts()[PROMPT_INDEX], torch.tensor(STRENGTHS)[:, None]
    image, logprobs = torch.empty(6, 0, dtype=torch.int64), []
    for step in range(model.config.image_length):
        conditional = last_logits(model, text, image)
        empty = last_logits(model, EMPTY.expand(6, -1), image)
        logits = (empty + strength * (conditional - empty)) / 1.1
        token = (logits + gumbel_noise(SEEDS, step, logits.shape[1])).argmax(1, keepdim=True)
        logprobs.append(conditional.log_softmax(1).gather(1, token))
        image = torch.cat((image, token), dim=1)
    return image, torch.cat(logprobs, dim=1)


def draw(model: Dalle, rows: Tensor, batch_size: int = 8) -> Any:
    chosen = [settings()[row] for row in rows.tolist()]
    index, seeds = PROMPT_INDEX[rows], SEEDS[rows]
    return generate_tokens(model, prompts(), index, seeds, chosen, batch_size, empty_text=EMPTY)


@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_tokens_equal_those_of_a_naive_loop_in_any_batch(version: str) -> None:
    model = build(version)
    tokens, logprobs = naive(model)
    together = draw(model, torch.arange(6))
    assert torch.equal(together.tokens, tokens)
    torch.testing.assert_close(together.token_logprobs, logprobs)
    assert torch.equal(draw(model, torch.arange(6), 1).tokens, tokens)
    some = torch.tensor([4, 1, 3])
    assert torch.equal(draw(model, some).tokens, tokens[some])


@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_both_branches_equal_whole_forward_passes(version: str) -> None:
    model, text = build(version).double(), torch.cat((prompts(), EMPTY[None]))
    prompt_of = torch.tensor([0, 2, 2, 1, 3, 3])  # the last text is the empty one
    decoder = CachedDecoder(model, text, prompt_of, unguided=2)
    torch.manual_seed(3)
    image = torch.randint(0, 12, (6, model.config.image_length))
    logits = decoder.prefill()
    for step in range(model.config.image_length):
        expected = last_logits(model, text[prompt_of], image[:, :step])
        assert (logits - expected).abs().max() < 1e-9
        if step + 1 < model.config.image_length:
            logits = decoder.decode_one_token(image[:, step])


def test_guidance_changes_the_image_and_scale_one_does_not() -> None:
    model, rows = build(), torch.zeros(2, dtype=torch.int64)
    plain = generate_tokens(model, prompts(), rows, rows, SamplingSettings(1.0, 0, 1.0), 2)
    same = SamplingSettings(1.0, 0, 1.0, guidance=1.0)
    other = SamplingSettings(1.0, 0, 1.0, guidance=4.0)
    drawn = generate_tokens(model, prompts(), rows, rows, [same, other], 2, empty_text=EMPTY)
    assert torch.equal(drawn.tokens[0], plain.tokens[0])
    assert not torch.equal(drawn.tokens[1], plain.tokens[1])


def rows_seen(model: Dalle, strengths: list[float]) -> tuple[list[int], list[int]]:
    """The number of texts, and of images per step, that go through the network."""
    texts: list[int] = []
    images: list[int] = []
    model.text_embeddings.register_forward_hook(lambda _, given, __: texts.append(len(given[0])))
    model.image_embeddings.register_forward_hook(lambda _, given, __: images.append(len(given[0])))
    rows = torch.zeros(len(strengths), dtype=torch.int64)
    chosen = [SamplingSettings(guidance=strength) for strength in strengths]
    generate_tokens(model, prompts(), rows, rows, chosen, 8, empty_text=EMPTY)
    return texts, images


def test_without_guidance_nothing_extra_is_computed() -> None:
    texts, images = rows_seen(build(), [1.0] * 5)
    assert (texts, set(images)) == ([1], {5})


def test_only_guided_rows_are_doubled_and_the_empty_text_is_read_once() -> None:
    texts, images = rows_seen(build(), [1.0, 2.0, 3.0, 1.0, 1.0])
    assert (texts, set(images)) == ([2], {7})


@pytest.mark.parametrize("guidance", [-1.0, 100.5, float("nan"), float("inf")])
def test_guidance_out_of_range_is_rejected(guidance: float) -> None:
    with pytest.raises(SettingsError, match="guidance: expected a number from 0 to 100, found"):
        SamplingSettings(guidance=guidance)


@pytest.mark.parametrize(
    ("empty", "words"),
    [
        (None, "guidance: expected the ids of an empty text, found none"),
        (torch.tensor([2, 3]), r"empty_text: expected \[6\], found \[2\]"),
        (torch.full((6,), 24), r"empty_text: expected 0 \.\.\. 23, found 24"),
    ],
)
def test_guidance_without_a_fitting_empty_text_fails_before_any_work(
    empty: Tensor | None, words: str
) -> None:
    rows = torch.zeros(1, dtype=torch.int64)
    guided = SamplingSettings(guidance=2.0)
    with pytest.raises(SettingsError, match=words):
        generate_tokens(build(), prompts(), rows, rows, guided, 1, empty_text=empty)
