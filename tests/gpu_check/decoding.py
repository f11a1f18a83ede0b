"""Image tokens per second of a decoder of Malevich's size, and the share of the floor.

The floor is the time of a step's matrix products alone, measured, and that of reading the caches
once at the rate of a copy. Weights are random, which does not change the speed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rudalle_lib.errors import OutOfMemoryError, RudalleError, SettingsError
from rudalle_lib.generation.batch_size import bytes_per_image, free_bytes
from rudalle_lib.generation.sampling import SamplingSettings, generate_tokens
from rudalle_lib.models.dalle import Dalle
from rudalle_lib.models.decoding.cache_slots import plan_slots
from rudalle_lib.models.gpu.engine import obstacle
from rudalle_lib.models.sparse_attention import layer_kind
from rudalle_lib.runtime.devices import DTYPES, INT8_DTYPES, resolve_dtype
from tests.benchmarks.measure_engine import malevich, products
from tests.gpu_check.ceilings import copy_rate
from tests.gpu_check.results import Check, judged, measured, not_run
from tests.gpu_check.scale import Scale, replayed, seconds_of, synchronise

DTYPE_ORDER = ("bfloat16", "int8_dynamic", "float16", "int8", "float32")
"""Precisions, the most interesting first: time may run out."""

BARS = {("bfloat16", 64): 0.5, ("bfloat16", 512): 0.7}
"""Least share of the floor, by precision and batch, on a GPU."""

WARM_STEPS = 8
"""Steps before the clock starts: they read the texts, compile and capture."""


class Enough(RudalleError):
    """A measurement has seen enough steps."""


@dataclass
class Clock:
    """Stops drawing after a time; steps are counted on the CPU, which is a step or two ahead.

    Args:
        images: images of the batch.
        seconds: most seconds after the first `WARM_STEPS` steps.
        device: what draws.
    """

    images: int
    seconds: float
    device: torch.device
    started: float = 0.0
    steps: int = 0
    elapsed: float = 0.0

    def __call__(self, drawn: int, total: int) -> None:
        """Note the progress of `generate_tokens`."""
        step = drawn // self.images
        if step == WARM_STEPS:
            synchronise(self.device)
            self.started = time.perf_counter()
        if step <= WARM_STEPS:
            return
        elapsed = time.perf_counter() - self.started
        if drawn == total or elapsed > self.seconds:
            synchronise(self.device)
            self.steps, self.elapsed = step - WARM_STEPS, time.perf_counter() - self.started
            raise Enough("enough")


def tokens_per_second(model: Dalle, batch: int, scale: Scale) -> tuple[float, int]:
    """Tokens per second of a batch, and the number of steps that it was measured in."""
    device = model.image_embeddings.weight.device
    prompts = -(-batch // scale.replicas)
    text = torch.randint(4, 16_000, (prompts, model.config.text_length))
    clock = Clock(batch, scale.seconds, device)
    with contextlib.suppress(Enough):
        generate_tokens(
            model, text, torch.arange(batch) // scale.replicas, torch.arange(batch),
            SamplingSettings(), batch, clock,
        )  # fmt: skip
    return batch * clock.steps / clock.elapsed, clock.steps


@torch.inference_mode()
def floor_seconds(model: Dalle, batch: int, scale: Scale, bytes_per_second: float) -> float:
    """Seconds of a step that does nothing but multiply matrices and read the caches once."""
    device = model.image_embeddings.weight.device
    alone = products(model, batch)

    def multiply() -> None:
        for linear, x in alone:
            linear(x)

    return seconds_of(replayed(multiply, device), device) + cache_bytes(
        model, batch, scale.replicas
    ) / (bytes_per_second / 2)  # a copy reads only half of the bytes that it moves


def cache_bytes(model: Dalle, batch: int, replicas: int) -> float:
    """Bytes of keys and values that a step reads, on average over an image."""
    config, cpu = model.config, torch.device("cpu")
    seen = 0.0
    for index in range(config.num_layers):
        plan = plan_slots(layer_kind(index, config.num_layers), config.grid, cpu)
        visible = [len(slots) for slots in plan.visible_in_block]
        seen += sum(visible) / len(visible) + config.text_length / replicas
    element = model.image_embeddings.weight.element_size()
    return batch * seen * 2 * config.hidden_size * element


def checks(device: torch.device, scale: Scale) -> Iterator[Check]:
    """Measure every precision at every batch."""
    copy = copy_rate(device, scale)
    for name in DTYPE_ORDER:
        try:
            dtype = resolve_dtype(name, device)
        except SettingsError as error:
            yield not_run(f"decoder in {name}", str(error))
            continue
        model = malevich(scale.layers, dtype, device, scale.hidden)
        yield _drawn_by(model, name)
        for batch in scale.speeds:
            yield _measure(model, name, batch, scale, copy)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _drawn_by(model: Dalle, name: str) -> Check:
    """Whether a step is one CUDA graph, without which the figures say nothing of the engine."""
    what, reason = f"decoder in {name}, a step is one CUDA graph", obstacle(model)
    if not model.image_embeddings.weight.is_cuda:
        return not_run(what, reason or "")
    return judged(what, reason is None, reason or "yes", "yes")


def _measure(model: Dalle, name: str, batch: int, scale: Scale, copy: float) -> Check:
    device = model.image_embeddings.weight.device
    what = f"decoder in {name}, batch {batch}"
    element = model.image_embeddings.weight.element_size()
    if batch * bytes_per_image(model.config, element, scale.replicas) > 0.9 * free_bytes(device):
        return not_run(what, "it does not fit into memory")
    try:
        rate, steps = tokens_per_second(model, batch, scale)
    except OutOfMemoryError as error:
        return not_run(what, str(error))
    try:
        floor = floor_seconds(model, batch, scale, copy)
    except RuntimeError as error:
        return measured(what, f"{rate:,.0f} tokens/s; no floor: {error}", tokens_per_second=rate)
    share = floor * rate / batch
    found = f"{rate:,.0f} tokens/s over {steps} steps, {share:.0%} of the floor"
    figures = {"tokens_per_second": rate, "steps": steps, "floor": floor, "share": share}
    bar = BARS.get((name, batch)) if device.type == "cuda" else None
    if bar is None or DTYPES[name] in INT8_DTYPES:
        return measured(what, found, **figures)
    return judged(what, share >= bar, found, f"{bar:.0%} of the floor", **figures)
