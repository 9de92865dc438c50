"""A mode under which an operation that would wait for a GPU is an error, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
    "unique_dim_consecutive", "bincount", "equal", "is_nonzero", "item",
}  # fmt: skip


class NoSync(TorchDispatchMode):
    """Raises at operations whose result's shape, or whose value, the host must read from the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS or (name == "repeat_interleave" and not (kwargs or {}).get("output_size")):
            raise AssertionError(f"aten::{name} waits for a GPU")
        if name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        ):
            raise AssertionError(f"aten::{name} by a bool tensor waits for a GPU")
        return func(*args, **(kwargs or {}))


def on_meta(run: Callable[..., Any], *tensors: torch.Tensor) -> Any:
    """`run` of tensors without contents: what needs to read one fails."""
    return run(*(each.to("meta") for each in tensors))
