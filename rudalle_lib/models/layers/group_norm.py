"""Group norm, and SiLU after it, of images in channels-last layout.

Convolutions on GPUs are fastest in that layout. PyTorch's group norm has a kernel for contiguous
images only: on a GPU it copies its input into that layout, and the next convolution copies the
result back. The kernels of `group_norm_kernels` need neither copy, and compute SiLU on the way:
three passes over the image in memory instead of nine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from rudalle_lib.models.layers.triton_support import can_launch

MAX_CHANNELS = 1024
"""Most channels of an image; a program of the kernels holds several pixels of all channels."""


def normalise(norm: nn.GroupNorm, x: Tensor, activate: bool = True) -> Tensor:
    """Apply a group norm.

    Args:
        norm: the norm.
        x: [B, C, H, W].
        activate: apply SiLU to the result.

    Returns:
        [B, C, H, W], in the layout of `x` if that is channels-last on a GPU.
    """
    if can_fuse(norm, x):
        from rudalle_lib.models.layers.group_norm_kernels import normalise_channels_last

        return normalise_channels_last(norm, x, activate)
    normalised = norm(x)
    # In place if gradients are disabled, which saves a tensor per layer.
    in_place = not torch.is_grad_enabled()
    return functional.silu(normalised, inplace=in_place) if activate else normalised


def can_fuse(norm: nn.GroupNorm, x: Tensor) -> bool:
    """Whether the kernels can compute a norm."""
    channels = norm.num_channels
    return (
        not torch.is_grad_enabled()
        and x.is_contiguous(memory_format=torch.channels_last)
        and channels & (channels - 1) == 0
        and channels <= MAX_CHANNELS
        and can_launch(x.device)
    )
