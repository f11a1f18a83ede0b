"""Train the demo VQ-GAN: 128-px Suprematist images to 16 x 16 tokens of 512 codes, and back.

The codebook is learnt by nearest neighbours with exponential moving averages (van den Oord et al.,
arXiv:1711.00937, appendix). It is initialised by k-means and dead codes are replaced, which is more
stable on small data than Gumbel noise. It is then written in the published Gumbel form, in which
the code is an argmax over logits. With logits = 2 e.z - |e|^2 that argmax is the nearest neighbour.

Codes are chosen by distance - lambda * log p(code) (entropy-constrained quantisation: Chou,
Lookabaugh, Gray, 1989). The second term, the price, becomes the bias of the logits. Among
near-equal codes for a flat background it selects the most frequent one, and the encoder learns to
produce that code, so the decoder need not predict random choices or a halo around each figure. A
high price makes tokens more regular but blurs thin figures with low contrast, so the last steps use
a lower price.

    python -m rudalle_lib.training.demo.vqgan --work runs/vqgan \\
        --out rudalle_lib/demo/weights/demo-vqgan
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.demo.drawing import draw_scene
from rudalle_lib.demo.scenes import random_scene
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from rudalle_lib.training.demo.ema_codebook import EmaCodebook
from rudalle_lib.training.figures import printer
from rudalle_lib.training.run import cosine, export
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import train as train_task

CONFIG = VqGanConfig(
    resolution=128,
    ch=16,
    ch_mult=(1, 2, 4, 8),
    num_res_blocks=1,
    attention_resolutions=(),
    z_channels=32,
    embed_dim=32,
    n_embed=512,
    norm_groups=8,
)
"""Architecture of the demo VQ-GAN."""

UNQUANTISED_STEPS = 200
"""Steps before the codebook is initialised."""

PRICE_FROM, PRICE_RAMP = 600, 900
"""First step with a price, and number of steps over which the price rises to its full value."""

CROP_BATCH, FULL_BATCH = 16, 8
"""Images per batch of crops and of whole images."""

CROP_RATE, FULL_RATE, SETTLE_RATE = 1e-3, 6e-4, 3e-4
"""Peak learning rates of the three phases."""


def random_images(rng: random.Random, count: int, crop: int | None = None) -> Tensor:
    """Draw random images of seen combinations.

    Args:
        rng: source of randomness.
        count: number of images.
        crop: side of a random crop in pixels, or None for whole images.

    Returns:
        Images, float [count, 3, side, side] in [-1, 1].
    """
    drawn: list[NDArray[np.uint8]] = []
    while len(drawn) < count:
        image = draw_scene(random_scene(rng, single_share=0.25), rng)
        if crop is None:
            drawn.append(image)
            continue
        x, y = rng.randrange(129 - crop), rng.randrange(0, 129 - crop)
        window = image[y // 4 * 4 :, x // 4 * 4 :][:crop, :crop]
        if window.std(axis=(0, 1)).max() > 4 or rng.random() < 0.05:
            drawn.append(window)
    return to_float(np.stack(drawn))


def to_float(images: np.ndarray) -> Tensor:
    """Convert uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1], channels last."""
    batch = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return L1 + mean square + L1 of the gradients: crisp edges without an adversary."""
    output = output.float()
    gradients = sum((output.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3))
    return F.l1_loss(output, target) + 2 * F.mse_loss(output, target) + 0.5 * gradients


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of images in [-1, 1]. float [B]."""
    error = (output.clamp(-1, 1).float() - target).pow(2).flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


@dataclass(frozen=True)
class Phase:
    """Training steps with the same settings.

    Args:
        steps: number of steps.
        rate: peak learning rate.
        floor: final learning rate as a share of `rate`.
        crop: side of the crops in pixels, or None for whole images.
        price: full price of a code.
    """

    steps: int
    rate: float
    floor: float
    crop: int | None
    price: float

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from the start of the phase."""
        return self.rate * cosine(step, self.steps, 50, self.floor)

    def batch(self, rng: random.Random) -> Tensor:
        """Draw a batch with `random_images`."""
        return random_images(rng, FULL_BATCH if self.crop is None else CROP_BATCH, self.crop)


