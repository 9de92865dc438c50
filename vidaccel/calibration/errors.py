"""Errors of all candidates on the sampled queries of one attention call."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vidaccel.calibration import measure
from vidaccel.calibration.library import Ladder
from vidaccel.layout import TokenLayout
from vidaccel.patterns import Pattern, orders


class Errors:
    """Measures heads of one call, which have the sampled rows and the common candidates in common.

    Args:
        ladder: the common candidates.
        rows: int64, the sampled queries' tokens.
        factors: R factors of the layer's output projection, ``[heads, head_dim, head_dim]``, or None.
        device: of the call.
    """

    def __init__(self, ladder: Ladder, rows: Tensor, factors: Tensor | None, device: torch.device) -> None:
        self.ladder, self.rows, self.device = ladder, rows, device
        self._rows = rows.to(device)
        self._factors = None if factors is None else factors.to(device)
        self._shared = {name: ladder.kept(name, rows).to(device) for name in ladder.groups}

    def of(
        self, query: Tensor, key: Tensor, value: Tensor, length: Tensor | None, head: int, own: tuple[Pattern, ...]
    ) -> dict[str, Tensor]:
        """Squared errors of the common candidates and of the head's own, and the dense outputs' squared norm: fp64.

        Args:
            query, key, value: ``[tokens, head_dim]``.
            length: valid keys, a tensor of one; None where all are.
            own: candidates of this head alone.
        """
        weights = measure.weights(query[self._rows], key, query.shape[-1] ** -0.5, length)
        values = measure.projected(value, None if self._factors is None else self._factors[head])
        shared = torch.zeros(len(self.ladder.patterns), dtype=torch.float64, device=self.device)
        mine = torch.zeros(len(own), dtype=torch.float64, device=self.device)
        norm = shared.new_zeros(())
        for name in dict.fromkeys([orders.NATURAL, *self.ladder.groups, *(each.order for each in own)]):
            places = self.ladder.groups.get(name, [])
            at = [index for index, each in enumerate(own) if each.order == name]
            order = _sequence(self.ladder.layout, name, self.device)
            sums = measure.block_sums(weights, values, order, self.ladder.block)
            error, norm = measure.errors(sums, self._kept(name, [own[index] for index in at], sums.shape[1]))
            shared[places], mine[at] = error[: len(places)], error[len(places) :]
        return {"error": shared, "norm": norm} | ({"own": mine} if own else {})

    def _kept(self, name: str, own: list[Pattern], tiles: int) -> Tensor:
        """Blocks that each row keeps under the candidates of an order, the common ones first."""
        none = torch.zeros(0, len(self.rows), tiles, dtype=torch.bool, device=self.device)
        mine = [self.ladder.row_blocks(each, self.rows)[None].to(self.device) for each in own]
        return torch.cat([self._shared.get(name, none), *mine])


@functools.lru_cache(64)
def _sequence(layout: TokenLayout, name: str, device: torch.device) -> Tensor | None:
    sequence = orders.sequence(layout, name)
    return None if sequence is None else sequence.to(device)
