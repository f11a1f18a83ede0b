"""Images per second of the networks after the decoder, at their published sizes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rudalle_lib import registry
from rudalle_lib.images.codecs import to_uint8
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig, optimize_for_inference
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.runtime.devices import best_image_dtype, resolve_dtype
from rudalle_lib.text.tokenizer import Tokenizer
from tests.benchmarks.timing import CLIP_PIECES
from tests.gpu_check.results import Check, judged, measured
from tests.gpu_check.scale import Scale, seconds_of

LEAST_PSNR = 45.0
"""Least similarity, in dB, of an image in bfloat16 to the same one in float32."""


@torch.inference_mode()
def vqgan(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Decode random tokens."""
    torch.manual_seed(0)
    name = best_image_dtype([device])
    network = VqGan(VqGanConfig(**registry.get("vqgan-f8").architecture)).eval().to(device)
    tokens = torch.randint(0, 8192, (scale.images, 32, 32), device=device)
    exact = network.decode(tokens[:1])
    network.use_dtype(resolve_dtype(name, device))
    error = (network.decode(tokens[:1]) - exact).square().mean()
    psnr = (4.0 / error).log10().item() * 10 if error else 999.0
    yield judged(
        f"VQ-GAN in {name}, PSNR to float32", psnr >= LEAST_PSNR, f"{psnr:.1f} dB",
        f"{LEAST_PSNR:.0f} dB", psnr=psnr,
    )  # fmt: skip
    seconds = seconds_of(lambda: to_uint8(network.decode(tokens), -1.0, 1.0).cpu(), device, 1)
    yield _rate(f"VQ-GAN in {name}, to 256 px", scale.images / seconds)


@torch.inference_mode()
def super_resolution(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Upscale random images."""
    name = best_image_dtype([device])
    network = RrdbNet(RrdbNetConfig(scale=2)).eval().to(device)
    network.use_dtype(resolve_dtype(name, device))
    side = 256 if device.type == "cuda" else 32
    images = torch.randint(0, 256, (scale.images, 3, side, side), dtype=torch.uint8)
    seconds = seconds_of(lambda: upscale(network, images, 8), device, 1)
    yield _rate(f"Real-ESRGAN x2 in {name}, from {side} px", scale.images / seconds)


@torch.inference_mode()
def ruclip(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Score random images."""
    name = best_image_dtype([device])
    network = RuClip(RuClipConfig()).eval().to(device, resolve_dtype(name, device))
    optimize_for_inference(network)
    scorer = Scorer(network, Tokenizer.load(CLIP_PIECES))
    images = torch.randint(0, 256, (scale.images, 3, 256, 256), dtype=torch.uint8)
    texts = ["красный круг"] * scale.images
    seconds = seconds_of(lambda: scorer.score(images, texts), device, 1)
    yield _rate(f"ruCLIP in {name}", scale.images / seconds)


def _rate(what: str, rate: float) -> Check:
    return measured(what, f"{rate:.1f} images/s", images_per_second=rate)


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Measure all three."""
    for network in (vqgan, super_resolution, ruclip):
        yield from network(device, scale)