def phases(crop: int, full: int, settle: int, price: float, settle_price: float) -> list[Phase]:
    """Return the phases: crops, whole images, and whole images at the lower `settle_price`."""
    return [
        Phase(crop, CROP_RATE, 0.4, 64, price),
        Phase(full, FULL_RATE, 0.02, None, price),
        Phase(settle, SETTLE_RATE, 0.02, None, settle_price),
    ]


class Learner(nn.Module):
    """The network and the codebook that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.vqgan = VqGan(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        middle = self.vqgan.encoder.mid
        for last in (middle.block_1.conv2, middle.attn_1.proj_out, middle.block_2.conv2):
            nn.init.zeros_(last.weight)  # the middle is bypassed, so that codes are local
            nn.init.zeros_(last.bias)
        middle.requires_grad_(False)
        self.book = EmaCodebook(CONFIG.n_embed, CONFIG.embed_dim)


class DemoVqGan(Task):
    """A new network, and the phases of its training.

    Args:
        plan: the phases.
        seed: seed of weights, images and codes.
    """

    model: Learner
    can_split = False

    def __init__(self, plan: Sequence[Phase], seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self._seed = Learner(), seed
        self.steps = [(phase, place) for phase in plan for place in range(phase.steps)]

    def batch(self, step: int, rows: range) -> Batch:
        """Return `image`, see `random_images`."""
        phase, _ = self.steps[step]
        return {"image": phase.batch(random.Random(self._seed * 1_000_003 + step))}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the loss, its part for the codes, the PSNR in dB and the number of codes used."""
        book, images, (phase, _) = self.model.book, batch["image"], self.steps[step]
        book.price = phase.price * min(1.0, max(0.0, (step - PRICE_FROM) / PRICE_RAMP))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        loss, output, commitment, used = _step(self.model.vqgan, book, images, step, generator)
        quality = psnr(output.detach(), images).mean()
        return {"loss": loss, "commitment": commitment, "psnr": quality, "codes": used}

    def optimizers(self, training: TrainingConfig) -> list[torch.optim.Optimizer]:
        """Return AdamW, whose learning rate is all in the `schedule`."""
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        return [torch.optim.AdamW(learnt, lr=1.0, betas=(0.9, 0.99), weight_decay=1e-4)]

    def schedule(self, step: int, training: TrainingConfig) -> float:
        """Return the learning rate of the phase."""
        phase, place = self.steps[step]
        return phase.learning_rate(place)


def train(work: Path, plan: Sequence[Phase], seed: int) -> tuple[VqGan, EmaCodebook, float]:
    """Train or resume; return the averaged network, its codebook and the minutes of training."""
    task = DemoVqGan(plan, seed)
    training = TrainingConfig(steps=len(task.steps), average=0.995, dtype="float32")
    trained = train_task(task, training, work=work, seed=seed, device="cpu", on_figures=printer())
    return task.model.vqgan, task.model.book, trained.seconds / 60


