"""Read weights files without running code, and build networks from them.

Peculiarities of published checkpoints are undone here, each in a function of its own. As in
gpt-fast, a network is built on the meta device, and its tensors are then assigned. They are read
one by one, so that in addition to the network only one tensor is in memory.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import STORED_MASKS
from rudalle_lib.models.layers.int8_linear import Int8Linear, quantise
from rudalle_lib.storage.file_kinds import HEAD_BYTES
from rudalle_lib.storage.small_files import check_kind
from rudalle_lib.weights.pickles import CodeError, PickleError
from rudalle_lib.weights.pytorch_files import CheckpointTensor, checkpoint_tensors, list_keys

StateDict = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value")

GPT2_MASK = re.compile(r"text_encoder\.model\.h\.\d+\.attn\.(masked_)?bias")
"""Names of the causal masks in ruCLIP Small's text tower."""

MAX_HEADER_BYTES = 4 * 2**20
"""Largest header of a safetensors file. That of a decoder with 12 billion parameters has 0.2 MB."""


class HasShape(Protocol):
    """A tensor, in memory or not."""

    @property
    def shape(self) -> torch.Size:
        """The sizes of its dimensions."""


class LazyTensor(HasShape, Protocol):
    """A tensor that is not in memory yet."""

    def read(self) -> Tensor:
        """Read or make the tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file that has not been read yet."""

    path: Path
    key: str
    shape: torch.Size

    def read(self) -> Tensor:
        """Map the tensor from the file; freeing it returns its memory.

        Raises:
            WeightsError: the file has been removed or changed.
        """
        # Opened for each tensor: as long as a file stays open, all that was read stays in memory.
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                return file.get_tensor(self.key)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path} cannot be read any more: {error}") from error


