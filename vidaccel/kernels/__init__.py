"""Backends that execute a plan, behind one function and two custom ops (`vidaccel.kernels.op`).

A backend is one module of this package with ``why_not(query, precision=None) -> str | None`` (the reason it cannot run
a call, None if it can) and ``attention(query, key, value, plan, *, key_lengths, scale, return_lse, precision=None) ->
(out, lse or None)``, whose plan has a mask and is on the query's device.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor

from vidaccel.kernels.merge import merge
from vidaccel.kernels.quantise import PRECISIONS, refuse
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan

BACKENDS = ("triton", "cpu", "flex", "reference")
"""Best first: "auto" takes the first that can run a call."""

__all__ = ["BACKENDS", "PRECISIONS", "attention", "backend", "check_precision", "choose", "merge"]


def backend(name: str) -> ModuleType:
    """The module of a backend; triton is imported only when asked for.

    Raises:
        ValueError: no such backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose auto, {', '.join(BACKENDS)}")
    return importlib.import_module(f"vidaccel.kernels.{name}")


def check_precision(precision: str | None) -> None:
    """Raise ValueError for a precision that is neither one of `PRECISIONS` nor None."""
    if precision is not None:
        refuse(precision)


def choose(name: str, query: Tensor, precision: str | None = None) -> str:
    """The backend that runs a call with such a query.

    Args:
        name: "auto", or a backend that must be able to run it.
        query: ``[batch, tokens, heads, head_dim]``; only its device, dtype and shape count.
        precision: one of `PRECISIONS`, or None.

    Raises:
        ValueError: unknown name or precision, or the named backend cannot run this call.
    """
    check_precision(precision)
    if name == "auto":
        # The reference needs tokens x tokens memory, so it is never picked silently.
        reasons = []
        for each in BACKENDS:
            if each == "reference":
                continue
            if (problem := backend(each).why_not(query, precision)) is None:
                return each
            reasons.append(f"{each}: {problem}")
        raise ValueError(f"no backend can run this call: {'; '.join(reasons)}")
    reason = backend(name).why_not(query, precision)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this call: {reason}")
    return name


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan | BlockMask,
    *,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    precision: str | None = None,
    backend_name: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention over the query-key pairs that `plan` keeps, and over no other.

    Args:
        query, key, value: ``[batch, tokens, heads, head_dim]``, any strides with a dense last dimension.
        plan: what to compute, on the same device or not; a bare mask is a plan without orders and extra keys. Patterns
            of the mask, rows of the orders and patterns of the extra keys' bias are each 1, heads or batch * heads.
        key_lengths: int ``[batch]``, valid keys per batch row; keys at and past it, in the plan's order, are padding.
        scale: of the scores; ``head_dim ** -0.5`` by default.
        precision: one of `PRECISIONS` to compute in fewer bits; None for the inputs' own type.
        backend_name: one of `BACKENDS`, or "auto".

    Returns:
        The output, shaped and typed as `query`, and, if `return_lse`, the log-sum-exp of the scaled scores (natural
        logarithm), fp32 ``[batch, heads, queries]``, else None. A row without keys gives zeros and -inf.

    Raises:
        ValueError: a dense plan, shapes that do not fit the plan, or a backend that cannot run.
    """
    plan = AttentionPlan(plan) if isinstance(plan, BlockMask) else plan
    _check(query, key, value, plan, key_lengths)
    module = backend(choose(backend_name, query, precision))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    result: tuple[Tensor, Tensor | None] = module.attention(
        query, key, value, plan.to(query.device), key_lengths=key_lengths, scale=scale, return_lse=return_lse,
        precision=precision,
    )  # fmt: skip
    return result


def _check(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, key_lengths: Tensor | None) -> None:
    """Refuse what no backend could compute rightly."""
    mask, (batch, queries, heads, head_dim) = plan.mask, query.shape
    if mask is None:
        raise ValueError("a dense plan (mask=None) needs no kernel of ours: call scaled_dot_product_attention")
    if (queries, key.shape[1]) != (mask.queries, mask.keys):
        raise ValueError(
            f"the plan is for {mask.queries} x {mask.keys} tokens, the call has {queries} x {key.shape[1]}"
        )
    for name, tensor in (("key", key), ("value", value)):
        expected = (batch, mask.keys, heads, head_dim)
        if tensor.shape != expected:
            raise ValueError(f"{name} is {list(tensor.shape)}, the query needs {list(expected)}")
        if (tensor.dtype, tensor.device) != (query.dtype, query.device):
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, query {query.dtype} on {query.device}")
    integers = (torch.int32, torch.int64)
    if key_lengths is not None and (key_lengths.shape != (batch,) or key_lengths.dtype not in integers):
        raise ValueError(f"key_lengths is int [{batch}], got {key_lengths.dtype} {list(key_lengths.shape)}")
    if plan.extra is not None:
        extra, expected = plan.extra.key, (batch, plan.extra.groups, heads, head_dim)
        if extra.shape != expected or extra.dtype != query.dtype:
            raise ValueError(f"extra keys are {query.dtype} {list(expected)}, got {extra.dtype} {list(extra.shape)}")
    parts: tuple[tuple[str, Tensor | None], ...] = (
        ("patterns of the mask", mask.offsets), ("rows of query_order", plan.query_order),
        ("rows of key_order", plan.key_order),
        ("patterns of the extra keys' bias", plan.extra.bias if plan.extra else None),
    )  # fmt: skip
    for name, part in parts:
        if part is not None and len(part) not in (1, heads, batch * heads):
            raise ValueError(f"{len(part)} {name} do not fit {batch} batch rows of {heads} heads: 1, {heads} or "
                             f"{batch * heads}")  # fmt: skip