def _step(
    model: VqGan, book: EmaCodebook, images: Tensor, step: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, output, commitment loss and number of codes used for one batch."""
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_features(images).float()
    if step < UNQUANTISED_STEPS:
        quantised, commitment, used = features, torch.zeros(()), torch.zeros(())
        if step == UNQUANTISED_STEPS - 1:
            many = random_images(random.Random(step), 96)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                flat = torch.cat(
                    [_flat(model.encode_features(part).float()) for part in many.split(8)]
                )
            book.start(flat, generator)
    else:
        flat = _flat(features)
        index = book.choose(flat.detach())
        codes = book.codes[index].view(*features.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        book.follow(flat.detach(), generator)
        commitment = F.mse_loss(features, codes)
        quantised = features + (codes - features).detach()
        used = torch.tensor(index.unique().numel())
    with torch.autocast("cpu", torch.bfloat16):
        output = model.decode_features(quantised)
    return (
        reconstruction_loss(output, images) + 0.25 * commitment,
        output,
        commitment,
        used,
    )


def _flat(features: Tensor) -> Tensor:
    """[B, dim, h, w] to [B * h * w, dim]."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


@torch.no_grad()
def write_gumbel_form(model: VqGan, codes: Tensor, log_price: Tensor | None = None) -> None:
    """Write a codebook into the Gumbel quantiser of a network.

    Args:
        model: the network, changed in place.
        codes: float [N, dim].
        log_price: price * log p of each code, float [N], added to its logit.
    """
    model.quantize.embed.weight.copy_(codes)
    model.quantize.proj.weight.copy_(2 * codes[:, :, None, None])
    assert model.quantize.proj.bias is not None
    model.quantize.proj.bias.copy_(-codes.pow(2).sum(1) + (0 if log_price is None else log_price))


@torch.no_grad()
def set_entropy_price(
    model: VqGan, codes: Tensor, price: float, images: Tensor, rounds: int = 6
) -> float:
    """Let a network choose codes by distance - price * log p.

    Args:
        model: the network, changed in place.
        codes: its codebook, float [N, dim].
        price: weight of log p.
        images: images from which p is estimated, float [B, 3, H, W] in [-1, 1].
        rounds: number of iterations, because p depends on the choice.

    Returns:
        The perplexity of the tokens of these images.
    """
    flat = torch.cat([_flat(model.encode_features(part)) for part in images.split(16)])
    log_p = torch.zeros(len(codes))
    for _ in range(rounds):
        logits = flat @ codes.T * 2 - codes.pow(2).sum(1) + price * log_p
        counts = torch.bincount(logits.argmax(1), minlength=len(codes)).float()
        log_p = ((counts + 0.1) / (counts + 0.1).sum()).log()
    write_gumbel_form(model, codes, price * log_p)
    shares = counts / counts.sum()
    return float(torch.exp(-(shares * (shares + 1e-12).log()).sum()))


def stored_tensors(model: VqGan) -> dict[str, Tensor]:
    """Return the tensors to write: float16 except the codebook, so that codes stay distinct."""
    return {
        name: value if name.startswith("quantize.") else value.half()
        for name, value in model.state_dict().items()
    }


def load_vqgan(folder: Path) -> VqGan:
    """Load the network of a weights folder, ready to encode and decode."""
    model = VqGan(VqGanConfig(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def held_out_images(seed: int, count: int) -> Tensor:
    """Draw images with a held-out combination. Returns float [count, 3, 128, 128] in [-1, 1]."""
    rng = random.Random(seed)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    return to_float(np.stack([draw_scene(scene, rng) for scene in scenes]))


@torch.no_grad()
def round_trip(model: VqGan, images: Tensor, batch: int = 16) -> Tensor:
    """Encode images to tokens and decode them again."""
    return torch.cat([model.decode(model.encode(part)) for part in images.split(batch)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: train, set the prices of codes, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--crop-steps", type=int, default=1500)
    parser.add_argument("--full-steps", type=int, default=2200)
    parser.add_argument("--settle-steps", type=int, default=600)
    parser.add_argument("--price", type=float, default=0.5, help="weight of log p(code)")
    parser.add_argument("--settle-price", type=float, default=0.12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    counts = (options.crop_steps, options.full_steps, options.settle_steps)
    plan = phases(*counts, options.price, options.settle_price)
    model, book, minutes = train(options.work, plan, options.seed)
    images = held_out_images(7, 256)
    perplexity = set_entropy_price(
        model, book.codes, options.settle_price, random_images(random.Random(5), 512)
    )
    decibels = float(psnr(round_trip(model, images), images).mean())
    card = [
        "# demo-vqgan",
        "",
        "Gumbel VQ-GAN f8 of the Suprematist demo: 128-px images, 16 x 16 tokens, 512 codes.",
        "",
        "- data: images drawn by `rudalle_lib.demo.drawing`, held-out combinations excluded",
        f"- command: `python -m rudalle_lib.training.demo.vqgan --crop-steps {options.crop_steps} "
        f"--full-steps {options.full_steps} --settle-steps {options.settle_steps} "
        f"--price {options.price} --settle-price {options.settle_price} --seed {options.seed}`",
        f"- minutes on 2 CPU cores: {minutes:.0f}",
        f"- reconstruction of held-out combinations: {decibels:.1f} dB (256 images)",
        f"- perplexity of the tokens: {perplexity:.1f}",
    ]
    export(options.out, stored_tensors(model), asdict(CONFIG), card)
    print(f"written: {options.out}, {decibels:.1f} dB, perplexity {perplexity:.1f}")


if __name__ == "__main__":
    main()
