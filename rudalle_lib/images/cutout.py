"""Cut the subject out of an image: the background becomes transparent, as for stickers.

A segmentation network finds the background. Without one, or if it is not confident, the background
is found by colour: the pixels that have the colour of the image's edge and are connected with it.
So the white of an eye is not background.

Source: `convert_emoji_to_rgba` of ai-forever/ru-dalle 1.1.3, with two differences. The original
resizes every image to 512 x 512 pixels; here images keep their size. Without a network, the
original treats all large white areas as background.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rudalle_lib.config.sections import CutoutConfig
from rudalle_lib.images.codecs import encode_image, to_floats
from rudalle_lib.images.file_threads import AT_ONCE, Pending, files_beside, submit_all
from rudalle_lib.images.resampling import resize
from rudalle_lib.images.rows import map_images
from rudalle_lib.models.efficient_unet import EfficientUnet
from rudalle_lib.runtime.batching import OnProgress, no_progress
from rudalle_lib.schema.records import CutoutRecord, PixelsRecord

Method = Literal["network", "colour"]
"""How the background was found."""

NETWORK_SIDE = 512
"""Height and width of the images that the published network was trained with."""

SUBJECT = 1
"""Class index of the subject; 0 is the background."""

TOLERANCE = 20
"""How much a background pixel may differ from the edge's colour in any channel, of 255."""

MIN_PLAIN_EDGE = 0.5
"""Share of the edge's pixels that must have one colour; otherwise the image stays opaque."""

MAX_BACKGROUND = 0.99
"""If more than this share of the pixels is background, the image is blank and stays opaque."""


@dataclass(frozen=True)
class Cutout:
    """The alpha channel of an image.

    Attributes:
        alpha: uint8 [H, W], 0 for the background and 255 elsewhere.
        method: how the background was found; None if none was found and the image stays opaque.
    """

    alpha: Tensor
    method: Method | None


@torch.inference_mode()
def cut_out(
    images: Tensor, network: EfficientUnet | None = None, min_confidence: float = 0.99
) -> list[Cutout]:
    """Find the background of images.

    Args:
        images: uint8 [N, 3, H, W], RGB, any size.
        network: separates subject and background; None uses only colour.
        min_confidence: in [0, 1]. The network's answer is used only if the mean probability of the
            chosen classes exceeds this.

    Returns:
        One cutout per image, on the CPU.

    Raises:
        ValueError: images of another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [N, 3, H, W], found {images.dtype} {list(images.shape)}")
    if network is None:
        return [by_colour(image.cpu()) for image in images]
    subject, confidence = subject_by_network(network, images)
    confident = (confidence > min_confidence) & subject.any(dim=(1, 2))
    return [
        Cutout(_alpha(mask), "network") if use_network else by_colour(image.cpu())
        for image, mask, use_network in zip(images, subject.cpu(), confident.tolist(), strict=True)
    ]


def subject_by_network(network: EfficientUnet, images: Tensor) -> tuple[Tensor, Tensor]:
    """Segment images.

    Args:
        network: in evaluation mode; its device and dtype are used.
        images: uint8 [N, 3, H, W].

    Returns:
        Where the subject is, bool [N, H, W], and the mean probability of the chosen classes,
        float32 [N] in [0, 1], on the network's device.
    """
    weight = next(network.parameters())
    square = resize(images.to(weight.device), NETWORK_SIDE, NETWORK_SIDE, "bicubic")
    probabilities = network(to_floats(square).to(weight.dtype)).float().softmax(dim=1)
    confidence = probabilities.amax(dim=1).mean(dim=(1, 2))
    size = (images.shape[2], images.shape[3])
    if size != (NETWORK_SIDE, NETWORK_SIDE):
        probabilities = F.interpolate(probabilities, size, mode="bilinear", antialias=True)
    return probabilities.argmax(dim=1) == SUBJECT, confidence


def by_colour(image: Tensor) -> Cutout:
    """Find the background by the colour of the image's edge.

    Args:
        image: uint8 [3, H, W] on the CPU.
    """
    opaque = Cutout(image.new_full(image.shape[1:], 255), None)
    pixels = image.int()
    sides = (pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1])
    colour = torch.cat(sides, dim=1).median(dim=1).values
    similar = ((pixels - colour[:, None, None]).abs() <= TOLERANCE).all(dim=0)  # [H, W]
    edge = torch.cat((similar[0], similar[-1], similar[:, 0], similar[:, -1]))
    if edge.float().mean() < MIN_PLAIN_EDGE:
        return opaque
    background = connected_with_edge(similar)
    if background.float().mean() > MAX_BACKGROUND:
        return opaque
    # Grow by one pixel: the subject's outermost pixels are mixed with the background.
    grown = F.max_pool2d(background[None].float(), 3, stride=1, padding=1)[0] > 0
    return Cutout(_alpha(~grown), "colour")


def connected_with_edge(free: Tensor) -> Tensor:
    """The 4-connected part of a mask that touches the edge of the image.

    Args:
        free: bool [H, W] on the CPU.

    Returns:
        bool [H, W].
    """
    # If one pixel of a horizontal or vertical run of free pixels is connected, the whole run is.
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
    """Number the runs of equal pixels in each row: int64 [H, W]."""
    starts = torch.ones_like(mask)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    return starts.flatten().cumsum(0).view(mask.shape)


def _alpha(subject: Tensor) -> Tensor:
    return subject.to(torch.uint8) * 255


def cut_out_rows(
    network: EfficientUnet | None,
    rows: Sequence[PixelsRecord],
    section: CutoutConfig,
    on_progress: OnProgress = no_progress,
) -> Pending[CutoutRecord]:
    """The cutout stage: make the background of images transparent, as PNG files.

    Files are encoded beside a GPU.

    Args:
        network: separates subject and background; None uses only colour.
        rows: images to cut out; all must have a file.
        section: minimum confidence and batch size.
        on_progress: called with the numbers of finished images and of all images.

    Returns:
        One row per image, in order.

    Raises:
        OutOfMemoryError: a single image does not fit into memory.
    """

    files = AT_ONCE if network is None else files_beside(next(network.parameters()).device)

    def work(batch: Sequence[int], images: Tensor) -> list[Future[CutoutRecord]]:
        cutouts = cut_out(images, network, section.min_confidence)
        return submit_all(files, _record, [rows[index] for index in batch], images, cutouts)

    what = "cutting out a single image"
    return Pending(map_images(rows, section.batch_size, work, what, on_progress, files))


def _record(row: PixelsRecord, image: Tensor, cutout: Cutout) -> CutoutRecord:
    file = encode_image(torch.cat((image, cutout.alpha[None])))
    return CutoutRecord(row.image_id, row.prompt_id, row.width, row.height, file, cutout.method)
