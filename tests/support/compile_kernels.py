"""Compile the Triton kernels for GPUs that this machine does not have, and read the machine code.

`python -m tests.support.compile_kernels 80 90` prints a JSON object per kernel and architecture.
It is a program of its own because kernels that are interpreted elsewhere in a process cannot be
compiled there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rudalle_lib.models.gpu.add_norms import MAX_FLOAT16, add_norms
from rudalle_lib.models.gpu.add_norms import warps as norm_warps
from rudalle_lib.models.gpu.cell_attention import CELL_BLOCK, WARPS, cell_attention, text_block
from rudalle_lib.models.gpu.draw_token import draw_token
from rudalle_lib.models.gpu.draw_token import warps as draw_warps
from rudalle_lib.models.gpu.embed_token import embed_token
from rudalle_lib.models.gpu.image_groups import MAX_IMAGES
from rudalle_lib.models.layers import triton_int8
from rudalle_lib.models.layers.group_norm_kernels import TILE, channel_moments, normalise_tile
from rudalle_lib.models.layers.group_norm_kernels import WARPS as GROUP_WARPS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

WIDE = ("LDG.E.128", "STG.E.128", "LDGSTS.E.BYPASS.128", "LDGSTS.E.LTC128B.128")
"""Instructions that move 16 bytes per thread from or to global memory."""


DIVISIBLE = ("width", "V", "L", "outputs", "inputs")
"""Sizes that are multiples of 16 in all published models, which Triton sees at the launch."""


@dataclass(frozen=True)
class Case:
    """A kernel as it is launched.

    Args:
        name: of the case.
        kernel: the function.
        types: type of each argument that is no constant.
        constants: values of the others.
        options: of the launch.
    """

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    """Every kernel in the sizes of Malevich, Kandinsky (heads of 64) and the demo (heads of 48)."""
    tables = dict.fromkeys(
        ("cell_at", "slot_of", "seen", "seen_count", "group_prompt", "group_rows"), "*i32"
    )
    tensors = ("projected", "key", "value", "text_key", "text_value", "contexts")
    for name, dtype, heads, width, text in (
        ("malevich", "bf16", 16, 128, 128),
        ("malevich int8_dynamic", "bf16", 16, 128, 128),
        ("malevich float16", "fp16", 16, 128, 128),
        ("malevich float32", "fp32", 16, 128, 128),
        ("kandinsky", "bf16", 60, 64, 128),
        ("demo", "bf16", 4, 48, 24),
    ):
        sizes = {
            "HEADS": heads, "D": width, "D_BLOCK": triton.next_power_of_2(width),
            "T": text, "T_BLOCK": text_block(text, 4 if dtype == "fp32" else 2),
            "SLOTS": 33, "MAX_SEEN": 32, "CELL_BLOCK": CELL_BLOCK, "IMAGES": MAX_IMAGES,
        }  # fmt: skip
        types = {**dict.fromkeys(tensors, f"*{dtype}"), **tables, "scale": "fp32"}
        if "int8" in name:
            types["largest"] = "*fp32"
        options = {"num_warps": WARPS, "num_stages": 2}
        yield Case(f"attention {name}", cell_attention, types, sizes, options)
    yield from norm_cases("int8_dynamic", "bf16", {"normalised": "*i8", "step": "*fp32"})
    for dtype in ("bf16", "fp16", "fp32"):
        yield from norm_cases(dtype, dtype, {"normalised": f"*{dtype}"})
        types = {
            "logits": f"*{dtype}", "temperature": "*fp32", "top_k": "*i32", "top_p": "*fp32",
            "guidance": "*fp32", "empty_row": "*i32", "seeds": "*i64", "places": "*i64",
            "given": "*i64", "step_at": "*i32", "tokens": "*i64", "logprobs": "*fp32",
            "latest": "*i64", "V": "i32", "L": "i32",
        }  # fmt: skip
        options = {"num_warps": draw_warps(8192), "enable_fp_fusion": False}
        yield Case(f"draw {dtype}", draw_token, types, {"BLOCK": 8192}, options)


def norm_cases(name: str, dtype: str, written: dict[str, str]) -> Iterator[Case]:
    """The kernels that end in a layer norm, and what they write."""
    names = ("hidden", "branch", "weight", "bias", "next_weight", "next_bias")
    numbers = {"width": "i32", "eps": "fp32"}
    options = {"num_warps": norm_warps(2048)}
    types = {**dict.fromkeys(names, f"*{dtype}"), **written, **numbers, "next_eps": "fp32"}
    constants = {"BLOCK": 2048, "SANDWICH": True, "LIMIT": MAX_FLOAT16}
    yield Case(f"norms {name}", add_norms, types, constants, options)
    read = ("hidden", "embeddings", "positions", "weight", "bias")
    tables = {"latest": "*i64", "place_at": "*i32"}
    types = {**dict.fromkeys(read, f"*{dtype}"), **tables, **written, **numbers}
    yield Case(f"embedding {name}", embed_token, types, {"BLOCK": 2048}, options)


def image_cases() -> Iterator[Case]:
    """The kernels of image networks, in the widths of the published VQ-GAN."""
    options = {"num_warps": GROUP_WARPS}
    for channels in (128, 512):
        sizes = {"C": channels, "TILE": TILE // channels}
        types = {"x": "*bf16", "means": "*fp32", "variances": "*fp32"}
        yield Case(f"moments {channels}", channel_moments, types, sizes, options)
        types = {
            **dict.fromkeys(("x", "weight", "bias", "normalised"), "*bf16"), "tiles": "i32",
            **dict.fromkeys(("mean", "between", "within"), "*fp32"), "eps": "fp32",
        }  # fmt: skip
        sizes = {**sizes, "GROUPS": 32, "ACTIVATE": True}
        yield Case(f"group norm {channels}", normalise_tile, types, sizes, options)


def int8_cases() -> Iterator[Case]:
    """The kernels of 8-bit layers, for 64 rows or more of Malevich."""
    for name, dtype in (
        ("int8", "bf16"),
        ("int8 float16", "fp16"),
        ("int8_dynamic", "i8"),
        ("int8_dynamic contexts", "bf16"),
    ):
        types = {
            "output": f"*{dtype.replace('i8', 'bf16')}", "x": f"*{dtype}", "step": "*fp32",
            "weight": "*i8", "scale": "*fp32", "bias": "*bf16", "rows": "i32", "outputs": "i32",
            "inputs": "i32",
        }  # fmt: skip
        rounds = name.endswith("contexts")
        constants = {
            "ROWS": triton_int8.row_tile(64), "OUTPUTS": triton_int8.OUTPUTS,
            "INPUTS": triton_int8.INPUTS, "DYNAMIC": "dynamic" in name, "ROUND_INPUTS": rounds,
            "GELU": not rounds,
        }  # fmt: skip
        options = {"num_warps": triton_int8.WARPS, "num_stages": triton_int8.STAGES}
        yield Case(f"product {name}", triton_int8.int8_product, types, constants, options)
    types = {"x": "*bf16", "levels": "*i8", "step": "*fp32", "inputs": "i32"}
    yield Case("quantise", triton_int8.quantise_rows, types, {"BLOCK": 8192}, {"num_warps": 16})


def compile_case(case: Case, architecture: int, folder: Path) -> dict[str, Any]:
    """Compile a kernel and count what its machine code does.

    Returns:
        Registers of a thread, bytes of shared memory, bytes of stack and local memory (spills), and
        the numbers of loads and stores that move 16 bytes, and of instructions of local memory.
    """
    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name].startswith("*") or name in DIVISIBLE
    }
    missing = {name: None for name in names if name not in case.types | case.constants}
    constants = {
        (names.index(name),): value for name, value in {**missing, **case.constants}.items()
    }
    source = ASTSource(case.kernel, signature, constants, aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options=case.options
    )
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = _tool("cuobjdump", "-res-usage", path)
    code = _tool("nvdisasm", "-c", path)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "case": case.name,
        "architecture": architecture,
        "registers": found["REG"],
        "shared": compiled.metadata.shared,
        "spilled": found["STACK"] + found["LOCAL"],
        "local": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "wide": sum(len(re.findall(rf"\b{re.escape(name)}\b", code)) for name in WIDE),
        "global": len(re.findall(r"\b(?:LDG|STG|LDGSTS)\b", code)),
    }


def _tool(name: str, option: str, path: Path) -> str:
    command = [str(TOOLS / name), option, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main(arguments: Sequence[str]) -> None:
    """Compile and print what was found, as JSON lines.

    Args:
        arguments: architectures, such as 90, and names of cases; all if none is named.
    """
    architectures = [int(one) for one in arguments if one.isdecimal()]
    named = {one for one in arguments if not one.isdecimal()}
    known = [*cases(), *int8_cases(), *image_cases()]
    chosen = [case for case in known if not named or case.name in named]
    assert {case.name for case in chosen} >= named, named
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures:
            for case in chosen:
                print(json.dumps(compile_case(case, architecture, Path(folder))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
