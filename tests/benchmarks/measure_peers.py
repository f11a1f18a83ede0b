"""Measure the speed of the peers: rudalle 1.1.3, ruclip 0.0.2 and GPT-2 of transformers.

`engine.py` starts this in the environment of the peers (`make peers`):

    .peers/bin/python -m tests.benchmarks.measure_peers rudalle --dtype float32 --batch 8

The peers run as shipped. Only the body of rudalle's sampling loop is called at given positions with
a cache of the right size; everything else is called like a user would. Decoders get the weights of
`timing.fill`, other networks their own random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.benchmarks.timing import (
    CLIP_PIECES,
    average,
    fill,
    median_seconds,
    report_figures,
    seconds_of,
)
from tests.parity import peer_stand_ins

HIDDEN, HEADS, TEXT, TEXT_VOCABULARY, IMAGE_VOCABULARY = 2048, 16, 128, 16512, 8192
"""Sizes of Malevich: channels, heads, text positions, text and image vocabulary."""


@torch.no_grad()
def rudalle(options: argparse.Namespace) -> None:
    """Measure the sampling loop of rudalle, one step at each position."""
    from rudalle.dalle.model import DalleModel

    skip_initialisation()
    model = DalleModel(
        device=options.device, num_layers=options.layers, vocab_size=TEXT_VOCABULARY,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS, embedding_dropout_prob=0.1, attention_dropout_prob=0.1,
        output_dropout_prob=0.1, text_seq_length=TEXT, image_tokens_per_dim=32,
        image_vocab_size=IMAGE_VOCABULARY, cogview_sandwich_layernorm=True,
        cogview_pb_relax=True, init_layer_func=lambda layer, prefix=None: layer,
    ).eval()  # fmt: skip
    fill(model)
    dtype = getattr(torch, options.dtype)
    model.to(options.device, dtype)
    seconds = {
        position: rudalle_step(model, dtype, options, position) for position in options.positions
    }
    step = average(seconds)
    report_figures(seconds=seconds, step=step, tokens_per_second=options.batch / step)


def rudalle_step(
    model: Any, dtype: torch.dtype, options: argparse.Namespace, position: int
) -> float:
    """Return the median seconds of the loop body after `position` image tokens."""
    batch, length, device = options.batch, TEXT + position, options.device
    total = model.get_param("total_seq_length")
    mask = torch.tril(torch.ones((batch, 1, total, total), dtype=dtype)).to(device)
    keys = torch.randn(batch, HEADS, length, HIDDEN // HEADS).to(device, dtype)
    hidden = torch.randn(batch, length, HIDDEN).to(device, dtype)
    state: dict[str, Any] = {
        "out": torch.randint(1, IMAGE_VOCABULARY, (batch, length + 1)).to(device),
        "cache": {
            layer: (keys.clone(), keys.clone(), hidden.clone()) for layer in range(options.layers)
        },
    }
    state["cache"][options.layers - 1] += (hidden.clone(),)

    def body() -> None:
        logits, state["cache"] = model(
            state["out"], mask, use_cache=True, cache=state["cache"], return_loss=False
        )
        logits = logits[:, -1, TEXT_VOCABULARY:]
        logits /= 1.0
        kept = peer_stand_ins.top_k_top_p_filtering(logits, top_k=2048, top_p=0.995)
        sample = torch.multinomial(torch.softmax(kept, dim=-1), 1)
        state["out"] = torch.cat((state["out"], sample), dim=-1)

    return median_seconds(body, options.repeats)


@torch.no_grad()
def gpt2(options: argparse.Namespace) -> None:
    """Measure `generate` of a GPT-2 of the same size, continued from each position."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=TEXT_VOCABULARY + IMAGE_VOCABULARY, n_positions=TEXT + 1024, n_embd=HIDDEN,
        n_layer=options.layers, n_head=HEADS, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    skip_initialisation()
    torch.set_default_dtype(torch.bfloat16)
    model = GPT2LMHeadModel(config).eval()
    torch.set_default_dtype(torch.float32)
    fill(model)
    model.to(options.device)
    figures: dict[str, dict[str, Any]] = {}
    for cache in options.caches.split(","):
        seconds = {
            position: gpt2_step(model, config, options, position, cache)
            for position in options.positions
        }
        figures[cache] = {"seconds": seconds, "step": average(seconds)}
    best = min(figures, key=lambda name: figures[name]["step"])
    step = figures[best]["step"]
    report_figures(caches=figures, best=best, step=step, tokens_per_second=options.batch / step)


