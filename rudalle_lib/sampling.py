"""Draw image tokens from a decoder, reproducibly.

Tokens are drawn by the Gumbel-max trick: the largest of logit plus Gumbel noise is a sample of
the softmax. The noise of an image depends on its own seed alone (see `noise`), so an image does
not change with the batch it is drawn in.

Source: the sampling loop of ai-forever/ru-dalle (`rudalle/pipelines.py`); top-p after Holtzman et
al., arXiv:1904.09751.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rudalle_lib.errors import RudalleError, SettingsError
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.kv_cache import CachedDecoder
from rudalle_lib.noise import gumbel_noise

Progress = Callable[[int, int], None]
"""Called with (image tokens drawn, image tokens in all)."""


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen.

    Args:
        temperature: above 0; logits are divided by it.
        top_k: keep only the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens up to this probability mass, above 0, at most 1.

    Raises:
        SettingsError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int = 2048
    top_p: float = 0.995

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.temperature < float("inf"):
            raise SettingsError(f"temperature: expected a number above 0, found {self.temperature}")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise SettingsError(f"top_k: expected a whole number, 0 = all, found {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise SettingsError(f"top_p: expected above 0 and at most 1, found {self.top_p}")


@dataclass(frozen=True)
class GeneratedTokens:
    """Drawn images, in the order they were asked for, on the CPU.

    Probabilities are the model's own: temperature 1, nothing truncated.

    Args:
        tokens: int64 [N, H * W].
        logprob: float32 [N], mean log-probability of an image token, in nats.
        ppl: float32 [N], the original's score, lower is better: the mean of 1 / probability over
            all image tokens but the first. (For v2 networks the original compares each prediction
            with the token after the one it is for; here it is the right one.)
    """

    tokens: Tensor
    logprob: Tensor
    ppl: Tensor


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

    def sample(self, logits: Tensor, step: int) -> Tensor:
        """Choose. logits float32 [B, V]; `step` is the number of the image token -> int64 [B]."""
        logits = logits / self._temperature[:, None]
        allowed = logits >= self._least_logit(logits)
        noise = gumbel_noise(self._seeds, step, logits.shape[1])
        return (logits + noise).masked_fill(~allowed, -torch.inf).argmax(dim=1)

    def _least_logit(self, logits: Tensor) -> Tensor:
        """The smallest logit that top-k and top-p keep: [B, 1]. Equal logits are kept together."""
        vocab_size = logits.shape[1]
        width = vocab_size if self._all_tokens else min(self._most, vocab_size)
        if width == vocab_size and not self._any_nucleus:
            return logits.amin(dim=1, keepdim=True)
        best = logits.topk(width).values  # [B, K], falling
        kept = torch.where(self._top_k == 0, vocab_size, self._top_k).clamp(max=width)[:, None]
        outside = torch.arange(width, device=logits.device) >= kept
        mass = best.masked_fill(outside, -torch.inf).softmax(dim=1)
        top_p = self._top_p[:, None]
        in_nucleus = (mass.cumsum(dim=1) - mass <= top_p) | (top_p == 1)
        kept = torch.minimum(kept, in_nucleus.sum(dim=1, keepdim=True)).clamp(min=1)
        return best.gather(1, kept - 1)


@torch.inference_mode()
def generate_tokens(
    model: Dalle,
    text_ids: Tensor,
    prompt_index: Tensor,
    seeds: Tensor,
    settings: SamplingSettings | Sequence[SamplingSettings],
    batch_size: int,
    progress: Progress | None = None,
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
        batch_size: images drawn at a time.
        progress: called after each step.

    Raises:
        SettingsError: sizes or ids that do not fit the model or each other.
        RudalleError: the network's output is not finite.
    """
    images = len(prompt_index)
    per_image = [settings] * images if isinstance(settings, SamplingSettings) else list(settings)
    _check(model, text_ids, prompt_index, seeds, per_image, batch_size)
    length = model.config.image_length
    drawn = GeneratedTokens(
        torch.empty(images, length, dtype=torch.int64), torch.empty(images), torch.empty(images)
    )
    for start in range(0, images, batch_size):
        rows = slice(start, min(start + batch_size, images))

        def report(step: int, before: int = start, size: int = rows.stop - start) -> None:
            if progress is not None:
                progress(before * length + size * step, images * length)

        batch = _generate_batch(
            model, text_ids, prompt_index[rows], seeds[rows], per_image[rows], report
        )
        drawn.tokens[rows], drawn.logprob[rows], drawn.ppl[rows] = batch
    if not drawn.logprob.isfinite().all():
        raise RudalleError(
            "The decoder gave numbers that are not finite: its weights are damaged, or float16 "
            "overflowed. Check the weights or use float32 or bfloat16."
        )
    return drawn


def _generate_batch(
    model: Dalle,
    text_ids: Tensor,
    prompt_index: Tensor,
    seeds: Tensor,
    settings: Sequence[SamplingSettings],
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch: tokens [B, H * W], mean log-probability [B], ppl [B]."""
    device = model.image_embeddings.weight.device
    prompts, prompt_of = prompt_index.unique(return_inverse=True)
    decoder = CachedDecoder(model, text_ids[prompts].to(device), prompt_of.to(device))
    sampler = TokenSampler(settings, seeds.to(device))
    length = model.config.image_length
    tokens = torch.empty(len(seeds), length, dtype=torch.int64, device=device)
    logprobs = torch.empty(len(seeds), length, device=device)
    logits = decoder.prefill()
    for step in range(length):
        logits = logits.float()
        token = sampler.sample(logits, step)
        tokens[:, step] = token
        logprobs[:, step] = logits.log_softmax(dim=1).gather(1, token[:, None])[:, 0]
        if step + 1 < length:
            logits = decoder.decode_one_token(token)
        report(step + 1)
    ppl = torch.exp(-logprobs[:, 1:]).mean(dim=1)
    return tokens.cpu(), logprobs.mean(dim=1).cpu(), ppl.cpu()


def _check(
    model: Dalle,
    text_ids: Tensor,
    prompt_index: Tensor,
    seeds: Tensor,
    settings: Sequence[SamplingSettings],
    batch_size: int,
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
    _check_range("text_ids", text_ids, pieces)
    _check_range("prompt_index", prompt_index, len(text_ids))
    _check_range("seeds", seeds, 1 << 63)
    if not len(prompt_index) == len(seeds) == len(settings):
        raise SettingsError(
            f"expected a prompt_index, a seed and settings for every image, found "
            f"{len(prompt_index)}, {len(seeds)} and {len(settings)}"
        )


def _check_range(name: str, values: Tensor, limit: int) -> None:
    if values.dtype != torch.int64:
        raise SettingsError(f"{name}: expected int64, found {values.dtype}")
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < limit:
        raise SettingsError(
            f"{name}: expected 0 ... {limit - 1}, found {int(values.min())} ... {int(values.max())}"
        )
