"""Samples follow the softmax, are batch-invariant, and equal those of a naive loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib.errors import RudalleError, SettingsError
from rudalle_lib.generation.noise import gumbel_noise
from rudalle_lib.generation.sampling import (
    DRAW,
    SamplingSettings,
    _batches,
    generate_tokens,
    rows_needed,
)
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder

CONFIG = DalleConfig(
    num_layers=5,
    hidden_size=24,
    num_heads=3,
    text_vocab_size=30,
    text_length=6,
    image_vocab_size=16,
    image_height=5,
    image_width=5,
)
EVERYTHING = SamplingSettings(1.0, 0, 1.0)


def build(**changes: Any) -> Dalle:
    torch.manual_seed(0)
    model = Dalle(replace(CONFIG, **changes))
    model.init_weights(0.2, 0.5, 0.3, 0.7)
    return model.eval()


def prompts() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 24, (3, 6))


def keep(logits: list[float], settings: SamplingSettings) -> list[float]:
    """Top-k and top-p, one token at a time: tokens that stay keep their logit."""
    scaled = torch.tensor(logits) / settings.temperature
    order = scaled.argsort(descending=True).tolist()[: settings.top_k or None]
    share = scaled[order].softmax(0)
    kept, mass = torch.full_like(scaled, -torch.inf), 0.0
    for token, probability in zip(order, share.tolist(), strict=True):
        if mass > settings.top_p:
            break
        kept[token], mass = scaled[token], mass + probability
    return kept.tolist()


@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_same_noise_gives_the_tokens_and_scores_of_a_naive_loop(version: str) -> None:
    model, text = build(version=version), prompts()
    settings = SamplingSettings(1.2, 9, 0.9)
    seeds = torch.tensor([11, 12, 13])
    tokens = text
    for step in range(CONFIG.image_length):  # no cache: the whole forward each step
        logits = model(tokens)[:, -1, CONFIG.text_vocab_size :]
        kept = torch.tensor([keep(row, settings) for row in logits.tolist()])
        token = (kept + gumbel_noise(seeds, step, CONFIG.image_vocab_size)).argmax(1)
        tokens = torch.cat((tokens, token[:, None]), dim=1)
    image = tokens[:, CONFIG.text_length :]

    drawn = generate_tokens(model, text, torch.arange(3), seeds, settings, 8)
    assert torch.equal(drawn.tokens, image)

    first = 6 if version == "v2" else 5
    logits = model(tokens)[:, first : first + CONFIG.image_length, CONFIG.text_vocab_size :]
    logprob = logits.log_softmax(-1).gather(2, image[:, :, None])[:, :, 0]
    torch.testing.assert_close(drawn.logprob, logprob.mean(1))
    torch.testing.assert_close(drawn.ppl, torch.exp(-logprob[:, 1:]).mean(1))


def test_tokens_do_not_depend_on_batch_size_order_or_other_images() -> None:
    model, text, images = build(image_height=4, image_width=4), prompts(), 64
    prompt_index = torch.arange(images) * 3 // images
    seeds = torch.arange(images) * 1_000_003
    settings = [
        SamplingSettings(0.8 + 0.02 * row, row % 5, 1 - 0.01 * row) for row in range(images)
    ]

    def draw(rows: Tensor, batch_size: int) -> Tensor:
        chosen = [settings[row] for row in rows.tolist()]
        drawn = generate_tokens(model, text, prompt_index[rows], seeds[rows], chosen, batch_size)
        return drawn.tokens

    all_rows = torch.arange(images)
    alone = draw(all_rows, 1)
    assert len(alone.unique(dim=0)) > 40
    for batch_size in (3, 8, 64):
        assert torch.equal(draw(all_rows, batch_size), alone)
    shuffled = torch.randperm(images)
    assert torch.equal(draw(shuffled, 7), alone[shuffled])
    some = torch.tensor([20, 3, 9])
    assert torch.equal(draw(some, 2), alone[some])


def test_if_memory_runs_out_the_batch_is_halved_and_finished_images_are_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, rows = build(image_height=3, image_width=3), torch.arange(10)
    expected = generate_tokens(model, prompts(), rows % 3, rows, EVERYTHING, 10)
    prefill, sizes = CachedDecoder.prefill, list[int]()

    def with_memory_for_three(decoder: CachedDecoder) -> Tensor:
        sizes.append(len(decoder.prompt_of))
        if sizes[-1] > 3 and len(sizes) > 1:  # the first batch still fits
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return prefill(decoder)

    monkeypatch.setattr(CachedDecoder, "prefill", with_memory_for_three)
    found = generate_tokens(model, prompts(), rows % 3, rows, EVERYTHING, 5)
    assert sizes == [5, 5, 3, 2]
    assert torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.token_logprobs, expected.token_logprobs)
    assert "Not enough memory for a batch of 5; continuing with 3" in caplog.text


def test_progress_counts_every_token() -> None:
    seen: list[tuple[int, int]] = []
    rows = torch.arange(3)
    generate_tokens(build(), prompts(), rows, rows, EVERYTHING, 2, lambda *at: seen.append(at))
    assert seen[0] == (2, 75)
    assert seen[25] == (51, 75)
    assert seen[-1] == (75, 75)
    assert len(seen) == 50


def test_zero_images_are_allowed() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    assert generate_tokens(build(), prompts(), nothing, nothing, [], 4).tokens.shape == (0, 25)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"text_ids": torch.zeros(3, 7, dtype=torch.int64)}, r"expected \[prompts, 6\].*\[3, 7\]"),
        ({"text_ids": torch.full((3, 6), 24)}, r"text_ids: expected 0 \.\.\. 23, found 24"),
        ({"prompt_index": torch.tensor([0, 3])}, "prompt_index"),
        ({"seeds": torch.tensor([0.0, 1.0])}, "seeds: expected int64"),
        ({"seeds": torch.tensor([1])}, "2, 1 and 2"),
    ],
)
def test_invalid_arguments_fail_before_any_work(bad: dict[str, Any], words: str) -> None:
    good: dict[str, Any] = {
        "text_ids": prompts(),
        "prompt_index": torch.tensor([0, 1]),
        "seeds": torch.tensor([0, 1]),
        "settings": EVERYTHING,
        "batch_size": 2,
        "on_progress": lambda *_: pytest.fail("work had begun"),
    }
    with pytest.raises(SettingsError, match=words):
        generate_tokens(build(), **(good | bad))


def test_damaged_weights_do_not_become_images() -> None:
    model = build()
    last = model.to_logits[1]
    assert isinstance(last, nn.Linear)
    last.weight.data[-1, 0] = torch.nan
    rows = torch.arange(2)
    with pytest.raises(RudalleError, match="not finite"):
        generate_tokens(model, prompts(), rows, rows, SamplingSettings(), 2)


@pytest.mark.parametrize("version", ["v2", "v3"])
@torch.inference_mode()
def test_given_tokens_are_kept_and_the_others_follow_from_them(version: str) -> None:
    model, text = build(version=version), prompts()
    seeds, length = torch.tensor([11, 12, 13]), CONFIG.image_length
    torch.manual_seed(2)
    given = torch.randint(0, CONFIG.image_vocab_size, (3, length))
    given[torch.rand(3, length) < 0.6] = DRAW
    given[2] = DRAW
    places = torch.arange(length) * 3 + torch.tensor([[0], [100], [7]])
    tokens = text
    for step in range(length):  # no cache: the whole forward each step
        logits = model(tokens)[:, -1, CONFIG.text_vocab_size :]
        drawn = (logits + gumbel_noise(seeds, places[:, step], logits.shape[1])).argmax(1)
        token = torch.where(given[:, step] == DRAW, drawn, given[:, step])
        tokens = torch.cat((tokens, token[:, None]), dim=1)

    rows = torch.arange(3)
    for batch_size in (1, 8):
        found = generate_tokens(
            model, text, rows, seeds, EVERYTHING, batch_size, given=given, places=places
        )
        assert torch.equal(found.tokens, tokens[:, CONFIG.text_length :])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"given": torch.zeros(1, 24, dtype=torch.int64)}, r"given: expected \[1, 25\]"),
        ({"given": torch.full((1, 25), 16)}, r"given: expected -1 \.\.\. 15, found 16"),
        ({"places": torch.full((1, 25), -1)}, "places: expected 0"),
    ],
)
def test_given_tokens_that_do_not_fit_are_rejected(bad: dict[str, Any], words: str) -> None:
    row = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(SettingsError, match=words):
        generate_tokens(build(), prompts(), row, row, EVERYTHING, 1, **bad)


def test_batches_hold_at_most_so_many_images_and_rows() -> None:
    def sizes(images: int, guided: set[int], batch_size: int, rows: int) -> list[int]:
        batches = list(_batches(images, guided, batch_size, rows))
        assert [image for batch in batches for image in batch] == list(range(images))
        return [len(batch) for batch in batches]

    assert sizes(0, set(), 4, 4) == []
    assert sizes(10, set(), 4, 4) == [4, 4, 2]
    assert sizes(10, set(range(10)), 4, 8) == [4, 4, 2]
    assert sizes(10, set(), 4, 8) == [4, 4, 2]  # more rows do not make a larger batch
    assert sizes(7, {0, 1, 6}, 4, 4) == [2, 4, 1]
    assert sizes(3, {0, 1, 2}, 1, 1) == [1, 1, 1]  # a guided image takes two rows in any case


def test_a_few_images_do_not_take_the_rows_of_a_run() -> None:
    found = [rows_needed(images, 0, 512) for images in (0, 1, 2, 3, 9, 512, 600)]
    assert found == [1, 1, 2, 4, 16, 512, 512]
    assert rows_needed(3, 2, 512) == 8 and rows_needed(512, 1, 512) == 1024
