"""Fine-tune the decoder half of the demo VQ-GAN on the final, priced tokens.

The encoder and the codes stay as they are, so a decoder network trained on the tokens stays valid.

    python -m rudalle_lib.training.vqgan_decoder --work runs/vqgan-decoder \\
        --weights rudalle_lib/demo/weights/demo-vqgan
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from rudalle_lib.models.vqgan import VqGan
from rudalle_lib.training.run import TrainingRun, WeightAverage, cosine, export, set_learning_rate
from rudalle_lib.training.vqgan import (
    held_out_pictures,
    load_vqgan,
    pictures,
    psnr,
    reconstruction_loss,
    round_trip,
    stored_tensors,
)

BATCH, RATE = 8, 6e-4
CARD_MARK = "- decoder half fine-tuned on the priced tokens"


def train(work: Path, weights: Path, steps: int, seed: int) -> tuple[VqGan, float]:
    """Train or resume; returns the averaged network and the minutes it took."""
    model = load_vqgan(weights)
    trained = nn.ModuleList((model.post_quant_conv, model.decoder))
    model.requires_grad_(False)
    trained.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE, betas=(0.9, 0.99))
    average = WeightAverage(trained, 0.995)
    run, first = TrainingRun(work), 0
    if state := run.resume():
        trained.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, first = state["average"], state["step"]
    for step in range(first, steps):
        set_learning_rate(optimizer, RATE * cosine(step, steps, 30, 0.02))
        images = pictures(random.Random(f"{seed}/{step}"), BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.encode(images)
            output = model.decode_features(model.embed_codes(tokens))
        loss = reconstruction_loss(output, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        average.update(trained, step)
        if step % 50 == 0:
            run.log(step=step, loss=loss.item(), psnr=psnr(output.detach(), images).mean().item())
        run.save(step + 1, force=step + 1 == steps, model=trained.state_dict(),
                 optimizer=optimizer.state_dict(), average=average.values)  # fmt: skip
    trained.load_state_dict(average.state_dict(trained))
    return model.eval(), run.minutes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: fine-tune and replace the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="weights folder of the VQ-GAN")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    model, minutes = train(options.work, options.weights, options.steps, options.seed)
    _, images = held_out_pictures(7, 256)
    decibels = float(psnr(round_trip(model, images), images).mean())
    card = (options.weights / "MODEL_CARD.md").read_text().splitlines()
    card = [line for line in card if not line.startswith(CARD_MARK)]
    card.append(
        f"{CARD_MARK}: `python -m rudalle_lib.training.vqgan_decoder --steps {options.steps} "
        f"--seed {options.seed}`, {minutes:.0f} minutes, then {decibels:.1f} dB"
    )
    export(options.weights, stored_tensors(model), asdict(model.config), card)
    TrainingRun(options.work).log(exported=str(options.weights), psnr=decibels)


if __name__ == "__main__":
    main()
