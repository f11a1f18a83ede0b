"""Networks with the weights of the golden files against what the originals computed from them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from torch import Tensor

from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.models.dalle import STORED_MASKS, Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from tests.gpu_check.results import Check, judged
from tests.parity.goldens import GOLDENS, load_golden
from tests.parity.test_vqgan_parity import architecture

LARGEST_ERROR = 1e-4
"""Largest difference in float32 from what the originals computed: that of the parity tests."""


def decoders(device: torch.device) -> Iterator[Check]:
    """Compare logits and drawn tokens with those of rudalle 1.1.3."""
    for version in ("v2", "v3"):
        golden = torch.load(GOLDENS / f"dalle_{version}_outputs.pt", weights_only=True)
        state = torch.load(GOLDENS / f"dalle_{version}.bin", weights_only=True)
        model = Dalle(DalleConfig(**golden["architecture"]))
        model.load_state_dict({name: state[name] for name in state if name not in STORED_MASKS})
        model.to(device).eval()
        yield compare(
            f"logits of rudalle, {version}", model(golden["tokens"].to(device)), golden["logits"]
        )
        text = golden["tokens"][:, : model.config.text_length]
        images = torch.arange(len(text))
        settings = SamplingSettings(**golden["sampling"])
        drawn = generate_tokens(model, text, images, images, settings, 8).tokens
        same = (drawn == golden["drawn_tokens"]).double().mean().item()
        yield judged(
            f"golden tokens of rudalle, {version}", same == 1, f"{same:.2%} equal", "100%",
            share=same,
        )  # fmt: skip


def image_networks(device: torch.device) -> Iterator[Check]:
    """Compare the networks after the decoder with rudalle 1.1.3 and ruclip 0.0.2."""
    golden = load_golden("vqgan")
    vqgan = VqGan(VqGanConfig(**architecture(golden, dwt=False)))
    vqgan.load_state_dict(golden.state(seed=1))
    vqgan.to(device).eval()
    decoded = (vqgan.decode(golden["tokens"].view(1, 8, 8).to(device)) + 1) / 2
    yield compare("pixels of VQ-GAN", decoded, golden["decoded"])

    golden = load_golden("rrdbnet_x2")
    names = {"num_feat": "num_features", "num_block": "num_blocks", "num_grow_ch": "growth"}
    sizes = {names.get(key, key): value for key, value in golden.config.items()}
    rrdbnet = RrdbNet(RrdbNetConfig(**sizes))
    rrdbnet.load_state_dict(golden.state(seed=3))
    upscaled = rrdbnet.to(device).eval()(golden["picture"].to(device))
    yield compare("pixels of Real-ESRGAN", upscaled, golden["enlarged"])

    golden = load_golden("ruclip")
    config = json.loads((GOLDENS / "ruclip" / "config.json").read_text("utf-8"))
    ruclip = RuClip(RuClipConfig(**config))
    ruclip.load_state_dict(golden.state(seed=2))
    ruclip.to(device).eval()
    pixels, ids = golden["pixel_values"].to(device), golden["input_ids"].to(device)
    yield compare("image features of ruCLIP", ruclip.encode_image(pixels), golden["image_features"])
    yield compare("text features of ruCLIP", ruclip.encode_text(ids), golden["text_features"])


def compare(what: str, found: Tensor, expected: Tensor) -> Check:
    """Judge the largest difference between two tensors."""
    error = (found.cpu() - expected).abs().max().item()
    return judged(
        f"golden {what}", error <= LARGEST_ERROR, f"largest error {error:.1e}",
        f"{LARGEST_ERROR:.0e}", error=error,
    )  # fmt: skip


@torch.inference_mode()
def checks(device: torch.device) -> Iterator[Check]:
    """All networks."""
    yield from decoders(device)
    yield from image_networks(device)
