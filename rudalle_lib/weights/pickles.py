"""Read the pickles of PyTorch checkpoints without running anything that they name.

A pickle is a program for a small stack machine. This one knows the instructions that `torch.save`
writes, builds plain values, and calls nothing: what a pickle names must be in a list, and becomes a
value of this module. So time and memory are proportional to the size of the pickle, which
`MAX_PICKLE_BYTES` bounds. `torch.load` with `weights_only` runs the functions of a longer list, and
a few hundred bytes can make it compute for ever.

Instructions: `pickletools` of Python. Functions: `torch._utils`, `torch._weights_only_unpickler`.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

MAX_PICKLE_BYTES = 2 * 2**20
"""Largest pickle. That of a decoder with 12 billion parameters has 0.3 MB."""

MAX_DIMENSIONS = 16
"""Largest number of dimensions of a tensor."""


class PickleError(ValueError):
    """A pickle is damaged, or holds what no checkpoint does. The message is a clause."""


class CodeError(PickleError):
    """A pickle names a function or class that is not in the list."""


@dataclass(frozen=True)
class Named:
    """A function, class or constant that a pickle names, or an object that it makes of one."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Elements of a file that tensors share.

    Attributes:
        key: name of the storage in its file.
        dtype: type of the elements.
        numel: number of elements.
        offset: first element, of a view of a storage.
    """

    key: str
    dtype: torch.dtype
    numel: int
    offset: int = 0


@dataclass(frozen=True)
class PickledTensor:
    """A tensor whose elements are in a storage.

    Attributes:
        storage: where its elements are.
        dtype: type of its elements.
        offset: byte of its first element in the storage.
        shape: sizes of its dimensions.
        stride: steps of its dimensions, in elements.
    """

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def span(self) -> int:
        """Number of elements in the storage from the first to the last one."""
        if self.numel == 0:
            return 0
        return 1 + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements follow each other in the storage."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True


_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}  # fmt: skip

STORAGE_TYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
    | {f"torch.cuda.{name}Storage": dtype for name, dtype in _STORAGES.items()}
    | {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}
)
"""Element type by the name of a storage class."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
)
"""Element types by their names."""

DICTIONARIES = frozenset({"collections.OrderedDict", "collections.Counter"})
REBUILD = frozenset({"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"})
REBUILD_WITH_TYPE = "torch._utils._rebuild_tensor_v3"
REBUILD_SUBCLASS = "torch._tensor._rebuild_from_type_v2"
PARAMETERS = frozenset({
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter", "torch.nn.Parameter",
})  # fmt: skip
"""Functions and classes whose first argument is the tensor."""

IGNORED = frozenset({
    "torch.Size", "torch.device", "torch.Tensor", "torch.serialization._get_layout",
    "_codecs.encode", "builtins.bytearray", "builtins.set", "builtins.complex",
    "torch._utils._rebuild_qtensor", "torch._utils._rebuild_sparse_tensor",
    "torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_wrapper_subclass",
})  # fmt: skip
"""Names that checkpoints may hold, but that say nothing about plain tensors."""

FORMER_MODULES = {
    "__builtin__": "builtins",
    "UserDict": "collections",
    "torch.tensor": "torch._tensor",
}
"""Modules that had other names when checkpoints were written."""

_KNOWN = frozenset(
    {*STORAGE_TYPES, *DTYPES, *DICTIONARIES, *REBUILD, *PARAMETERS, *IGNORED,
     REBUILD_WITH_TYPE, REBUILD_SUBCLASS}
)  # fmt: skip
_KEYS = (str, int, float, bytes, type(None))


def read_pickle(content: io.BytesIO) -> tuple[Any, dict[str, torch.dtype]]:
    """Read one pickle, and leave the stream after it.

    Returns:
        Numbers, texts, lists, tuples, dictionaries, `PickledTensor`s and `Named` values; and the
        type of the elements of every storage that it refers to.

    Raises:
        CodeError: it names a function or class that is not in the list.
        PickleError: it is damaged, or holds what no checkpoint does.
    """
    machine = _Machine(content)
    return machine.run(), machine.dtypes


