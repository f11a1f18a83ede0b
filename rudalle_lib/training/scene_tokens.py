"""Image tokens of scenes, laid together from those of their figures.

The norms of a VQ-GAN encoder look at the whole picture, so that a second figure changes a fifth of
the codes of the first: noise that no decoder can foresee, and the greater part of its loss. Here
every figure is encoded alone, in the middle of its ground, once; as positions are whole tokens,
its patch of codes is the same wherever it lies. The pictures that such tokens decode to pass the
checker as often as those of the encoder's own tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rudalle_lib.demo.drawing import draw_placements
from rudalle_lib.demo.scenes import MARGIN, PICTURE, STEP, Placement
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.vqgan import to_float

GRID = PICTURE // STEP


class SceneTokens:
    """Lays tokens of scenes together; keeps the patches of the figures it has seen."""

    def __init__(self, vqgan: VqGan) -> None:
        self._vqgan = vqgan
        self._grounds: dict[str, int] = {}
        self._patches: dict[tuple[object, ...], NDArray[np.int16]] = {}

    def __call__(self, ground: str, placements: Sequence[Placement]) -> NDArray[np.int16]:
        """Tokens of a picture of these figures; int16 [16, 16]."""
        plain = self._plain(ground)
        tokens = np.full((GRID + 2, GRID + 2), plain, np.int16)  # with a border for the patches
        for placed in placements:
            patch = self._patch(ground, placed)
            top, left = placed.top // STEP, placed.left // STEP
            box = tokens[top : top + patch.shape[0], left : left + patch.shape[1]]
            box[patch != plain] = patch[patch != plain]
        return tokens[1:-1, 1:-1]

    def _plain(self, ground: str) -> int:
        """The code of a ground with nothing on it."""
        if ground not in self._grounds:
            codes, counts = np.unique(self._encode(ground, ()), return_counts=True)
            self._grounds[ground] = int(codes[counts.argmax()])
        return self._grounds[ground]

    def _patch(self, ground: str, placed: Placement) -> NDArray[np.int16]:
        """Codes of a figure and of one token around it, wherever it lies."""
        width, height = placed.width, placed.height
        left, top = ((PICTURE - side) // 2 // STEP * STEP + MARGIN for side in (width, height))
        figure = placed.figure
        key = (figure.shape, figure.colour, ground, width, height, placed.angle)
        if key not in self._patches:
            alone = Placement(figure, left, top, width, height, placed.angle)
            rows = slice(top // STEP - 1, -(-(top + height) // STEP) + 1)
            columns = slice(left // STEP - 1, -(-(left + width) // STEP) + 1)
            self._patches[key] = self._encode(ground, (alone,))[rows, columns]
        return self._patches[key]

    @torch.no_grad()
    def _encode(self, ground: str, placements: tuple[Placement, ...]) -> NDArray[np.int16]:
        """The VQ-GAN's own tokens of a picture; int16 [16, 16]."""
        with torch.autocast("cpu", torch.bfloat16):
            features = self._vqgan.encode_features(
                to_float(draw_placements(ground, placements)[None])
            )
        tokens: NDArray[np.int16] = (
            self._vqgan.code_logits(features.float()).argmax(1)[0].to(torch.int16).numpy()
        )
        return tokens
