"""Images with the same prompt multiply one copy of its text, in one matrix product."""

from __future__ import annotations

import copy
from typing import Protocol, Self

import torch
from torch import Tensor


class PromptSharing(Protocol):
    """Which image of a batch has which prompt."""

    images: int
    """Number of images B."""

    def product(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """Multiply the vectors of each image by the matrices of its prompt.

        Args:
            vectors: [B, heads, X], one per image.
            matrices: [P, heads, X, Y], one per prompt.

        Returns:
            [B, heads, Y].
        """

    def to(self, device: torch.device) -> Self:
        """Return a copy with its index tables on another device."""


class Replicas:
    """A `PromptSharing` for any batch.

    Images are laid out as [P, R], where R is the largest number of images per prompt, so that one
    matrix product per prompt serves all its images; unused places repeat the first image of the
    batch. If the images already are in this order, with equally many per prompt, index tables are
    not used.

    Args:
        prompt_of: int64 [B], the prompt of each image, 0 ... prompts - 1.
        prompts: number of prompts P.
    """

    def __init__(self, prompt_of: Tensor, prompts: int) -> None:
        self.images = len(prompt_of)
        same = prompt_of[:, None] == prompt_of[None, :]  # [B, B]
        rank = same.tril(-1).sum(1)  # [B], of each image among those of its prompt
        max_images = int(rank.max()) + 1
        all_images = torch.arange(len(prompt_of), device=prompt_of.device)
        self.place = prompt_of * max_images + rank  # [B], of each image in the layout
        image = torch.zeros(prompts * max_images, dtype=torch.int64, device=prompt_of.device)
        image[self.place] = all_images
        self.image = image.view(prompts, max_images)  # [P, R], the image at each place
        self._in_order = len(image) == len(all_images) and torch.equal(self.place, all_images)

    def product(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """See `PromptSharing`. [B, heads, X] and [P, heads, X, Y] -> [B, heads, Y]."""
        return self.by_image(self.by_prompt(vectors) @ matrices)

    def to(self, device: torch.device) -> Self:
        """Return a copy with its index tables on another device."""
        moved = copy.copy(self)
        moved.place, moved.image = self.place.to(device), self.image.to(device)
        return moved

    def by_prompt(self, vectors: Tensor) -> Tensor:
        """Gather vectors per prompt. [B, heads, D] -> [P, heads, R, D]."""
        if self._in_order:
            return vectors.unflatten(0, self.image.shape).transpose(1, 2)
        return vectors[self.image].transpose(1, 2)

    def by_image(self, products: Tensor) -> Tensor:
        """Undo `by_prompt`. [P, heads, R, D] -> [B, heads, D]."""
        by_place = products.transpose(1, 2).flatten(0, 1)
        return by_place if self._in_order else by_place[self.place]


class GuidedReplicas:
    """A `PromptSharing` for guidance: the last images all have the last prompt.

    That prompt has far more images than any other, so in the layout of `Replicas` most places of
    the other prompts would be unused.

    Args:
        prompt_of: int64 [B], the prompt of each image; the last `unguided` have the last prompt.
        prompts: number of prompts P, including the last one.
        unguided: number of images with the last prompt, at least 1.
    """

    def __init__(self, prompt_of: Tensor, prompts: int, unguided: int) -> None:
        self.images = len(prompt_of)
        self._prompted = len(prompt_of) - unguided
        self._replicas = Replicas(prompt_of[: self._prompted], prompts - 1)

    def product(self, vectors: Tensor, matrices: Tensor) -> Tensor:
        """See `PromptSharing`. [B, heads, X] and [P, heads, X, Y] -> [B, heads, Y]."""
        prompted, unguided = vectors.tensor_split((self._prompted,))
        of_unguided = unguided.transpose(0, 1) @ matrices[-1]  # [heads, unguided, Y]
        of_prompted = self._replicas.product(prompted, matrices[:-1])
        return torch.cat((of_prompted, of_unguided.transpose(0, 1)))

    def to(self, device: torch.device) -> Self:
        """Return a copy with its index tables on another device."""
        moved = copy.copy(self)
        moved._replicas = self._replicas.to(device)
        return moved
