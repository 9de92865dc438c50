"""How far the outputs of candidate plans are from dense attention, measured on some of the queries.

Sparse VideoGen (Xi et al. 2025) classifies heads by it on 64 random rows, Sparse-vDiT (Chen et al. 2025) and others on
whole maps. Here candidates are measured as they would be executed: their own ranges, orders and extra keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys
from vidaccel.planning import dispatch, shapes
from vidaccel.planning.rows import keys_of_rows, patterns_of, tiles_of_rows, with_mask

WORKING_BYTES = 256 << 20
"""Memory for the rows of masks (kernel) or for scores and masks (torch): lanes are worked on in groups."""


@dataclass(frozen=True, eq=False)
class OutputErrors:
    """Squared output errors, summed over the sampled rows, so that those of several prompts can be added.

    Args:
        error: fp32 ``[candidates, batch, heads]``, the sum of ``|o_candidate - o_dense|^2``.
        norm: fp32 ``[batch, heads]``, the sum of ``|o_dense|^2``.
    """

    error: Tensor
    norm: Tensor

    @property
    def relative(self) -> Tensor:
        """``error / norm``: 0 is dense attention, 1 is as bad as zeros; fp32 ``[candidates, batch, heads]``."""
        return self.error / self.norm.clamp(min=torch.finfo(torch.float32).tiny)

    def __add__(self, other: OutputErrors) -> OutputErrors:
        return OutputErrors(self.error + other.error, self.norm + other.norm)


def output_errors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    plans: Sequence[AttentionPlan | BlockMask],
    *,
    scale: float,
    key_lengths: Tensor | None = None,
) -> OutputErrors:
    """The error of each candidate plan against dense attention, per head, on some queries.

    With R rows and C candidates that takes ``4 * (C + 1) * R * N * head_dim`` operations per head and memory for R x N
    bytes per head, of as many heads at a time as `WORKING_BYTES` holds: at 75,600 tokens and 64 rows, 55 of them. Never
    N x N. Weights are rounded to the type of the values before they meet them, as in the attention kernels.

    Args:
        query, key, value: ``[batch, tokens, heads, head_dim]``.
        rows: int64 ``[rows]``, the sampled queries' places in the natural order, 0 to tokens - 1. Where they are on the
            CPU they are checked; on a GPU that would wait for it.
        plans: candidates, at least one, with a mask each; orders and extra keys are honoured.
        scale: of the scores.
        key_lengths: int ``[batch]``; keys from there on are padding, in the natural order and, since an order puts
            padding last, in those of the plans.

    Returns:
        Sums over the rows. A row for which a candidate has no keys has an output of zeros.

    Raises:
        ValueError: shapes, types or plans that do not fit.
    """
    shapes.check_pair(query, key)
    shapes.check_pair(query, value, "value")
    if value.shape != key.shape:
        raise ValueError(f"value is {list(value.shape)}, the key {list(key.shape)}")
    key_lengths = shapes.check_lengths("key_lengths", key_lengths, key)
    candidates, rows = _candidates(query, key, plans), _rows(query, key, rows)
    out, lse = _outputs(query, key, value, rows, candidates, scale, key_lengths)
    for at, plan in enumerate(candidates):
        if plan.extra is not None:
            out[at] = _with_extra(query, rows, plan, plan.extra, scale, out[at], lse[at])
    dense = out[-1]
    error = torch.stack([(each - dense).square().sum((1, 3)) for each in out[:-1]])
    return OutputErrors(error, dense.square().sum((1, 3)))


def _candidates(query: Tensor, key: Tensor, plans: Sequence[AttentionPlan | BlockMask]) -> list[AttentionPlan]:
    """The plans on the query's device."""
    if not plans:
        raise ValueError("no candidate plans were given; at least one is needed")
    candidates = [with_mask(plan).to(query.device) for plan in plans]
    batch, queries, heads, _ = query.shape
    for plan in candidates:
        mask = plan.mask
        assert mask is not None
        if (mask.queries, mask.keys) != (queries, key.shape[1]):
            given = f"{mask.queries} x {mask.keys} tokens, the call has {queries} x {key.shape[1]}"
            raise ValueError(f"a candidate is for {given}")
        if mask.patterns not in (1, heads, batch * heads):
            raise ValueError(f"{mask.patterns} patterns do not fit {batch} batch rows of {heads} heads")
        shapes.check_order("query_order", plan.query_order, query)
        shapes.check_order("key_order", plan.key_order, key)
        if plan.extra is not None:
            shapes.check_pair(query, plan.extra.key, "key of extra keys")
            if len(plan.extra.bias) not in (1, heads, batch * heads):
                given = f"{len(plan.extra.bias)} patterns of the extra keys' bias"
                raise ValueError(f"{given} do not fit {batch} batch rows of {heads} heads")
    return candidates


