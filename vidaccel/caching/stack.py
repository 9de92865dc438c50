"""A transformer's list of blocks with someone between them: what a cache needs to pass blocks by.

It stands in the instance's ``__dict__``, where Python looks before it asks ``nn.Module`` for its children. So the
children themselves stay what and where they are, for weights, devices, adapters, offloading and compiled blocks, and
taking it away undoes everything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import nn


class Runner(Protocol):
    """Who decides what becomes of a block's call."""

    @property
    def armed(self) -> bool:
        """Whether a forward of the transformer is on its way."""

    def run(self, index: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block at `index` of all blocks returns."""


class Watched:
    """One block for one forward: a call of it goes to the runner, anything else to the block."""

    def __init__(self, runner: Runner, index: int, block: nn.Module) -> None:
        self._runner, self._index, self._block = runner, index, block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._runner.run(self._index, self._block, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class Stack(nn.ModuleList):
    """Stands for a ``ModuleList`` of blocks and has its children; in a forward it yields them watched."""

    def __init__(self, runner: Runner, blocks: nn.ModuleList, first: int) -> None:
        super().__init__()
        self._runner, self._first = runner, first
        # Past nn.Module, which would make the list a child of itself. Who looks modules up by their path, as peft does,
        # finds the list's own.
        self.__dict__ |= {"_blocks": blocks, "_modules": blocks._modules}

    def __iter__(self) -> Iterator[Any]:
        if not self._runner.armed:
            return iter(self._blocks)
        return (Watched(self._runner, self._first + index, block) for index, block in enumerate(self._blocks))

    def __getitem__(self, index: Any) -> Any:
        return self._blocks[index]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_blocks"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the transformer has no cache; its blocks are copied once, for its children, too.
        return copy.deepcopy(self._blocks, memo)


def attach(runner: Runner, transformer: nn.Module, names: Sequence[str]) -> int:
    """Watch the blocks of a transformer, which the attributes `names` hold; how many there are."""
    count = 0
    for name in names:
        blocks: Any = transformer._modules[name]
        transformer.__dict__[name] = Stack(runner, blocks, count)
        count += len(blocks)
    return count


def detach(transformer: nn.Module, names: Sequence[str]) -> None:
    """Undo `attach`; harmless where there is nothing to undo."""
    for name in names:
        if isinstance(transformer.__dict__.get(name), Stack):
            del transformer.__dict__[name]
