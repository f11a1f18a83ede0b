"""Classifier-free guidance, also called super-conditioning.

Each guided image is in the batch twice: with its text (conditional) and with an empty text (empty).
Tokens are sampled from `empty + guidance * (conditional - empty)`. The keys and values of the empty
text are computed once and shared. Images with guidance 1 are in the batch only once, so they cost
nothing extra.

Paper: Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598; for image tokens:
Crowson's super-conditioning, and Gafni et al., arXiv:2203.13131, section 3.4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder

NO_GUIDANCE = 1.0
"""The scale at which guidance is off."""


class Logits(NamedTuple):
    """Logits of the next token.

    Attributes:
        conditional: float32 [B, V], logits of the model for the texts.
        guided: float32 [B, V], logits to sample from.
    """

    conditional: Tensor
    guided: Tensor


class GuidedDecoder:
    """Decodes a batch token by token, with a guidance scale per image.

    Args:
        model: the network, on its device and in its dtype.
        text: int64 [P, text_length], text ids of the prompts, 0 = pad.
        prompt_of: int64 [B], the prompt of each image.
        guidance: float32 [B], the scale of each image; 1 is off.
        empty_text: int64 [text_length], ids of the empty text; required if any image is guided.
    """

    def __init__(
        self,
        model: Dalle,
        text: Tensor,
        prompt_of: Tensor,
        guidance: Tensor,
        empty_text: Tensor | None = None,
    ) -> None:
        self._guided = (guidance != NO_GUIDANCE).nonzero()[:, 0]  # [G], indices of guided images
        self._strength = guidance[self._guided, None]  # [G, 1]
        self._images = len(prompt_of)
        doubled = len(self._guided)
        if doubled:
            assert empty_text is not None, "guidance needs an empty text"
            last = prompt_of.new_full((doubled,), len(text))
            prompt_of = torch.cat((prompt_of, last))  # [B + G]
            text = torch.cat((text, empty_text[None]))  # [P + 1, T]
        self._decoder = CachedDecoder(model, text, prompt_of, doubled)

    def prefill(self) -> Logits:
        """Process the texts, and return the logits of the first image token."""
        return self._guide(self._decoder.prefill())

    def decode_one_token(self, token: Tensor) -> Logits:
        """Process the latest image token, int64 [B], and return the logits of the next one."""
        if len(self._guided):
            token = torch.cat((token, token[self._guided]))  # [B + G]
        return self._guide(self._decoder.decode_one_token(token))

    def _guide(self, logits: Tensor) -> Logits:
        """Turn [B + G, V] into both kinds of logits; the same tensor if no image is guided."""
        conditional, empty = logits.float().tensor_split((self._images,))
        if not len(self._guided):
            return Logits(conditional, conditional)
        push = self._strength * (conditional[self._guided] - empty)
        return Logits(conditional, conditional.index_copy(0, self._guided, empty + push))
