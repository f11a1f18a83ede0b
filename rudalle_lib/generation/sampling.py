"""Reproducible sampling of image tokens from a decoder.

Tokens are sampled with the Gumbel-max trick (`token_sampler`). The noise of an image depends only
on its own seed (see `noise`), so sampling is batch-invariant. Some tokens can be given instead of
sampled: the borders of an image prompt, or the part of a large canvas that exists already.

Source: the sampling loop of ai-forever/ru-dalle (`rudalle/pipelines.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rudalle_lib.errors import RudalleError, SettingsError
from rudalle_lib.generation.guidance import NO_GUIDANCE
from rudalle_lib.generation.token_drawers import Batch, token_drawer_for
from rudalle_lib.generation.token_sampler import DRAW, SamplingSettings, TokenSampler
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.runtime.batching import OnProgress, no_progress
from rudalle_lib.runtime.memory import in_fitting_batches, is_out_of_memory

__all__ = ["DRAW", "GeneratedTokens", "SamplingSettings", "TokenSampler", "generate_tokens"]


@dataclass(frozen=True)
class GeneratedTokens:
    """Sampled images in the order of the request, on the CPU.

    Probabilities are those of the model itself: at temperature 1, without truncation or guidance.
    Given tokens count like sampled ones, as in the original.

    Attributes:
        tokens: int64 [N, H * W].
        logprob: float32 [N], mean log-probability of the image tokens, in nats.
        ppl: float32 [N], the score of the original, lower is better: the mean of 1 / probability
            over all image tokens but the first. (For v2 networks the original compares each
            prediction with the token after the one that it predicts; that is corrected here.)
        token_logprobs: float32 [N, H * W], the log-probability of each token, in nats.
    """

    tokens: Tensor
    logprob: Tensor
    ppl: Tensor
    token_logprobs: Tensor


@torch.inference_mode()
def generate_tokens(
    model: Dalle,
    text_ids: Tensor,
    prompt_index: Tensor,
    seeds: Tensor,
    settings: SamplingSettings | Sequence[SamplingSettings],
    batch_size: int,
    on_progress: OnProgress = no_progress,
    *,
    empty_text: Tensor | None = None,
    given: Tensor | None = None,
    places: Tensor | None = None,
    batch_rows: int | None = None,
) -> GeneratedTokens:
    """Sample the image tokens of N images of P prompts.

    An image depends only on its text, seed and settings. Batch size, order and the other images
    change nothing, unless two tokens tie within floating-point error. On a GPU that error depends
    on `batch_rows`, and on nothing else of the batch.

    Args:
        model: the decoder, on the device and in the dtype to compute with.
        text_ids: int64 [P, text_length], text ids, 0 = pad.
        prompt_index: int64 [N], the prompt of each image. Images of one prompt should be adjacent:
            they share its keys and values.
        seeds: int64 [N], the seed of each image, 0 or more.
        settings: one for all images, or one per image.
        batch_size: images per batch; halved, with a warning, if memory runs out.
        on_progress: called after each step with the image tokens drawn so far, and the total.
        empty_text: int64 [text_length], ids of the empty text; required for guidance.
        given: int64 [N, H * W], tokens that are given, `DRAW` elsewhere; None draws all.
        places: int64 [N, H * W], the number that keys the noise of each token; None is 0 to
            H * W - 1. Parts of one image must not share numbers.
        batch_rows: rows of the decoder, of which a guided image takes two and any other image one.
            No batch takes more, and on a GPU all batches are filled up to this number. None is
            what these images need, see `rows_needed`.

    Raises:
        SettingsError: shapes, dtypes or ids do not fit the model or each other.
        OutOfMemoryError: there is not enough memory for a single image.
        RudalleError: the output of the network is NaN or infinite.
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
            on_progress(batch[0] * length + len(batch) * step, images * length)

        rows = whole.rows(slice(batch[0], batch[-1] + 1))
        return limit.run(
            lambda most: _generate_batch(model, text_ids, empty_text, rows, most, report)
        )

    limit = _RowLimit(batch_rows or rows_needed(images, len(whole.guided), batch_size))
    batches = list(_batches(images, set(whole.guided), batch_size, limit.rows))
    for batch, (tokens, logprobs) in in_fitting_batches(batches, draw, "drawing a single image"):
        rows = slice(batch[0], batch[-1] + 1)
        drawn.tokens[rows], drawn.token_logprobs[rows] = tokens.cpu(), logprobs.cpu()
        drawn.logprob[rows] = logprobs.mean(dim=1).cpu()
        drawn.ppl[rows] = torch.exp(-logprobs[:, 1:]).mean(dim=1).cpu()
    if not drawn.logprob.isfinite().all():
        raise RudalleError(
            "The output of the decoder is not finite: its weights are damaged, or float16 "
            "overflowed. Check the weights, or use float32 or bfloat16."
        )
    return drawn


def rows_needed(images: int, guided: int, batch_size: int) -> int:
    """Rows of the decoder for a few images: a power of two, or what the largest batch needs.

    Args:
        images: all images.
        guided: how many of them are guided.
        batch_size: images per batch.
    """
    most = batch_size * (2 if guided else 1)
    return min(1 << (images + guided - 1).bit_length(), most) if images else 1


class _RowLimit:
    """The rows of the decoder, of which there are fewer after memory has run out."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def run(self, work: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Call `work` with the number of rows; halve it if there is not enough memory."""
        try:
            return work(self.rows)
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                self.rows = (self.rows + 1) // 2
            raise


def _batches(
    images: int, guided: set[int], batch_size: int, batch_rows: int
) -> Iterator[Sequence[int]]:
    """Divide images into batches of at most so many images and rows, in order."""
    start, rows = 0, 0
    for image in range(images):
        cost = 2 if image in guided else 1
        if image > start and (image - start == batch_size or rows + cost > batch_rows):
            yield range(start, image)
            start, rows = image, 0
        rows += cost
    if images:
        yield range(start, images)


def _generate_batch(
    model: Dalle,
    text_ids: Tensor,
    empty_text: Tensor | None,
    batch: Batch,
    batch_rows: int,
    report: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """Sample one batch: tokens and their log-probabilities, both [B, H * W]."""
    drawer = token_drawer_for(model, text_ids, empty_text, batch, batch_rows)
    for step in range(model.config.image_length):
        drawer.draw(step)
        report(step + 1)
    return drawer.result()


def _check(
    model: Dalle, text_ids: Tensor, empty_text: Tensor | None, batch: Batch, batch_size: int
) -> None:
    """Check all arguments before any work.

    Raises:
        SettingsError: see `generate_tokens`.
    """
    config = model.config
    if batch_size < 1:
        raise SettingsError(f"batch_size: expected at least 1, found {batch_size}")
    if text_ids.dim() != 2 or text_ids.shape[1] != config.text_length:
        raise SettingsError(
            f"text_ids: expected [prompts, {config.text_length}], the text length of the decoder, "
            f"found {list(text_ids.shape)}"
        )
    text_pieces = config.text_vocab_size - config.text_length
    _check_range("text_ids", text_ids, 0, text_pieces)
    _check_range("prompt_index", batch.prompt_index, 0, len(text_ids))
    _check_range("seeds", batch.seeds, 0, 1 << 63)
    if not len(batch.prompt_index) == len(batch.seeds) == len(batch.settings):
        raise SettingsError(
            f"expected one prompt_index, seed and settings per image, found "
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
        _check_range("empty_text", empty_text, 0, text_pieces)
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
