"""Group norm keeps channels-last layout on a GPU, and is PyTorch's everywhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from rudalle_lib.models.layers.group_norm import can_fuse, normalise

ROOT = Path(__file__).resolve().parents[4]

COUNT = """
import json
from tests.support.pretended_cuda import OnDevice, counts, install
install(1)
import torch
from rudalle_lib.models.layers import group_norm, group_norm_kernels
from rudalle_lib.models.vqgan import VqGan, VqGanConfig

def in_place_of_the_kernels(norm, x, activate):  # what they return, without their launch
    held = torch.nn.functional.group_norm(
        x.held, norm.num_groups, norm.weight.held, norm.bias.held, norm.eps
    )
    held = torch.nn.functional.silu(held) if activate else held
    return OnDevice(held.contiguous(memory_format=torch.channels_last), x.device)

group_norm_kernels.normalise_channels_last = in_place_of_the_kernels
config = VqGanConfig(ch=16, ch_mult=(1, 2), num_res_blocks=2, attention_resolutions=(16,),
                     resolution=32, z_channels=16, embed_dim=16, n_embed=8, norm_groups=4)
torch.manual_seed(0)
model = VqGan(config).eval().requires_grad_(False)
model.use_dtype(torch.bfloat16)
model = model.to("cuda:0")
tokens = torch.randint(0, 8, (3, 4, 4)).to("cuda:0")
found = {}
for fused in (True, False):
    group_norm.can_launch = lambda _: fused
    before = counts.totals()["layouts"]
    with torch.no_grad():
        image = model.decode(tokens).cpu().float()
    found[str(fused)] = [counts.totals()["layouts"] - before, image.flatten()[::97].tolist()]
print(json.dumps(found))
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_the_decoder_changes_the_layout_of_no_image_on_a_gpu() -> None:
    """On a pretended device: PyTorch's norm costs two changes of layout each, the kernels none."""
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (fused, pixels), (plain, expected) = json.loads(done.stdout).values()
    norms = 2 * 2 + 2 * 3 * 2 + 1 + 1  # without those of the attention blocks
    assert plain >= 2 * norms and fused <= plain - 2 * norms + 2, (fused, plain)
    torch.testing.assert_close(torch.tensor(pixels), torch.tensor(expected), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("activate", [True, False])
def test_on_a_cpu_it_is_pytorchs(activate: bool) -> None:
    norm, x = nn.GroupNorm(2, 8), torch.randn(2, 8, 4, 4)
    expected = functional.silu(norm(x)) if activate else norm(x)
    with torch.inference_mode():
        assert torch.equal(normalise(norm, x, activate), expected)
        assert not can_fuse(norm, x.contiguous(memory_format=torch.channels_last))
    assert normalise(norm, x, activate).requires_grad, "it can be trained"
