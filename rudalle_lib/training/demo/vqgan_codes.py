"""Give the codes of a trained demo VQ-GAN fixed meanings: one code per edge, in all colours.

A codebook learnt by reconstruction alone spends its codes on edges of particular colours. The code
for the edge of a red circle on black is then a separate fact that a decoder has to memorise. Here
the codes of `scene_tokens` replace the learnt ones. Each code starts at the mean of the features
that it represents. Then the encoder learns by cross-entropy to distinguish the codes, and the
decoder learns to draw images from them, taking the colours of an edge from the cells on its two
sides.

Half of the images have colour pairs that no scene has, such as orange on violet. With ten times as
many pairs, the decoder cannot memorise them one by one. Errors near an edge are divided by its
contrast, so that edges between similar colours become equally straight.

    python -m rudalle_lib.training.demo.vqgan_codes --work runs/vqgan-codes \\
        --vqgan rudalle_lib/demo/weights/demo-vqgan
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.demo.drawing import PALETTE, draw_placements
from rudalle_lib.demo.scenes import (
    STEP,
    Scene,
    all_combinations,
    is_held_out,
    place,
    random_scene,
)
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.checkpoints import read_checkpoint
from rudalle_lib.training.demo.scene_tokens import CODES, GRID, PLAIN, edges, scene_tokens
from rudalle_lib.training.demo.vqgan import (
    held_out_images,
    load_vqgan,
    psnr,
    reconstruction_loss,
    round_trip,
    stored_tensors,
    to_float,
    write_gumbel_form,
)
from rudalle_lib.training.figures import printer
from rudalle_lib.training.run import cosine, export
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import train as train_task

RATE, WARMUP = 1e-3, 30
"""Peak learning rate and number of warm-up steps."""

CROP_SHARE, CROP_BATCH, FULL_BATCH = 0.6, 28, 8
"""Share of the steps that use crops, and images per batch of crops and of whole images."""

CROP = GRID // 2
"""Side of a crop in cells."""

RECOLOURED_SHARE = 0.5
"""Share of the images with arbitrary colours."""

EDGE_REACH, FAINTEST = 9, 0.1
"""Side in pixels of the window that is searched for edges, and minimum contrast to divide by."""

START_IMAGES = 512
"""Number of images from whose features the codes are initialised."""


def make_batch(rng: random.Random, count: int, crop: bool = False) -> tuple[Tensor, Tensor]:
    """Draw random images and their tokens.

    Args:
        rng: source of randomness.
        count: number of images.
        crop: whether to crop to half the width and height around an edge, because edges are rare in
            whole images.

    Returns:
        Tokens, int64 [count, 16, 16], and images, float [count, 3, 128, 128] in [-1, 1].
    """
    drawn, tokens = [], []
    for _ in range(count):
        scene = random_scene(rng, single_share=0.25)
        if rng.random() < RECOLOURED_SHARE:
            scene = recoloured(scene, rng)
        placements = place(scene, rng)
        cells = scene_tokens(scene.background, placements)
        image = draw_placements(scene.background, placements)
        if crop:
            middle = rng.choice(np.argwhere(cells >= len(PLAIN)))
            top, left = (min(max(int(at) - rng.randrange(CROP), 0), GRID - CROP) for at in middle)
            cells = cells[top : top + CROP, left : left + CROP]
            image = image[top * STEP :, left * STEP :][: CROP * STEP, : CROP * STEP]
        drawn.append(image)
        tokens.append(cells)
    return torch.from_numpy(np.stack(tokens).astype(np.int64)), to_float(np.stack(drawn))


def recoloured(scene: Scene, rng: random.Random) -> Scene:
    """Return a scene in arbitrary colours, excluding held-out combinations."""
    while True:
        background, *colours = rng.sample(list(PALETTE), 1 + len(scene.figures))
        figures = (replace(f, colour=c) for f, c in zip(scene.figures, colours, strict=True))
        other = replace(scene, background=background, figures=tuple(figures))
        known = set(other.combinations()) & set(all_combinations())
        if not any(map(is_held_out, known)):
            return other


def with_vocabulary(learnt: VqGan) -> VqGan:
    """Return the same network with an uninitialised codebook of `CODES` codes."""
    model = VqGan(replace(learnt.config, n_embed=CODES))
    kept = {n: t for n, t in learnt.state_dict().items() if not n.startswith("quantize.")}
    model.load_state_dict(kept, strict=False)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def start_codes(vqgan: VqGan, rng: random.Random) -> None:
    """Initialise each code with the mean of the features of its cells."""
    count, dim = len(PLAIN) + len(edges()), vqgan.config.embed_dim
    sums, seen = torch.zeros(count, dim), torch.zeros(count)
    for _ in range(START_IMAGES // 16):
        tokens, images = make_batch(rng, 16)
        features = vqgan.encode_features(images).permute(0, 2, 3, 1).reshape(-1, dim)
        sums.index_add_(0, tokens.flatten(), features)
        seen.index_add_(0, tokens.flatten(), torch.ones(tokens.numel()))
    codes = torch.zeros(CODES, dim)
    codes[:count] = sums / seen.clamp(min=1)[:, None]
    write_gumbel_form(vqgan, codes)


def losses(vqgan: VqGan, tokens: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses of a batch.

    Args:
        vqgan: the network.
        tokens: int64 [B, H, W].
        images: float [B, 3, 8 * H, 8 * W] in [-1, 1].

    Returns:
        Cross-entropy of the encoder's choice, loss of the decoder's images, and those images.
    """
    with torch.autocast("cpu", torch.bfloat16):
        logits = vqgan.code_logits(vqgan.encode_features(images))
        output = vqgan.decode_features(vqgan.embed_codes(tokens))
    image = reconstruction_loss(output, images) + edge_loss(output, images)
    return F.cross_entropy(logits.float(), tokens), image, output


