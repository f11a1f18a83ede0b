"""What draws the tokens of a batch: captured steps on a GPU, otherwise torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rudalle_lib.generation.guidance import NO_GUIDANCE, GuidedDecoder
from rudalle_lib.generation.token_sampler import DRAW, SamplingSettings, TokenSampler
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.gpu.draw_settings import UNGUIDED, DrawSettings
from rudalle_lib.models.gpu.engine import DrawRequest, StepDrawer, can_draw


@dataclass(frozen=True)
class Batch:
    """The arguments of `generate_tokens` that differ between its N images."""

    prompt_index: Tensor
    seeds: Tensor
    settings: Sequence[SamplingSettings]
    given: Tensor | None
    places: Tensor | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.seeds)

    @property
    def guided(self) -> list[int]:
        """The images that are guided: the decoder has them twice."""
        rows = enumerate(self.settings)
        return [image for image, row in rows if row.guidance != NO_GUIDANCE]

    def rows(self, rows: slice) -> Batch:
        """A slice of the images."""
        return Batch(
            self.prompt_index[rows],
            self.seeds[rows],
            self.settings[rows],
            None if self.given is None else self.given[rows],
            None if self.places is None else self.places[rows],
        )


class TokenDrawer(Protocol):
    """What draws the tokens of one batch."""

    def draw(self, step: int) -> None:
        """Draw the token of this number of each image: 0, 1, 2 and so on."""

    def result(self) -> tuple[Tensor, Tensor]:
        """The tokens, int64, and their log-probabilities, float32, [B, H * W]; called last."""


def token_drawer_for(
    model: Dalle, text_ids: Tensor, empty_text: Tensor | None, batch: Batch, batch_rows: int
) -> TokenDrawer:
    """What draws a batch fastest: captured steps on a GPU, otherwise torch."""
    prompts, prompt_of = batch.prompt_index.unique(return_inverse=True)
    text = text_ids[prompts]
    if not can_draw(model):
        return TorchDrawer(model, text, prompt_of, empty_text, batch)
    guided = batch.guided
    if guided:
        assert empty_text is not None, "guidance needs an empty text"
        text = torch.cat((text, empty_text[None]))
    rows = prompt_of.tolist() + [len(prompts)] * len(guided)
    settings = draw_settings(batch, model.config.image_length)
    return StepDrawer(model, DrawRequest(text, rows, settings), batch_rows)


def draw_settings(batch: Batch, length: int) -> DrawSettings:
    """How the images of a batch are drawn, as tensors; guided images also have a row at the end."""
    settings, images = batch.settings, len(batch)
    empty_row = torch.full((images,), UNGUIDED, dtype=torch.int32)
    for number, image in enumerate(batch.guided):
        empty_row[image] = images + number
    return DrawSettings(
        torch.tensor([row.temperature for row in settings]),
        torch.tensor([row.top_k for row in settings], dtype=torch.int32),
        torch.tensor([row.top_p for row in settings]),
        torch.tensor([row.guidance for row in settings]),
        empty_row,
        batch.seeds,
        torch.arange(length).expand(images, -1) if batch.places is None else batch.places,
        torch.full((images, length), DRAW) if batch.given is None else batch.given,
    )


class TorchDrawer:
    """A `TokenDrawer` of torch operators and, on CPUs, compiled parts, on any device.

    Args:
        model: the decoder.
        text: int64 [P, text_length], text ids of the prompts of the batch.
        prompt_of: int64 [B], the prompt of each image.
        empty_text: int64 [text_length]; required if any image is guided.
        batch: the images.
    """

    def __init__(
        self,
        model: Dalle,
        text: Tensor,
        prompt_of: Tensor,
        empty_text: Tensor | None,
        batch: Batch,
    ) -> None:
        device, shape = (
            model.image_embeddings.weight.device,
            (len(batch), model.config.image_length),
        )
        self._decoder = GuidedDecoder(
            model,
            text.to(device),
            prompt_of.to(device),
            torch.tensor([row.guidance for row in batch.settings], device=device),
            None if empty_text is None else empty_text.to(device),
        )
        self._sampler = TokenSampler(batch.settings, batch.seeds.to(device))
        self._places = None if batch.places is None else batch.places.to(device)
        self._given = None if batch.given is None else batch.given.to(device)
        self._tokens = torch.empty(shape, dtype=torch.int64, device=device)
        self._logprobs = torch.empty(shape, device=device)

    def draw(self, step: int) -> None:
        """See `TokenDrawer`."""
        if step:
            logits = self._decoder.decode_one_token(self._tokens[:, step - 1])
        else:
            logits = self._decoder.prefill()
        place = step if self._places is None else self._places[:, step]
        token = self._sampler.sample(logits.guided, place)
        if self._given is not None:
            token = torch.where(self._given[:, step] == DRAW, token, self._given[:, step])
        self._tokens[:, step] = token
        logprobs = logits.conditional.log_softmax(dim=1)
        self._logprobs[:, step] = logprobs.gather(1, token[:, None])[:, 0]

    def result(self) -> tuple[Tensor, Tensor]:
        """See `TokenDrawer`."""
        return self._tokens, self._logprobs
