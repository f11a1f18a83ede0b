"""Cutting the subject out of a picture: its ground becomes transparent, as stickers need it.

By a segmentation network where it is sure of what it sees, otherwise by colour: what is connected
with the picture's edge and has the edge's colour is ground, so the white of an eye is none.

Source: `convert_emoji_to_rgba` of ai-forever/ru-dalle 1.1.3, which makes every picture 512 pixels
wide and high, and whose way without a network takes all large white areas for ground.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rudalle_lib.images import to_floats
from rudalle_lib.models.efficient_unet import EfficientUnet
from rudalle_lib.resampling import resize

Way = Literal["network", "colour"]
"""How a ground was found."""

NETWORK_SIDE = 512
"""Side of the pictures that the published network was trained with."""
SUBJECT = 1
"""The class of pixels that stay; 0 is the ground."""

TOLERANCE = 20
"""Levels of 255 that a pixel of the ground may differ from the edge's colour, in any channel."""
PLAIN_EDGE = 0.5
"""Share of the edge's pixels that must have one colour for it to be the ground's."""
ALL_GROUND = 0.99
"""Share of ground from which on nothing worth keeping is left."""


@dataclass(frozen=True)
class Cutout:
    """What stays of a picture: `alpha` uint8 [H, W], 0 for ground and 255 elsewhere.

    `way` is how the ground was found; None if there is none, and the picture stays as it is.
    """

    alpha: Tensor
    way: Way | None


@torch.inference_mode()
def cut_out(
    pictures: Tensor, network: EfficientUnet | None = None, min_confidence: float = 0.99
) -> list[Cutout]:
    """Find the ground of pictures.

    Args:
        pictures: uint8 [N, 3, H, W], RGB, any size.
        network: tells ground and subject apart; None goes by colour alone.
        min_confidence: mean probability of the chosen classes, in [0, 1], which the network must
            exceed for its word to count.

    Returns:
        A cutout a picture, on the CPU.

    Raises:
        ValueError: pictures of another type or shape.
    """
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
        raise ValueError(
            f"expected uint8 [N, 3, H, W], found {pictures.dtype} {list(pictures.shape)}"
        )
    if network is None:
        return [by_colour(picture.cpu()) for picture in pictures]
    subject, confidence = subject_by_network(network, pictures)
    trusted = (confidence > min_confidence) & subject.any(dim=(1, 2))
    return [
        Cutout(_alpha(mask), "network") if sure else by_colour(picture.cpu())
        for picture, mask, sure in zip(pictures, subject.cpu(), trusted.tolist(), strict=True)
    ]


def subject_by_network(network: EfficientUnet, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Where the subject is, bool [N, H, W], and how sure the network is, float [N] in [0, 1]."""
    weight = next(network.parameters())
    square = resize(pictures.to(weight.device), NETWORK_SIDE, NETWORK_SIDE, "bicubic")
    probabilities = network(to_floats(square).to(weight.dtype)).float().softmax(dim=1)
    confidence = probabilities.amax(dim=1).mean(dim=(1, 2))
    size = (pictures.shape[2], pictures.shape[3])
    if size != (NETWORK_SIDE, NETWORK_SIDE):
        probabilities = F.interpolate(probabilities, size, mode="bilinear", antialias=True)
    return probabilities.argmax(dim=1) == SUBJECT, confidence


def by_colour(picture: Tensor) -> Cutout:
    """A cutout by the colour of the picture's edge: uint8 [3, H, W]."""
    opaque = Cutout(picture.new_full(picture.shape[1:], 255), None)
    pixels = picture.int()
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    colour = torch.cat(sides, dim=1).median(dim=1).values
    alike = ((pixels - colour[:, None, None]).abs() <= TOLERANCE).all(dim=0)  # [H, W]
    edge = torch.cat((alike[0], alike[-1], alike[:, 0], alike[:, -1]))
    if edge.float().mean() < PLAIN_EDGE:
        return opaque
    ground = connected_with_edge(alike)
    if ground.float().mean() > ALL_GROUND:
        return opaque
    # One pixel more: the outermost of the subject is half ground.
    grown = F.max_pool2d(ground[None].float(), 3, stride=1, padding=1)[0] > 0
    return Cutout(_alpha(~grown), "colour")


def connected_with_edge(free: Tensor) -> Tensor:
    """The part of a mask bool [H, W] that hangs together, side by side, with its outermost pixels.

    Whoever is in a row or column of free pixels with one that is found, is found.
    """
    across, down = _runs(free), _runs(free.t()).t()
    found = free.clone()
    found[1:-1, 1:-1] = False
    count = -1
    while count != (count := int(found.sum())):
        for runs in (across, down):
            touched = torch.zeros(int(runs.max()) + 1, dtype=torch.bool)
            touched[runs[found]] = True
            found = free & touched[runs]
    return found


def _runs(mask: Tensor) -> Tensor:
    """A number for each run of equal pixels in a row: int64 [H, W]."""
    starts = torch.ones_like(mask)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return starts.flatten().cumsum(0).view(mask.shape)


def _alpha(subject: Tensor) -> Tensor:
    return subject.to(torch.uint8) * 255
