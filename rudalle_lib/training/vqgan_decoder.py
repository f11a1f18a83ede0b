"""Train the decoder half of the demo VQ-GAN on tokens as the demo decoder learns to draw them.

Tokens that are laid together from figures encoded alone (see `scene_tokens`) are not quite those
that the encoder gives to the whole picture, and the norms of the VQ-GAN's decoder look at all of
them. Half of each batch is laid together, half is encoded; encoder and codebook stay as they are,
so that every token keeps its meaning.

    python -m rudalle_lib.training.vqgan_decoder --work runs/vqgan-decoder \\
        --vqgan rudalle_lib/demo/weights/demo-vqgan
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rudalle_lib.demo.drawing import draw_placements
from rudalle_lib.demo.scenes import place, random_scene
from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.run import TrainingRun, WeightAverage, cosine, export, set_learning_rate
from rudalle_lib.training.scene_tokens import SceneTokens
from rudalle_lib.training.vqgan import (
    held_out_pictures,
    load_vqgan,
    psnr,
    reconstruction_loss,
    round_trip,
    stored_tensors,
    to_float,
)

BATCH, RATE = 8, 4e-4


def make_batch(vqgan: VqGan, lay: SceneTokens, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Tokens int64 [B, 16, 16] and the pictures [B, 3, 128, 128] in [-1, 1] that they stand for."""
    drawn, laid = [], []
    for _ in range(BATCH):
        scene = random_scene(rng)
        placements = place(scene, rng)
        drawn.append(draw_placements(scene.ground, placements))
        laid.append(lay(scene.ground, placements))
    images = to_float(np.stack(drawn))
    tokens = torch.from_numpy(np.stack(laid).astype(np.int64))
    with torch.no_grad():
        tokens[: BATCH // 2] = vqgan.encode(images[: BATCH // 2])
    return tokens, images


def train(work: Path, vqgan: VqGan, steps: int, seed: int) -> float:
    """Train `vqgan` in place, or resume; returns the minutes it took."""
    vqgan.requires_grad_(False)
    learnt = nn.ModuleList([vqgan.post_quant_conv, vqgan.decoder]).requires_grad_(True)
    optimizer = torch.optim.AdamW(learnt.parameters(), lr=RATE, betas=(0.9, 0.99))
    average = WeightAverage(learnt, 0.99)
    run, first = TrainingRun(work), 0
    if state := run.resume():
        learnt.load_state_dict(state["learnt"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, first = state["average"], state["step"]
    lay = SceneTokens(vqgan)
    for step in range(first, steps):
        set_learning_rate(optimizer, RATE * cosine(step, steps, 20))
        tokens, images = make_batch(vqgan, lay, random.Random(f"{seed}/{step}"))
        with torch.autocast("cpu", torch.bfloat16):
            output = vqgan.decode_features(vqgan.embed_codes(tokens))
        loss = reconstruction_loss(output, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learnt.parameters(), 1.0)
        optimizer.step()
        average.update(learnt, step)
        if step % 50 == 0:
            encoded, laid = psnr(output.detach(), images).tensor_split((BATCH // 2,))
            run.log(
                step=step, loss=loss.item(), psnr=encoded.mean().item(), laid=laid.mean().item()
            )
        run.save(step + 1, force=step + 1 == steps, learnt=learnt.state_dict(),
                 optimizer=optimizer.state_dict(), average=average.values)  # fmt: skip
    learnt.load_state_dict(average.state_dict(learnt))
    return run.minutes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train the decoder half of a weights folder, in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vqgan", type=Path, required=True, help="weights folder of the VQ-GAN")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    card = (options.vqgan / "MODEL_CARD.md").read_text().splitlines()
    model = load_vqgan(options.vqgan)
    minutes = train(options.work, model, options.steps, options.seed)
    _, images = held_out_pictures(7, 256)
    decibels = float(psnr(round_trip(model, images), images).mean())
    card += [
        f"- then: `python -m rudalle_lib.training.vqgan_decoder --steps {options.steps} "
        f"--seed {options.seed}`, {minutes:.0f} more minutes: {decibels:.1f} dB",
    ]
    export(options.vqgan, stored_tensors(model), asdict(model.config), card)
    TrainingRun(options.work).log(exported=str(options.vqgan), psnr=decibels)


if __name__ == "__main__":
    main()
