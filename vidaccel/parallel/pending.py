"""Predictions that some other processes may compute: tensors that are there once anything is done with them.

All processes run the same pipeline, so that they come to the first use of a prediction at the same place. There the
passes that nobody has used yet are shared, each by those that computed it. How many passes a step has need not be
known beforehand, and a pipeline that uses one early is as right as before; it only waits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from vidaccel.parallel.split import Group, named

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Of predictions; what is sent of a type is its place here."""
AXES = 8


class Pending(Tensor):
    """Stands for a prediction. Any use of it, its shape and type too, first makes it be there on all processes.

    A clone of one that is not there yet is such a stand-in, too: some pipelines clone each prediction.
    """

    _settle: Callable[[], None]
    _value: Tensor | None
    _copies: list[Pending]

    @staticmethod
    def made(settle: Callable[[], None]) -> Pending:
        """One that is not there yet; `settle` fills it."""
        empty: Any = torch.Tensor._make_subclass(Pending, torch.empty(0))
        new: Pending = empty
        new._settle, new._value, new._copies = settle, None, []
        return new

    def fill(self, value: Tensor) -> None:
        """It is there now, and so are its clones."""
        self._value = value
        for copy in self._copies:
            copy.fill(value.clone())

    def found(self) -> Tensor:
        """The prediction itself.

        Raises:
            RuntimeError: the run that it belongs to was given up before it was there.
        """
        if self._value is None:
            self._settle()
        if self._value is None:
            raise RuntimeError("this prediction is of a run that ended before all of its guidance passes were shared")
        return self._value

    def _cloned(self) -> Pending:
        copy = Pending.made(self._settle)
        self._copies.append(copy)
        return copy

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.clone, torch.clone) and not kwargs and len(args) == 1 and args[0]._value is None:
            return args[0]._cloned()
        args, kwargs = _pytree.tree_map_only(Pending, Pending.found, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


class Predictions:
    """The passes whose predictions nobody has used yet.

    Args:
        group: one process of each group of them: these hand each other what they computed.
        pipeline: its name, for messages.
    """

    def __init__(self, group: Group, pipeline: str) -> None:
        self.group = group
        self.together = 0
        """Exchanges of this run of several passes, which were computed at the same time."""
        self.alone = 0
        """Those of one pass, for which the other processes waited."""
        self._pipeline = pipeline
        self._warned = False
        self._open: list[tuple[int, Tensor | None, Pending]] = []
        self._device = torch.device("cpu")

    def promise(self, owner: int, computed: Tensor | None, device: torch.device) -> Pending:
        """A prediction that the process `owner` of the group computes, and here has `computed` if it is this one."""
        pending = Pending.made(self.settle)
        self._open.append((owner, computed, pending))
        self._device = device
        return pending

    def settle(self) -> None:
        """Share all that is open; every process of the group does so at the same place.

        Raises:
            RuntimeError: another process has gone.
        """
        passes, self._open = self._open, []
        if len(passes) == 1:
            self.alone += 1
            self._warn()
        self.together += len(passes) > 1
        for owner, computed, pending in passes:
            pending.fill(self._shared(owner, computed))

    def drop(self) -> None:
        """Forget what is open: the run that it belongs to was given up."""
        self._open = []

    def begin_run(self) -> None:
        """Count from nought."""
        self.together = self.alone = 0

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a prediction of {self._pipeline} was used before another guidance pass had begun: one group of "
                "processes waited for the other. Steps without guidance gain nothing from guidance_parallel(): without "
                "guidance, split the clip over all processes instead", stacklevel=2)  # fmt: skip

    def _shared(self, owner: int, computed: Tensor | None) -> Tensor:
        what = [0] * (AXES + 2) if computed is None else header(computed)
        kind, axes, *shape = self.broadcast(torch.tensor(what, device=self._device), owner).tolist()
        if computed is None:
            found = torch.empty(shape[:axes], dtype=TYPES[kind], device=self._device)
            return self.broadcast(found, owner)
        self.broadcast(computed.contiguous(), owner)
        return computed

    def broadcast(self, tensor: Tensor, owner: int) -> Tensor:
        """A tensor that all have room for, as the process `owner` of the group has it.

        Raises:
            RuntimeError: another process has gone.
        """
        from torch import distributed

        group = self.group.process_group
        with named(self.group):
            distributed.broadcast(tensor, distributed.get_global_rank(group, owner), group=group)
        return tensor


def header(prediction: Tensor) -> list[int]:
    """Type and shape as numbers, always as many.

    Raises:
        ValueError: a type or a number of axes that no prediction has.
    """
    if prediction.dtype not in TYPES or prediction.ndim > AXES:
        raise ValueError(f"a prediction of type {prediction.dtype} with {prediction.ndim} axes cannot be shared")
    return [TYPES.index(prediction.dtype), prediction.ndim, *prediction.shape, *[0] * (AXES - prediction.ndim)]
