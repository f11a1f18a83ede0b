"""Turn prompts into scored images: everything of rudalle-flows that is true without Prefect.

What a script needs is at hand by name (`from rudalle_lib import draw_images`), and imported, with
PyTorch, when it is first asked for.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rudalle_lib.api.finished_run import read_run
    from rudalle_lib.api.images import (
        cut_out_images,
        draw_images,
        rank_images,
        upscale_images,
    )
    from rudalle_lib.dataset.frames import read_images, read_rejects
    from rudalle_lib.generation.sampling import SamplingSettings
    from rudalle_lib.images.codecs import to_pil
    from rudalle_lib.weights.loading import (
        load_decoder,
        load_scorer,
        load_segmenter,
        load_upscaler,
        load_vqgan,
    )

__all__ = [
    "SamplingSettings",
    "cut_out_images",
    "draw_images",
    "load_decoder",
    "load_scorer",
    "load_segmenter",
    "load_upscaler",
    "load_vqgan",
    "rank_images",
    "read_images",
    "read_rejects",
    "read_run",
    "to_pil",
    "upscale_images",
]

_HOMES = {
    "SamplingSettings": "generation.sampling",
    "cut_out_images": "api.images",
    "draw_images": "api.images",
    "load_decoder": "weights.loading",
    "load_scorer": "weights.loading",
    "load_segmenter": "weights.loading",
    "load_upscaler": "weights.loading",
    "load_vqgan": "weights.loading",
    "rank_images": "api.images",
    "read_images": "dataset.frames",
    "read_rejects": "dataset.frames",
    "read_run": "api.finished_run",
    "to_pil": "images.codecs",
    "upscale_images": "api.images",
}

_FORMER = {
    "cut_out_pictures": "cut_out_images",
    "draw_pictures": "draw_images",
    "enlarge_pictures": "upscale_images",
    "rank_pictures": "rank_images",
}
"""Names of 0.1."""


def __getattr__(name: str) -> Any:
    """Import a name from its module."""
    if name in _FORMER:
        current = _FORMER[name]
        warnings.warn(f"{name} is now called {current}", DeprecationWarning, stacklevel=2)
        name = current
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
