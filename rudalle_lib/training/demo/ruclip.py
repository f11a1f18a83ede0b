"""Train the demo ruCLIP to score whether an image matches its caption and is well formed.

This is contrastive training (Radford et al., arXiv:2103.00020) with two kinds of hard negatives,
which teach the score to detect the errors that occur in practice. The first kind is captions with
one attribute changed. The second is malformed images of the same caption: images with damaged
tokens and failed samples of the decoder, detected by the classical checker. New true images are
drawn for each step. A third of the good images are samples of the decoder.

    python -m rudalle_lib.training.demo.ruclip --work runs/ruclip \\
        --vqgan rudalle_lib/demo/weights/demo-vqgan --decoder rudalle_lib/demo/weights/demo-dalle \\
        --out rudalle_lib/demo/weights/demo-ruclip
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.demo.captions import russian_caption
from rudalle_lib.demo.checker import check
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.training.demo.decoder import caption_of, scene_of
from rudalle_lib.training.demo.samples import draw_samples, to_uint8
from rudalle_lib.training.demo.vqgan import load_vqgan, to_float
from rudalle_lib.training.figures import printer
from rudalle_lib.training.muon import Muon
from rudalle_lib.training.run import export
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import train as train_task

CONTEXT = 32
"""Text positions."""

BATCH, NEGATIVES = 64, 32
"""Good and malformed images per batch."""

RATE, MUON_RATE, WARMUP = 1e-3, 2e-3, 60
"""Peak learning rates of AdamW and of Muon, and number of warm-up steps."""

DAMAGED_BATCH = 64
"""Images that are damaged and checked at a time."""

SCENE_OFFSET = 1_000_000
"""Scene numbers below this are for training the decoder. Samples start at this number, damaged
images at twice and true images at three times this number."""


def make_config(pieces: int) -> RuClipConfig:
    """Return the architecture of the demo ruCLIP for a tokenizer with `pieces` pieces."""
    return RuClipConfig(
        embed_dim=128,
        image_resolution=128,
        vision_layers=4,
        vision_width=128,
        vision_patch_size=8,
        vision_heads=4,
        context_length=CONTEXT,
        vocab_size=pieces,
        transformer_width=128,
        transformer_heads=4,
        transformer_layers=3,
    )


@dataclass(frozen=True)
class LabelledImages:
    """Images, uint8 [N, 128, 128, 3], and the numbers of the scenes they should show, int64 [N]."""

    scenes: NDArray[np.int64]
    images: NDArray[np.uint8]


def changed(scene: Scene, rng: random.Random) -> Scene:
    """Return the scene with one random attribute changed, so that its caption is wrong."""
    which = rng.randrange(len(scene.figures))
    figure = scene.figures[which]
    attributes = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}
    name = rng.choice([*attributes, "background", "relation"])
    if name == "background" or (name == "relation" and scene.relation is None):
        taken = {f.colour for f in scene.figures} | {scene.background}
        return replace(scene, background=rng.choice([b for b in BACKGROUNDS if b not in taken]))
    if name == "relation":
        return replace(scene, relation=rng.choice([r for r in RELATIONS if r != scene.relation]))
    current = getattr(figure, name)
    others = [value for value in attributes[name] if value not in (current, scene.background)]
    figures = list(scene.figures)
    figures[which] = replace(figure, **{name: rng.choice(others)})
    return replace(scene, figures=tuple(figures))


@torch.no_grad()
def damaged_images(vqgan: VqGan, count: int, seed: int) -> LabelledImages:
    """Return `count` images that fail the check because a patch of their tokens was overwritten."""
    rng = random.Random(seed)
    scenes: list[int] = []
    kept: list[NDArray[np.uint8]] = []
    index = SCENE_OFFSET * 2
    while len(scenes) < count:
        numbers = list(range(index, index + DAMAGED_BATCH))
        index += DAMAGED_BATCH
        drawn = np.stack([draw_scene(*scene_of(seed, number)) for number in numbers])
        tokens = vqgan.encode(to_float(drawn))  # [DAMAGED_BATCH, 16, 16]
        figure = (drawn[:, ::8, ::8] != drawn[:, :1, :1]).any(-1)  # cells of figures, roughly
        for row, inside in zip(tokens, figure, strict=True):
            _damage(row, np.argwhere(inside), rng)
        images = to_uint8(vqgan.decode(tokens))
        for number, image in zip(numbers, images, strict=True):
            if not check(image, scene_of(seed, number)[0]).ok:
                scenes.append(number)
                kept.append(image)
    return LabelledImages(np.asarray(scenes[:count]), np.stack(kept[:count]))


def _damage(tokens: Tensor, inside: NDArray[np.int64], rng: random.Random) -> None:
    """Overwrite a small patch of the figure with other tokens in place, int64 [16, 16]."""
    height, width = rng.choice(((1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (2, 3)))
    y, x = (int(v) for v in rng.choice(inside)) if len(inside) else (8, 8)
    y, x = min(y, 16 - height), min(x, 16 - width)
    from_y, from_x = rng.randrange(17 - height), rng.randrange(17 - width)
    patch = tokens[from_y : from_y + height, from_x : from_x + width].clone()
    tokens[y : y + height, x : x + width] = patch


def prepare(
    work: Path, vqgan: VqGan, decoder: Path, count: int, seed: int
) -> dict[str, LabelledImages]:
    """Draw and check samples of the decoder, and make damaged images.

    Args:
        work: folder in which the images are cached.
        vqgan: the VQ-GAN.
        decoder: weights folder of the decoder.
        count: number of samples; half as many damaged images are made.
        seed: seed of scenes and samples.

    Returns:
        Images by kind: "good" and "bad" samples, and "damaged".
    """
    path = work / f"images-{count}.npz"
    if not path.exists():
        numbers = np.arange(SCENE_OFFSET, SCENE_OFFSET + count)
        scenes = [scene_of(seed, int(number))[0] for number in numbers]
        samples = draw_samples(decoder, vqgan, scenes, seed)
        good = np.array([check(i, s).ok for i, s in zip(samples, scenes, strict=True)])
        damaged = damaged_images(vqgan, count // 2, seed)
        parts = {
            "good": LabelledImages(numbers[good], samples[good]),
            "bad": LabelledImages(numbers[~good], samples[~good]),
            "damaged": damaged,
        }
        arrays: dict[str, NDArray[Any]] = {}
        arrays |= {f"{name}_scenes": part.scenes for name, part in parts.items()}
        arrays |= {f"{name}_images": part.images for name, part in parts.items()}
        np.savez(path, **arrays)  # type: ignore[arg-type]
    stored = np.load(path)
    names = [name.removesuffix("_scenes") for name in stored.files if name.endswith("_scenes")]
    return {
        name: LabelledImages(stored[f"{name}_scenes"], stored[f"{name}_images"]) for name in names
    }


def _pick(part: LabelledImages, count: int, rng: random.Random) -> LabelledImages:
    """Choose random images of one kind."""
    rows = [rng.randrange(len(part.scenes)) for _ in range(count)]
    return LabelledImages(part.scenes[rows], part.images[rows])


def _draw(seed: int, first: int, count: int) -> LabelledImages:
    """Draw true images of the scenes from number `first` on."""
    numbers = np.arange(first, first + count)
    return LabelledImages(numbers, np.stack([draw_scene(*scene_of(seed, int(n))) for n in numbers]))


class ContrastiveBatch:
    """Matching captions and images, malformed images with captions, then wrong captions.

    Args:
        data: the output of `prepare`.
        tokenizer: the tokenizer of the captions.
        seed: seed of the training.
        step: number of the step, which determines the batch.
    """

    def __init__(
        self, data: dict[str, LabelledImages], tokenizer: Tokenizer, seed: int, step: int
    ) -> None:
        rng = random.Random(f"{seed}/ruclip/{step}")
        sampled = BATCH // 3
        first = 3 * SCENE_OFFSET + step * (BATCH - sampled)
        parts = [
            _draw(seed, first, BATCH - sampled),
            _pick(data["good"], sampled, rng),
            _pick(data["bad"], NEGATIVES // 2, rng),
            _pick(data["damaged"], NEGATIVES - NEGATIVES // 2, rng),
        ]
        scenes = [scene_of(seed, int(number))[0] for part in parts for number in part.scenes]
        captions = [caption_of(scene, rng) for scene in scenes]
        captions += [russian_caption(changed(scene, rng)) for scene in scenes[:BATCH]]
        self.images = (to_float(np.concatenate([part.images for part in parts])) + 1) / 2
        ids = [tokenizer.encode_clip(caption, CONTEXT).ids for caption in captions]
        self.text = torch.tensor(ids)
        canonical = [russian_caption(scene) for scene in scenes]
        canonical += captions[len(scenes) :]
        same = np.array([[a == b for b in canonical] for a in canonical])
        self.same_caption = torch.from_numpy(same)


def contrastive_loss(text: Tensor, image: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Return the cross-entropy in both directions, ignoring other images with an equal caption.

    Args:
        text: unit features [BATCH + NEGATIVES + BATCH, E] of the captions of matching and malformed
            images, then of changed captions.
        image: unit features [BATCH + NEGATIVES, E] of matching, then malformed images.
        scale: the inverse temperature, a scalar.
        same: which captions are equal, bool [texts, texts].
    """
    logits = scale * image @ text.T  # [BATCH + NEGATIVES, texts]
    labels = torch.arange(BATCH)
    other = same & ~torch.eye(len(same), dtype=torch.bool)
    by_image = logits[:BATCH].masked_fill(other[:BATCH], -torch.inf)
    hidden = other[:BATCH, : len(image)].clone()
    hidden[:, BATCH:] = False  # a malformed image of the same caption must lose
    by_text = logits[:, :BATCH].T.masked_fill(hidden, -torch.inf)
    return (F.cross_entropy(by_image, labels) + F.cross_entropy(by_text, labels)) / 2


