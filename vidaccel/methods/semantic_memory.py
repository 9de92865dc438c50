"""How many clusters a grid has, and what memory `vidaccel.methods.semantic` takes with them: counted, not measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vidaccel.layout import TokenLayout
from vidaccel.planning.order import RUN
from vidaccel.planning.select import CHUNK


def counts(video_tokens: int) -> tuple[int, int]:
    """Clusters of queries and of keys that a number of video tokens has by default."""
    return max(1, round(2.2 * math.sqrt(video_tokens))), max(1, round(3.6 * math.sqrt(video_tokens)))


def key_block(tokens: int, block: int) -> int:
    """The largest power of two of at most as many tokens as a cluster has, from 16 to `block`."""
    return min(block, max(16, 1 << max(1, tokens).bit_length() - 1))


@dataclass(frozen=True)
class Memory:
    """Bytes on the device.

    Args:
        state: what stays between steps, by what it is; of one layer and expert. All guidance passes have centroids in
            common, and each has plans of its own.
        plan: of the plan of a call, which goes after it.
        scratch: the most that is taken at once while a plan is made, the plan itself included.
    """

    state: Mapping[str, int]
    plan: int
    scratch: int


@dataclass(frozen=True)
class Sizes:
    """What the memory of a call depends on.

    Args:
        layout: the token grid.
        lanes: heads times batch rows.
        head_dim: of a head.
        itemsize: bytes of a number of the states.
        query_clusters, key_clusters: of a lane.
        block: tokens of a tile.
        together: rows of the batch that have common centroids, such as two guidance branches, or 1.
    """

    layout: TokenLayout
    lanes: int
    head_dim: int
    itemsize: int
    query_clusters: int
    key_clusters: int
    block: int
    together: int = 1

    @property
    def tokens(self) -> int:
        """Of all lanes, text included."""
        return self.lanes * self.layout.tokens

    @property
    def tiles(self) -> int:
        """Of queries, text included, of a lane."""
        return -(-self.layout.tokens // self.block)

    @property
    def cells(self) -> int:
        """Query tiles times key clusters, text among them, of all lanes."""
        return self.lanes * self.tiles * (self.key_clusters + 1)

    @property
    def centroids(self) -> int:
        """Numbers of all centroids."""
        return self.lanes * (self.query_clusters + self.key_clusters) * self.head_dim

    def memory(self, *, keep: str, refresh: int, errors: bool = False) -> Memory:
        """The memory of a call; see `Semantic` for the options."""
        state = {} if keep == "nothing" else {"centroids": self.centroids * self.itemsize // self.together}
        if refresh > 1:
            # Two orders, and a bit per cell.
            state["plans"] = 8 * self.tokens + self.cells // 8 + 4 * self.lanes * (self.key_clusters + 1)
        ranges, orders = 4 * self.cells, 8 * self.tokens
        # Labels and orders of queries and keys, and centroids in fp32.
        found = 16 * self.tokens + 4 * self.centroids
        most = max(self._chain(), self._sort(), self._scores(), self._errors() if errors else 0, self._ranges(ranges))
        return Memory(state, orders + ranges, found + most)

    def _chain(self) -> int:
        """Distances between all centroids."""
        return 4 * self.lanes * max(self.query_clusters, self.key_clusters) ** 2

    def _sort(self) -> int:
        """Labels sorted: themselves, the result with places in 64 bits, the sort's own, and the places of the lane."""
        return (4 + 12 + 12 + 12) * self.tokens

    def _scores(self) -> int:
        """What never exists together: the most of it."""
        pairs = self.lanes * self.query_clusters * self.key_clusters
        parts = self.lanes * self.query_clusters * self.tiles
        some = self._at_once(self.query_clusters + self.tiles)
        return max(
            # Estimates of clusters, before and after their softmax.
            8 * pairs,
            # With those: the parts of clusters in tiles thrice, or twice and their products, a score per cell.
            4 * pairs + max(12 * parts, 8 * parts + 4 * self.cells),
            # By cluster: the largest for each cell, or what the clusters keep and the union for each cell.
            4 * pairs + 4 * self.cells + 4 * some,
            5 * pairs + self.cells + 9 * some,
            # Per cell a score, a weight and two marks; sums of weights are in 64 bits.
            10 * self.cells + 8 * max(min(self.cells, CHUNK), self.cells // self.lanes),
        )

    def _errors(self) -> int:
        """Moments of keys and of values, a copy of the order, and scores of all clusters."""
        moments, pairs = 4 * self.lanes * self.key_clusters * self.head_dim, self.query_clusters * self.key_clusters
        return max(
            # Variances of keys are kept, of values both while they are summed; zeros and means go before.
            4 * moments + 4 * self.tokens,
            # Beside variances and means: estimates before and after their softmax, or a run of lanes thrice.
            2 * moments + 4 * self.lanes * pairs + max(4 * self.lanes * pairs, 12 * self._at_once(self.query_clusters)),
        )

    def _ranges(self, ranges: int) -> int:
        """Ranges, marks thrice, and for a run of lanes at a time places in 64 bits, values and marks."""
        return ranges + 5 * self.cells + 30 * self._at_once(self.tiles)

    def _at_once(self, rows: int) -> int:
        """So many rows of a lane times key clusters, of the lanes that are worked on at a time."""
        one = rows * (self.key_clusters + 1)
        return max(min(self.lanes * one, RUN), one)
