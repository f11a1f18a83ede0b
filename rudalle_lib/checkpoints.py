"""From a weights file to a network: read without running code, matched key by key.

The oddities of published checkpoints are undone here, each in one function with its reason.
The order of things (build on the meta device, map the file, assign) follows gpt-fast.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from rudalle_lib.errors import WeightsError
from rudalle_lib.models.dalle import STORED_MASKS

StateDict = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)

REFUSALS = ("unsupported global", "allowlist", "unrecognized function")
"""How torch words that a pickle names what is no tensor; a broken file is worded otherwise."""

LISTED = 8
"""Keys that an error lists before it says how many more there are."""


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


def strip_wrapper_prefix(state: StateDict) -> StateDict:
    """Take off `module.`: half-precision and data-parallel wrappers put it before every key."""
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def without_masks(state: StateDict) -> StateDict:
    """A decoder without its three attention masks: they follow from the architecture."""
    return {name: tensor for name, tensor in state.items() if name not in STORED_MASKS}


def without_loss(state: StateDict) -> StateDict:
    """A VQ-GAN without the discriminator and the perceptual loss that trained it.

    The DWT checkpoint was saved with its wrapper, which adds `model.` to every key.
    """
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


def build(
    make: Callable[[], Network],
    state: StateDict,
    source: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Network:
    """Make a network and give it exactly the tensors of a state dict, ready for inference.

    Args:
        make: makes the network; called on the meta device, so its own weights take no memory.
        state: emptied on the way, so that each tensor is freed once it is converted.
        source: named in errors.
        device: where the network goes.
        dtype: of its floating-point tensors.

    Raises:
        WeightsError: keys are missing, unexpected or have another shape.
    """
    with torch.device("meta"):
        network = make()
    check_match(network.state_dict(), state, source)
    placed = {}
    for name in list(state):
        tensor = state.pop(name)
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        placed[name] = tensor.to(device=device, dtype=wanted)
    network.load_state_dict(placed, strict=True, assign=True)
    # What is not in a state dict would have stayed on the meta device, without values.
    assert not any(buffer.is_meta for buffer in network.buffers())
    return network.eval().requires_grad_(False)


def check_match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
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


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - LISTED} more" if len(every) > LISTED else ""
    return ", ".join(every[:LISTED]) + more
