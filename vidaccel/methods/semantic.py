"""Sparse VideoGen 2: tokens grouped by what they mean rather than where they are (arXiv 2505.18875).

Implemented from the paper and from the behaviour of its published code, whose settings the presets have.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vidaccel.layout import TokenLayout
from vidaccel.methods.base import COMMON
from vidaccel.methods.checks import check_count
from vidaccel.methods.dynamic import PLAN, Dynamic
from vidaccel.methods.semantic_errors import errors
from vidaccel.methods.semantic_memory import Memory, Sizes, counts
from vidaccel.methods.semantic_presets import DEFAULTS, PRESETS
from vidaccel.methods.semantic_tiles import Choice, Clusters, mean_rows, most_rows, shares
from vidaccel.plan import AttentionPlan
from vidaccel.planning import select
from vidaccel.planning.kmeans import kmeans, sample
from vidaccel.planning.order import chain, union
from vidaccel.site import Dealt, Site

CENTROIDS, STEP, CHOICE = "centroids", "centroids_step", "choice"
BATCHED = "cond_uncond"
"""The branch of a call in which both guidance branches are rows of one batch."""
BY = ("tile", "cluster")
RANK = ("mass", "error")
KEEP = ("plans", "centroids", "nothing")
WHOSE = {"centroids": "centroids for all guidance passes", "plans": "plans for each"}
Video = tuple[Tensor, Tensor]
"""The keys and values of the video, views of all."""
ELSEWHERE = AttentionPlan(notes=("kept as a choice",))
"""Stands for a plan that is kept in its small form."""


@dataclass(frozen=True)
class Semantic(Dynamic):
    """Queries and keys of each head are clustered by k-means, and query tiles attend to the key clusters that matter.

    The video's tokens are attended in the order of their clusters; text stays whole, after the video. A cluster's
    attention is estimated from the centroids, weighted by size: ``P_ij = |K_j| exp(q_i k_j / sqrt(D)) / sum over j``.
    With `top_p` rows keep the clusters of the most attention; with a density, those of the most attention per token,
    over all heads of a batch row, so that the pairs that are attended meet it. Where means of clusters stand for what
    is skipped, the error that they would make ranks clusters in place of their attention (see `semantic_errors`).
    Centroids stay from step to step, and are made in the dense steps at the start already.

    Guidance branches share centroids: guidance multiplies the difference of their outputs, and with it that of their
    errors, which is smaller by far where both are grouped alike. In one batch centroids are means over both; in calls
    of their own, the later takes one round from those that the other left in the step. Each assigns and chooses for
    itself.

    Args:
        density, top_p, block, refresh, drift: see `Dynamic`.
        query_clusters, key_clusters: per head; None goes by the number of video tokens, see `counts`.
        by: what chooses. "tile": each tile of ordered queries, by the mean of its tokens' estimates. "cluster": each
            query cluster, as in the paper; a tile that holds several attends to what any of them chose.
        rank: what clusters are chosen by. "mass": their estimated attention, as in the paper. "error": what the output
            would be off if their means stood for them; `top_p` is then a share of this. None: "error" where
            `vidaccel.enable` has the compensation "centroid", else "mass".
        minimum: share of the key clusters that every row keeps at least; by default 0.1 with `top_p`, else 0. One is
            kept in any case.
        first_iterations, iterations: rounds of k-means from random tokens, and from centroids of an earlier step.
        warmup: centroids are made during the dense steps at the start, too.
        keep: what stays in memory between steps (see `semantic_memory`): "plans", per layer, expert and branch (as
            `refresh` above 1 needs), besides "centroids", per layer and expert; or "nothing": then every call starts
            from random tokens, and branches that are calls of their own share nothing.
        preset: one of `PRESETS`, the published settings for a model; they come in place of all options but `block`,
            `refresh`, `drift` and `keep`.

    Raises:
        ValueError: a value out of range, or options beside a preset that has others.
    """

    presets = PRESETS
    name: ClassVar[str] = "semantic"
    paper: ClassVar[str] = "Sparse VideoGen 2, arXiv 2505.18875"
    observes: ClassVar[bool] = True
    alternatives: ClassVar[tuple[str, ...]] = ("density", "top_p", "preset")

    query_clusters: int | None = None
    key_clusters: int | None = None
    by: str | None = None
    rank: str | None = None
    minimum: float | None = None
    first_iterations: int | None = None
    iterations: int | None = None
    warmup: bool | None = None
    keep: str = "plans"
    preset: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in {**DEFAULTS, "minimum": 0.1 if self.density is None else 0.0}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("query_clusters", "key_clusters", "first_iterations", "iterations"):
            check_count(name, getattr(self, name))
        # None is a rank that `compensated` has yet to settle.
        for name, allowed in (("by", BY), ("keep", KEEP), *([] if self.rank is None else [("rank", RANK)])):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r} of semantic; choose {', '.join(allowed)}")
        if self.minimum is None or not 0 <= self.minimum <= 1:
            raise ValueError(f"minimum {self.minimum!r} is not a share of the key clusters from 0 to 1")
        if self.refresh > 1 and self.keep != "plans":
            raise ValueError(f"refresh {self.refresh} keeps plans for some steps, keep={self.keep!r} does not")

    def compensated(self, name: str | None) -> Semantic:
        return replace(self, rank=self.rank or ("error" if name == "centroid" else "mass"))

    def observe(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> None:
        self.same(query, site, state)
        if self.warmup and self.keep != "nothing":
            self.clusters(query, key, site, state)

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        plan = super().plan(query, key, value, site, state)
        if plan is ELSEWHERE:
            choice: Choice = state[CHOICE]
            return choice.plan(site.layout, self.block)
        # A plan has room for far more ranges than it uses, as nothing may wait for their number: none is kept.
        if self.refresh > 1:
            state[PLAN] = ELSEWHERE
        else:
            del state[PLAN]
        return plan

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        layout = site.layout
        clusters = self.clusters(query, key, site, state)
        density = self.density_at(site)
        span = slice(layout.video_start, layout.video_end)
        video = key[:, span], value[:, span]
        if density is None:
            kept = self._by_share(clusters, video, layout)
        else:
            kept = self._by_density(clusters, video, layout, density, site.heads)
        choice = Choice.of(clusters, kept)
        if self.refresh > 1:
            state[CHOICE] = choice.packed()
        return self.with_notes(choice.plan(layout, self.block), self._note(query, site))

    def clusters(self, query: Tensor, key: Tensor, site: Site, state: dict[str, Any]) -> Clusters:
        """Cluster the video's queries and keys, from the last centroids of any branch if there are; keep the new."""
        assert self.first_iterations is not None and self.iterations is not None
        common, found, layout = state.setdefault(COMMON, {}), [], site.layout
        earlier = common.get(CENTROIDS, (None, None))
        together, lanes = branches(query, site), len(query) * query.shape[2]
        for number, (states, count, start) in enumerate(zip((query, key), self.counts(layout), earlier, strict=True)):
            video = states[:, layout.video_start : layout.video_end]
            if start is None:
                start, rounds = first(video, count, self.first_iterations - 1, number, together, site.heads), 1
            else:
                # Those of this step are another branch's: after one round they are means of these tokens, still alike.
                start, rounds = start.float(), 1 if common.get(STEP) == site.step else self.iterations
                start = start.repeat(lanes // len(start), 1, 1)
            found.append(kmeans(video, count, iterations=rounds, start=start, together=together))
        if self.keep != "nothing":
            # Rounds begin by rounding centroids to the type of the tokens: nothing is lost. Equal ones are kept once.
            once = (each.centroids[: lanes // together] for each in found)
            common[STEP], common[CENTROIDS] = site.step, tuple(each.to(query.dtype, copy=True) for each in once)
        return Clusters(*found)

    def counts(self, layout: TokenLayout) -> tuple[int, int]:
        """Clusters of queries and of keys on a grid."""
        queries, keys = counts(layout.video_tokens)
        return self.query_clusters or queries, self.key_clusters or keys

    def memory(
        self, layout: TokenLayout, lanes: int, head_dim: int, itemsize: int = 2, together: int = 1
    ) -> Memory:  # fmt: skip
        """Bytes that a layer takes, counted.

        Args:
            layout: the token grid.
            lanes: heads times batch rows.
            head_dim: of a head.
            itemsize: bytes of a number of the queries and keys.
            together: 2 where both guidance branches are rows of one batch, and have common centroids.
        """
        sizes = Sizes(layout, lanes, head_dim, itemsize, *self.counts(layout), self.block, together)
        return sizes.memory(keep=self.keep, refresh=self.refresh, errors=self.rank == "error")

    def _scores(self, clusters: Clusters, video: Video) -> Tensor:
        """What clusters are chosen by: fp32 ``[lanes, query, key clusters]``."""
        return errors(clusters, *video) if self.rank == "error" else shares(clusters)

    def _by_share(self, clusters: Clusters, video: Video, layout: TokenLayout) -> Tensor:
        """What each tile keeps with `top_p`: bool ``[lanes, tiles, key clusters]``."""
        assert self.top_p is not None
        scores, starts, tokens = self._scores(clusters, video), clusters.queries.order.starts, layout.video_tokens
        if self.by == "cluster":
            kept = select.top_p(scores, self.top_p, minimum=self._least(scores))
            return union(kept, starts, tokens, self.block)
        rows = mean_rows(scores, starts, tokens, self.block)
        return select.top_p(rows, self.top_p, minimum=self._least(rows))

    def _by_density(
        self, clusters: Clusters, video: Video, layout: TokenLayout, density: float, heads: Dealt | None
    ) -> Tensor:
        """What each tile keeps within a density: bool ``[lanes, tiles, key clusters]``.

        One limit for all rows makes the union of what a tile's clusters choose the same as what their largest score
        chooses; so for both ways pairs are counted as they are attended.
        """
        tokens, sizes = layout.video_tokens, clusters.keys.sizes[:, None]
        to_tiles = most_rows if self.by == "cluster" else mean_rows
        rows = to_tiles(self._scores(clusters, video), clusters.queries.order.starts, tokens, self.block)
        scores = rows.div_(sizes).masked_fill_(sizes == 0, float("-inf"))
        edge = torch.arange(0, tokens, self.block, dtype=torch.int32, device=sizes.device)[:, None]
        weights = ((edge + self.block).clamp(max=tokens) - edge) * sizes
        whole = None
        if layout.text_before + layout.text_after and tokens % self.block:
            whole = edge == tokens // self.block * self.block
        return select.budgeted(
            scores, density, weights=weights, groups=len(video[0]), minimum=max(1, self._least(scores)), keep=whole,
            heads=heads,
        )  # fmt: skip

    def _least(self, scores: Tensor) -> int:
        """Key clusters that a row keeps in any case."""
        assert self.minimum is not None
        return max(1, int(self.minimum * scores.shape[2]))

    def _note(self, query: Tensor, site: Site) -> str:
        """What stays in memory."""
        batch, _, heads, head_dim = query.shape
        held = self.memory(site.layout, batch * heads, head_dim, query.itemsize, branches(query, site))
        what = ", ".join(f"{size / 1e6:.1f} MB of {WHOSE[name]}" for name, size in held.state.items()) or "nothing"
        return f"each of {site.layers} layers keeps {what}"


def branches(query: Tensor, site: Site) -> int:
    """Guidance branches that are rows of the batch: 2, or 1."""
    return 2 if site.branch == BATCHED and len(query) % 2 == 0 else 1


def first(
    video: Tensor, count: int, rounds: int, seed: int, together: int, heads: Dealt | None = None
) -> Tensor:  # fmt: skip
    """Centroids after so many rounds from random tokens, like ones side by side: fp32 ``[lanes, count, head_dim]``.

    Later rounds keep their numbers, so that like clusters stay neighbours in the order of tokens: kept neighbours are
    one range, and what the clusters in one tile need is alike.
    """
    start = sample(video, count, seed, together, heads)
    if rounds:
        start = kmeans(video, count, iterations=rounds, start=start, together=together).centroids
    return start.gather(1, chain(start)[..., None].expand(start.shape))
