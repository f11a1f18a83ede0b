"""Classifier-free guidance ("super-conditioning"): logits pushed away from those of an empty text.

Every guided image runs through the decoder twice in one batch, with its own text and with an empty
one, and its logits become `empty + guidance * (own - empty)`. The empty text's keys and values
are computed once and shared. Images with guidance 1 are not doubled: they cost what they did.

Paper: Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598; for image tokens:
Crowson's super-conditioning, and Gafni et al., arXiv:2203.13131, section 3.4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.kv_cache import CachedDecoder

NO_GUIDANCE = 1.0


class Logits(NamedTuple):
    """Of the next token, float32 [B, V]: `own` is the model's, `guided` is what to draw from."""

    own: Tensor
    guided: Tensor


class GuidedDecoder:
    """Draws the image tokens of a batch one after another, each image with its own guidance.

    Args:
        model: the network, on its device and in its dtype.
        text: int64 [P, text_length], text ids of the prompts, 0 = pad.
        prompt_of: int64 [B], the prompt of each image.
        guidance: float32 [B]; 1 is none.
        empty_text: int64 [text_length], ids of the empty text; None where nothing is guided.
    """

    def __init__(
        self,
        model: Dalle,
        text: Tensor,
        prompt_of: Tensor,
        guidance: Tensor,
        empty_text: Tensor | None = None,
    ) -> None:
        self._guided = (guidance != NO_GUIDANCE).nonzero()[:, 0]  # [G], of the images
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
        """Read the texts. Returns the logits of the first image token."""
        return self._guide(self._decoder.prefill())

    def decode_one_token(self, token: Tensor) -> Logits:
        """Read the image token drawn last, int64 [B]. Returns the logits of the next."""
        if len(self._guided):
            token = torch.cat((token, token[self._guided]))  # [B + G]
        return self._guide(self._decoder.decode_one_token(token))

    def _guide(self, logits: Tensor) -> Logits:
        """[B + G, V] -> [B, V] twice; one and the same tensor where nothing is guided."""
        own, empty = logits.float().tensor_split((self._images,))
        if not len(self._guided):
            return Logits(own, own)
        push = self._strength * (own[self._guided] - empty)
        return Logits(own, own.index_copy(0, self._guided, empty + push))
