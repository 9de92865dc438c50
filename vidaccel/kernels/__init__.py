"""Backends that execute a plan, behind one function and one custom op.

A backend is one module of this package with ``why_not(query) -> str | None`` (the reason it cannot run a call, None if
it can) and ``attention(query, key, value, mask, *, key_lengths, scale, return_lse) -> (out, lse or None)``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import Tensor

from vidaccel.plan import BlockMask

BACKENDS = ("triton", "cpu", "reference")
"""Best first: "auto" takes the first that can run a call."""


def backend(name: str) -> ModuleType:
    """The module of a backend; triton is imported only when asked for.

    Raises:
        ValueError: no such backend.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose auto, {', '.join(BACKENDS)}")
    return importlib.import_module(f"vidaccel.kernels.{name}")


def choose(name: str, query: Tensor) -> str:
    """The backend that runs a call with such a query.

    Args:
        name: "auto", or a backend that must be able to run it.
        query: ``[batch, tokens, heads, head_dim]``; only its device, dtype and shape count.

    Raises:
        ValueError: unknown name, or the named backend cannot run this call.
    """
    if name == "auto":
        # The reference needs tokens x tokens memory, so it is never picked silently.
        reasons = []
        for each in BACKENDS:
            if each == "reference":
                continue
            if (problem := backend(each).why_not(query)) is None:
                return each
            reasons.append(f"{each}: {problem}")
        raise ValueError(f"no backend can run this call: {'; '.join(reasons)}")
    reason = backend(name).why_not(query)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run this call: {reason}")
    return name


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend_name: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention over the query-key pairs that `mask` keeps, and over no other.

    Args:
        query, key, value: ``[batch, tokens, heads, head_dim]``, any strides with a dense last dimension.
        mask: the plan, on the same device or not; patterns is 1, heads or batch * heads.
        key_lengths: int ``[batch]``, valid keys per batch row; keys at and past it are padding.
        scale: of the scores; ``head_dim ** -0.5`` by default.
        backend_name: one of `BACKENDS`, or "auto".

    Returns:
        The output, shaped and typed as `query`, and, if `return_lse`, the log-sum-exp of the scaled scores (natural
        logarithm), fp32 ``[batch, heads, queries]``, else None. A row without keys gives zeros and -inf.

    Raises:
        ValueError: shapes that do not fit the mask, or a backend that cannot run.
    """
    batch, queries, heads, head_dim = query.shape
    if (queries, key.shape[1]) != (mask.queries, mask.keys):
        raise ValueError(
            f"the plan is for {mask.queries} x {mask.keys} tokens, the call has {queries} x {key.shape[1]}"
        )
    if mask.patterns not in (1, heads, batch * heads):
        raise ValueError(f"a plan of {mask.patterns} patterns does not fit {batch} rows of {heads} heads")
    module = backend(choose(backend_name, query))
    scale = head_dim**-0.5 if scale is None else scale
    result: tuple[Tensor, Tensor | None] = module.attention(
        query, key, value, mask.to(query.device), key_lengths=key_lengths, scale=scale, return_lse=return_lse
    )
    return result
