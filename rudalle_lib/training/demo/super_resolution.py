"""Train the demo Real-ESRGAN x2: 128-px images to 256 px, an RRDBNet of 32 features and 4 blocks.

Half of the inputs are clean renders. The other half are reconstructions by the VQ-GAN, whose soft
edges the network gets in a run. (Training on realistic degradations is the idea of Real-ESRGAN:
Wang et al., arXiv:2107.10833.) The initial network passes colours through, so plain backgrounds are
right from the first step. The loss is L1 and mean square; such simple figures need no adversary.

    python -m rudalle_lib.training.demo.super_resolution --work runs/upscaler \\
        --vqgan rudalle_lib/demo/weights/demo-vqgan \\
        --out rudalle_lib/demo/weights/demo-realesrgan-x2
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import TrainingConfig
from rudalle_lib.demo.drawing import draw_placements
from rudalle_lib.demo.scenes import place, random_scene
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.demo.vqgan import load_vqgan, psnr, round_trip, to_float
from rudalle_lib.training.figures import printer
from rudalle_lib.training.run import export
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import train as train_task

CONFIG = RrdbNetConfig(scale=2, num_features=32, num_blocks=4, growth=16)
"""Architecture of the demo network."""

BATCH, CROP, RATE = 12, 64, 5e-4
"""Images per batch, side of a crop in pixels, and peak learning rate."""

POOL = 768
"""Number of images reconstructed by the VQ-GAN, which are computed once."""


def pairs(rng: random.Random, count: int, held_out: bool = False) -> tuple[Tensor, Tensor]:
    """Render scenes at both sizes: float [count, 3, 128 or 256, 128 or 256] in [0, 1]."""
    small, large = [], []
    for _ in range(count):
        scene = random_scene(rng, held_out)
        placements = place(scene, rng)
        small.append(draw_placements(scene.background, placements))
        large.append(draw_placements(scene.background, placements, scale=2))
    return (to_float(np.stack(small)) + 1) / 2, (to_float(np.stack(large)) + 1) / 2


def soft_pairs(vqgan: VqGan, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `pairs` whose small images are reconstructions by the VQ-GAN."""
    small, large = pairs(random.Random(f"{seed}/soft"), count)
    return (round_trip(vqgan, small * 2 - 1).float() + 1) / 2, large


def make_batch(rng: random.Random, soft: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return crops of small and large images, half of them from the `soft` pairs."""
    picked = torch.tensor(rng.sample(range(len(soft[0])), BATCH // 2))
    clean = pairs(rng, BATCH - len(picked))
    small, large = (torch.cat((s[picked], c)) for s, c in zip(soft, clean, strict=True))
    inputs, targets = [], []
    for low, high in zip(small, large, strict=True):
        x, y = (rng.randrange(0, low.shape[1] - CROP + 1, 2) for _ in range(2))
        inputs.append(low[:, y : y + CROP, x : x + CROP])
        targets.append(high[:, 2 * y : 2 * (y + CROP), 2 * x : 2 * (x + CROP)])
    layout = torch.channels_last
    return torch.stack(inputs).to(memory_format=layout), torch.stack(targets)


@torch.no_grad()
def start_from_colours(model: RrdbNet) -> None:
    """Initialise the network to return the mean colour of each 2 x 2 block."""
    model.conv_body.weight.mul_(0.1)
    for conv in (model.conv_first, model.conv_up1, model.conv_up2, model.conv_hr):
        through = nn.init.dirac_(torch.empty_like(conv.weight))
        conv.weight.mul_(0.1).add_(through)
    model.conv_last.weight.mul_(0.1)
    for colour in range(3):  # pixel_unshuffle: four neighbouring channels per colour
        model.conv_last.weight[colour, 4 * colour : 4 * colour + 4, 1, 1] += 1 / 4


class SuperResolution(Task):
    """An initial network, and the batches from which it learns.

    Args:
        vqgan: makes the soft half of the inputs.
        seed: seed of weights and batches.
    """

    model: RrdbNet

    def __init__(self, vqgan: VqGan, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = RrdbNet(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start_from_colours(self.model)
        self.soft, self.seed = soft_pairs(vqgan, POOL, seed), seed

    def batch(self, step: int, rows: range) -> Batch:
        """Return `input` and `target`, see `make_batch`."""
        inputs, targets = make_batch(random.Random(f"{self.seed}/{step}"), self.soft)
        part = slice(rows.start, rows.stop)
        return {"input": inputs[part], "target": targets[part]}

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the L1 and mean square loss, and the PSNR in dB."""
        output, target = model(batch["input"]).float(), batch["target"]
        loss = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
        return {"loss": loss, "psnr": psnr(output.detach() * 2 - 1, target * 2 - 1).mean()}

    def optimizers(self, training: TrainingConfig) -> list[torch.optim.Optimizer]:
        """Return AdamW with a shorter memory than the default."""
        rate = training.learning_rate
        return [torch.optim.AdamW(self.model.parameters(), lr=rate, betas=(0.9, 0.99))]


def train(work: Path, vqgan: VqGan, steps: int, seed: int) -> tuple[RrdbNet, float]:
    """Train or resume; return the averaged network and the minutes of training."""
    task = SuperResolution(vqgan, seed)
    training = TrainingConfig(
        steps=steps, batch_size=BATCH, learning_rate=RATE, warmup_steps=30, average=0.99
    )
    trained = train_task(task, training, work=work, seed=seed, device="cpu", on_figures=printer())
    return task.model, trained.seconds / 60


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: train and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--vqgan", type=Path, required=True, help="weights folder of the VQ-GAN")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    model, minutes = train(options.work, load_vqgan(options.vqgan), options.steps, options.seed)
    card = [
        "# demo-realesrgan-x2",
        "",
        "RRDBNet x2 of the Suprematist demo: 32 features, 4 blocks, growth 16; 128 to 256 px.",
        "",
        "- data: renders at both sizes, half of the inputs through demo-vqgan; held-out "
        "combinations excluded",
        f"- command: `python -m rudalle_lib.training.demo.super_resolution --steps {options.steps} "
        f"--seed {options.seed}`",
        f"- minutes on 2 CPU cores: {minutes:.0f}",
        "- figures: `rudalle_lib/demo/quality.json`",
    ]
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    export(options.out, tensors, asdict(CONFIG), card)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