def malformed_loss(text: Tensor, image: Tensor, scale: Tensor) -> Tensor:
    """Return a loss that makes all good images score higher than all malformed images.

    The score of an image is the cosine with its own caption. Arguments as in `contrastive_loss`.
    """
    cosine_of = (image * text[: len(image)]).sum(1)  # [BATCH + NEGATIVES]
    margins = cosine_of[:BATCH, None] - cosine_of[None, BATCH:]
    return F.softplus(-scale * margins).mean()


class DemoRuClip(Task):
    """A new ruCLIP, and the images and captions that it learns.

    Args:
        data: the output of `prepare`.
        tokenizer: the tokenizer of the captions.
        seed: seed of weights and batches.
        compile: whether to compile the image encoder for the processor.
    """

    model: RuClip
    can_split = False

    def __init__(
        self, data: dict[str, LabelledImages], tokenizer: Tokenizer, seed: int, compile: bool
    ) -> None:
        torch.manual_seed(seed)
        self.model = RuClip(make_config(tokenizer.vocab_size))
        self._data, self._tokenizer, self._seed = data, tokenizer, seed
        self._mean = torch.tensor(self.model.config.mean).view(3, 1, 1)
        self._std = torch.tensor(self.model.config.std).view(3, 1, 1)
        encode = self.model.encode_image
        self._encode_image = torch.compile(encode) if compile else encode
        # On CPUs compiled plain attention is faster: fused attention has a slow backward pass.
        self._attention = SDPBackend.MATH if compile else SDPBackend.FLASH_ATTENTION

    def batch(self, step: int, rows: range) -> Batch:
        """Return the parts of a `ContrastiveBatch`."""
        batch = ContrastiveBatch(self._data, self._tokenizer, self._seed, step)
        return {"image": batch.images, "text": batch.text, "same": batch.same_caption}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return both losses, and the scale of the cosines."""
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(self._attention):
            image = self._encode_image((batch["image"] - self._mean) / self._std)
            text = self.model.encode_text(batch["text"])
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        scale = self.model.logit_scale.exp()
        contrastive = contrastive_loss(text, image, scale, batch["same"])
        margin = malformed_loss(text, image, scale)
        losses = {"contrastive": contrastive, "margin": margin, "scale": scale}
        return {"loss": contrastive + margin, **losses}

    def optimizers(self, training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """Return Muon and AdamW."""
        return make_optimizers(self.model)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Keep the scale at 100 or less."""
        self.model.logit_scale.clamp_(max=4.6052)


