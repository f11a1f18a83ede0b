"""Draw image tokens from a decoder, reproducibly.

Tokens are drawn by the Gumbel-max trick: the largest of logit plus Gumbel noise is a sample of
the softmax. The noise of an image depends on its own seed alone (see `noise`), so an image does
not change with the batch it is drawn in. Some tokens may be given instead of drawn: the borders of
an image prompt, or the part of a large canvas that is drawn already.

Source: the sampling loop of ai-forever/ru-dalle (`rudalle/pipelines.py`); top-p after Holtzman et
al., arXiv:1904.09751.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rudalle_lib.errors import RudalleError, SettingsError
from rudalle_lib.guidance import NO_GUIDANCE, GuidedDecoder
from rudalle_lib.memory import in_fitting_batches
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.noise import gumbel_argmax

Progress = Callable[[int, int], None]
"""Called with (image tokens drawn, image tokens in all)."""

DRAW = -1
"""Stands for a token that is to be drawn, among tokens that are given."""


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen.

    Args:
        temperature: above 0; logits are divided by it.
        top_k: keep only the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens up to this probability mass, above 0, at most 1.
        guidance: how far logits are pushed away from those of an empty text, before anything
            else; 1 is not at all and costs nothing, anything else twice the time.

    Raises:
        SettingsError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 0.995
    guidance: float = NO_GUIDANCE

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.temperature < float("inf"):
            raise SettingsError(f"temperature: expected a number above 0, found {self.temperature}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise SettingsError(f"top_k: expected a whole number, 0 = all, found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p: expected above 0 and at most 1, found {self.top_p}")
        if not 0 <= self.guidance < float("inf"):
            raise SettingsError(f"guidance: expected 0 or more, 1 = off, found {self.guidance}")


@dataclass(frozen=True)
class GeneratedTokens:
    """Drawn images, in the order they were asked for, on the CPU.

    Probabilities are the model's own: temperature 1, nothing truncated, no guidance. Given tokens
    count like drawn ones, as in the original.

    Args:
        tokens: int64 [N, H * W].
        logprob: float32 [N], mean log-probability of an image token, in nats.
        ppl: float32 [N], the original's score, lower is better: the mean of 1 / probability over
            all image tokens but the first. (For v2 networks the original compares each prediction
            with the token after the one it is for; here it is the right one.)
        token_logprobs: float32 [N, H * W], the log-probability of each token.
    """

    tokens: Tensor
    logprob: Tensor
    ppl: Tensor
    token_logprobs: Tensor


class TokenSampler:
    """Chooses the next token of each row of a batch.

    Args:
        settings: one a row.
        seeds: int64 [B], one a row, on the device of the logits.
    """

    def __init__(self, settings: Sequence[SamplingSettings], seeds: Tensor) -> None:
        device = seeds.device
        self._seeds = seeds
        self._temperature = torch.tensor([row.temperature for row in settings], device=device)
        self._top_k = torch.tensor([row.top_k for row in settings], device=device)
        self._top_p = torch.tensor([row.top_p for row in settings], device=device)
        self._most = max(row.top_k for row in settings)
        self._all_tokens = any(row.top_k == 0 for row in settings)
        self._any_nucleus = any(row.top_p < 1 for row in settings)

    def sample(self, logits: Tensor, step: int | Tensor) -> Tensor:
        """Choose. logits float32 [B, V]; `step`, also int64 [B], numbers the token -> int64 [B]."""
        logits = logits / self._temperature[:, None]
        return gumbel_argmax(logits, self._least_logit(logits), self._seeds, step)

    def _least_logit(self, logits: Tensor) -> Tensor:
        """The smallest logit that top-k and top-p keep: [B, 1]. Equal logits are kept together."""
        vocab_size = logits.shape[1]
        width = vocab_size if self._all_tokens else min(self._most, vocab_size)
        if width == vocab_size and not self._any_nucleus:
            return logits.amin(dim=1, keepdim=True)
        best = _largest(logits, width)
        kept = torch.where(self._top_k == 0, vocab_size, self._top_k).clamp(max=width)[:, None]
        outside = torch.arange(width, device=logits.device) >= kept
        mass = best.masked_fill(outside, -torch.inf).softmax(dim=1)
        top_p = self._top_p[:, None]
        in_nucleus = (mass.cumsum(dim=1) - mass <= top_p) | (top_p == 1)
        kept = torch.minimum(kept, in_nucleus.sum(dim=1, keepdim=True)).clamp(min=1)
        return best.gather(1, kept - 1)


def _largest(values: Tensor, count: int) -> Tensor:
    """The largest of each row, falling: [B, V] -> [B, count].

    On a CPU numpy takes a fifth of the time of `topk`.
    """
    if values.device.type != "cpu":
        return values.topk(count).values
    largest = values.numpy()
    if count < largest.shape[1]:
        largest = np.partition(largest, -count, axis=1)[:, -count:]
    return torch.from_numpy(np.sort(largest, axis=1)[:, ::-1].copy())


@dataclass(frozen=True)
class Batch:
    """What decides N images; see `generate_tokens`."""

    prompt_index: Tensor
    seeds: Tensor
    settings: Sequence[SamplingSettings]
    given: Tensor | None
    places: Tensor | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.seeds)

    def rows(self, rows: slice) -> "Batch":
        """Some of the images."""
        return Batch(
            self.prompt_index[rows],
            self.seeds[rows],
            self.settings[rows],
            None if self.given is None else self.given[rows],
            None if self.places is None else self.places[rows],
        )


@torch.inference_mode()
def generate_tokens(
    model: Dalle,
    text_ids: Tensor,
    prompt_index: Tensor,
    seeds: Tensor,
    settings: SamplingSettings | Sequence[SamplingSettings],
    batch_size: int,
    progress: Progress | None = None,
    *,
    empty_text: Tensor | None = None,
    given: Tensor | None = None,
    places: Tensor | None = None,
) -> GeneratedTokens:
    """Draw the image tokens of N images of P prompts.

    An image depends on its text, seed and settings only: batch size, order and company change
    nothing, but for two candidates that tie within float error.

    Args:
        model: the decoder, in the dtype and on the device to work in.
        text_ids: int64 [P, text_length], text ids, 0 = pad.
        prompt_index: int64 [N], the prompt of each image. Images of a prompt should be neighbours:
            they share its keys and values.
        seeds: int64 [N], the seed of each image.
        settings: one for all, or one an image.
        batch_size: images drawn at a time; halved, with a warning, where memory runs out.
        progress: called after each step.
        empty_text: int64 [text_length], ids of the empty text; needed where there is guidance.
        given: int64 [N, H * W], tokens that are not drawn but as given, `DRAW` elsewhere.
        places: int64 [N, H * W], the number that keys the noise of each token; None is its own,
            0 ... H * W - 1. Pieces of one picture must not share numbers.

    Raises:
        SettingsError: sizes or ids that do not fit the model or each other.
        OutOfMemoryError: there is not enough memory even for one image.
        RudalleError: the network's output is not finite.
    """
    images, length = len(prompt_index), model.config.image_length
    per_image = [settings] * images if isinstance(settings, SamplingSettings) else list(settings)
    whole = Batch(prompt_index, seeds, per_image, given, places)
    _check(model, text_ids, empty_text, whole, batch_size)
    drawn = GeneratedTokens(
        torch.empty(images, length, dtype=torch.int64),
        torch.empty(images),
        torch.empty(images),
        torch.empty(images, length),
    )

    def draw(batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        def report(step: int) -> None:
            if progress is not None:
                progress(batch[0] * length + len(batch) * step, images * length)

        rows = slice(batch[0], batch[-1] + 1)
        return _generate_batch(model, text_ids, empty_text, whole.rows(rows), report)

    batches = [range(images)[start : start + batch_size] for start in range(0, images, batch_size)]
    for batch, (tokens, logprobs) in in_fitting_batches(batches, draw, "drawing a single picture"):
        rows = slice(batch[0], batch[-1] + 1)
        drawn.tokens[rows], drawn.token_logprobs[rows] = tokens.cpu(), logprobs.cpu()
        drawn.logprob[rows] = logprobs.mean(dim=1).cpu()
        drawn.ppl[rows] = torch.exp(-logprobs[:, 1:]).mean(dim=1).cpu()
    if not drawn.logprob.isfinite().all():
        raise RudalleError(
            "The decoder gave numbers that are not finite: its weights are damaged, or float16 "
            "overflowed. Check the weights or use float32 or bfloat16."
        )
    return drawn


def _generate_batch(
    model: Dalle,
    text_ids: Tensor,
    empty_text: Tensor | None,
    batch: Batch,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """One batch: tokens [B, H * W] and their log-probabilities [B, H * W]."""
    device = model.image_embeddings.weight.device
    prompts, prompt_of = batch.prompt_index.unique(return_inverse=True)
    decoder = GuidedDecoder(
        model,
        text_ids[prompts].to(device),
        prompt_of.to(device),
        torch.tensor([row.guidance for row in batch.settings], device=device),
        None if empty_text is None else empty_text.to(device),
    )
    sampler = TokenSampler(batch.settings, batch.seeds.to(device))
    places = None if batch.places is None else batch.places.to(device)
    given = None if batch.given is None else batch.given.to(device)
    length = model.config.image_length
    tokens = torch.empty(len(batch), length, dtype=torch.int64, device=device)
    logprobs = torch.empty(len(batch), length, device=device)
    logits = decoder.prefill()
    for step in range(length):
        token = sampler.sample(logits.guided, step if places is None else places[:, step])
        if given is not None:
            token = torch.where(given[:, step] == DRAW, token, given[:, step])
        tokens[:, step] = token
        logprobs[:, step] = logits.own.log_softmax(dim=1).gather(1, token[:, None])[:, 0]
        if step + 1 < length:
            logits = decoder.decode_one_token(token)
        report(step + 1)
    return tokens, logprobs


def _check(
    model: Dalle, text_ids: Tensor, empty_text: Tensor | None, batch: Batch, batch_size: int
) -> None:
    """Raise SettingsError before any work is done."""
    config = model.config
    if batch_size < 1:
        raise SettingsError(f"batch_size: expected at least 1, found {batch_size}")
    if text_ids.dim() != 2 or text_ids.shape[1] != config.text_length:
        raise SettingsError(
            f"text_ids: expected [prompts, {config.text_length}], as the decoder was built for, "
            f"found {list(text_ids.shape)}"
        )
    pieces = config.text_vocab_size - config.text_length
    _check_range("text_ids", text_ids, 0, pieces)
    _check_range("prompt_index", batch.prompt_index, 0, len(text_ids))
    _check_range("seeds", batch.seeds, 0, 1 << 63)
    if not len(batch.prompt_index) == len(batch.seeds) == len(batch.settings):
        raise SettingsError(
            f"expected a prompt_index, a seed and settings for every image, found "
            f"{len(batch.prompt_index)}, {len(batch.seeds)} and {len(batch.settings)}"
        )
    _check_shape("given", batch.given, (len(batch), config.image_length))
    _check_shape("places", batch.places, (len(batch), config.image_length))
    _check_shape("empty_text", empty_text, (config.text_length,))
    if batch.given is not None:
        _check_range("given", batch.given, DRAW, config.image_vocab_size)
    if batch.places is not None:
        _check_range("places", batch.places, 0, 1 << 31)
    if empty_text is not None:
        _check_range("empty_text", empty_text, 0, pieces)
    elif any(row.guidance != NO_GUIDANCE for row in batch.settings):
        raise SettingsError("guidance: expected the ids of an empty text, found none")


def _check_shape(name: str, values: Tensor | None, shape: tuple[int, ...]) -> None:
    if values is not None and values.shape != shape:
        raise SettingsError(f"{name}: expected {list(shape)}, found {list(values.shape)}")


def _check_range(name: str, values: Tensor, low: int, limit: int) -> None:
    if values.dtype != torch.int64:
        raise SettingsError(f"{name}: expected int64, found {values.dtype}")
    if values.numel() and not low <= int(values.min()) <= int(values.max()) < limit:
        raise SettingsError(
            f"{name}: expected {low} ... {limit - 1}, "
            f"found {int(values.min())} ... {int(values.max())}"
        )
