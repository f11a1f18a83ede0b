"""The network of a fine-tuning: as it starts, and with what it has learnt."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from rudalle_lib.config.fine_tune import FineTuneConfig
from rudalle_lib.training.checkpoints import load_learnt, read_learnt
from rudalle_lib.training.decoder import trained_decoder
from rudalle_lib.training.vqgan import prepare_vqgan
from rudalle_lib.weights.loading import load_decoder, load_scorer, load_vqgan


def learnt_network(config: FineTuneConfig, learnt: Path) -> nn.Module:
    """The network of a fine-tuning with what it has learnt, in float32 on the CPU.

    Args:
        config: the fine-tuning.
        learnt: file with the tensors that have learnt.

    Raises:
        TrainingError: the file is missing or damaged.
        WeightsError: the weights of the base cannot be read, or the file is of another training.
    """
    if config.trains == "decoder":
        decoder = load_decoder(config.base_model, config.weights, packed=False).model
        return trained_decoder(decoder, config.training, learnt)
    network: nn.Module
    if config.trains == "vqgan":
        vqgan = load_vqgan(config.base_model, config.weights).model
        network = prepare_vqgan(vqgan, config.training)
    else:
        ruclip = load_scorer(config.base_model, config.weights, packed=False).model
        network = ruclip.requires_grad_(True)
    load_learnt(network, read_learnt(learnt), str(learnt))
    return network.requires_grad_(False)
