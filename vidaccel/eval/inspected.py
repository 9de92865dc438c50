"""One observed attention call as JSON-ready values: maps and masks small enough for a record, and the numbers."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vidaccel.eval.attended import Attended, attended
from vidaccel.plan import AttentionPlan
from vidaccel.site import Observed

EXPONENT = 2.5
"""Of the maps' scale: attention is so uneven that equal steps would show its strongest cells alone."""
SCALE = {
    "map": "base64 of a byte for each cell, a row of queries after the other; the mean softmax weight of a cell's "
           f"pairs, as a multiple of what it is where attention is even, is most * (byte / 255) ** {EXPONENT}",
    "mask": "base64 of a byte for each cell, as in the map; byte / 255 is the share of its pairs that are kept; null "
            "where all are",
    "exponent": EXPONENT,
}  # fmt: skip
SHARES = (0.1, 0.25, 0.5)
WORST = 0.01
DIGITS = 5
LONG = 40
"""Letters of a text in a pattern from which it is left out: it holds a mask or weights."""


def call_values(seen: Observed, heads: Iterable[int]) -> dict[str, Any]:
    """What a record holds of a call: of a batch its last row, which is the prompt's own where guidance is batched.

    Args:
        heads: counted from 0; those that the call has not are an error of the caller's.
    """
    site, row = seen.site, len(seen.query) - 1
    length = site.layout.tokens if seen.key_lengths is None else int(seen.key_lengths[row])
    made = [(head, _measured(seen, row, head, length)) for head in heads]
    cells = made[0][1].cells
    return {
        "expert": site.expert, "layer": site.layer, "step": site.step, "branch": site.branch, "how": seen.how,
        "dense": seen.plan.mask is None, "layout": dataclasses.asdict(site.layout), "tokens": length,
        "edges": list(cells.edges), "video": [cells.first, cells.last],
        "heads": [_head_values(seen, row, head, found) for head, found in made],
    }  # fmt: skip


def to_bytes(values: Tensor) -> str:
    """Base64 of values in [0, 1], in steps of 1/255."""
    return base64.b64encode((values * 255).round().clamp(0, 255).byte().contiguous().numpy().tobytes()).decode()


def _measured(seen: Observed, row: int, head: int, length: int) -> Attended:
    lane = row * seen.query.shape[2] + head
    return attended(seen.query[row, :, head], seen.key[row, :, head], seen.plan, lane, seen.site.layout, length)


def _head_values(seen: Observed, row: int, head: int, found: Attended) -> dict[str, Any]:
    lane, dense = row * seen.query.shape[2] + head, seen.plan.mask is None
    relative = found.weights * found.cells.edges[-1]
    most = float(relative.max())
    return {
        "head": head, "map": {"bytes": to_bytes((relative / most) ** (1 / EXPONENT)), "most": _rounded(most)},
        "mask": None if dense else {"bytes": to_bytes(found.kept)},
        "density": _rounded(found.density), "video_density": _rounded(found.video_density),
        "kept_mass": None if dense else _kept(found.mass),
        "best_mass": None if dense else _rounded(found.best),
        "best_cells": {str(share): _rounded(found.in_best_cells(share)) for share in SHARES},
        "mass_on_text": _rounded(found.mass_on_text()),
        "pattern": None if seen.heads is None else _short(seen.heads[lane % len(seen.heads)]),
        "order": _order(seen.plan, lane),
    }  # fmt: skip


def _kept(mass: Tensor) -> dict[str, float]:
    """Of the video queries' kept mass, which rises: its mean, that of the worst hundredth, and the least."""
    worst = mass[: max(1, round(WORST * len(mass)))]
    return {"mean": _rounded(mass.double().mean()), "worst_hundredth": _rounded(worst.double().mean()),
            "least": _rounded(mass[0])}  # fmt: skip


def _order(plan: AttentionPlan, lane: int) -> dict[str, Any] | None:
    """How a plan reorders tokens for a head: the share of keys that stand elsewhere, and groups that they are in."""
    if plan.key_order is None and plan.query_order is None:
        return None
    moved = {"queries_moved": _moved(plan.query_order, lane), "keys_moved": _moved(plan.key_order, lane)}
    if plan.key_groups is None:
        return {**moved, "groups": None}
    sizes = plan.key_groups[lane % len(plan.key_groups)].long().diff()
    sizes = sizes[sizes > 0]
    return {**moved, "groups": {"count": len(sizes), "least": int(sizes.min()), "most": int(sizes.max())}}


def _moved(order: Tensor | None, lane: int) -> float:
    if order is None:
        return 0.0
    own = order[lane % len(order)]
    return _rounded((own != torch.arange(len(own), device=own.device)).double().mean())


def _short(item: Any) -> Any:
    """A pattern without long texts, of patterns within it, too."""
    if isinstance(item, Mapping):
        return {name: _short(each) for name, each in item.items() if not isinstance(each, str) or len(each) <= LONG}
    return [_short(each) for each in item] if isinstance(item, (list, tuple)) else item


def _rounded(value: Any) -> float:
    return round(float(value), DIGITS)
