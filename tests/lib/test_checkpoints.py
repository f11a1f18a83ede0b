"""Weights files are read as data only, their oddities undone, and matched key by key."""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rudalle_lib.checkpoints import build, load_state_dict, without_loss, without_masks
from rudalle_lib.errors import WeightsError

CPU = torch.device("cpu")


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.rand_like(tensor.float()).to(tensor.dtype)
            for name, tensor in make().state_dict().items()}  # fmt: skip


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", ["bare", "state_dict", "params", "params_ema", "module", "old"])
def test_every_published_form_gives_the_same_tensors(
    state: dict[str, Tensor], tmp_path: Path, form: str
) -> None:
    path = tmp_path / "weights.bin"
    content: dict[str, Any] = {
        "state_dict": {"epoch": 3, "state_dict": OrderedDict(state)},
        "params": {"params": state, "params_ema": {"other": torch.zeros(1)}},
        "params_ema": {"params_ema": state},
        "module": {f"module.module.{name}": tensor for name, tensor in state.items()},
    }.get(form, state)
    torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    assert_equal(load_state_dict(path), state)


def test_safetensors_give_the_same_tensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    assert_equal(load_state_dict(tmp_path / "model.safetensors"), state)


class Malicious:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "pytorch_model.bin"
    content = {"weight": torch.zeros(2), "extra": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="refused to load .*pytorch_model.bin.*run code"):
        load_state_dict(path)
    assert not trace.exists()
    # Nothing would be proved if the file were harmless.
    torch.load(path, weights_only=False)["extra"].close()
    assert trace.exists()


@pytest.mark.parametrize("function", ["builtins\neval", "posix\nsystem", "os\nsystem", "nt\nx"])
def test_a_bare_pickle_that_wants_to_run_code_is_not_run(tmp_path: Path, function: str) -> None:
    path, trace = tmp_path / "model.pth", tmp_path / "executed"
    command = f"touch {trace}" if "system" in function else f"open({str(trace)!r}, 'w')"
    path.write_bytes(f"c{function}\n(V{command}\ntR.".encode())
    with pytest.raises(WeightsError, match="refused to load .*model.pth"):
        load_state_dict(path)
    assert not trace.exists()


def test_the_bare_pickle_of_the_test_above_is_dangerous(tmp_path: Path) -> None:
    pickle.loads(f"cbuiltins\neval\n(Vopen('{tmp_path}/executed', 'w').close()\ntR.".encode())
    assert (tmp_path / "executed").exists()


def truncated_zip(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("name", ["weights.bin", "model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 99, b"PK\x03\x04", None],
    ids=["empty", "lfs pointer", "zeros", "start of a zip", "truncated zip"],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        truncated_zip(path)
    else:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} is not a readable"):
        load_state_dict(path)


def test_a_safetensors_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_state_dict(path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for content, reason in (
        ([1, 2], "holds a list, expected named tensors"),
        ({}, "expected named tensors"),
        ({"a": torch.zeros(1), "epoch": 3}, "not tensors: epoch; expected a state dict"),
    ):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=reason):
            load_state_dict(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file .*absent.bin"):
        load_state_dict(tmp_path / "absent.bin")


def test_masks_of_decoders_and_losses_of_vqgans_are_left_out() -> None:
    one = torch.zeros(1)
    masks = {f"transformer.{kind}_mask": one for kind in ("row", "col", "conv")}
    assert without_masks({**masks, "text_embeddings.weight": one}).keys() == {
        "text_embeddings.weight"
    }
    trained = {"encoder.conv_in.weight": one, "loss.discriminator.main.0.weight": one}
    assert without_loss(trained).keys() == {"encoder.conv_in.weight"}
    wrapped = {"model.encoder.conv_in.weight": one, "model.quantize.proj.bias": one}
    assert without_loss(wrapped).keys() == {"encoder.conv_in.weight", "quantize.proj.bias"}


def test_a_built_network_has_the_tensors_in_the_dtype_asked_for(state: dict[str, Tensor]) -> None:
    network = build(make, dict(state), Path("x"), CPU, torch.bfloat16)
    found = network.state_dict()
    assert_equal(found, {name: tensor.to(found[name].dtype) for name, tensor in state.items()})
    assert found["0.weight"].dtype is torch.bfloat16
    assert found["1.num_batches_tracked"].dtype is torch.int64
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_what_does_not_match_is_listed_with_both_shapes(state: dict[str, Tensor]) -> None:
    state["0.weight"] = torch.zeros(4, 5)
    state["2.weight"] = state.pop("0.bias")
    with pytest.raises(WeightsError) as caught:
        build(make, state, Path("weights.bin"), CPU, torch.float32)
    message = str(caught.value)
    assert "weights.bin does not fit its network" in message
    assert "1 keys missing: 0.bias [4]" in message
    assert "1 keys unexpected: 2.weight [4]" in message
    assert "1 keys of another shape: 0.weight: expected [4, 3], found [4, 5]" in message


def test_long_lists_of_keys_are_cut() -> None:
    with pytest.raises(WeightsError, match=r"20 keys unexpected: .* and 12 more\."):
        build(nn.Identity, {f"k{i}": torch.zeros(1) for i in range(20)}, Path("x"), CPU,
              torch.float32)  # fmt: skip
