"""One attention call by every implementation: checked, timed, and compared with the best dense one of the same run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from vidaccel.bench import gate, peers, plans
from vidaccel.bench.measure import percentiles
from vidaccel.bench.peers import Peer, Unavailable
from vidaccel.bench.shapes import Shape
from vidaccel.plan import AttentionPlan, BlockMask, Density

ROTATION = 3
"""Sets of inputs that calls take in turn."""
LOW_PRECISION_DENSITIES = (1.0, 0.2)
"""Where the variants in fewer bits are timed: they scale with density as the others do."""


@dataclass
class Board:
    """What a run measures attention with.

    Args:
        device, dtype: of the inputs.
        seed: of inputs and plans.
        dense: TFLOP/s of the best dense attention by shape, once it has been measured.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int
    dense: dict[str, float] = field(default_factory=dict)

    def inputs(self, shape: Shape) -> list[gate.Inputs]:
        """Fresh random inputs; every implementation gets its own, for SageAttention writes into its keys."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        size = (1, shape.tokens, shape.heads, shape.head_dim)

        def draw() -> torch.Tensor:
            return torch.randn(size, generator=generator, device=self.device, dtype=self.dtype)

        return [(draw(), draw(), draw()) for _ in range(ROTATION)]

    def dense_lines(self, shape: Shape) -> Iterator[dict[str, Any]]:
        """Dense attention of a shape by every implementation; the best of full precision becomes the yardstick."""
        plan = AttentionPlan(BlockMask.full(shape.tokens, shape.tokens, plans.BLOCK, plans.BLOCK).to(self.device))
        for line in self._lines(shape, plan, peers.dense(self.device)):
            if line["tolerance"] == peers.TOLERANCE[None] and "tflops" in line:
                self.dense[shape.name] = max(self.dense.get(shape.name, 0.0), line["tflops"])
            yield {"plan": "dense", "requested_density": 1.0, **line}

    def sparse_lines(self, shape: Shape, kind: str, density: float) -> Iterator[dict[str, Any]]:
        """A plan of one kind and density by every implementation."""
        plan = plans.make(kind, shape, density, self.device, seed=self.seed)
        wanted = [
            peer for peer in peers.sparse(self.device)
            if density in LOW_PRECISION_DENSITIES or peer.tolerance == peers.TOLERANCE[None]
        ]  # fmt: skip
        for line in self._lines(shape, plan, wanted):
            yield {"plan": kind, "requested_density": density, **line, **self._against_dense(shape, line)}

    def dense_ms(self, shape: Shape) -> float | None:
        """Milliseconds of the best dense attention of a shape; None before it has been measured."""
        best = self.dense.get(shape.name)
        return None if best is None else shape.dense_flop / best / 1e9

    def _lines(self, shape: Shape, plan: AttentionPlan, which: list[Peer]) -> Iterator[dict[str, Any]]:
        found = plan.density(shape.layout)
        same = {
            "case": "attention", "shape": shape.name, "tokens": shape.tokens, "heads": shape.heads,
            "head_dim": shape.head_dim, "dtype": str(self.dtype).removeprefix("torch."), "density": found.density,
            "computed_density": found.computed_density,
        }  # fmt: skip
        for peer in which:
            yield {**same, "implementation": peer.name, "ours": peer.ours, "tolerance": peer.tolerance,
                   **measured(peer, self.inputs(shape), plan, shape.dense_flop, found)}  # fmt: skip

    def _against_dense(self, shape: Shape, line: dict[str, Any]) -> dict[str, float]:
        dense_ms = self.dense_ms(shape)
        if dense_ms is None or "tflops" not in line:
            return {}
        return {"efficiency": line["tflops"] / self.dense[shape.name], "dense_ms": dense_ms,
                "speedup": dense_ms / line["p50_ms"]}  # fmt: skip


def measured(peer: Peer, inputs: list[gate.Inputs], plan: AttentionPlan, dense_flop: float,
             found: Density) -> dict[str, Any]:  # fmt: skip
    """Error and times of one implementation, or why there are none.

    Rates count the tiles that are computed (``tflops``) and the pairs that are attended (``attended_tflops``). A
    result over the tolerance is ``red`` and gets no times.
    """
    try:
        kernel = peer.make(plan, inputs[0][0])
        error = gate.error(kernel(*inputs[0]), inputs[0], plan)
        if not error <= peer.tolerance:
            return {"error": error if math.isfinite(error) else None, "red": f"error {error:.3g} over {peer.tolerance}"}
        times = percentiles(kernel, inputs)
    except Unavailable as reason:
        return {"skipped": str(reason)}
    except Exception as problem:  # one that this GPU or these versions do not take must not end the run
        first = str(problem).strip().splitlines()
        return {"failed": f"{type(problem).__name__}: {first[0] if first else ''}"[:300]}
    rate = dense_flop / times["p50_ms"] / 1e9
    return {"error": error, **times, "tflops": rate * found.computed_density, "attended_tflops": rate * found.density}
