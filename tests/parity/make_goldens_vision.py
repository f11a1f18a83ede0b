"""Make the golden outputs of the reference VQ-GAN, DWT decoder, ruCLIP and Real-ESRGAN.

Run this from the root of the repository in a separate environment with rudalle==1.1.3,
ruclip==0.0.2, taming-transformers==0.0.1 (all `--no-deps`) and what they import:

    python -m tests.parity.make_goldens_vision

The networks are made small by constructor arguments and have the weights of `random_weights`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity import peer_stand_ins
from tests.parity.random_weights import random_state

GOLDENS = Path(__file__).resolve().parent.parent / "data" / "parity"
"""Folder of the golden files."""

VQGAN = dict(
    double_z=False, z_channels=32, resolution=64, in_channels=3, out_ch=3, ch=32,
    ch_mult=[1, 1, 2, 4], num_res_blocks=2, attn_resolutions=[8], dropout=0.0,
)  # fmt: skip
CODES = 64
RUCLIP = dict(
    embed_dim=48, image_resolution=32, vision_layers=2, vision_width=128, vision_patch_size=8,
    context_length=24, vocab_size=160, transformer_width=64, transformer_heads=4,
    transformer_layers=2,
)  # fmt: skip
UPSCALER = dict(num_feat=16, num_block=2, num_grow_ch=8)
CAPTIONS = [
    "большой красный квадрат слева от синего круга",
    "  Чёрный КРЕСТ на белом фоне ",
    "жёлтая полоса",
    "",
    "two circles, 100% abstract: {} ☭",
    "маленький зелёный треугольник над оранжевой полосой на чёрном фоне, супрематизм, холст, масло",
]
IMAGE_SIZES = [(48, 48), (32, 32), (20, 45), (90, 30)]
"""Height and width of ruCLIP's images."""


def main() -> None:
    """Write all golden files."""
    torch.set_num_threads(1)
    peer_stand_ins.install()
    GOLDENS.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        make_vqgan("vqgan", dwt=False)
        make_vqgan("vqgan_dwt", dwt=True)
        make_ruclip()
        for scale in (2, 4, 8):
            make_rrdbnet(scale)
        make_upscaling()


def make_vqgan(name: str, dwt: bool) -> None:
    """Write token indices of an image, and the image of given tokens."""
    from omegaconf import OmegaConf
    from rudalle.vae.model import VQGanGumbelVAE

    parameters = {"ddconfig": VQGAN, "n_embed": CODES, "embed_dim": 32, "kl_weight": 1e-8}
    vae = VQGanGumbelVAE(OmegaConf.create({"model": {"params": parameters}}), dwt=dwt).eval()
    # get_vae loads the plain checkpoint into `vae.model`, the DWT one into `vae`.
    network = vae if dwt else vae.model
    shapes = fill(network, seed=1, keep=("idwt",))
    image = random_image(64, 64).float()[None] / 255  # [1, 3, 64, 64]
    indices = vae.get_codebook_indices(image, disable_gumbel_softmax=True)
    logits = vae.model.quantize.proj(vae.model.quant_conv(vae.model.encoder(2 * image - 1)))
    margin = logits.topk(2, dim=1).values.diff(dim=1).abs().min()
    assert margin > 1e-3, f"two codes nearly tie (margin {margin}): choose another seed"
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, CODES, (1, 64)))
    constants = {key: t for key, t in network.state_dict().items() if "idwt" in key}
    save(
        name, shapes, config={**VQGAN, "n_embed": CODES},
        picture=image, indices=indices, logits=logits, tokens=tokens,
        decoded=vae.decode(tokens), **constants,
    )  # fmt: skip


