"""Compiles launches of planning operations for GPUs that are not there, and reads the machine code."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.triton_compiler import Machine, _read_amd, _read_nvidia
from vidaccel.planning.dispatch import Launch

POINTERS = {
    torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int32: "*i32",
    torch.int64: "*i64",
}  # fmt: skip


def compiled(architecture: str, launch: Launch) -> Machine:
    """The machine code of a launch for an architecture."""
    is_amd = architecture.startswith("gfx")
    target = GPUTarget("hip", architecture, 64) if is_amd else GPUTarget("cuda", int(architecture[3:]), 32)
    kernel = triton.compile(source(launch), target=target, options=launch.options)
    return (_read_amd if is_amd else _read_nvidia)(kernel.asm, kernel.metadata.shared)


def source(launch: Launch) -> ASTSource:
    """The kernel specialised as Triton specialises it when it is launched with these arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    arguments = {**launch.arguments, **launch.constants}
    for index, parameter in enumerate(launch.kernel.params):
        given = arguments.pop(parameter.name)
        kind = "constexpr" if parameter.is_constexpr else _type(given, parameter.do_not_specialize)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = given
        elif not parameter.do_not_specialize and (isinstance(given, Tensor) or given % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    assert not arguments, f"the kernel has no parameters {sorted(arguments)}"
    return ASTSource(launch.kernel, signature, constants, attributes)


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
