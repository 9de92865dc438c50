"""One transformer pass of a real model, dense against sparse: the whole pass, one block, attention's share."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import vidaccel
from vidaccel.bench.measure import Spans, synchronize
from vidaccel.bench.models import Inputs, Model
from vidaccel.bench.share import attention_timed, blocks_timed, limit
from vidaccel.schedule import Schedule

LABEL = "random weights: speed only"
WARM_FRAMES = 2
"""Latent frames of the dense pass that warms up libraries, at little work."""


def lines(model: Model, method: str, options: dict[str, Any], device: torch.device, dtype: torch.dtype, seed: int,
          repeats: int) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The one line of a model by one method; no layer and no step stays dense.

    Args:
        options: of the method.
        repeats: timed passes of each kind, in turns.
    """
    same = {"case": "model", "model": model.name, "config": model.source, "label": LABEL, "grid": str(model.layout),
            "tokens": model.layout.tokens, "passes_per_step": model.passes, "method": method, "options": options,
            "dtype": str(dtype).removeprefix("torch.")}  # fmt: skip
    reason = model.why_not()
    if reason is not None:
        yield {**same, "skipped": reason}
        return
    yield {**same, **_measured(model, {"method": method, **options}, device, dtype, seed, repeats)}


@torch.inference_mode()
def _measured(model: Model, method: dict[str, Any], device: torch.device, dtype: torch.dtype, seed: int,
              repeats: int) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(seed)
    transformer = model.build(device, dtype)
    setting = {"schedule": Schedule(0, 0, 0), "min_tokens": 0, **method}
    call = model.call(device, dtype, seed)
    _timed(transformer, model.call(device, dtype, seed, WARM_FRAMES), device)
    attention = Spans(device)
    with attention_timed(transformer, attention):
        whole, reference = _timed(transformer, call, device)
    dense, sparse, blocks = [], [], {"dense": Spans(device), "sparse": Spans(device)}
    with vidaccel.enable(transformer, **setting) as session:
        # The first pass makes the plan and compiles the kernel; it does not count.
        out = _timed(transformer, call, device)[1]
        if bool(torch.isfinite(reference).all()) and not bool(torch.isfinite(out).all()):
            return {"red": "the dense pass is finite and the sparse one is not"}
        summary = session.summary()
        for _ in range(repeats):
            session.detach()
            dense.append(_with(blocks_timed(transformer, blocks["dense"]), transformer, call, device))
            session.attach()
            sparse.append(_with(blocks_timed(transformer, blocks["sparse"]), transformer, call, device))
    share = sum(attention.milliseconds()) / 1e3 / whole
    density, layout = summary.tally.all_calls, summary.tally.layout
    assert layout is not None
    return {
        "parameters": sum(each.numel() for each in transformer.parameters()), "layers": len(attention.milliseconds()),
        "tokens": layout.tokens, "density": density, "backend": summary.tally.backend,
        "dense_s": dense, "sparse_s": sparse, "dense_median_s": statistics.median(dense),
        "sparse_median_s": statistics.median(sparse), "speedup": statistics.median(dense) / statistics.median(sparse),
        "dense_block_ms": blocks["dense"].median(), "sparse_block_ms": blocks["sparse"].median(),
        "attention_ms": attention.median(), "attention_share": share, "predicted_limit": limit(share, density),
        "notes": list(summary.tally.notes),
    }  # fmt: skip


def _timed(transformer: nn.Module, call: Inputs, device: torch.device) -> tuple[float, torch.Tensor]:
    """Seconds of one pass, and its output."""
    synchronize(device)
    start = time.perf_counter()
    out: torch.Tensor = transformer(**call, return_dict=False)[0]
    synchronize(device)
    return time.perf_counter() - start, out


def _with(context: contextlib.AbstractContextManager[None], transformer: nn.Module, call: Inputs,
          device: torch.device) -> float:  # fmt: skip
    with context:
        return _timed(transformer, call, device)[0]
