"""How fast the peers are: rudalle 1.1.3, ruclip 0.0.2 and the GPT-2 of transformers.

Runs in their own environment (`make peers`), started by `engine.py`:

    .peers/bin/python -m tests.benchmarks.measure_peers rudalle --dtype float32 --batch 8

They do what they do as shipped: the body of rudalle's sampling loop is called at given positions,
with a cache of the right size; everything else is called as a user would. Decoders get the weights
of `timing.fill`, other networks their own random ones.
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

from tests.benchmarks.timing import CLIP_PIECES, average, fill, median_seconds, seconds_of, tell
from tests.parity import peer_stand_ins

HIDDEN, HEADS, TEXT, TEXT_VOCABULARY, IMAGE_VOCABULARY = 2048, 16, 128, 16512, 8192


@torch.no_grad()
def rudalle(options: argparse.Namespace) -> None:
    """The sampling loop of rudalle, a step at each position."""
    from rudalle.dalle.model import DalleModel

    skip_initialisation()
    model = DalleModel(
        device="cpu", num_layers=options.layers, vocab_size=TEXT_VOCABULARY, hidden_size=HIDDEN,
        num_attention_heads=HEADS, embedding_dropout_prob=0.1, attention_dropout_prob=0.1,
        output_dropout_prob=0.1, text_seq_length=TEXT, image_tokens_per_dim=32,
        image_vocab_size=IMAGE_VOCABULARY, cogview_sandwich_layernorm=True,
        cogview_pb_relax=True, init_layer_func=lambda layer, prefix=None: layer,
    ).eval()  # fmt: skip
    fill(model)
    dtype = getattr(torch, options.dtype)
    model.to("cpu", dtype)
    seconds = {at: rudalle_step(model, dtype, options, at) for at in options.positions}
    step = average(seconds)
    tell(seconds=seconds, step=step, tokens_per_second=options.batch / step)


def rudalle_step(model: Any, dtype: torch.dtype, options: argparse.Namespace, at: int) -> float:
    """Median seconds of the loop's body once `at` image tokens are drawn."""
    batch, length = options.batch, TEXT + at
    total = model.get_param("total_seq_length")
    mask = torch.tril(torch.ones((batch, 1, total, total), dtype=dtype))
    keys = torch.randn(batch, HEADS, length, HIDDEN // HEADS).to(dtype)
    hidden = torch.randn(batch, length, HIDDEN).to(dtype)
    state: dict[str, Any] = {
        "out": torch.randint(1, IMAGE_VOCABULARY, (batch, length + 1)),
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
    """`generate` of a GPT-2 of the same size, continued from each position."""
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
    figures = {}
    for cache in options.caches.split(","):
        seconds = {at: gpt2_step(model, config, options, at, cache) for at in options.positions}
        figures[cache] = {"seconds": seconds, "step": average(seconds)}
    best = min(figures, key=lambda name: figures[name]["step"])
    step = figures[best]["step"]
    tell(caches=figures, best=best, step=step, tokens_per_second=options.batch / step)


def gpt2_step(model: Any, config: Any, options: argparse.Namespace, at: int, kind: str) -> float:
    """Seconds of a token: the time of some less that of one, so that what is once drops out."""
    from transformers import DynamicCache, StaticCache

    batch, length = options.batch, TEXT + at
    more = options.repeats + 1
    past = torch.randn(batch, HEADS, length, HIDDEN // HEADS).bfloat16()

    def generate(new: int) -> float:
        if kind == "static":
            cache = StaticCache(config=config, max_cache_len=TEXT + 1024)
        else:
            cache = DynamicCache(config=config)
        for layer in range(options.layers):
            cache.update(past, past, layer, {"cache_position": torch.arange(length)})
        ids = torch.randint(0, TEXT_VOCABULARY, (batch, length + 1))
        return seconds_of(
            lambda: model.generate(
                ids, attention_mask=torch.ones_like(ids), past_key_values=cache, do_sample=True,
                top_k=2048, top_p=0.995, max_new_tokens=new, min_new_tokens=new,
            )
        )  # fmt: skip

    generate(1)
    return (generate(1 + more) - generate(1)) / more


@torch.no_grad()
def vqgan(options: argparse.Namespace) -> None:
    """The `vae.decode` of rudalle."""
    from omegaconf import OmegaConf
    from rudalle.vae import model as vae_module

    folder = Path(vae_module.__file__).parent
    config = OmegaConf.load(folder / "vqgan.gumbelf8-sber.config.yml")
    with contextlib.redirect_stdout(io.StringIO()):
        network = vae_module.VQGanGumbelVAE(config).eval()
    tokens = torch.randint(0, IMAGE_VOCABULARY, (options.batch, 1024))
    seconds = median_seconds(lambda: network.decode(tokens), options.repeats)
    tell(images_per_second=options.batch / seconds)


def super_resolution(options: argparse.Namespace) -> None:
    """The `super_resolution` of rudalle, x2, of 256-px pictures."""
    from rudalle.pipelines import super_resolution as enlarge
    from rudalle.realesrgan.model import RealESRGAN

    upscaler = RealESRGAN("cpu", 2)
    upscaler.model.eval()
    pictures = random_pictures(options.batch)
    seconds = median_seconds(lambda: enlarge(pictures, upscaler), options.repeats)
    tell(images_per_second=options.batch / seconds)


@torch.no_grad()
def ruclip(options: argparse.Namespace) -> None:
    """The Predictor of ruclip: features of eight pictures a text, of the texts, their cosines."""
    from ruclip.model import CLIP
    from ruclip.predictor import Predictor
    from ruclip.processor import RuCLIPProcessor

    network = CLIP(
        embed_dim=512, image_resolution=224, vision_layers=12, vision_width=768,
        vision_patch_size=32, context_length=77, vocab_size=49408, transformer_width=512,
        transformer_heads=8, transformer_layers=12, eos_id=3,
    ).eval()  # fmt: skip
    predictor = Predictor(network, RuCLIPProcessor(str(CLIP_PIECES)), "cpu", quiet=True)
    pictures = random_pictures(options.batch)
    texts = [f"красный круг {number}" for number in range(options.batch // 8)]

    def score() -> torch.Tensor:
        of_texts = predictor.get_text_latents(texts)
        of_pictures = predictor.get_image_latents(pictures)
        return (of_pictures.view(len(texts), 8, -1) * of_texts[:, None]).sum(-1)

    seconds = median_seconds(score, options.repeats)
    alone = median_seconds(lambda: predictor.get_image_latents(pictures), options.repeats)
    tell(images_per_second=options.batch / seconds, pictures_alone=options.batch / alone)


def skip_initialisation() -> None:
    """Leave weights unset when a layer is made: `fill` sets them."""
    for name in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):
        setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)


def random_pictures(count: int) -> list[Image.Image]:
    """Pictures of 256 px."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def main() -> None:
    """Measure one thing."""
    peer_stand_ins.install()
    things = {thing.__name__: thing for thing in (rudalle, gpt2, vqgan, super_resolution, ruclip)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=things)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--caches", default="dynamic")
    parser.add_argument("--positions", type=json.loads, default=[512])
    options = parser.parse_args()
    things[options.what](options)


if __name__ == "__main__":
    main()
