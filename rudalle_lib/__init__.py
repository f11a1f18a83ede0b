"""Turn prompts into scored images: everything of rudalle-flows that is true without Prefect.

What a script needs is at hand by name (`from rudalle_lib import draw_pictures`), and imported, with
PyTorch, when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rudalle_lib.images import to_pil
    from rudalle_lib.pictures import (
        cut_out_pictures,
        draw_pictures,
        enlarge_pictures,
        rank_pictures,
    )
    from rudalle_lib.sampling import SamplingSettings
    from rudalle_lib.weights import (
        load_decoder,
        load_scorer,
        load_segmenter,
        load_upscaler,
        load_vqgan,
    )

__all__ = [
    "SamplingSettings",
    "cut_out_pictures",
    "draw_pictures",
    "enlarge_pictures",
    "load_decoder",
    "load_scorer",
    "load_segmenter",
    "load_upscaler",
    "load_vqgan",
    "rank_pictures",
    "to_pil",
]

_HOMES = {
    "SamplingSettings": "sampling",
    "cut_out_pictures": "pictures",
    "draw_pictures": "pictures",
    "enlarge_pictures": "pictures",
    "load_decoder": "weights",
    "load_scorer": "weights",
    "load_segmenter": "weights",
    "load_upscaler": "weights",
    "load_vqgan": "weights",
    "rank_pictures": "pictures",
    "to_pil": "images",
}


def __getattr__(name: str) -> Any:
    """Import a name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