def gpt2_step(
    model: Any, config: Any, options: argparse.Namespace, position: int, kind: str
) -> float:
    """Return the seconds per token.

    This is the difference between several tokens and one, which excludes constant costs.
    """
    from transformers import DynamicCache, StaticCache

    batch, length = options.batch, TEXT + position
    extra = options.repeats + 1
    past = torch.randn(batch, HEADS, length, HIDDEN // HEADS).bfloat16().to(options.device)

    def generate(new: int) -> float:
        if kind == "static":
            cache = StaticCache(config=config, max_cache_len=TEXT + 1024)
        else:
            cache = DynamicCache(config=config)
        for layer in range(options.layers):
            cache.update(
                past, past, layer, {"cache_position": torch.arange(length).to(options.device)}
            )
        ids = torch.randint(0, TEXT_VOCABULARY, (batch, length + 1)).to(options.device)
        return seconds_of(
            lambda: model.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=True,
                top_k=2048, top_p=0.995, max_new_tokens=new, min_new_tokens=new,
            )
        )  # fmt: skip

    generate(1)
    return (generate(1 + extra) - generate(1)) / extra


@torch.no_grad()
def vqgan(options: argparse.Namespace) -> None:
    """Measure `vae.decode` of rudalle."""
    from omegaconf import OmegaConf
    from rudalle.vae import model as vae_module

    folder = Path(vae_module.__file__).parent
    config = OmegaConf.load(folder / "vqgan.gumbelf8-sber.config.yml")
    with contextlib.redirect_stdout(io.StringIO()):
        network = vae_module.VQGanGumbelVAE(config).eval().to(options.device)
    tokens = torch.randint(0, IMAGE_VOCABULARY, (options.batch, 1024)).to(options.device)
    seconds = median_seconds(lambda: network.decode(tokens), options.repeats)
    report_figures(images_per_second=options.batch / seconds)


def super_resolution(options: argparse.Namespace) -> None:
    """Measure `super_resolution` of rudalle, x2, on 256-px images."""
    from rudalle.pipelines import super_resolution as enlarge
    from rudalle.realesrgan.model import RealESRGAN

    upscaler = RealESRGAN(options.device, 2)
    upscaler.model.eval().to(options.device)
    images = random_images(options.batch)
    seconds = median_seconds(lambda: enlarge(images, upscaler), options.repeats)
    report_figures(images_per_second=options.batch / seconds)


@torch.no_grad()
def ruclip(options: argparse.Namespace) -> None:
    """Measure the Predictor of ruclip: scores of eight images per text, and image features."""
    from ruclip.model import CLIP
    from ruclip.predictor import Predictor
    from ruclip.processor import RuCLIPProcessor

    network = CLIP(
        embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768,
        vision_patch_size=32, context_length=77, vocab_size=49408, transformer_width=512,
        transformer_heads=8, transformer_layers=12, eos_id=3,
    ).eval().to(options.device)  # fmt: skip
    predictor = Predictor(network, RuCLIPProcessor(str(CLIP_PIECES)), options.device, quiet=True)
    images = random_images(options.batch)
    texts = [f"красный круг {number}" for number in range(options.batch // 8)]

    def score() -> torch.Tensor:
        of_texts = predictor.get_text_latents(texts)
        of_images = predictor.get_image_latents(images)
        return (of_images.view(len(texts), 8, -1) * of_texts[:, None]).sum(-1)

    seconds = median_seconds(score, options.repeats)
    alone = median_seconds(lambda: predictor.get_image_latents(images), options.repeats)
    report_figures(images_per_second=options.batch / seconds, images_alone=options.batch / alone)


def skip_initialisation() -> None:
    """Do not initialise weights of new layers, because `fill` sets them."""
    for name in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def random_images(count: int) -> list[Image.Image]:
    """Return `count` images of 256 x 256 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
    return [Image.fromarray(array) for array in pixels]


def main() -> None:
    """Run the command line: one measurement."""
    peer_stand_ins.install()
    measurements = (rudalle, gpt2, vqgan, super_resolution, ruclip)
    by_name = {measure.__name__: measure for measure in measurements}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=by_name)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--caches", default="dynamic")
    parser.add_argument("--positions", type=json.loads, default=[512])
    options = parser.parse_args()
    by_name[options.what](options)


if __name__ == "__main__":
    main()