class _Machine:
    """The stack machine. `stacks` holds the stack, and above it one more per open mark."""

    def __init__(self, content: io.BytesIO) -> None:
        self.content = content
        self.stacks: list[list[Any]] = [[]]
        self.memo: dict[int, Any] = {}
        self.dtypes: dict[str, torch.dtype] = {}

    def run(self) -> Any:
        read = self.content.read
        try:
            while (code := read(1)) != pickle.STOP:
                operation = _OPERATIONS.get(code)
                if operation is None:
                    raise PickleError(
                        "its pickle is truncated" if not code
                        else f"its pickle has an unknown instruction {code[0]:#04x}"
                    )  # fmt: skip
                operation(self)
            return self.pop()
        except (IndexError, KeyError, struct.error, UnicodeDecodeError):
            raise PickleError("its pickle is damaged") from None

    def push(self, value: Any) -> None:
        self.stacks[-1].append(value)

    def pop(self) -> Any:
        return self.stacks[-1].pop()

    def pop_mark(self) -> list[Any]:
        if len(self.stacks) == 1:
            raise IndexError
        return self.stacks.pop()

    def make_tuple(self, size: int) -> None:
        stack = self.stacks[-1]
        if len(stack) < size:
            raise IndexError
        stack[-size:] = [tuple(stack[-size:])]

    def take(self, size: int) -> bytes:
        data = self.content.read(size)
        if len(data) < size:
            raise PickleError("its pickle is truncated")
        return data

    def skip(self, size: int) -> None:
        self.take(size)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def put(self, index: int) -> None:
        self.memo[index] = self.stacks[-1][-1]

    def global_name(self) -> None:
        lines = [self.content.readline() for _ in range(2)]
        if not lines[1].endswith(b"\n"):
            raise PickleError("its pickle is truncated")
        module, name = (line[:-1].decode("utf-8") for line in lines)
        full_name = f"{FORMER_MODULES.get(module, module)}.{name}"
        if not re.fullmatch(r"[\w.]{3,200}", full_name):
            raise PickleError("its pickle is damaged")
        if full_name not in _KNOWN:
            raise CodeError(full_name)
        self.push(Named(full_name))

    def storage(self) -> None:
        storage = _storage(self.pop())
        if self.dtypes.setdefault(storage.key, storage.dtype) != storage.dtype:
            raise PickleError("it refers to one storage with two types")
        self.push(storage)

    def set_items(self, items: list[Any]) -> None:
        target = self.stacks[-1][-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError("its pickle is damaged")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of nested tuples can take for ever.
            if not isinstance(key, _KEYS):
                raise PickleError(f"it has a dictionary with a key of type {type(key).__name__}")
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stacks[-1][-1]
        if not isinstance(target, list):
            raise PickleError("its pickle is damaged")
        target.extend(items)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise PickleError("its pickle calls what is not a function")
        self.push(_result(function.name, arguments))

    def set_state(self) -> None:
        """Attributes of dictionaries and parameters; they do not matter for tensors."""
        self.pop()
        self.stacks[-1][-1]


_OPERATIONS: dict[bytes, Callable[[_Machine], None]] = {
    pickle.PROTO: lambda machine: machine.skip(1),
    pickle.MARK: lambda machine: machine.stacks.append([]),
    pickle.NONE: lambda machine: machine.push(None),
    pickle.NEWTRUE: lambda machine: machine.push(True),
    pickle.NEWFALSE: lambda machine: machine.push(False),
    pickle.EMPTY_TUPLE: lambda machine: machine.push(()),
    pickle.EMPTY_LIST: lambda machine: machine.push([]),
    pickle.EMPTY_DICT: lambda machine: machine.push({}),
    pickle.EMPTY_SET: lambda machine: machine.push(Named("builtins.set")),
    pickle.TUPLE: lambda machine: machine.push(tuple(machine.pop_mark())),
    pickle.TUPLE1: lambda machine: machine.make_tuple(1),
    pickle.TUPLE2: lambda machine: machine.make_tuple(2),
    pickle.TUPLE3: lambda machine: machine.make_tuple(3),
    pickle.BININT: lambda machine: machine.push(machine.number("<i")),
    pickle.BININT1: lambda machine: machine.push(machine.number("<B")),
    pickle.BININT2: lambda machine: machine.push(machine.number("<H")),
    pickle.BINFLOAT: lambda machine: machine.push(machine.number(">d")),
    pickle.LONG1: lambda machine: machine.push(
        int.from_bytes(machine.take(machine.number("<B")), "little", signed=True)
    ),
    pickle.BINUNICODE: lambda machine: machine.push(
        machine.take(machine.number("<I")).decode("utf-8")
    ),
    pickle.SHORT_BINSTRING: lambda machine: machine.push(machine.take(machine.number("<B"))),
    pickle.BINPUT: lambda machine: machine.put(machine.number("<B")),
    pickle.LONG_BINPUT: lambda machine: machine.put(machine.number("<I")),
    pickle.BINGET: lambda machine: machine.push(machine.memo[machine.number("<B")]),
    pickle.LONG_BINGET: lambda machine: machine.push(machine.memo[machine.number("<I")]),
    pickle.APPEND: lambda machine: machine.append([machine.pop()]),
    pickle.APPENDS: lambda machine: machine.append(machine.pop_mark()),
    pickle.SETITEM: lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_mark()),
    pickle.GLOBAL: _Machine.global_name,
    pickle.BINPERSID: _Machine.storage,
    pickle.REDUCE: _Machine.call,
    pickle.NEWOBJ: _Machine.call,
    pickle.BUILD: _Machine.set_state,
}


