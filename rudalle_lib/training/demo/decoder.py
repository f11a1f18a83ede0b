"""Train the demo decoder: Russian captions to 16 x 16 VQ-GAN tokens, 7 layers of width 192.

The layer pattern, sandwich norms and loss are those of ruDALL-E. With seven layers, the last one is
a convolution layer, as in the published depths. The matrices of the layers are trained with Muon,
which learns rare codes in far fewer steps than AdamW. Embeddings, norms, biases and the head are
trained with AdamW. The tokens of a scene are known without a VQ-GAN (`scene_tokens`), so each step
uses new scenes.

    python -m rudalle_lib.training.demo.decoder --work runs/decoder --compile \\
        --out rudalle_lib/demo/weights/demo-dalle
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rudalle_lib.config.fine_tune import EvaluationConfig, TrainingConfig
from rudalle_lib.demo.captions import caption_variant, partial_caption, russian_caption
from rudalle_lib.demo.scenes import Scene, place, random_scene
from rudalle_lib.models.dalle import Dalle, DalleConfig, DalleLoss
from rudalle_lib.text.tokenizer import Tokenizer
from rudalle_lib.training.demo.samples import sample_tokens
from rudalle_lib.training.demo.scene_tokens import CODES, GRID, scene_tokens, shows
from rudalle_lib.training.demo.tokenizer import train_tokenizer
from rudalle_lib.training.figures import printer
from rudalle_lib.training.muon import Muon
from rudalle_lib.training.run import export
from rudalle_lib.training.task import Batch, Task
from rudalle_lib.training.trainer import train as train_task

TEXT_LENGTH, PIECES = 24, 384
"""Text positions, and size of the tokenizer's vocabulary."""

BATCH, WARMUP = 32, 150
"""Images per batch, and number of warm-up steps."""

RATE, MUON_RATE = 1.2e-3, 3e-3
"""Peak learning rates of AdamW and of Muon."""

CANONICAL_SHARE, PARTIAL_SHARE, EMPTY_SHARE = 0.7, 0.3, 0.05
"""Shares of captions in canonical form among complete ones; shares below which a caption is partial
and below which it is empty. Guidance needs empty captions."""

CAPTIONS = 20_000
"""Number of captions on which the tokenizer is trained."""

CHECK_EVERY = 250
"""Steps between measurements on held-out samples, which are only logged."""


def make_config(pieces: int) -> DalleConfig:
    """Return the architecture of the demo decoder for a tokenizer with `pieces` pieces."""
    return DalleConfig(
        num_layers=7,
        hidden_size=192,
        num_heads=4,
        text_vocab_size=pieces + TEXT_LENGTH,
        text_length=TEXT_LENGTH,
        image_vocab_size=CODES,
        image_height=GRID,
        image_width=GRID,
    )


def scene_of(seed: int, index: int) -> tuple[Scene, random.Random]:
    """Return training scene number `index` and the random generator with which to draw it."""
    rng = random.Random(f"{seed}/{index}")
    return random_scene(rng, single_share=0.35), rng


def caption_of(scene: Scene, rng: random.Random) -> str:
    """Return a training caption, usually the canonical one."""
    return russian_caption(scene) if rng.random() < CANONICAL_SHARE else caption_variant(scene, rng)


def _training_text(scene: Scene, rng: random.Random) -> str:
    """A complete, partial or empty caption."""
    share = rng.random()
    if share < EMPTY_SHARE:
        return ""
    return partial_caption(scene, rng) if share < PARTIAL_SHARE else caption_of(scene, rng)


def train_caption_tokenizer(work: Path, seed: int) -> Path:
    """Train the BPE model on captions of seen scenes, unless `work` has it; return its path."""
    path = work / "bpe.model"
    if not path.exists():
        rng = random.Random(seed)
        lines = [caption_of(scene_of(seed, index)[0], rng) for index in range(CAPTIONS)]
        text = work / "captions.txt"
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        train_tokenizer(text, path, PIECES)
    return path