def _rows(query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
    """The rows on the query's device."""
    if rows.dtype != torch.int64 or rows.ndim != 1 or not len(rows):
        raise ValueError(f"rows are int64 [rows], at least one, got {rows.dtype} {list(rows.shape)}")
    if len(rows) * key.shape[1] >= 2**31:
        raise ValueError(f"{len(rows)} rows x {key.shape[1]} keys are too many: fewer than 2^31 pairs fit")
    if rows.device.type == "cpu" and not 0 <= int(rows.min()) <= int(rows.max()) < query.shape[1]:
        raise ValueError(f"rows are 0 to {query.shape[1] - 1}, got {int(rows.min())} to {int(rows.max())}")
    return rows.to(query.device)


def _outputs(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, plans: list[AttentionPlan], scale: float,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs fp32 ``[candidates + 1, batch, rows, heads, head_dim]`` and LSE ``[candidates + 1, batch, heads, rows]``.

    The last is dense attention; extra keys are not in it yet.
    """
    batch, _, heads, head_dim = query.shape
    out = query.new_empty(len(plans) + 1, batch, len(rows), heads, head_dim, dtype=torch.float32)
    lse = query.new_empty(len(plans) + 1, batch, heads, len(rows), dtype=torch.float32)
    if dispatch.uses_triton(query, key, value, rows, unless=shapes.no_dot(query)):
        run = dispatch.module("sampled").run
        run(query, key, value, rows, plans, out, lse, scale, lengths, WORKING_BYTES)
    else:
        outputs_reference(query, key, value, rows, plans, out, lse, scale, lengths)
    return out, lse


def outputs_reference(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, plans: list[AttentionPlan], out: Tensor, lse: Tensor,
    scale: float, lengths: Tensor | None,
) -> None:  # fmt: skip
    """Fill `out` and `lse` head by head in torch: a softmax over the kept keys of the sampled rows."""
    heads = query.shape[2]
    shared = {at: keys_of_rows(plan, rows)[0] for at, plan in enumerate(plans) if patterns_of(plan) == 1}
    for lane in range(query.shape[0] * heads):
        b, h = lane // heads, lane % heads
        length = shapes.length_of_lane(lengths, lane, key)
        columns, values = (shapes.cleared(shapes.states_of_lane(each, lane), length) for each in (key, value))
        valid = torch.arange(len(columns), device=key.device) < length
        scores = (query[b, rows, h].float() @ columns.T * scale).masked_fill(~valid, float("-inf"))
        for at in range(len(plans) + 1):
            each = scores
            if at < len(plans):
                kept = shared[at] if at in shared else keys_of_rows(plans[at], rows, range(lane, lane + 1))[0]
                each = scores.masked_fill(~kept, float("-inf"))
            out[at, b, :, h] = each.softmax(-1).nan_to_num(0.0) @ values
            lse[at, b, h] = each.logsumexp(-1)


def _with_extra(
    query: Tensor, rows: Tensor, plan: AttentionPlan, extra: ExtraKeys, scale: float, out: Tensor, lse: Tensor
) -> Tensor:
    """A candidate's outputs with its extra keys merged into the same softmax: ``[batch, rows, heads, head_dim]``."""
    batch, _, heads, _ = query.shape
    lanes = torch.arange(batch * heads, device=query.device)
    tiles = tiles_of_rows(plan, rows, range(batch * heads)).expand(batch * heads, -1)
    bias = extra.bias[lanes[:, None] % len(extra.bias), tiles].unflatten(0, (batch, heads))
    scores = torch.einsum("brhd,bghd->bhrg", query[:, rows].float(), extra.key.float()) * scale + bias
    of_extra = scores.logsumexp(-1)
    total = torch.logaddexp(lse, of_extra)
    # Rows that neither part gives a key stay zero: there exp(-inf - -inf) is no number.
    share, extra_share = (
        (part - total).exp().nan_to_num(0.0).transpose(1, 2)[..., None] for part in (lse, of_extra)
    )  # fmt: skip
    weights = scores.softmax(-1).nan_to_num(0.0)
    return out * share + torch.einsum("bhrg,bghd->brhd", weights, extra.value.float()) * extra_share
