"""How fast this machine runs every network of the demo stack.

    python -m tests.benchmarks.demo_stack

Prints one row a figure: the best of three runs after one to warm up.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch

from rudalle_lib.images import to_uint8
from rudalle_lib.sampling import SamplingSettings, generate_tokens
from rudalle_lib.scoring import Scorer
from rudalle_lib.seeds import image_seed
from rudalle_lib.upscaling import upscale
from rudalle_lib.weights import load_decoder, load_scorer, load_upscaler, load_vqgan
from tests.benchmarks.tables import row

IMAGES, REPLICAS = 64, 8
CAPTIONS = [f"{colour} круг на белом фоне" for colour in ("красный", "синий", "жёлтый", "чёрный")]


def best_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of a few runs, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure_networks() -> None:
    """Every network of the demo on `IMAGES` candidates, `REPLICAS` a prompt."""
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
    decode = torch.inference_mode()(lambda: to_uint8(vqgan.decode(grid), -1.0, 1.0))
    pictures = decode()
    texts = [captions[int(n)] for n in prompt_of]

    seconds = best_seconds(draw)
    per_second = f"{IMAGES / seconds:.1f} images/s"
    row(f"generate, {IMAGES} images, {REPLICAS} a prompt", per_second)
    row("  the same in image tokens", f"{tokens.numel() / seconds:,.0f} tokens/s")
    for what, work in (
        ("decode to 128 px", decode),
        ("score", lambda: scorer.score(pictures, texts)),
        ("upscale to 256 px", lambda: upscale(upscaler, pictures, batch_size=8)),
    ):
        row(what, f"{IMAGES / best_seconds(work):.1f} images/s")


def main() -> None:
    """Print the table."""
    threads = torch.get_num_threads()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {threads} CPU threads\n")
    row("what", "figure")
    print(f"|{'-' * 54}|{'-' * 24}|")
    measure_networks()


if __name__ == "__main__":
    main()
