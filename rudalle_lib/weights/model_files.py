"""Check the files of a model without loading it: they are what they should be, and fit together.

A run calls this before anything is drawn, because weights of its last stage are needed hours later.
Only the lists of tensors are read, not the tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.efficient_unet import EfficientUnet, EfficientUnetConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.ruclip_small import RuClipSmall, RuClipSmallConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.registry import ModelEntry
from rudalle_lib.text.gpt2_tokenizer import Gpt2Tokenizer
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.weights.checkpoints import (
    check_match,
    list_tensors,
    without_classifier,
    without_gpt2_masks,
    without_loss,
    without_masks,
)
from rudalle_lib.weights.files import Files
from rudalle_lib.weights.loading import make_network, network_config
from rudalle_lib.weights.marian import check_marian
from rudalle_lib.weights.second_scorer import check_open_clip

Tensors = dict[str, Any]


class Blueprint(NamedTuple):
    """How a network is built, and which tensors of its file are left out."""

    config: type
    network: Callable[[Any], torch.nn.Module]
    clean: Callable[[Tensors], Tensors] = dict


BLUEPRINTS = {
    "decoder": Blueprint(DalleConfig, Dalle, without_masks),
    "vqgan": Blueprint(VqGanConfig, VqGan, without_loss),
    "scorer": Blueprint(RuClipConfig, RuClip),
    "small scorer": Blueprint(RuClipSmallConfig, RuClipSmall, without_gpt2_masks),
    "upscaler": Blueprint(RrdbNetConfig, RrdbNet),
    "segmenter": Blueprint(EfficientUnetConfig, EfficientUnet, without_classifier),
}
"""How networks are built, by kind."""


def check_files(entry: ModelEntry, files: Files) -> None:
    """Check that the files of a model can be read and fit together.

    Args:
        entry: the model.
        files: path by role.

    Raises:
        WeightsError: a file is something else, such as the pointer of a large file, is damaged or
            unsafe, or does not fit the network.
    """
    if entry.kind == "translator":
        check_marian(files["weights"].parent)
        return
    if entry.kind == "open_clip":
        check_open_clip(files)
        return
    if "tokenizer" in files:
        Tokenizer.load(files["tokenizer"])
    if "merges" in files:
        Gpt2Tokenizer.load(files["vocabulary"], files["merges"])
    kind = "small scorer" if entry.kind == "scorer" and "merges" in files else entry.kind
    blueprint = BLUEPRINTS[kind]
    tensors = blueprint.clean(dict(list_tensors(files["weights"])))
    config: Any = network_config(entry, files, blueprint.config)
    with torch.device("meta"):  # takes no memory
        network = make_network(entry, files, blueprint.network, config)
    check_match(network.state_dict(), tensors, files["weights"])
