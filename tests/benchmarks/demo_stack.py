"""Measure how fast this machine runs the networks of the demo stack.

    python -m tests.benchmarks.demo_stack

Prints one row per figure: the best of three runs after one to warm up.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch

from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.images.codecs import to_uint8
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.weights.loading import load_decoder, load_scorer, load_upscaler, load_vqgan
from tests.benchmarks.tables import row

IMAGES, REPLICAS = 64, 8
"""Images, and images per prompt."""

CAPTIONS = [f"{colour} круг на белом фоне" for colour in ("красный", "синий", "жёлтый", "чёрный")]


def best_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the seconds of the fastest of `repeats` runs, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure_networks() -> None:
    """Measure each network of the demo on `IMAGES` candidates, `REPLICAS` per prompt."""
    decoder, vqgan = load_decoder("demo-dalle"), load_vqgan("demo-vqgan").model
    loaded, upscaler = load_scorer("demo-ruclip"), load_upscaler("demo-realesrgan-x2").model
    scorer = Scorer(loaded.model, loaded.tokenizer, ["{}"])

    captions = [CAPTIONS[n % len(CAPTIONS)] for n in range(IMAGES // REPLICAS)]
    length = decoder.model.config.text_length
    ids = torch.tensor([decoder.tokenizer.encode_text(text, length).ids for text in captions])
    prompt_of = torch.arange(IMAGES) // REPLICAS
    seeds = torch.tensor([image_seed(0, str(n), 0) for n in range(IMAGES)])
    settings = SamplingSettings(top_k=0, top_p=0.9)

    def draw() -> torch.Tensor:
        return generate_tokens(decoder.model, ids, prompt_of, seeds, settings, IMAGES).tokens

    tokens = draw()
    grid = tokens.view(IMAGES, decoder.model.config.image_height, -1)

    @torch.inference_mode()
    def decode() -> torch.Tensor:
        return to_uint8(vqgan.decode(grid), -1.0, 1.0)

    images = decode()
    texts = [captions[int(n)] for n in prompt_of]

    seconds = best_seconds(draw)
    per_second = f"{IMAGES / seconds:.1f} images/s"
    row(f"generate, {IMAGES} images, {REPLICAS} per prompt", per_second)
    row("  in image tokens", f"{tokens.numel() / seconds:,.0f} tokens/s")
    for what, work in (
        ("decode to 128 px", decode),
        ("score", lambda: scorer.score(images, texts)),
        ("upscale to 256 px", lambda: upscale(upscaler, images, batch_size=8)),
    ):
        row(what, f"{IMAGES / best_seconds(work):.1f} images/s")


def main() -> None:
    """Run the command line: measure and print the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    threads = torch.get_num_threads()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {threads} CPU threads\n")
    row("what", "figure")
    print(f"|{'-' * 54}|{'-' * 24}|")
    measure_networks()


if __name__ == "__main__":
    main()