def check_exists(path: Path) -> None:
    """Check that there is a weights file.

    Raises:
        WeightsError: there is none.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")


def list_tensors(path: Path) -> dict[str, StoredTensor] | dict[str, CheckpointTensor]:
    """List the tensors of a safetensors file or PyTorch checkpoint, without reading them.

    Sizes in the file are checked, so that reading the tensors takes no more than four times the
    size of the file.

    Raises:
        WeightsError: the file is missing, broken, unsafe, or contains anything but named tensors.
    """
    if path.suffix == ".safetensors":
        return stored_tensors(path)
    return pickled_tensors(path)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of a safetensors file by name, without reading them.

    Raises:
        WeightsError: the file is missing or broken.
    """
    _check_safetensors(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError, OverflowError, TypeError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None
    return strip_wrapper_prefix({n: StoredTensor(path, n, shapes[n]) for n in shapes})


def load_state_dict(path: Path) -> StateDict:
    """Read the tensors of a safetensors file or PyTorch checkpoint to the CPU.

    Tensors of safetensors files are memory-mapped, so they take memory only when used. Pickles that
    would run code are rejected.

    Raises:
        WeightsError: the file is missing, broken, unsafe, or contains anything but named tensors.
    """
    if path.suffix == ".safetensors":
        _check_safetensors(path)
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None
    tensors = pickled_tensors(path)
    with checkpoint_errors(path):
        return {name: tensor.read() for name, tensor in tensors.items()}


def _check_safetensors(path: Path) -> None:
    """Check the first bytes: the length of a header that fits the file, and the header's brace."""
    check_exists(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        length = int.from_bytes(head[:8], "little")
        if head[8:9] != b"{" or length > path.stat().st_size - 8:
            check_kind(head)
            raise ValueError("it does not begin with a header, or is truncated")
        if length > MAX_HEADER_BYTES:
            raise ValueError(
                f"its header has {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read"
            )
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from None


def pickled_tensors(path: Path) -> dict[str, CheckpointTensor]:
    """List the tensors of a PyTorch checkpoint by name, without reading them.

    Raises:
        WeightsError: the file is missing, broken, unsafe, or contains anything but named tensors.
    """
    check_exists(path)
    with checkpoint_errors(path):
        return strip_wrapper_prefix(checkpoint_tensors(path))


@contextlib.contextmanager
def checkpoint_errors(path: Path) -> Iterator[None]:
    """Say what is wrong with a checkpoint that cannot be read, and what it is if it is none.

    Raises:
        WeightsError: any `PickleError` or `OSError` in the block.
    """
    try:
        yield
    except CodeError as error:
        raise WeightsError(
            f"did not load {path}: it is a pickle that would run code ({error}), expected only "
            "tensors. Get the weights as safetensors, from a source you trust"
        ) from None
    except (PickleError, OSError) as error:
        reason = str(error)
        if "damaged" in reason or "truncated" in reason:
            reason += "; download it again"
        try:
            with path.open("rb") as file:
                head = file.read(HEAD_BYTES)
            if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
                reason = "it is a safetensors file; give it the ending .safetensors"
            check_kind(head, "a zip archive")
        except (OSError, ValueError) as other:
            reason = str(other)
        raise WeightsError(f"{path} is not a readable PyTorch checkpoint: {reason}") from None


def strip_wrapper_prefix(state: dict[str, Value]) -> dict[str, Value]:
    """Remove `module.`, which half-precision and data-parallel wrappers prepend to all keys."""
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def without_masks(state: dict[str, Value]) -> dict[str, Value]:
    """Drop the three attention masks of a decoder, which follow from its architecture."""
    return {name: tensor for name, tensor in state.items() if name not in STORED_MASKS}


def without_gpt2_masks(state: dict[str, Value]) -> dict[str, Value]:
    """Drop the causal masks that old versions of transformers stored in every GPT-2 layer."""
    return {name: tensor for name, tensor in state.items() if not GPT2_MASK.fullmatch(name)}


def without_classifier(state: dict[str, Value]) -> dict[str, Value]:
    """Drop the last layers of a segmentation network's encoder, which was a classifier.

    They are in the checkpoint, but the network does not use them.
    """
    unused = ("encoder._conv_head.", "encoder._bn1.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(unused)}


def without_loss(state: dict[str, Value]) -> dict[str, Value]:
    """Drop the discriminator and the perceptual loss with which a VQ-GAN was trained.

    Also removes `model.`, which a wrapper prepended to all keys of the DWT checkpoint.
    """
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


def build(
    make: Callable[[], Network],
    state: Mapping[str, Tensor | LazyTensor],
    source: Path,
    device: torch.device | Callable[[str], torch.device],
    dtype: torch.dtype,
) -> Network:
    """Build a network from exactly the tensors of a state dict, ready for inference.

    Args:
        make: creates the network. It is called on the meta device, so initial weights take no
            memory. The float weights of `Int8Linear` layers are quantised one by one.
        state: tensors by name, preferably lazy.
        source: file name for errors.
        device: target device, or a function from the name of a tensor to its device.
        dtype: type of the floating-point tensors.

    Raises:
        WeightsError: keys are missing, unexpected or have another shape.
    """
    with torch.device("meta"):
        network = make()
    quantised = {
        f"{name}.weight" for name, part in network.named_modules() if isinstance(part, Int8Linear)
    }
    scales = {_scale_of(name) for name in quantised}
    expected = {name: t for name, t in network.state_dict().items() if name not in scales}
    check_match(expected, state, source)
    placed: StateDict = {}
    for name, value in state.items():
        tensor = value if isinstance(value, Tensor) else value.read()
        target = device if isinstance(device, torch.device) else device(name)
        if name in quantised:
            placed[name], placed[_scale_of(name)] = quantise(tensor.to(target))
        else:
            target_dtype = dtype if tensor.is_floating_point() else tensor.dtype
            placed[name] = tensor.to(device=target, dtype=target_dtype)
        del tensor
    network.load_state_dict(placed, strict=True, assign=True)
    # Buffers that are not in the state dict would have stayed on the meta device, without values.
    assert not any(buffer.is_meta for buffer in network.buffers())
    return network.eval().requires_grad_(False)


def _scale_of(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


def check_match(
    expected: Mapping[str, HasShape], found: Mapping[str, HasShape], source: Path
) -> None:
    """Compare the keys and shapes of two state dicts.

    Args:
        expected: tensors of the network.
        found: tensors of the file.
        source: file name for errors.

    Raises:
        WeightsError: keys are missing, unexpected or have another shape; lists all three.
    """
    missing = [f"{key} {_shape(expected[key])}" for key in expected if key not in found]
    unexpected = [f"{key} {_shape(found[key])}" for key in found if key not in expected]
    shapes = [
        f"{key}: expected {_shape(expected[key])}, found {_shape(found[key])}"
        for key in expected
        if key in found and expected[key].shape != found[key].shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    lines = [f"{len(keys)} keys {what}: {list_keys(keys)}" for what, keys in faults if keys]
    if lines:
        raise WeightsError(
            f"{source} does not fit its network. " + ". ".join(lines) + ". "
            "Check that the file belongs to the model in the configuration"
        )


def _shape(tensor: HasShape) -> str:
    return str(list(tensor.shape))
