"""Which cells see which: every kind of attention layer, for tests of all of them."""

from __future__ import annotations

from rudalle_lib.models.sparse_attention import LayerKind

PATTERNS = (*((kind, False) for kind in LayerKind), (LayerKind.CONVOLUTION, True))
"""Kinds of layers, and whether their pattern wraps around the edges: only convolutions do."""
