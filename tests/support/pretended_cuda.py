"""CUDA devices that are pretended: tensors say that they are on `cuda:N` and compute on the CPU.

They obey CUDA's rules. An operation whose tensors are on different devices fails, except where CUDA
accepts it: numbers without dimensions, and indices. What would start a kernel, make the host wait,
copy between devices, or copy into another memory layout is counted, with the line of ours that
asked for it.

`install` changes PyTorch for the whole process and cannot be undone. Call it in a process of its
own, before anything of ours is imported, since decorators are applied at import.
"""

from __future__ import annotations

import ctypes
import inspect
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[2]
OURS = tuple(f"{ROOT / package}/" for package in ("rudalle_lib", "tasks", "flows"))

SOURCE = "pretended_guard.cpp"

MEMORY = 80 * 2**30
"""Bytes of a pretended device."""

NO_KERNEL = frozenset({
    "_has_compatible_shallow_copy_type", "_reshape_alias", "_unsafe_view", "alias", "as_strided",
    "chunk", "detach", "diagonal", "empty", "empty_like", "empty_strided", "expand", "is_same_size",
    "lift_fresh", "narrow", "new_empty", "new_empty_strided", "permute", "resize_", "select",
    "set_", "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold",
    "unsqueeze", "view", "view_as",
})  # fmt: skip
"""Operations that start nothing on a device: views and allocations."""

WAITS = frozenset({
    "_local_scalar_dense", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero",
    "unique_consecutive", "unique_dim",
})  # fmt: skip
"""Operations whose result, or its size, is needed on the host."""

INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
"""Operations that accept indices on the CPU, and copy them."""

FROM_ANY_DEVICE = frozenset({
    "empty_like", "full_like", "lift_fresh", "lift_fresh_copy", "new_empty", "new_full", "new_ones",
    "new_zeros", "ones_like", "zeros_like",
})  # fmt: skip
"""Operations that only look at the shape of their argument."""


@dataclass
class Counts:
    """What the pretended devices were asked to do, by (what, line of ours)."""

    kernels: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    layouts: Counter[tuple[str, str]] = field(default_factory=Counter)
    mismatches: Counter[tuple[str, str]] = field(default_factory=Counter)
    devices: set[str] = field(default_factory=set)

    def totals(self) -> dict[str, int]:
        """The number of kernels, waits, copies, changes of layout, and mismatches so far."""
        names = ("kernels", "waits", "copies", "layouts", "mismatches")
        return {name: sum(getattr(self, name).values()) for name in names}


