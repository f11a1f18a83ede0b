"""Whether the device computes what the originals and the CPU compute, and the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rudalle_lib.demo import prompt_table
from rudalle_lib.generation.noise import gumbel_noise
from rudalle_lib.generation.sampling import GeneratedTokens, SamplingSettings, generate_tokens
from rudalle_lib.generation.seeds import image_seed
from rudalle_lib.runtime.devices import resolve_dtype
from rudalle_lib.weights.loading import LoadedDecoder, load_decoder
from tests.gpu_check import goldens
from tests.gpu_check.results import Check, judged, not_run
from tests.gpu_check.scale import Scale

CPU = torch.device("cpu")

SAME_IMAGES = 0.98
"""Share of images that float32 must draw as the CPU does; the others have tied tokens."""

NOISE_VOCABULARY = 8192


def noise(device: torch.device) -> Iterator[Check]:
    """Compare the bits of the sampling noise with those of the CPU."""
    seeds = torch.tensor([image_seed(0, str(n), 0) for n in range(64)])
    differences = 0
    for step in (0, 1, 511, 1023):
        expected = gumbel_noise(seeds, step, NOISE_VOCABULARY)
        found = gumbel_noise(seeds.to(device), step, NOISE_VOCABULARY).cpu()
        differences += int((expected.view(torch.int32) != found.view(torch.int32)).sum())
    yield judged(
        "noise, bits of the CPU", differences == 0, f"{differences} of 2,097,152 differ", "0",
        differences=differences,
    )  # fmt: skip


class Request:
    """Images of the demo decoder: captions of its world, several replicas each.

    Args:
        decoder: the demo decoder, on its device.
        images: number of images.
        replicas: images per prompt.
    """

    def __init__(self, decoder: LoadedDecoder, images: int, replicas: int) -> None:
        self.model = decoder.model
        captions = [row["prompt"] for row in prompt_table.rows() if row["theme"] == "malevich"]
        length = decoder.model.config.text_length
        ids = [decoder.tokenizer.encode_text(caption, length).ids for caption in captions]
        self.text = torch.tensor(ids)
        self.prompt_of = torch.arange(images) // replicas % len(captions)
        self.seeds = torch.tensor([image_seed(7, str(n), 0) for n in range(images)])

    def draw(self, images: Sequence[int], rows: int) -> GeneratedTokens:
        """Draw some of the images in this order, in batches of so many rows."""
        chosen = torch.tensor(images)
        return generate_tokens(
            self.model, self.text, self.prompt_of[chosen], self.seeds[chosen],
            SamplingSettings(top_k=0, top_p=0.9), rows, batch_rows=rows,
        )  # fmt: skip


def demo_tokens(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Compare images of the demo decoder with those that the CPU draws."""
    images = min(64, 4 * max(scale.invariance))
    expected, found = (
        Request(load_decoder("demo-dalle", device=place), images, scale.replicas).draw(
            range(images), images
        )
        for place in (CPU, device)
    )
    same = (expected.tokens == found.tokens).all(dim=1).double().mean().item()
    tokens = (expected.tokens == found.tokens).double().mean().item()
    yield judged(
        "demo images in float32, tokens of the CPU", same >= SAME_IMAGES,
        f"{same:.1%} of {images} images, {tokens:.2%} of tokens", f"{SAME_IMAGES:.0%} of images",
        images=same, tokens=tokens,
    )  # fmt: skip


def batch_invariance(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Draw the same images in batches of several sizes and in permuted company, and twice."""
    most = max(scale.invariance)
    for name in ("float32", "bfloat16"):
        decoder = load_decoder("demo-dalle", device=device, dtype=resolve_dtype(name, device))
        request = Request(decoder, most, scale.replicas)
        whole = request.draw(range(most), most)
        again = request.draw(range(most), most)
        yield judged(
            f"drawn twice in {name}, equal bytes", _equal(whole, again), _words(whole, again), "all"
        )
        generator = torch.Generator().manual_seed(0)
        for size in scale.invariance:
            order = torch.randperm(most, generator=generator)[:size].tolist()
            part = request.draw(order, most)
            expected = _rows(whole, order)
            yield judged(
                f"batch of {size} in permuted company, {name}, equal bytes",
                _equal(expected, part), _words(expected, part), "all",
            )  # fmt: skip


def _rows(drawn: GeneratedTokens, rows: Sequence[int]) -> GeneratedTokens:
    index = torch.tensor(rows)
    return GeneratedTokens(
        *(getattr(drawn, name)[index] for name in ("tokens", "logprob", "ppl", "token_logprobs"))
    )


def _bits(drawn: GeneratedTokens) -> tuple[Tensor, Tensor]:
    return drawn.tokens, drawn.token_logprobs.view(torch.int32)


def _equal(a: GeneratedTokens, b: GeneratedTokens) -> bool:
    return all(map(torch.equal, _bits(a), _bits(b)))


def _words(a: GeneratedTokens, b: GeneratedTokens) -> str:
    tokens, bits = (
        (x == y).double().mean().item() for x, y in zip(_bits(a), _bits(b), strict=True)
    )
    return f"{tokens:.2%} of tokens, {bits:.2%} of log-probabilities"


def out_of_memory(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Limit the memory of the process so that a batch does not fit, and draw it all the same."""
    what = "memory runs out, drawn in smaller batches"
    if device.type != "cuda":
        yield not_run(what, "only the memory of a GPU can be limited")
        return
    from rudalle_lib.models.gpu.engine import release

    images = max(scale.invariance)
    request = Request(load_decoder("demo-dalle", device=device), images, scale.replicas)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    expected = request.draw(range(images), images)
    peak = torch.cuda.max_memory_allocated(device)
    release(device)
    torch.cuda.empty_cache()
    limit = before + 0.5 * (peak - before)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    try:
        found = request.draw(range(images), images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    same = (expected.tokens == found.tokens).all(dim=1).double().mean().item()
    figures: dict[str, Any] = {"images": same, "limit": limit, "peak": peak}
    yield judged(
        what, same >= SAME_IMAGES, f"{same:.1%} of images with {limit / 1e6:.0f} of "
        f"{peak / 1e6:.0f} MB", f"{SAME_IMAGES:.0%} of images", **figures,
    )  # fmt: skip


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """All of them, the cheapest first."""
    yield from goldens.checks(device)
    yield from noise(device)
    yield from demo_tokens(device, scale)
    yield from batch_invariance(device, scale)
    yield from out_of_memory(device, scale)
