"""How fast this project's networks are, at their published sizes, with random weights.

Started by `engine.py`, one process a figure; alone it is

    python -m tests.benchmarks.measure_engine decoder --dtype bfloat16 --batch 64
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rudalle_lib import registry
from rudalle_lib.batch_size import bytes_per_image, cache_bytes_per_image, free_bytes
from rudalle_lib.checkpoints import build
from rudalle_lib.config import WeightsConfig
from rudalle_lib.devices import DTYPES, IN_8_BITS, compute_dtype
from rudalle_lib.guidance import GuidedDecoder, Logits
from rudalle_lib.images import from_pil, to_uint8
from rudalle_lib.models.compiled_layer_norm import with_compiled_norms
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.dynamic_int8_linear import DynamicInt8Linear, with_dynamic_int8_linears
from rudalle_lib.models.int8_linear import Int8Linear, with_int8_linears
from rudalle_lib.models.kv_cache import CachedDecoder
from rudalle_lib.models.packed_linear import PackedLinear, with_packed_linears
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig, pack
from rudalle_lib.models.tiled_linear import AnyTiledLinear, TiledInt8Linear, TiledLinear
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.sampling import SamplingSettings, TokenSampler
from rudalle_lib.scoring import Scorer
from rudalle_lib.tokenizer import Tokenizer
from rudalle_lib.upscaling import upscale
from rudalle_lib.weights import load_decoder
from tests.benchmarks.timing import (
    CLIP_PIECES,
    average,
    median_seconds,
    peak_gigabytes,
    seconds_of,
    tell,
    values,
)
from tests.linear_layers import in_8_bits

CPU = torch.device("cpu")


def malevich(layers: int, dtype: torch.dtype) -> Dalle:
    """A decoder as `weights.load_decoder` makes it, of as many layers."""
    architecture = {**registry.get("malevich-v3").architecture, "num_layers": layers}
    config = DalleConfig(**architecture)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Dalle(config).state_dict().items()}

    def make() -> Dalle:
        network = Dalle(config)
        if dtype in IN_8_BITS:
            with_int8_linears(network.transformer)
        return network

    computed = compute_dtype(dtype, CPU)
    model = build(make, values(shapes), Path("random weights"), CPU, computed)
    if dtype is torch.qint8:
        with_dynamic_int8_linears(model.transformer)
    with_packed_linears(model.transformer)
    with_compiled_norms(model.transformer)
    return model


class Step:
    """A batch in the middle of its images: `draw` draws one more token of each."""

    def __init__(self, model: Dalle, batch: int, replicas: int) -> None:
        prompts = -(-batch // replicas)
        text = torch.randint(4, 16_000, (prompts, model.config.text_length))
        prompt_of = torch.arange(batch) // replicas
        self._decoder = GuidedDecoder(model, text, prompt_of, torch.ones(batch))
        self._sampler = TokenSampler([SamplingSettings()] * batch, torch.arange(batch))
        self.prefill_seconds = seconds_of(self._prefill)
        for layer in self._cache._layers:  # untouched memory would be quicker than it should be
            layer.key.fill_(0.01)
            layer.value.fill_(0.01)

    @property
    def _cache(self) -> CachedDecoder:
        return self._decoder._decoder

    def _prefill(self) -> None:
        self._logits: Logits = self._decoder.prefill()

    def go_to(self, position: int) -> None:
        """Pretend that so many image tokens are drawn; what they are changes no time."""
        self._cache._tokens = self._cache._cells = position

    def draw(self) -> None:
        """What `sampling` does for each token."""
        token = self._sampler.sample(self._logits.guided, self._cache._tokens)
        self._logits.own.log_softmax(dim=1).gather(1, token[:, None])
        self._logits = self._decoder.decode_one_token(token)


def products(model: Dalle, batch: int) -> list[tuple[nn.Module, Tensor]]:
    """All matrix products of a step, each with an input."""
    dtype = model.image_embeddings.weight.dtype
    linears: list[nn.Module] = [
        part
        for part in model.transformer.modules()
        if isinstance(
            part,
            nn.Linear | PackedLinear | Int8Linear | DynamicInt8Linear | AnyTiledLinear,
        )
    ]
    head = CachedDecoder(
        model, torch.ones(1, model.config.text_length).long(), torch.zeros(1).long()
    )
    linears.append(head._image_head or model.to_logits[1])
    hidden = model.config.hidden_size
    inputs = {width: torch.randn(batch, width).to(dtype) for width in (hidden, 4 * hidden)}
    order = [hidden, hidden, hidden, 4 * hidden]  # of a layer: attention in and out, up, down
    widths = [*order * model.config.num_layers, hidden]
    return [(linear, inputs[width]) for linear, width in zip(linears, widths, strict=True)]


@torch.inference_mode()
def decoder(options: argparse.Namespace) -> None:
    """Steps at each position, and the matrix products alone, one after the other in turn."""
    model = malevich(options.layers, DTYPES[options.dtype])
    step = Step(model, options.batch, options.replicas)
    alone = products(model, options.batch)

    def floor() -> None:
        for linear, x in alone:
            linear(x)

    floor()
    steps, floors = {}, []
    for position in options.positions:
        step.go_to(position)
        step.draw()
        turns = [(seconds_of(step.draw), seconds_of(floor)) for _ in range(options.repeats)]
        steps[position] = statistics.median(drawn for drawn, _ in turns)
        floors += [least for _, least in turns]
    step_seconds, floor_seconds = average(steps), statistics.median(floors)
    numbers = model.image_embeddings.weight.element_size()
    tell(
        seconds=steps,
        step=step_seconds,
        floor=floor_seconds,
        share=floor_seconds / step_seconds,
        prefill=step.prefill_seconds,
        tokens_per_second=options.batch / (step_seconds + step.prefill_seconds / 1024),
        cache_bytes=cache_bytes_per_image(model.config, numbers, options.replicas),
        peak_gigabytes=peak_gigabytes(),
    )


@torch.inference_mode()
def linears(options: argparse.Namespace) -> None:
    """The linear layers alone, by oneDNN and by tiles, in bfloat16 and 8 bits, in turns."""
    shapes = [(6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192)] * options.layers
    kinds: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "onednn": lambda layer: PackedLinear(layer.weight, layer.bias.detach()),
        "tiles": lambda layer: TiledLinear(layer.weight, layer.bias.detach()),
        "onednn_int8": lambda layer: DynamicInt8Linear(in_8_bits(layer)),
        "tiles_int8": lambda layer: TiledInt8Linear(in_8_bits(layer)),
    }
    plain = [nn.Linear(inputs, outputs).bfloat16() for outputs, inputs in shapes]
    made = {name: [make(layer) for layer in plain] for name, make in kinds.items()}
    inputs = {width: torch.randn(options.batch, width).bfloat16() for _, width in shapes}

    def multiply(name: str) -> None:
        for layer, (_, width) in zip(made[name], shapes, strict=True):
            layer(inputs[width])

    turns = [
        {name: seconds_of(partial(multiply, name)) for name in kinds}
        for _ in range(options.repeats + 1)
    ][1:]
    tell(**{name: statistics.median(turn[name] for turn in turns) for name in kinds})


@torch.inference_mode()
def growth(options: argparse.Namespace) -> None:
    """Seconds of a step, in the middle of an image, for growing batches and shares of a text."""
    model = malevich(options.layers, DTYPES[options.dtype])
    element = model.image_embeddings.weight.element_size()
    rows = []
    for batch, replicas in options.sizes:
        need = batch * bytes_per_image(model.config, element, replicas)
        if need > 0.9 * free_bytes(CPU):
            rows.append({"batch": batch, "replicas": replicas, "seconds": None})
            continue
        step = Step(model, batch, replicas)
        step.go_to(512)
        seconds = median_seconds(step.draw, options.repeats)
        cache = cache_bytes_per_image(model.config, element, replicas)
        rows.append({"batch": batch, "replicas": replicas, "seconds": seconds, "cache": cache})
        del step
    tell(rows=rows)


@torch.inference_mode()
def agreement(options: argparse.Namespace) -> None:
    """How often the trained demo decoder draws, in less precision, the token of float32.

    After the same tokens and with the same noise; and how many images stay equal to the end.
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
        for name, values_ in logits.items():
            drawn[name].append(sampler.sample(values_.float(), step))
        if step + 1 < exact.model.config.image_length:
            token = drawn["float32"][-1]
            logits = {name: part.decode_one_token(token) for name, part in decoders.items()}
    expected = torch.stack(drawn["float32"])
    tell(**{name: (torch.stack(drawn[name]) == expected).double().mean().item() for name in others})