def _result(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a function returns: tensors and dictionaries; other values are not needed."""
    if name in DICTIONARIES:
        return _dictionary(arguments)
    if name in PARAMETERS and arguments and isinstance(arguments[0], PickledTensor):
        return arguments[0]
    if name in REBUILD and len(arguments) >= 4:
        return _tensor(*arguments[:4])
    if name == REBUILD_WITH_TYPE and len(arguments) >= 7 and isinstance(arguments[6], Named):
        storage, offset, shape, stride = arguments[:4]
        return _tensor(storage, offset, shape, stride, DTYPES.get(arguments[6].name))
    if name == REBUILD_SUBCLASS and len(arguments) == 4:
        function, _, inner, _ = arguments
        if isinstance(function, Named) and function.name in REBUILD and isinstance(inner, tuple):
            return _result(function.name, inner)
    return Named(name)


def _dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A dictionary from nothing, or from the list of pairs that Python 2 wrote."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], _KEYS)
    }


def _storage(saved: Any) -> Storage:
    """A storage from its persistent id: ("storage", class, key, device, elements[, view])."""
    if not isinstance(saved, tuple) or len(saved) not in (5, 6):
        raise PickleError("it refers to a storage in an unknown way")
    kind, storage_class, key, _, numel, *view = saved
    key, kind = _text(key), _text(kind)
    dtype = STORAGE_TYPES.get(storage_class.name) if isinstance(storage_class, Named) else None
    if kind != "storage" or dtype is None or not key or not _is_size(numel):
        raise PickleError("it refers to a storage in an unknown way")
    if not view or view[0] is None:
        return Storage(key, dtype, numel)
    if not isinstance(view[0], tuple) or len(view[0]) != 3 or not all(map(_is_size, view[0][1:])):
        raise PickleError("it refers to a storage in an unknown way")
    return Storage(key, dtype, view[0][2], view[0][1])


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None
) -> PickledTensor:
    if (
        not isinstance(storage, Storage)
        or not isinstance(shape, tuple)
        or not isinstance(stride, tuple)
        or not all(map(_is_size, (offset, *shape, *stride)))
        or len(shape) != len(stride)
        or len(shape) > MAX_DIMENSIONS
    ):
        raise PickleError("it describes a tensor in an unknown way")
    found = dtype or storage.dtype
    # The offset of a tensor counts elements of its own type, also in an untyped storage.
    tensor = PickledTensor(storage, found, offset * found.itemsize, shape, stride)
    if tensor.numel and tensor.offset + tensor.span * found.itemsize > _nbytes(storage):
        raise PickleError(
            f"it describes a tensor {list(shape)} that does not fit its storage of "
            f"{storage.numel:,} elements"
        )
    return tensor


def _nbytes(storage: Storage) -> int:
    return storage.numel * storage.dtype.itemsize


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # Python 2
        return value.decode("ascii", "replace")
    return value if isinstance(value, str) else ""
