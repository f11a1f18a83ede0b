"""Every architecture at its published size, with random weights, through the public loader.

Slow: gigabytes are written to the test's folder. Prints time and peak memory; run with `-s` to see
them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rudalle_lib import registry
from rudalle_lib.models.dalle import Dalle, DalleConfig
from rudalle_lib.models.rrdbnet import RrdbNet, RrdbNetConfig
from rudalle_lib.models.ruclip import RuClip, RuClipConfig
from rudalle_lib.models.vqgan import VqGan, VqGanConfig
from tests.support.tiny_stack import letters_as_bpe

NETWORKS: dict[str, tuple[Any, Any]] = {
    "decoder": (Dalle, DalleConfig),
    "vqgan": (VqGan, VqGanConfig),
    "scorer": (RuClip, RuClipConfig),
    "upscaler": (RrdbNet, RrdbNetConfig),
}
NAMES = [
    "malevich-v3", "vqgan-f8", "vqgan-f8-dwt", "ruclip-vit-large-patch14-336",
    "realesrgan-x2", "realesrgan-x4", "realesrgan-x8",
]  # fmt: skip

VERIFY = """
import sys
from pathlib import Path
from rudalle_lib.config.sections import WeightsConfig
from rudalle_lib.checks.models import check_model

check = check_model(sys.argv[1], WeightsConfig(folder=sys.argv[2], offline=True))
# Not the peak of getrusage: it starts at that of the parent process, which made the weights.
peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e6
print(f"{check.output}; {check.seconds:.1f} s, peak {peak:.2f} GB")
"""


def published(name: str) -> dict[str, Any]:
    """A checkpoint in the form in which it is published: half precision, losses, `params`."""
    entry = registry.get(name)
    network, config = NETWORKS[entry.kind]
    with torch.device("meta"):
        model: nn.Module = network(config(**entry.architecture))
    state = {key: random_tensor(key, tensor) for key, tensor in model.state_dict().items()}
    if entry.kind == "decoder":
        return {f"module.{key}": tensor.half() for key, tensor in state.items()}
    if name == "vqgan-f8-dwt":
        return {"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}}
    if name == "vqgan-f8":
        return {"state_dict": {**state, "loss.logvar": torch.zeros(1)}}
    return {"params": state} if entry.kind == "upscaler" else state


def random_tensor(key: str, like: Tensor) -> Tensor:
    if like.dim() < 2:
        return torch.ones(like.shape) if key.endswith("weight") else torch.zeros(like.shape)
    return torch.empty(like.shape).uniform_(-0.02, 0.02)


def write_files(name: str, folder: Path) -> None:
    """Write the files of a model as in a copy of its repositories."""
    entry = registry.get(name)
    contents = {
        "config": json.dumps({key: value for key, value in entry.architecture.items()}),
        "tokenizer": letters_as_bpe(),
    }
    for role, filename in entry.files.items():
        path = folder / str(entry.repository_of(role)).split("/")[1] / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        if role == "weights":
            torch.save(published(name), path)
        else:
            path.write_text(contents[role], "utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_published_size_loads_and_runs(name: str, tmp_path: Path) -> None:
    write_files(name, tmp_path)
    command = [sys.executable, "-c", VERIFY, name, str(tmp_path)]
    for use in ("first use", "second use"):
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "finite" in result.stdout
        print(f"\n{name}, {use}: {result.stdout.strip()}")
