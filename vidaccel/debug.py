"""What a session can look for while it runs: values that are not finite, and the error of fewer bits."""

from __future__ import annotations

import torch
from torch import Tensor


def check_finite(out: Tensor, query: Tensor, key: Tensor, value: Tensor, where: str) -> None:
    """Refuse an attention output that is not finite, and say whether its inputs were. Waits for a GPU.

    Args:
        out, query, key, value: ``[batch, tokens, heads, head_dim]``.
        where: the layer and step of the call, in words.

    Raises:
        FloatingPointError: `out` holds NaN or infinity.
    """
    if bool(torch.isfinite(out).all()):
        return
    inputs = {"query": query, "key": key, "value": value}
    bad = [name for name, tensor in inputs.items() if not bool(torch.isfinite(tensor).all())]
    heads = (~torch.isfinite(out)).any(dim=-1).any(dim=1).any(dim=0).nonzero().flatten().tolist()
    came = f"so are {' and '.join(bad)}" if bad else "query, key and value are finite"
    raise FloatingPointError(f"the attention output of {where} is not finite in heads {heads}; {came}")


def relative_error(out: Tensor, exact: Tensor) -> Tensor:
    """Frobenius norm of the difference over that of `exact`, fp32 on the device: nothing waits."""
    wide, least = exact.float(), torch.finfo(torch.float32).tiny
    error: Tensor = (out.float() - wide).norm() / wide.norm().clamp(min=least)
    return error
