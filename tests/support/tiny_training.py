"""A tiny decoder and what it learns, for tests of training; other processes import it, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rudalle_lib.config.fine_tune import EvaluationConfig, TrainingConfig
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.training.decoder import DecoderTask, TensorExamples
from rudalle_lib.training.launch import is_stopping
from rudalle_lib.training.trainer import Trained, train

CONFIG = DalleConfig(3, 32, 2, 60 + 8, 8, 32, 4, 4)
"""Three layers of width 32; 8 text positions, 4 x 4 image tokens of 32 codes."""


def tiny_decoder(seed: int = 0) -> Dalle:
    """A decoder with random weights."""
    torch.manual_seed(seed)
    return Dalle(CONFIG)


def tiny_examples(count: int = 20, seed: int = 0) -> TensorExamples:
    """Random texts, each with an image that follows from its first token."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(4, 60, (count, 8), generator=generator)
    image = (text[:, :1] + torch.arange(16)) % 32
    return TensorExamples({"text": text, "image": image})


def settings(**changes: Any) -> TrainingConfig:
    """Settings with which the tiny decoder learns within 50 steps."""
    given = {"steps": 50, "batch_size": 6, "learning_rate": 3e-3, "warmup_steps": 5}
    return TrainingConfig.model_validate({**given, "dtype": "float32", **changes})


def learn(work: Path, changes: dict[str, Any], measured: dict[str, Any] | None = None) -> Trained:
    """Train the tiny decoder, in this process or as one of several."""
    training = settings(**changes)
    task = DecoderTask(
        tiny_decoder(), tiny_examples(), training, seed=3, held_out=tiny_examples(7, seed=1)
    )
    evaluation = EvaluationConfig.model_validate(measured or {"every": 10})
    return train(task, training, work=work, evaluation=evaluation, device="cpu", stop=is_stopping)
