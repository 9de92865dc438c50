"""Block-sparse attention on a CPU that skips what the mask skips, by dense calls on slices of the keys.

Tiles that stand alone would each be a small call, with a gather and a barrier between threads of its own. So a mask is
cut once (`vidaccel.kernels.cpu_spans` joins neighbouring tiles, `cpu_batches` puts equal ones into one call), and a
call only runs the result.

On cores that are shared with other work, set ``OMP_WAIT_POLICY=passive`` before the process starts: otherwise threads
of GNU OpenMP spin at each of these barriers, which made calls on 1,521 tokens two to ten times slower.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vidaccel.kernels.compose import composed
from vidaccel.kernels.cpu_batches import Gathered, Window, program
from vidaccel.kernels.cpu_bias import array
from vidaccel.kernels.cpu_patterns import Call
from vidaccel.mask import BlockMask
from vidaccel.plan import AttentionPlan

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def why_not(query: Tensor, precision: str | None = None) -> str | None:
    """The reason this backend cannot run a call with such a query, or None."""
    if precision is not None:
        return f"it computes in the inputs' own type, not in {precision}"
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
    plan: AttentionPlan,
    *,
    key_lengths: Tensor | None,
    scale: float,
    return_lse: bool,
    precision: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention by `plan`; see `vidaccel.kernels.attention`.

    The first call with a mask cuts it up (milliseconds per hundred tiles and pattern); later ones with the same shapes
    and `key_lengths` reuse that for as long as the mask lives. Extra memory is a few MB of gathered keys and values.

    Raises:
        ValueError: a mask whose contents are not valid, on its first call.
    """
    return composed(
        _attention, query, key, value, plan, key_lengths=key_lengths, scale=scale, return_lse=return_lse
    )  # fmt: skip


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, *, key_lengths: Tensor | None, scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    batch, queries, heads, head_dim = query.shape
    lengths = None if key_lengths is None else tuple(key_lengths.tolist())
    calls = program(mask, Call(batch, heads, head_dim, query.element_size(), lengths))
    # A row without keys is in no part: its output is zero and its log-sum-exp -inf, by convention.
    new = query.new_empty if calls.covers_all else query.new_zeros
    out = Rows(new(batch, queries, heads, head_dim))
    lse = Rows(query.new_full((batch, queries, heads, 1), float("-inf"), dtype=torch.float32)) if return_lse else None
    inputs = [Rows(each if each.stride(-1) == 1 else each.contiguous()) for each in (query, key, value)]
    # The operator takes an fp32 bias for the short types, and only its own type for fp64.
    biases = torch.empty(calls.bias_elements, dtype=torch.promote_types(query.dtype, torch.float32))
    scratch = [query.new_empty(calls.gathered * head_dim) for _ in inputs]
    for part in calls.parts:
        rows, keys, values = (_read(inputs[index], part, index, scratch[index]) for index in range(3))
        bias = None if part.bias is None else part.bias.per_row(biases)
        # What scaled_dot_product_attention runs on a CPU; called directly, since only so it returns the log-sum-exp.
        result, result_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            rows, keys, values, 0.0, False, attn_mask=bias, scale=scale
        )
        _write(out, part, result.transpose(1, 2))
        if lse is not None:
            _write(lse, part, result_lse.transpose(1, 2)[..., None].float())
    return out.tensor, None if lse is None else lse.tensor[..., 0].transpose(1, 2).contiguous()


class Rows:
    """The rows of a tensor ``[batch, tokens, heads, width]``, by number or as overlapping windows."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def whole(self) -> Tensor:
        """``[batch * tokens, heads, width]``; a copy if the tensor is not contiguous."""
        return self.tensor.reshape(-1, *self.tensor.shape[2:])

    @cached_property
    def single(self) -> Tensor:
        """``[batch * tokens * heads, 1, width]``; a copy if the tensor is not contiguous."""
        return self.tensor.reshape(-1, 1, self.tensor.shape[3])

    def windows(self, part: Window, start: int, length: int) -> Tensor:
        """A view ``[count, length, heads, width]`` of windows of `length` tokens, `part.step` apart."""
        tensor = self.tensor[part.batch, start:, part.heads]
        token, head, element = tensor.stride()
        size = (part.count, length, tensor.shape[1], tensor.shape[2])
        return tensor.as_strided(size, (part.step * token, token, head, element))


def _read(rows: Rows, part: Window | Gathered, index: int, scratch: Tensor) -> Tensor:
    """The part's queries (index 0), keys or values: ``[count, heads, length, head_dim]``."""
    if isinstance(part, Window):
        start, length = (part.row_start, part.rows) if index == 0 else (part.key_start, part.keys)
        return rows.windows(part, start, length).transpose(1, 2)
    source, numbers = rows.whole if part.whole else rows.single, part.keys if index else part.rows
    # One buffer for all parts: fresh memory for each costs several times the gather, in page faults.
    picked = scratch[: numbers.numel() * source[0].numel()].view(-1, *source.shape[1:])
    picked = picked.view(*numbers.shape, *source.shape[1:])
    np.take(array(source), array(numbers), axis=0, out=array(picked), mode="clip")  # "raise" would copy once more
    return picked.transpose(1, 2)


def _write(rows: Rows, part: Window | Gathered, result: Tensor) -> None:
    """Put ``[count, length, heads, width]`` where the part's queries are; `rows` is contiguous."""
    if isinstance(part, Window):
        np.copyto(array(rows.windows(part, part.row_start, part.rows)), array(result))
    else:
        array(rows.whole if part.whole else rows.single)[array(part.rows)] = array(result)