def make_ruclip() -> None:
    """Write preprocessed images, ids, features and logits from the reference's predictor."""
    from PIL import Image
    from ruclip import CLIP, Predictor, RuCLIPProcessor

    folder = GOLDENS / "ruclip"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(RUCLIP, indent=2) + "\n")
    train_tokenizer(folder / "bpe.model")
    model = CLIP(**RUCLIP).eval()
    shapes = fill(model, seed=2)
    processor = RuCLIPProcessor.from_pretrained(folder)
    arrays = [random_image(*size).permute(1, 2, 0).numpy() for size in IMAGE_SIZES]
    images = [Image.fromarray(array) for array in arrays]
    inputs = processor(text=CAPTIONS, images=images)
    logits_per_image, logits_per_text = model(inputs["input_ids"], inputs["pixel_values"])
    predictor = Predictor(model, processor, "cpu", bs=3, quiet=True)
    save(
        "ruclip", shapes, config={"captions": CAPTIONS},
        **{f"picture{index}": torch.from_numpy(array) for index, array in enumerate(arrays)},
        **inputs,
        image_features=model.encode_image(inputs["pixel_values"]),
        text_features=model.encode_text(inputs["input_ids"]),
        logits_per_image=logits_per_image, logits_per_text=logits_per_text,
        text_latents=predictor.get_text_latents(CAPTIONS),
        image_latents=predictor.get_image_latents(images),
    )  # fmt: skip


def train_tokenizer(path: Path) -> None:
    """Train a tokenizer of 160 pieces on the captions."""
    import youtokentome

    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as corpus:
        corpus.write("\n".join(caption.lower() for caption in CAPTIONS * 20))
        corpus.flush()
        youtokentome.BPE.train(
            data=corpus.name, model=str(path), vocab_size=RUCLIP["vocab_size"], n_threads=1
        )


def make_rrdbnet(scale: int) -> None:
    """Write an upscaled image."""
    from rudalle.realesrgan.rrdbnet_arch import RRDBNet

    model = RRDBNet(num_in_ch=3, num_out_ch=3, scale=scale, **UPSCALER).eval()
    shapes = fill(model, seed=3)
    image = random_image(12, 10).float()[None] / 255
    save(
        f"rrdbnet_x{scale}", shapes, config={**UPSCALER, "scale": scale},
        picture=image, enlarged=model(image),
    )  # fmt: skip


def make_upscaling() -> None:
    """Write an image upscaled by the whole reference path: reflected edges, patches, uint8.

    The scale is not 2, because the reference pads by an odd number of pixels, which shifts the
    2 x 2 blocks of x2.
    """
    from rudalle.realesrgan.model import RealESRGAN
    from rudalle.realesrgan.rrdbnet_arch import RRDBNet

    sizes = {**UPSCALER, "num_block": 1}
    engine = RealESRGAN("cpu", scale=4)
    engine.model = RRDBNet(num_in_ch=3, num_out_ch=3, scale=4, **sizes).eval()
    shapes = fill(engine.model, seed=4)
    image = random_image(96, 96)
    enlarged = np.array(engine.predict(image.permute(1, 2, 0).numpy()))
    # We treat edges differently, which changes everything within the network's receptive field.
    inner = enlarged[160:-160, 160:-160]
    save(
        "upscaling_x4", shapes, config={**sizes, "scale": 4},
        picture=image, inner=torch.from_numpy(inner.copy()),
    )  # fmt: skip


def random_image(height: int, width: int) -> Tensor:
    """Return an image of smooth colours with noise, uint8 [3, H, W]."""
    rng = np.random.default_rng(height * 1000 + width)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [
        np.sin(rows * rng.uniform(0.02, 0.3) + columns * rng.uniform(0.02, 0.3) + phase)
        for phase in rng.uniform(0, 6, 3)
    ]
    pixels = 127 + 90 * np.stack(waves) + rng.normal(0, 12, (3, height, width))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def fill(network: nn.Module, seed: int, keep: tuple[str, ...] = ()) -> dict[str, list[int]]:
    """Set the weights of a network to random weights.

    Args:
        network: the network.
        seed: seed of the weights.
        keep: substrings of the keys that keep their values.

    Returns:
        The shape of each key, in order.
    """
    state = network.state_dict()
    shapes = {key: list(tensor.shape) for key, tensor in state.items()}
    random_shapes = {key: s for key, s in shapes.items() if not any(part in key for part in keep)}
    network.load_state_dict({**state, **random_state(random_shapes, seed)})
    return shapes


def save(
    name: str, shapes: dict[str, list[int]], config: dict[str, Any], **tensors: Tensor
) -> None:
    """Write a golden file: shapes of the checkpoint, configuration, inputs and outputs."""
    arrays: dict[str, Any] = {key: tensor.cpu().numpy() for key, tensor in tensors.items()}
    texts: dict[str, Any] = {"shapes": json.dumps(shapes), "config": json.dumps(config)}
    np.savez_compressed(GOLDENS / f"{name}.npz", **texts, **arrays)


if __name__ == "__main__":
    main()