@torch.inference_mode()
def vqgan(options: argparse.Namespace) -> None:
    """Tokens to pixels, as the decode stage does it, how far from float32 the pixels are, and the
    share of its convolutions, which is what a faster rest could not go below.
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
    tell(images_per_second=options.batch / seconds, psnr=psnr, share=share)


@torch.inference_mode()
def super_resolution(options: argparse.Namespace) -> None:
    """Pictures of 256 px to 512."""
    network = RrdbNet(RrdbNetConfig(scale=2)).eval()
    pictures = torch.randint(0, 256, (options.batch, 3, 256, 256), dtype=torch.uint8)
    network.use_dtype(DTYPES[options.dtype])
    seconds = median_seconds(lambda: upscale(network, pictures, options.batch), options.repeats)
    tell(images_per_second=options.batch / seconds)


@torch.inference_mode()
def ruclip(options: argparse.Namespace) -> None:
    """Scores of eight pictures a text, features of the pictures alone, and how far scores move."""
    from tests.benchmarks.measure_peers import random_pictures

    exact = RuClip(RuClipConfig()).eval()
    network = copy.deepcopy(exact).to(DTYPES[options.dtype])
    pack(network)
    tokenizer = Tokenizer.load(CLIP_PIECES)
    scorer = Scorer(network, tokenizer)
    pictures = torch.stack([from_pil(picture) for picture in random_pictures(options.batch)])
    texts = [f"красный круг {number // 8}" for number in range(options.batch)]
    seconds = median_seconds(lambda: scorer.score(pictures, texts), options.repeats)
    alone = median_seconds(lambda: scorer.image_features(pictures), options.repeats)
    moved = scorer.score(pictures, texts) - Scorer(exact, tokenizer).score(pictures, texts)
    tell(
        images_per_second=options.batch / seconds,
        pictures_alone=options.batch / alone,
        moved=moved.abs().max().item(),
    )


def write_checkpoint(options: argparse.Namespace) -> None:
    """A random Malevich in the published layout, below a folder."""
    from tests.lib.test_full_size import lay_out

    lay_out("malevich-v3", options.folder)
    tell()


def memory(options: argparse.Namespace) -> None:
    """Peak memory of loading that checkpoint and drawing a few tokens of a batch."""
    weights = WeightsConfig(folder=str(options.folder), offline=True)
    with torch.inference_mode():
        model = load_decoder("malevich-v3", weights, dtype=DTYPES[options.dtype]).model
        loaded = peak_gigabytes()
        step = Step(model, options.batch, options.replicas)
        step.go_to(1000)
        for _ in range(3):
            step.draw()
    tell(load_gigabytes=loaded, peak_gigabytes=peak_gigabytes())


def main() -> None:
    """Measure one thing."""
    every = (
        decoder, linears, growth, agreement, vqgan, super_resolution, ruclip, write_checkpoint,
        memory,
    )  # fmt: skip
    things = {thing.__name__: thing for thing in every}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=things)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--replicas", type=int, default=8, help="images of a prompt")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--positions", type=json.loads, default=[512])
    parser.add_argument("--sizes", type=json.loads, default=[], help="[[batch, replicas], ...]")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    things[options.what](options)


if __name__ == "__main__":
    main()
