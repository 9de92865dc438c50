"""Block-sparse attention on a CPU that skips what the mask skips, by dense calls on slices of the keys.

A tile alone is a small call with a gather of its own, so neighbouring tiles are joined where that is cheaper:
`vidaccel.kernels.cpu_pieces` cuts a mask into such pieces once and keeps them; a call only runs them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.kernels.cpu_pieces import Call, Piece, program
from vidaccel.plan import BlockMask

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def why_not(query: Tensor) -> str | None:
    """The reason this backend cannot run a call with such a query, or None."""
    if query.device.type != "cpu":
        return f"it runs on a CPU, the query is on {query.device}"
    if query.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"it has {names}, not {str(query.dtype).removeprefix('torch.')}"
    return None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Attention over the pairs that `mask` keeps; see `vidaccel.kernels.attention`.

    The first call with a mask plans it (milliseconds at a thousand tokens); later ones with the same shapes and
    `key_lengths` reuse that for as long as the mask lives. Extra memory is one piece's gathered keys and values.

    Raises:
        ValueError: a mask whose contents are not valid, on its first call.
    """
    batch, queries, heads, head_dim = query.shape
    lengths = None if key_lengths is None else tuple(key_lengths.tolist())
    plan = program(mask, Call(batch, heads, head_dim, query.element_size(), torch.get_num_threads(), lengths))
    # A row without keys is in no piece: its output is zero and its log-sum-exp -inf, by convention.
    out = torch.empty_like(query) if plan.covers_all else torch.zeros_like(query)
    lse = query.new_full((batch, heads, queries), float("-inf"), dtype=torch.float32) if return_lse else None
    key, value = (each if each.stride(-1) == 1 else each.contiguous() for each in (key, value))
    query = query if query.stride(-1) == 1 else query.contiguous()
    for piece in plan.pieces:
        part, part_lse = _run(query, key, value, piece, scale)
        out[piece.batch, piece.rows, piece.heads] = part
        if lse is not None:
            lse[piece.batch, piece.heads, piece.rows] = part_lse
    return out, lse


def _run(query: Tensor, key: Tensor, value: Tensor, piece: Piece, scale: float) -> tuple[Tensor, Tensor]:
    """Output ``[batch, rows, heads, head_dim]`` and log-sum-exp ``[batch, heads, rows]`` of one piece."""
    rows = query[piece.batch, piece.rows, piece.heads].transpose(1, 2)
    keys, values = (_pick(each, piece).transpose(1, 2) for each in (key, value))
    bias = piece.row_bias(rows.dtype)
    # The operator behind scaled_dot_product_attention on a CPU: only it returns the log-sum-exp.
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows, keys, values, 0.0, False, attn_mask=bias, scale=scale
    )
    return out.transpose(1, 2), lse


def _pick(tensor: Tensor, piece: Piece) -> Tensor:
    """The piece's keys or values ``[batch, keys, heads, head_dim]``: a view where they are contiguous."""
    if isinstance(piece.keys, slice):
        return tensor[piece.batch, piece.keys, piece.heads]
    return tensor[piece.batch, :, piece.heads].index_select(1, piece.keys)
