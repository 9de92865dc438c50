"""What a session knows of the split of its transformers: found anew before each forward, and the deal of the heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from vidaccel.clock import Clock
from vidaccel.layout import TokenLayout
from vidaccel.parallel import alive, plans
from vidaccel.parallel.alike import check_alike
from vidaccel.parallel.deal import deal, plain
from vidaccel.parallel.exchange import Exchange
from vidaccel.parallel.split import Split
from vidaccel.pipelines.base import Call, Family

Place = tuple[str, int, TokenLayout]
"""Expert, layer and grid."""


class Sharing:
    """The splits of a session's transformers, and the exchanges of a run's layers.

    Heads are dealt once for a run, so that what methods remember of them never moves.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, Split]] = {}
        self._exchanges: dict[Place, Exchange] = {}
        self._met: set[int] = set()

    def forget(self) -> None:
        """Begin a run."""
        self._exchanges.clear()
        self._met.clear()

    def meet(self, split: Split, clock: Clock, chosen: Mapping[str, str], call: Call) -> None:
        """Make sure that a run is the same on all processes, and that none waits for one that has gone.

        Args:
            clock: of the run; its first two steps are compared, as the second has what a scheduler drew in the first.
            chosen: what must be the same in all, by name, for one run or another.
            call: of the transformer.

        Raises:
            ValueError: what differs, on all processes.
        """
        alive.watch(clock.steps is not None and clock.step + 1 < clock.steps)
        if clock.step < 2 and clock.step not in self._met:
            self._met.add(clock.step)
            facts = {"steps": clock.steps, "timesteps": clock.timesteps, **chosen}
            check_alike(split.every, facts, call.tensors)

    def split(self, name: str, transformer: nn.Module, family: Family) -> Split | None:
        """How a transformer is split now; None where it is whole.

        Raises:
            ValueError: in a way that our attention does not know.
        """
        config = plans.configured(transformer)
        if config is None:
            self._known.pop(name, None)
            return None
        if name not in self._known or self._known[name][0] is not config:
            split = Split.of(config)
            plans.check(transformer, family)
            if not family.stock_splits:
                plans.quiet(transformer)
            self._exchanges.clear()
            self._known[name] = config, split
        return self._known[name][1]

    def exchange(self, split: Split, place: Place, heads: int, costs: Callable[[], Sequence[float] | None]) -> Exchange:
        """What a layer exchanges in this run.

        Args:
            split: of the expert.
            place: the expert, the layer and the grid.
            heads: of all ranks.
            costs: asked once: of each head in this run; None where they are not known, or all are the same.

        Raises:
            ValueError: too few tokens or heads, or they do not divide.
        """
        if place not in self._exchanges:
            ranks = split.ulysses.size
            if heads < ranks:
                raise ValueError(f"{heads} heads cannot be dealt to {ranks} processes: use ulysses_degree={heads} at "
                                 "most")  # fmt: skip
            known = costs() if ranks > 1 else None
            dealt = plain(heads, ranks) if known is None else deal(known, ranks)
            self._exchanges[place] = Exchange(split, place[2], dealt)
        return self._exchanges[place]
