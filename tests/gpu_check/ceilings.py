"""What the device can do at most: copying memory, and products in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.gpu_check.results import Check, measured
from tests.gpu_check.scale import Scale, seconds_of


def copy_rate(device: torch.device, scale: Scale) -> float:
    """Bytes read and written per second by a copy."""
    source = torch.zeros(scale.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * scale.copy_bytes / seconds_of(lambda: target.copy_(source), device)


def product_rate(device: torch.device, scale: Scale, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large product."""
    size = scale.product_size
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Measure both."""
    rate = copy_rate(device, scale)
    yield measured("ceiling: copy", f"{rate / 1e12:.2f} TB/s", bytes_per_second=rate)
    for dtype in (torch.bfloat16, torch.float32):
        rate = product_rate(device, scale, dtype)
        name = str(dtype).removeprefix("torch.")
        yield measured(f"ceiling: {name} product", f"{rate / 1e12:.1f} TFLOP/s", flops=rate)