counts = Counts()
"""What has been counted in this process."""


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a CUDA device; `data` is on the CPU."""

    held: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held: torch.Tensor, place: torch.device) -> OnDevice:
        with torch._C._DisableTorchDispatch():
            shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made = torch.Tensor._make_subclass(
            cls, shape, False, dispatch_device=True, device_for_backend_keys=place
        )
        made.held, made.place = held, place
        counts.devices.add(str(place))
        return made

    @property
    def device(self) -> torch.device:
        return self.place

    @device.setter
    def device(self, _: torch.device) -> None:
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({self.held}, {self.place})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, dict(kwargs or {}))


class Pretend(TorchDispatchMode):
    """Sees operations that create tensors, which no argument leads to `OnDevice`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, dict(kwargs or {}))


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU by the rules of CUDA."""
    name = func._schema.name.rpartition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    target = _device(kwargs.get("device"))
    if name == "device":
        return ours[0].place
    if not ours and (target is None or target.type != "cuda"):
        return func(*args, **kwargs)
    if name == "_to_copy":
        return _to_copy(func, args, kwargs, target)
    if name == "copy_":
        return _copy(func, args, kwargs)
    place = target if target is not None else ours[0].place
    _check_devices(name, args, tensors, place)
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    if target is not None:
        inner_kwargs["device"] = target if target.type == "meta" else torch.device("cpu")
    inner_args = _by_layout_rules(name, inner_args)
    made = func(*inner_args, **inner_kwargs)
    if target is not None and target.type != "cuda":
        return made
    if name in WAITS or _has_mask(name, args):
        counts.waits[name, line()] += 1
    if name not in NO_KERNEL:
        counts.kernels[name, line()] += 1
    if name in ("clone", "contiguous") and ours and made.stride() != ours[0].stride():
        counts.layouts[name, line()] += 1
    given = {id(tensor.held): tensor for tensor in ours}  # what operations in place return

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return given[id(value)] if id(value) in given else OnDevice(value, place)

    return tree_map(outer, made)


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, OnDevice) else value


def _device(value: Any) -> torch.device | None:
    if value is None:
        return None
    device = torch.device(value)
    bare = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if bare else device


def _place(tensor: torch.Tensor) -> torch.device:
    return tensor.place if isinstance(tensor, OnDevice) else tensor.device


def _to_copy(func: Any, args: Any, kwargs: dict[str, Any], target: torch.device | None) -> Any:
    source = _place(args[0])
    target = target or source
    kwargs.pop("non_blocking", None)
    if target.type == "meta":
        return func(*tree_map(_inner, args), **kwargs)
    made = func(*tree_map(_inner, args), **{**kwargs, "device": torch.device("cpu")})
    if made is _inner(args[0]):
        made = made.clone()
    _count_copy(source, target, made.dim())
    return OnDevice(made, target) if target.type == "cuda" else made


def _copy(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    func(*tree_map(_inner, args), **kwargs)
    _count_copy(_place(args[1]), _place(args[0]), args[1].dim())
    return args[0]


def _count_copy(source: torch.device, target: torch.device, dims: int) -> None:
    if source == target:
        counts.kernels["copy_", line()] += 1
        return
    kind = "between devices" if source.type == target.type else f"{source.type} to {target.type}"
    counts.copies[kind, line()] += 1
    if source.type != target.type:
        counts.waits[f"copy {kind}", line()] += 1


def _check_devices(name: str, args: Any, tensors: list[torch.Tensor], place: torch.device) -> None:
    indices = [one for one in args[1] if one is not None] if name in INDEXING else []
    allowed = {id(index) for index in indices if not isinstance(index, OnDevice)}
    for index in indices:
        if not isinstance(index, OnDevice) and index.dim():
            counts.copies["cpu to cuda", line()] += 1
            counts.waits["index on the CPU", line()] += 1
    wrong = {
        str(_place(tensor))
        for tensor in tensors
        if _place(tensor) != place
        and id(tensor) not in allowed
        and not (_place(tensor).type == "cpu" and tensor.dim() == 0)
    }
    if wrong and name not in FROM_ANY_DEVICE:
        counts.mismatches[name, line()] += 1
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {place} and {sorted(wrong)} "
            f"(in {name}, at {line()})"
        )


def _has_mask(name: str, args: Any) -> bool:
    kinds = (torch.bool, torch.uint8)
    return name in INDEXING and any(one is not None and one.dtype in kinds for one in args[1])


def _by_layout_rules(name: str, args: Any) -> Any:
    """Copy inputs into the layout that CUDA's kernels need, where CPU's kernels need none.

    cuDNN convolves in channels-last layout if the input or the weight has it
    (`cudnn_conv_suggest_memory_format` in ATen's `ConvUtils.h`), so it copies the other one. What
    PyTorch copies before it calls a kernel, as `group_norm` does, is seen without this.
    """
    if name == "convolution" and args[0].dim() == 4:
        last = torch.channels_last
        if any(one.is_contiguous(memory_format=last) and not one.is_contiguous()
               for one in args[:2]):  # fmt: skip
            return (*(_in_layout(one, last) for one in args[:2]), *args[2:])
    return args


def _in_layout(tensor: torch.Tensor, layout: torch.memory_format) -> torch.Tensor:
    if tensor.is_contiguous(memory_format=layout):
        return tensor
    counts.layouts["inside an operation", line()] += 1
    return tensor.contiguous(memory_format=layout)


def line() -> str:
    """The innermost line of ours on the stack, as `file:number`."""
    frame = inspect.currentframe()
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    if frame is None:
        return "elsewhere"
    return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"


# --- installation ------------------------------------------------------------------------------


def install(devices: int = 1, memory: Sequence[int] = ()) -> Counts:
    """Pretend that this process has CUDA devices.

    Args:
        devices: how many.
        memory: bytes of each, all of them free; `MEMORY` if there are fewer numbers than devices.

    Returns:
        What the devices will be asked to do.
    """
    ctypes.CDLL(str(_guard())).register_guard()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode = lambda *_: torch.no_grad()  # type: ignore[assignment,misc]
    current = threading.local()

    def set_device(device: Any) -> None:
        current.index = torch.device(device).index if not isinstance(device, int) else device

    def free_and_total(device: Any = None) -> tuple[int, int]:
        index = torch.device(device or "cuda").index or 0
        size = memory[index] if index < len(memory) else MEMORY
        return size, size

    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: devices > 0,
        "device_count": lambda: devices,
        "current_device": lambda: getattr(current, "index", 0),
        "set_device": set_device,
        "device": lambda _: nullcontext(),
        "Stream": PretendedStream,
        "stream": lambda _: nullcontext(),
        "current_stream": PretendedStream,
        "synchronize": lambda _=None: None,
        "empty_cache": lambda: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda _=None: (9, 0),
        "mem_get_info": free_and_total,
        "memory_reserved": lambda _=None: 0,
        "memory_allocated": lambda _=None: 0,
    }
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    _in_every_thread(Pretend)
    return counts


class PretendedStream:
    """Work is finished as soon as it is asked for, so there is nothing to order."""

    def __init__(self, device: object = None, **_: object) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Wait for nothing."""

    def wait_stream(self, _: object) -> None:
        """Wait for nothing."""


def _guard() -> Path:
    """Compile the device guard; takes a second."""
    library = Path(tempfile.mkdtemp(prefix="pretended-cuda-")) / "guard.so"
    torch_folder, source = Path(torch.__file__).parent, Path(__file__).with_name(SOURCE)
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{torch_folder / 'include'}"]
    links = [f"-L{torch_folder / 'lib'}", "-lc10"]
    subprocess.run(["c++", *flags, str(source), *links, "-o", str(library)], check=True)
    return library


def _in_every_thread(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    """Enter a mode in this thread and in all that start later: modes belong to threads.

    So does the setting that `torch.tensor` copies its values to a device where modes see it.
    """
    mode().__enter__()
    torch._C._set_only_lift_cpu_tensors(True)
    start: Any = threading.Thread._bootstrap_inner  # type: ignore[attr-defined]

    def run_in_mode(thread: threading.Thread) -> None:
        with mode():
            torch._C._set_only_lift_cpu_tensors(True)
            start(thread)

    threading.Thread._bootstrap_inner = run_in_mode  # type: ignore[attr-defined]
