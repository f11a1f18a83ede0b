"""The one place that decides how exactly GPUs compute.

PyTorch's defaults trade digits for speed: convolutions of float32 run in TF32, with 10 bits instead
of 23, sums of 16-bit products may be rounded on the way, and cuDNN may choose another algorithm for
another batch. An image would then differ between batches, and a replay from its run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""Workspace of cuBLAS with which products are the same bits on any stream; an environment variable
that is set already is kept."""


def make_reproducible(devices: Iterable[torch.device]) -> None:
    """Set PyTorch's switches for GPUs; called before a network is loaded. CPUs need none.

    The switches are those of the whole process.

    Args:
        devices: on which something is to be computed.
    """
    if all(device.type != "cuda" for device in devices):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    matmul.allow_fp16_accumulation = False
    cudnn.allow_tf32 = False
    cudnn.benchmark = False
    cudnn.deterministic = True
