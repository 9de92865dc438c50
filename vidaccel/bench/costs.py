"""The coefficients of the cost model (docs/costs.md) on this device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vidaccel.bench.attention import Board
from vidaccel.costs import fit, measure

CASES = ((12, 128, 128, 16_384), (48, 64, 128, 16_384))
SMOKE = ((2, 64, 16, 512),)
"""Heads, head dim, block and tokens: those of Wan-1.3B and CogVideoX, on more tokens than the sparse ones need."""


def lines(board: Board, smoke: bool) -> Iterator[dict[str, Any]]:
    """One for each head dim: the coefficients, and by how much the model misses the times that it was fitted to."""
    for heads, head_dim, block, tokens in SMOKE if smoke else CASES:
        line = {"case": "costs", "heads": heads, "head_dim": head_dim, "block": block, "tokens": tokens,
                "dtype": str(board.dtype).removeprefix("torch."), "device_type": board.device.type}  # fmt: skip
        try:
            samples, dense = measure.times(board.device, board.dtype, heads, head_dim, block, tokens)
            model = fit.fitted(samples, dense, heads, head_dim, "vidaccel bench kernels")
        except Exception as problem:  # calls that this GPU does not take must not end the run
            yield {**line, "failed": f"{type(problem).__name__}: {str(problem)[:200]}", "ours": True}
        else:
            yield {**line, "coefficients": model.to_dict(), **fit.misses(model, samples, dense, heads)}
