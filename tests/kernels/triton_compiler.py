"""Compiles Triton kernels for GPUs that are not here, and reads from the machine code what became of them."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vidaccel.kernels.triton import prepare
from vidaccel.kernels.triton_table import Tile
from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys
from vidaccel.triton_launch import Launch

POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32", torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv", torch.uint8: "*u8", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR_CORES = {
    "sm_80": "HMMA", "sm_86": "HMMA", "sm_89": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "sm_120": "HMMA",
    "gfx942": "v_mfma",
}  # fmt: skip
WARPGROUP_ROWS = 64
"""Rows from which on sm_90 and sm_100 have their own tensor-core instructions; below, those of sm_80."""
SHARED_KB = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}


@dataclass(frozen=True)
class Machine:
    """Machine code: registers of a thread, what is spilled or on the stack, bytes of shared memory, instructions."""

    registers: int
    spilled: int
    shared: int
    instructions: Counter[str]


def launch(
    head_dim: int, tile: Tile, dtype: torch.dtype, options: bool, parts: str = "mask", precision: str | None = None
) -> Launch:
    """A launch at the shapes of a Wan 1.3B call, on the meta device; with LSE and key lengths, or with neither.

    `parts` of the plan: "mask" alone, or "all": orders and extra keys, too.
    """
    query = torch.empty(2, 32760, 12, head_dim, dtype=dtype, device="meta")
    lengths = torch.empty(2, dtype=torch.int32, device="meta") if options else None
    mask = BlockMask.full(32760, 32760, query_block=tile.block_q).to("meta")
    plan = AttentionPlan(mask)
    if parts == "all":
        order = torch.empty(24, 32760, dtype=torch.int32, device="meta")
        means = torch.empty(2, 1000, 12, head_dim, dtype=dtype, device="meta")
        bias = torch.empty(24, mask.tiles, 1000, device="meta")
        plan = AttentionPlan(mask, order, order, ExtraKeys(means, means, bias))
    return prepare(
        query, query, query, plan, key_lengths=lengths, scale=head_dim**-0.5, return_lse=options, tile=tile,
        precision=precision,
    )  # fmt: skip


def compiled(
    architecture: str, head_dim: int, tile: Tile, dtype: torch.dtype, options: bool, parts: str = "mask",
    precision: str | None = None,
) -> Machine:  # fmt: skip
    """The machine code of that launch for an architecture."""
    return machine_code(architecture, launch(head_dim, tile, dtype, options, parts, precision))


def machine_code(architecture: str, call: Launch) -> Machine:
    """The machine code of a launch for an architecture."""
    is_amd = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if is_amd else GPUTarget("cuda", int(architecture[3:]), 32)
    made = triton.compile(source(call), target=target, options=call.options)
    return (_read_amd if is_amd else _read_nvidia)(made.asm, made.metadata.shared)


def source(call: Launch) -> ASTSource:
    """The kernel specialised as Triton specialises it when it is launched with these arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    arguments = {**call.arguments, **call.constants}
    for index, parameter in enumerate(call.kernel.params):
        given = arguments.pop(parameter.name)
        kind = "constexpr" if parameter.is_constexpr else _type(given, parameter.do_not_specialize)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = given
        elif not parameter.do_not_specialize and _is_aligned(given):
            attributes[(index,)] = [["tt.divisibility", 16]]
    assert not arguments, f"the kernel has no parameters {sorted(arguments)}"
    return ASTSource(call.kernel, signature, constants, attributes)


def _is_aligned(given: object) -> bool:
    """Whether Triton takes an argument for a multiple of 16: torch allocates on multiples of 512 bytes."""
    return isinstance(given, Tensor) or (isinstance(given, int) and given % 16 == 0)


def _type(given: object, plain: bool) -> str:
    """The type by which Triton takes an argument: None and, if specialised, 1 are constants."""
    if given is None or (isinstance(given, int) and given == 1 and not plain):
        return "constexpr"
    if isinstance(given, Tensor):
        return POINTERS[given.dtype]
    if isinstance(given, float):
        return "fp32"
    assert isinstance(given, int)
    return "i32" if given < 2**31 else "i64"


def _read_nvidia(asm: dict[str, Any], shared: int) -> Machine:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage, code = (_cuobjdump(option, file.name) for option in ("-res-usage", "-sass"))
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    # /*0000*/  @P0 HGMMA.64x64x16.F32.BF16 R24, ...
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", code, re.MULTILINE)
    instructions = Counter(names)
    assert instructions["EXIT"], "no instructions were read"
    return Machine(registers, stack + local + instructions["LDL"] + instructions["STL"], shared, instructions)


def _cuobjdump(option: str, path: str) -> str:
    environment = {**os.environ, "PATH": f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}"}  # it calls nvdisasm
    done = subprocess.run([TOOLS / "cuobjdump", option, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _read_amd(asm: dict[str, Any], shared: int) -> Machine:
    text = asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)$", text, re.MULTILINE)
        assert found, f"no {name} in the metadata"
        return int(found[1])

    # Scalar registers spill into lanes of vector registers, not into memory.
    spilled = field("vgpr_spill_count") + field("private_segment_fixed_size")
    names = (name for name in re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE))
    instructions = Counter("v_mfma" if name.startswith("v_mfma") else name for name in names)
    return Machine(field("vgpr_count"), spilled, shared, instructions)
