"""From a weights file to a network: read without running code, matched key by key.

The oddities of published checkpoints are undone here, each in one function with its reason.
The order of things (build on the meta device, map the file, assign) follows gpt-fast; tensors are
read one by one, so that besides the network one tensor of the file is in memory.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import STORED_MASKS
from rudalle_lib.models.int8_linear import Int8Linear, quantise

StateDict = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)
Value = TypeVar("Value")

GPT2_MASK = re.compile(r"text_encoder\.model\.h\.\d+\.attn\.(masked_)?bias")

REFUSALS = ("unsupported global", "allowlist", "unrecognized function")
"""How torch words that a pickle names what is no tensor; a broken file is worded otherwise."""

LISTED = 8
"""Keys that an error lists before it says how many more there are."""


class Shaped(Protocol):
    """What has a shape: a tensor, or one that is still in its file."""

    @property
    def shape(self) -> torch.Size:
        """Its sizes."""


class Unread(Shaped, Protocol):
    """A tensor that is not in memory yet."""

    def read(self) -> Tensor:
        """Make it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its safetensors file."""

    path: Path
    key: str
    shape: torch.Size

    def read(self) -> Tensor:
        """The tensor, mapped from the file; its memory goes back when it is freed."""
        # A file that is opened for one tensor is also closed with it: of a file that is kept
        # open, everything that was ever read would stay in memory.
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                return file.get_tensor(self.key)
        except (safetensors.SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path} cannot be read any more: {error}") from error


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name, none of them read yet.

    Raises:
        WeightsError: the file is missing or broken.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = file.keys()
            shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in names}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    return strip_wrapper_prefix({n: StoredTensor(path, n, shapes[n]) for n in shapes})


def load_state_dict(path: Path) -> StateDict:
    """Read the tensors of a `.safetensors` file or of a PyTorch checkpoint, on the CPU.

    Tensors are mapped from the file where its format allows, so they take memory when used. A
    checkpoint is read as data only: one that wants to run code is refused.

    Raises:
        WeightsError: the file is missing, broken, unsafe or holds no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return strip_wrapper_prefix(unwrap(_read_pickle(path), path))


def _read_safetensors(path: Path) -> StateDict:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    # Only the zip format of torch >= 1.6 can be mapped; older files are read whole.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        if any(sign in str(error).lower() for sign in REFUSALS):
            raise WeightsError(
                f"refused to load {path}: it is a pickle that wants to run code, not a file of "
                "tensors alone. Get the weights from a source you trust, as safetensors"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} is not a readable PyTorch checkpoint ({reason}); fetch it again"
        ) from error


def unwrap(content: Any, source: Path) -> StateDict:
    """Find the tensors in what a training framework wrote around them.

    Lightning (VQ-GAN) puts them under `state_dict`; BasicSR (Real-ESRGAN) under `params`, or under
    `params_ema` for the averaged ones. Where both are there the published code takes `params`.
    """
    for key in ("state_dict", "params", "params_ema"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{source} holds a {type(content).__name__}, expected named tensors")
    odd = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(
            f"{source} holds things that are not tensors: {_listed(map(str, odd))}; "
            "expected a state dict"
        )
    return {str(name): tensor for name, tensor in content.items()}


def strip_wrapper_prefix(state: dict[str, Value]) -> dict[str, Value]:
    """Take off `module.`: half-precision and data-parallel wrappers put it before every key."""
    while state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def without_masks(state: dict[str, Value]) -> dict[str, Value]:
    """A decoder without its three attention masks: they follow from the architecture."""
    return {name: tensor for name, tensor in state.items() if name not in STORED_MASKS}


def without_gpt2_masks(state: dict[str, Value]) -> dict[str, Value]:
    """A ruCLIP Small without the causal masks that transformers stored in every GPT-2 layer."""
    return {name: tensor for name, tensor in state.items() if not GPT2_MASK.fullmatch(name)}


def without_classifier(state: dict[str, Value]) -> dict[str, Value]:
    """A segmentation network without the last layers of the classifier that its encoder was.

    No picture passes them there, but they were saved.
    """
    unused = ("encoder._conv_head.", "encoder._bn1.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(unused)}


def without_loss(state: dict[str, Value]) -> dict[str, Value]:
    """A VQ-GAN without the discriminator and the perceptual loss that trained it.

    The DWT checkpoint was saved with its wrapper, which adds `model.` to every key.
    """
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


def build(
    make: Callable[[], Network],
    state: Mapping[str, Tensor | Unread],
    source: Path,
    device: torch.device | Callable[[str], torch.device],
    dtype: torch.dtype,
) -> Network:
    """Make a network and give it exactly the tensors of a state dict, ready for inference.

    Args:
        make: makes the network; called on the meta device, so its own weights take no memory.
            Where it has `Int8Linear` layers, their float weights are quantised one by one.
        state: tensors by name, best still in their file.
        source: named in errors.
        device: where the network goes, or where the tensor of a name does.
        dtype: of its floating-point tensors.

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
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            placed[name] = tensor.to(device=target, dtype=wanted)
        del tensor
    network.load_state_dict(placed, strict=True, assign=True)
    # What is not in a state dict would have stayed on the meta device, without values.
    assert not any(buffer.is_meta for buffer in network.buffers())
    return network.eval().requires_grad_(False)


def _scale_of(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


def check_match(expected: Mapping[str, Shaped], found: Mapping[str, Shaped], source: Path) -> None:
    """Compare keys and shapes; a `WeightsError` lists every kind of difference."""
    missing = [f"{key} {_shape(expected[key])}" for key in expected if key not in found]
    unexpected = [f"{key} {_shape(found[key])}" for key in found if key not in expected]
    shapes = [
        f"{key}: expected {_shape(expected[key])}, found {_shape(found[key])}"
        for key in expected
        if key in found and expected[key].shape != found[key].shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    lines = [f"{len(keys)} keys {what}: {_listed(keys)}" for what, keys in faults if keys]
    if lines:
        raise WeightsError(
            f"{source} does not fit its network. " + ". ".join(lines) + ". "
            "Check that the file belongs to the model that the configuration names"
        )


def _shape(tensor: Shaped) -> str:
    return str(list(tensor.shape))


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more