def make_batch(tokenizer: Tokenizer, seed: int, step: int, rows: range) -> Batch:
    """Make a part of the batch of a step, from new scenes.

    Returns:
        `text`, ids int64 [n, 24], and `image`, tokens int64 [n, 256].
    """
    text, image = [], []
    for row in rows:
        scene, rng = scene_of(seed, step * BATCH + row)
        image.append(scene_tokens(scene.background, place(scene, rng)).ravel())
        text.append(tokenizer.encode_text(_training_text(scene, rng), TEXT_LENGTH).ids)
    tokens = torch.from_numpy(np.stack(image).astype(np.int64))
    return {"text": torch.tensor(text), "image": tokens}


class DemoDecoder(Task):
    """A new decoder, and the scenes that it learns.

    Args:
        tokenizer: the tokenizer of the captions.
        seed: seed of weights and scenes.
        compile: whether to compile the network for the processor.
    """

    model: Dalle

    def __init__(self, tokenizer: Tokenizer, seed: int, compile: bool = False) -> None:
        torch.manual_seed(seed)
        self.model = Dalle(make_config(tokenizer.vocab_size))
        self.model.init_weights(embedding_std=0.5, position_std=0.3, branch_gain=0.3)
        self.tokenizer, self.seed = tokenizer, seed
        self._loss: Callable[..., DalleLoss] = (
            torch.compile(self.model.loss) if compile else self.model.loss
        )

    def batch(self, step: int, rows: range) -> Batch:
        """Return `text` and `image`, see `make_batch`."""
        return make_batch(self.tokenizer, self.seed, step, rows)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the losses of the network."""
        losses = self._loss(batch["text"], batch["image"])
        return {"loss": losses.total, "text": losses.text, "image": losses.image}

    def optimizers(self, training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """Return Muon and AdamW."""
        return make_optimizers(self.model)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return the `agreement` of some samples."""
        return {"agreement": agreement(self.model, self.tokenizer, 96)}


def train(
    work: Path, tokenizer: Tokenizer, steps: int, seed: int, compile: bool
) -> tuple[Dalle, float]:
    """Train or resume; return the averaged decoder and the minutes of training."""
    task = DemoDecoder(tokenizer, seed, compile)
    training = TrainingConfig(
        steps=steps, batch_size=BATCH, learning_rate=RATE, warmup_steps=WARMUP, average=0.998
    )
    trained = train_task(
        task, training, work=work, seed=seed, device="cpu", on_figures=printer(),
        evaluation=EvaluationConfig(every=CHECK_EVERY) if steps >= CHECK_EVERY else None,
    )  # fmt: skip
    return task.model, trained.seconds / 60


def agreement(model: Dalle, tokenizer: Tokenizer, count: int) -> float:
    """Return the share of held-out captions for which one sample matches its scene exactly."""
    rng = random.Random(99)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    tokens = sample_tokens(model.eval(), tokenizer, scenes, seed=0).numpy()
    return sum(map(shows, tokens, scenes)) / count


def make_optimizers(model: Dalle) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers, and AdamW for the rest."""
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.dim() == 2 and n.startswith("transformer.layers")]
    head = model.to_logits[1].weight
    seen = {id(p) for p in (*matrices, head)}
    others = [p for p in named.values() if id(p) not in seen]
    groups = [{"params": [head], "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return (
        Muon(matrices, lr=MUON_RATE, weight_decay=0.1),
        torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: train the tokenizer, train the decoder, export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for log and checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="needs a C++ compiler; twice as fast"
    )
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    bpe = train_caption_tokenizer(options.work, options.seed)
    tokenizer = Tokenizer.load(bpe)
    model, minutes = train(options.work, tokenizer, options.steps, options.seed, options.compile)
    card = [
        "# demo-dalle",
        "",
        "ruDALL-E decoder of the Suprematist demo: 7 layers of width 192, 4 heads, "
        "24 text positions,",
        "16 x 16 image tokens; v3 layout; stored in float16.",
        "",
        f"- data: {options.steps * BATCH} scenes with Russian captions; held-out combinations "
        "excluded",
        f"- command: `python -m rudalle_lib.training.demo.decoder --steps {options.steps} "
        f"--seed {options.seed}`",
        f"- minutes on 2 CPU cores: {minutes:.0f}",
        "- figures: `rudalle_lib/demo/quality.json`",
    ]
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    export(options.out, tensors, asdict(model.config), card)
    shutil.copy(bpe, options.out / "bpe.model")
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
