"""Measure the speed of this project's networks at their published sizes, with random weights.

`engine.py` starts one process per figure. To run a measurement by itself:

    python -m tests.benchmarks.measure_engine decoder --dtype bfloat16 --batch 64
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rudalle_lib import registry
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.generation.batch_size import bytes_per_image, cache_bytes_per_image, free_bytes
from rudalle_lib.generation.guidance import GuidedDecoder, Logits
from rudalle_lib.generation.sampling import SamplingSettings, TokenSampler
from rudalle_lib.images.codecs import from_pil, to_uint8
from rudalle_lib.images.scoring import Scorer
from rudalle_lib.images.upscaling import upscale
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.decoding.cached_decoder import CachedDecoder
from rudalle_lib.models.layers.amx_linear import AmxInt8Linear, AmxLinear
from rudalle_lib.models.layers.fused_layer_norm import FusedLayerNorm, use_fused_layer_norms
from rudalle_lib.models.layers.int8_dynamic_linear import (
    DynamicInt8Linear,
    use_dynamic_int8_linears,
)
from rudalle_lib.models.layers.int8_linear import use_int8_linears
from rudalle_lib.models.layers.onednn_linear import OnednnLinear, use_fastest_linears
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig, optimize_for_inference
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.runtime.devices import DTYPES, INT8_DTYPES, compute_dtype
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.weights.checkpoints import build
from rudalle_lib.weights.loading import load_decoder
from tests.benchmarks.timing import (
    CLIP_PIECES,
    average,
    median_seconds,
    peak_gigabytes,
    random_weights,
    report_figures,
    seconds_of,
)
from tests.support.compiled import AVX2_ENVIRONMENT, only_avx2
from tests.support.linear_layers import to_int8_linear

CPU = torch.device("cpu")


def malevich(
    layers: int, dtype: torch.dtype, device: torch.device = CPU, hidden: int = 2048
) -> Dalle:
    """Build a decoder with `layers` layers like `weights.load_decoder` does."""
    sizes = {"num_layers": layers, "hidden_size": hidden}
    architecture = {**registry.get("malevich-v3").architecture, **sizes}
    config = DalleConfig(**architecture)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Dalle(config).state_dict().items()}

    def make_network() -> Dalle:
        network = Dalle(config)
        if dtype in INT8_DTYPES:
            use_int8_linears(network.transformer)
        return network

    weights = random_weights(shapes)
    compute_in = compute_dtype(dtype, device)
    model = build(make_network, weights, Path("random weights"), device, compute_in)
    if dtype is torch.qint8:
        use_dynamic_int8_linears(model.transformer)
    use_fastest_linears(model.transformer)
    use_fused_layer_norms(model.transformer)
    return model


class Step:
    """A batch of images in progress, of which `draw` draws one more token each.

    Args:
        model: the decoder.
        batch: number of images.
        replicas: images per prompt.
    """

    def __init__(self, model: Dalle, batch: int, replicas: int) -> None:
        prompts = -(-batch // replicas)
        text = torch.randint(4, 16_000, (prompts, model.config.text_length))
        prompt_of = torch.arange(batch) // replicas
        self._decoder = GuidedDecoder(model, text, prompt_of, torch.ones(batch))
        self._sampler = TokenSampler([SamplingSettings()] * batch, torch.arange(batch))
        self.prefill_seconds = seconds_of(self._prefill)
        for layer in self._cache._layers:  # memory that was never written would be read too fast
            layer.key.fill_(0.01)
            layer.value.fill_(0.01)

    @property
    def _cache(self) -> CachedDecoder:
        return self._decoder._decoder

    def _prefill(self) -> None:
        self._logits: Logits = self._decoder.prefill()

    def set_position(self, position: int) -> None:
        """Pretend that `position` image tokens are drawn. Their values do not change the time."""
        self._cache._tokens = self._cache._cells = position

    def draw(self) -> None:
        """Draw one token per image, as `sampling` does."""
        token = self._sampler.sample(self._logits.guided, self._cache._tokens)
        self._logits.conditional.log_softmax(dim=1).gather(1, token[:, None])
        self._logits = self._decoder.decode_one_token(token)


def products(model: Dalle, batch: int) -> list[tuple[nn.Module, Tensor]]:
    """Return all linear layers of a step, each with an input."""
    dtype = model.image_embeddings.weight.dtype
    linears: list[nn.Module] = [
        part
        for layer in model.transformer.layers
        for part in layer.modules()
        if not list(part.children()) and not isinstance(part, nn.LayerNorm | FusedLayerNorm)
    ]
    device = model.image_embeddings.weight.device
    text = torch.ones(1, model.config.text_length).long().to(device)
    head = CachedDecoder(model, text, torch.zeros(1).long().to(device))
    linears.append(head._image_head or model.to_logits[1])
    hidden = model.config.hidden_size
    inputs = {width: torch.randn(batch, width).to(device, dtype) for width in (hidden, 4 * hidden)}
    order = [hidden, hidden, hidden, 4 * hidden]  # per layer: attention in, attention out, up, down
    widths = [*order * model.config.num_layers, hidden]
    return [(linear, inputs[width]) for linear, width in zip(linears, widths, strict=True)]


@torch.inference_mode()
def decoder(options: argparse.Namespace) -> None:
    """Measure steps at each position and the matrix products alone (the floor), alternately."""
    model = malevich(options.layers, DTYPES[options.dtype])
    step = Step(model, options.batch, options.replicas)
    alone = products(model, options.batch)

    def floor() -> None:
        for linear, x in alone:
            linear(x)

    floor()
    steps, floors = {}, []
    for position in options.positions:
        step.set_position(position)
        step.draw()
        turns = [(seconds_of(step.draw), seconds_of(floor)) for _ in range(options.repeats)]
        steps[position] = statistics.median(step_time for step_time, _ in turns)
        floors += [floor_time for _, floor_time in turns]
    step_seconds, floor_seconds = average(steps), statistics.median(floors)
    element = model.image_embeddings.weight.element_size()
    report_figures(
        seconds=steps,
        step=step_seconds,
        floor=floor_seconds,
        share=floor_seconds / step_seconds,
        prefill=step.prefill_seconds,
        tokens_per_second=options.batch / (step_seconds + step.prefill_seconds / 1024),
        cache_bytes=cache_bytes_per_image(model.config, element, options.replicas),
        peak_gigabytes=peak_gigabytes(),
    )


@torch.inference_mode()
def cpu_seconds(options: argparse.Namespace) -> None:
    """Measure CPU seconds of one thread, which other processes hardly change."""
    torch.set_num_threads(1)
    model = malevich(options.layers, DTYPES[options.dtype])

    def seconds(work: Callable[[], object]) -> float:
        started = time.thread_time()
        work()
        return time.thread_time() - started

    steps, prefills, floors = [], [], []
    alone = products(model, options.batch)
    for _ in range(options.repeats):
        started = time.thread_time()
        step = Step(model, options.batch, options.replicas)
        prefills.append(time.thread_time() - started)
        step.set_position(512)
        step.draw()
        steps += [seconds(step.draw) for _ in range(3)]
        floors += [seconds(lambda: [linear(x) for linear, x in alone]) for _ in range(3)]
    report_figures(prefill=min(prefills), step=min(steps), floor=min(floors))


@torch.inference_mode()
def linears(options: argparse.Namespace) -> None:
    """Measure linear layers with oneDNN and with AMX tiles, in bfloat16 and 8 bits, alternately."""
    shapes = [(6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192)] * options.layers
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "onednn": lambda layer: OnednnLinear(layer.weight, layer.bias.detach()),
        "tiles": lambda layer: AmxLinear(layer.weight, layer.bias.detach()),
        "onednn_int8": lambda layer: DynamicInt8Linear(to_int8_linear(layer)),
        "tiles_int8": lambda layer: AmxInt8Linear(to_int8_linear(layer)),
    }
    plain = [nn.Linear(inputs, outputs).bfloat16() for outputs, inputs in shapes]
    layers = {name: [make(layer) for layer in plain] for name, make in kinds.items()}
    inputs = {width: torch.randn(options.batch, width).bfloat16() for _, width in shapes}

    def multiply(name: str) -> None:
        for layer, (_, width) in zip(layers[name], shapes, strict=True):
            layer(inputs[width])

    turns = [
        {name: seconds_of(partial(multiply, name)) for name in kinds}
        for _ in range(options.repeats + 1)
    ][1:]
    report_figures(**{name: statistics.median(turn[name] for turn in turns) for name in kinds})


@torch.inference_mode()
def growth(options: argparse.Namespace) -> None:
    """Measure a step in the middle of an image for increasing batches and replicas per prompt."""
    model = malevich(options.layers, DTYPES[options.dtype])
    element = model.image_embeddings.weight.element_size()
    rows = []
    for batch, replicas in options.sizes:
        required = batch * bytes_per_image(model.config, element, replicas)
        if required > 0.9 * free_bytes(CPU):
            rows.append({"batch": batch, "replicas": replicas, "seconds": None})
            continue
        step = Step(model, batch, replicas)
        step.set_position(512)
        seconds = median_seconds(step.draw, options.repeats)
        cache = cache_bytes_per_image(model.config, element, replicas)
        rows.append({"batch": batch, "replicas": replicas, "seconds": seconds, "cache": cache})
        del step
    report_figures(rows=rows)


@torch.inference_mode()
def agreement(options: argparse.Namespace) -> None:
    """Measure how often the demo decoder draws the same token in lower precision as in float32.

    Each token is drawn after the same previous tokens and with the same noise.
    """
    exact = load_decoder("demo-dalle")
    length = exact.model.config.text_length
    captions = [f"{colour} круг" for colour in ("красный", "синий", "жёлтый", "чёрный")]
    ids = torch.tensor([exact.tokenizer.encode_text(text, length).ids for text in captions])
    prompt_of = torch.arange(options.batch) % len(captions)
    settings = [SamplingSettings(top_k=0)] * options.batch
    others = {
        name: load_decoder("demo-dalle", dtype=DTYPES[name]).model
        for name in ("bfloat16", "int8", "int8_dynamic")
    }
    decoders = {
        name: CachedDecoder(model, ids, prompt_of)
        for name, model in {"float32": exact.model, **others}.items()
    }
    sampler = TokenSampler(settings, torch.arange(options.batch))
    logits = {name: decoder.prefill() for name, decoder in decoders.items()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in decoders}
    for step in range(exact.model.config.image_length):
        for name, output in logits.items():
            drawn[name].append(sampler.sample(output.float(), step))
        if step + 1 < exact.model.config.image_length:
            token = drawn["float32"][-1]
            logits = {name: part.decode_one_token(token) for name, part in decoders.items()}
    expected = torch.stack(drawn["float32"])
    report_figures(
        **{name: (torch.stack(drawn[name]) == expected).double().mean().item() for name in others}
    )


@torch.inference_mode()
def vqgan(options: argparse.Namespace) -> None:
    """Measure decoding of tokens like the decode stage does it.

    Reports the speed, the PSNR compared with float32, and the share of the time spent in
    convolutions, which bounds what optimizing everything else can gain.
    """
    torch.manual_seed(0)
    network = VqGan(VqGanConfig(**registry.get("vqgan-f8").architecture)).eval()
    tokens = torch.randint(0, 8192, (options.batch, 32, 32))
    exact = network.decode(tokens[:1])
    network.use_dtype(DTYPES[options.dtype])
    error = (network.decode(tokens[:1]) - exact).square().mean()
    seconds = median_seconds(lambda: to_uint8(network.decode(tokens), -1.0, 1.0), options.repeats)
    psnr = (4.0 / error).log10().item() * 10 if error else float("inf")
    calls: list[tuple[nn.Module, Tensor]] = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda conv, x, _: calls.append((conv, x[0].clone())))
    network.decode(tokens[:1])
    alone = median_seconds(lambda: [conv.forward(x) for conv, x in calls], options.repeats)
    share = alone * options.batch / seconds
    report_figures(images_per_second=options.batch / seconds, psnr=psnr, share=share)


@torch.inference_mode()
def super_resolution(options: argparse.Namespace) -> None:
    """Measure upscaling of images from 256 to 512 px."""
    network = RrdbNet(RrdbNetConfig(scale=2)).eval()
    images = torch.randint(0, 256, (options.batch, 3, 256, 256), dtype=torch.uint8)
    network.use_dtype(DTYPES[options.dtype])
    seconds = median_seconds(lambda: upscale(network, images, options.batch), options.repeats)
    report_figures(images_per_second=options.batch / seconds)


@torch.inference_mode()
def ruclip(options: argparse.Namespace) -> None:
    """Measure scores of eight images per text, image features alone, and the error of scores."""
    from tests.benchmarks.measure_peers import random_images

    exact = RuClip(RuClipConfig()).eval()
    network = copy.deepcopy(exact).to(DTYPES[options.dtype])
    optimize_for_inference(network)
    tokenizer = Tokenizer.load(CLIP_PIECES)
    scorer = Scorer(network, tokenizer)
    images = torch.stack([from_pil(image) for image in random_images(options.batch)])
    texts = [f"красный круг {number // 8}" for number in range(options.batch)]
    seconds = median_seconds(lambda: scorer.score(images, texts), options.repeats)
    alone = median_seconds(lambda: scorer.image_features(images), options.repeats)
    error = scorer.score(images, texts) - Scorer(exact, tokenizer).score(images, texts)
    report_figures(
        images_per_second=options.batch / seconds,
        images_alone=options.batch / alone,
        moved=error.abs().max().item(),
    )


def write_checkpoint(options: argparse.Namespace) -> None:
    """Write a random Malevich in the published layout to a folder."""
    from tests.lib.whole.test_full_size import write_files

    write_files("malevich-v3", options.folder)
    report_figures()


def memory(options: argparse.Namespace) -> None:
    """Measure peak memory while loading that checkpoint and drawing a few tokens of a batch."""
    weights = WeightsConfig(folder=str(options.folder), offline=True)
    with torch.inference_mode():
        model = load_decoder("malevich-v3", weights, dtype=DTYPES[options.dtype]).model
        loaded = peak_gigabytes()
        step = Step(model, options.batch, options.replicas)
        step.set_position(1000)
        for _ in range(3):
            step.draw()
    report_figures(load_gigabytes=loaded, peak_gigabytes=peak_gigabytes())


def main() -> None:
    """Run the command line: one measurement."""
    measurements = (
        decoder, cpu_seconds, linears, growth, agreement, vqgan, super_resolution, ruclip,
        write_checkpoint, memory,
    )  # fmt: skip
    by_name = {measure.__name__: measure for measure in measurements}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=by_name)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=8, help="images per prompt")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--positions", type=json.loads, default=[512])
    parser.add_argument("--sizes", type=json.loads, default=[], help="[[batch, replicas], ...]")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    limited = os.environ.items() >= AVX2_ENVIRONMENT.items()
    with only_avx2() if limited else contextlib.nullcontext():
        by_name[options.what](options)


if __name__ == "__main__":
    main()
