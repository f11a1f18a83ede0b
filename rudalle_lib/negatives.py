"""How likely a picture's own text is among other texts: CLIP's zero-shot probability.

A cosine says little by itself, and differs from prompt to prompt; weighed against texts that must
not fit, such as "a blurred picture", it becomes a probability.

Paper: Radford et al., arXiv 2103.00020, section 3.1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def probabilities(images: Tensor, texts: Tensor, negatives: Tensor, logit_scale: float) -> Tensor:
    """Probability of each picture's own text against all negative ones.

    Args:
        images: unit features of pictures, float32 [N, E].
        texts: unit features of the text of each, float32 [N, E].
        negatives: unit features of the negative texts, float32 [M, E].
        logit_scale: what the model multiplies cosines with, the exponential of its parameter.

    Returns:
        float32 [N], softmax over 1 + M scaled cosines.
    """
    own = (images * texts).sum(dim=1, keepdim=True)  # [N, 1]
    cosines = torch.cat((own, images @ negatives.T), dim=1)  # [N, 1 + M]
    return (logit_scale * cosines).softmax(dim=1)[:, 0]