def train(
    work: Path,
    data: dict[str, LabelledImages],
    tokenizer: Tokenizer,
    steps: int,
    seed: int,
    compile: bool,
) -> tuple[RuClip, float]:
    """Train or resume; return the averaged network and the minutes of training."""
    task = DemoRuClip(data, tokenizer, seed, compile)
    training = TrainingConfig(
        steps=steps, batch_size=BATCH, warmup_steps=WARMUP, average=0.99, dtype="float32"
    )
    trained = train_task(task, training, work=work, seed=seed, device="cpu", on_figures=printer())
    return task.model, trained.seconds / 60


def make_optimizers(model: RuClip) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers of both towers, and AdamW for the rest."""
    named = dict(model.named_parameters())
    matrices = {n: p for n, p in named.items() if p.dim() == 2 and "resblocks" in n}
    others = [p for n, p in named.items() if n not in matrices]
    return (
        Muon(matrices.values(), lr=MUON_RATE, weight_decay=0.05),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: prepare images, train, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--vqgan", type=Path, required=True, help="weights folder of the VQ-GAN")
    parser.add_argument("--decoder", type=Path, required=True, help="weights folder of the decoder")
    parser.add_argument("--images", type=int, default=2048, help="samples of the decoder")
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler; faster")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    vqgan = load_vqgan(options.vqgan)
    data = prepare(options.work, vqgan, options.decoder, options.images, options.seed)
    tokenizer = Tokenizer.load(options.decoder / "bpe.model")
    model, minutes = train(
        options.work, data, tokenizer, options.steps, options.seed, options.compile
    )
    card = [
        "# demo-ruclip",
        "",
        "ruCLIP of the Suprematist demo: ViT (patch 8, 4 layers), text encoder (3 layers), "
        "width 128.",
        "",
        f"- data: true images of seen combinations, {options.images} samples of demo-dalle, "
        "damaged images",
        f"- command: `python -m rudalle_lib.training.demo.ruclip --steps {options.steps} "
        f"--images {options.images} --seed {options.seed}`",
        f"- minutes on 2 CPU cores: {minutes:.0f}",
        "- figures: `rudalle_lib/demo/quality.json`",
    ]
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    export(options.out, tensors, asdict(model.config), card)
    shutil.copy(options.decoder / "bpe.model", options.out / "bpe.model")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
