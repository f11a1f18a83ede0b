"""Images of a batch that read the same text multiply it together, not each a copy of it."""

import copy
from typing import Protocol, Self

import torch
from torch import Tensor


class TextSharing(Protocol):
    """Which image of a batch reads which text."""

    images: int

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, X] times its text's [P, heads, X, Y] for each image: [B, heads, Y]."""

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""


class Replicas:
    """Which images of a batch share a prompt, as index tables.

    Images are laid out as [prompts, R], R being the largest number of images of one prompt, so
    that one matrix product per prompt serves all its images; spare places repeat the first image.
    Images that come in that order already, equally many of each prompt, need no tables.

    Args:
        prompt_of: int64 [B], the prompt of each image, 0 ... prompts - 1.
        prompts: number of prompts.
    """

    def __init__(self, prompt_of: Tensor, prompts: int) -> None:
        self.images = len(prompt_of)
        same = prompt_of[:, None] == prompt_of[None, :]  # [B, B]
        rank = same.tril(-1).sum(1)  # of each image among those of its prompt
        most = int(rank.max()) + 1
        everyone = torch.arange(len(prompt_of), device=prompt_of.device)
        self.place = prompt_of * most + rank  # [B], of each image in the layout
        image = torch.zeros(prompts * most, dtype=torch.int64, device=prompt_of.device)
        image[self.place] = everyone
        self.image = image.view(prompts, most)  # [P, R], the image at each place
        self._in_order = len(image) == len(everyone) and torch.equal(self.place, everyone)

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, X] times its prompt's [P, heads, X, Y] for each image: [B, heads, Y]."""
        return self.by_image(self.by_prompt(images) @ matrices)

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""
        moved = copy.copy(self)
        moved.place, moved.image = self.place.to(device), self.image.to(device)
        return moved

    def by_prompt(self, images: Tensor) -> Tensor:
        """[B, heads, D] -> [P, heads, R, D]."""
        if self._in_order:
            return images.unflatten(0, self.image.shape).transpose(1, 2)
        return images[self.image].transpose(1, 2)

    def by_image(self, prompts: Tensor) -> Tensor:
        """[P, heads, R, D] -> [B, heads, D]."""
        by_place = prompts.transpose(1, 2).flatten(0, 1)
        return by_place if self._in_order else by_place[self.place]


class GuidedReplicas:
    """Images of some prompts, followed by images that all read one more text, the last.

    In a common layout that text, with far more images than any other, would fill it with spares.

    Args:
        prompt_of: int64 [B], the text of each image; the last `unguided` have the last one.
        prompts: number of texts, the last one included.
        unguided: images of the last text, at least 1.
    """

    def __init__(self, prompt_of: Tensor, prompts: int, unguided: int) -> None:
        self.images = len(prompt_of)
        self._prompted = len(prompt_of) - unguided
        self._replicas = Replicas(prompt_of[: self._prompted], prompts - 1)

    def product(self, images: Tensor, matrices: Tensor) -> Tensor:
        """[B, heads, X] times its text's [P, heads, X, Y] for each image: [B, heads, Y]."""
        prompted, others = images.tensor_split((self._prompted,))
        one_text = others.transpose(0, 1) @ matrices[-1]  # [heads, B of these, Y]
        by_prompt = self._replicas.product(prompted, matrices[:-1])
        return torch.cat((by_prompt, one_text.transpose(0, 1)))

    def to(self, device: torch.device) -> Self:
        """The same with its tables on another device."""
        moved = copy.copy(self)
        moved._replicas = self._replicas.to(device)
        return moved
