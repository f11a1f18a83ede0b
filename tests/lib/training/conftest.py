"""A tiny VQ-GAN for the tests of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rudalle_lib.training.demo import vqgan

TINY = {
    "CONFIG": replace(vqgan.CONFIG, ch=8, ch_mult=(1, 1, 1, 1), n_embed=16),
    "UNQUANTISED_STEPS": 2,
    "PRICE_FROM": 2,
    "PRICE_RAMP": 1,
    "CROP_BATCH": 2,
    "FULL_BATCH": 2,
}


@pytest.fixture
def tiny_vqgan_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `vqgan` train a tiny network in tiny batches."""
    for name, value in TINY.items():
        monkeypatch.setattr(vqgan, name, value)


@pytest.fixture(scope="session")
def vqgan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights folder of a tiny VQ-GAN after 7 steps."""
    folder = tmp_path_factory.mktemp("vqgan")
    folders = ["--work", str(folder / "work"), "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in TINY.items():
            patch.setattr(vqgan, name, value)
        vqgan.main([*folders, "--crop-steps", "4", "--full-steps", "2", "--settle-steps", "1"])
    return folder / "out"