def edge_loss(output: Tensor, images: Tensor) -> Tensor:
    """Return the mean error near edges relative to their contrast. [B, 3, H, W] in [-1, 1]."""
    around = EDGE_REACH // 2
    highest = F.max_pool2d(images, EDGE_REACH, 1, around)
    lowest = -F.max_pool2d(-images, EDGE_REACH, 1, around)
    contrast = (highest - lowest).mean(1)  # [B, H, W], 0 on plain background
    errors = (output.float() - images).abs().mean(1)
    return (errors / contrast.clamp(min=FAINTEST) * (contrast > 0)).mean()


class FixedCodes(Task):
    """A network that learns the codes of `scene_tokens`.

    Args:
        vqgan: the network, changed in place.
        seed: seed of the batches.
        steps: steps of the whole training; the first ones use crops.
    """

    model: VqGan
    can_split = False

    def __init__(self, vqgan: VqGan, seed: int, steps: int) -> None:
        self.model, self._seed, self._crops = vqgan, seed, CROP_SHARE * steps

    def batch(self, step: int, rows: range) -> Batch:
        """Return `tokens` and `image`, see `make_batch`."""
        crop = step < self._crops
        count = CROP_BATCH if crop else FULL_BATCH
        tokens, images = make_batch(random.Random(f"{self._seed}/{step}"), count, crop)
        return {"tokens": tokens, "image": images}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return both losses and the PSNR in dB."""
        choice, image, output = losses(self.model, batch["tokens"], batch["image"])
        quality = psnr(output.detach(), batch["image"]).mean()
        return {"loss": choice + image, "choice": choice, "image": image, "psnr": quality}

    def optimizers(self, training: TrainingConfig) -> list[torch.optim.Optimizer]:
        """Return AdamW."""
        rate = training.learning_rate
        return [torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.99))]

    def schedule(self, step: int, training: TrainingConfig) -> float:
        """Return a cosine that falls lower than by default."""
        return cosine(step, training.steps, training.warmup_steps, 0.02)

    def clipped(self) -> Sequence[Iterable[nn.Parameter]]:
        """Return what reads images and what draws them, which learn from losses of their own."""
        model = self.model
        reader = nn.ModuleList([model.encoder, model.quant_conv, model.quantize.proj])
        painter = nn.ModuleList([model.quantize.embed, model.post_quant_conv, model.decoder])
        return [half.parameters() for half in (reader, painter)]


def train(work: Path, vqgan: VqGan, steps: int, seed: int) -> float:
    """Train `vqgan` in place, or resume; return the minutes of training."""
    task = FixedCodes(vqgan, seed, steps)
    if read_checkpoint(work) is None:
        start_codes(vqgan, random.Random(f"{seed}/start"))
    training = TrainingConfig(
        steps=steps, learning_rate=RATE, warmup_steps=WARMUP, average=0.99, dtype="float32"
    )
    trained = train_task(task, training, work=work, seed=seed, device="cpu", on_figures=printer())
    return trained.seconds / 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: train the network of a weights folder in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--vqgan", type=Path, required=True, help="weights folder of the VQ-GAN")
    parser.add_argument("--steps", type=int, default=5900)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    card = (options.vqgan / "MODEL_CARD.md").read_text().splitlines()
    model = with_vocabulary(load_vqgan(options.vqgan))
    minutes = train(options.work, model, options.steps, options.seed)
    images = held_out_images(7, 256)
    decibels = float(psnr(round_trip(model, images), images).mean())
    card += [
        f"- then: `python -m rudalle_lib.training.demo.vqgan_codes --steps {options.steps} "
        f"--seed {options.seed}`, {minutes:.0f} more minutes: {decibels:.1f} dB",
        f"- codes in use: {len(PLAIN)} plain colours and {len(edges())} edges",
    ]
    export(options.vqgan, stored_tensors(model), asdict(model.config), card)
    print(f"written: {options.vqgan}, {decibels:.1f} dB")


if __name__ == "__main__":
    main()
