"""The log-sum-exp of each row of dense attention, where no attention is there to return it."""

from __future__ import annotations

import torch
from torch import Tensor

from vidaccel.planning import shapes

WORKING_BYTES = 256 << 20
"""Memory for scores: queries are worked on in groups."""


def lse(query: Tensor, key: Tensor, scale: float, key_lengths: Tensor | None = None) -> Tensor:
    """The logarithm of the sum of the exponentials of each query's scaled scores.

    The first pass of AdaSpa's search (Xia et al. 2025); `mass.block_mass` is the second. It takes 2 * N^2 * head_dim
    operations per head, half of dense attention. There is no kernel of its own: on a GPU, too, this is torch in fp32,
    some queries of one head at a time. Where attention itself runs, ``kernels.attention`` returns the same numbers.

    Args:
        query, key: ``[batch, tokens, heads, head_dim]``.
        scale: of the scores, usually ``head_dim ** -0.5``.
        key_lengths: int ``[batch]``; keys from there on are padding and absent.

    Returns:
        fp32 ``[batch, heads, queries]``, natural logarithm; -inf where a batch row has no keys.

    Raises:
        ValueError: shapes, types or sizes that do not fit.
    """
    shapes.check_pair(query, key)
    key_lengths = shapes.check_lengths("key_lengths", key_lengths, key)
    batch, queries, heads, _ = query.shape
    found = query.new_empty(batch, heads, queries, dtype=torch.float32)
    step = max(1, WORKING_BYTES // (12 * key.shape[1]))
    for lane in range(batch * heads):
        rows, columns = shapes.states_of_lane(query, lane), shapes.states_of_lane(key, lane)
        if key_lengths is not None:
            columns = shapes.cleared(columns, key_lengths[lane // heads])
        for first in range(0, queries, step):
            scores = rows[first : first + step] @ columns.T * scale
            if key_lengths is not None:
                absent = torch.arange(key.shape[1], device=key.device) >= key_lengths[lane // heads]
                scores = scores.masked_fill(absent, float("-inf"))
            found[lane // heads, lane % heads, first : first + step] = scores.logsumexp(1)
    return found
