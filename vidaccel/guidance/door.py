"""What stands before a transformer whose guidance passes are computed by several groups of processes."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from torch import nn

from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call
from vidaccel.session import ATTRIBUTE, Session

CALL, COMPILED = "_call_impl", "_compiled_call_impl"
"""What torch's modules come by when they are called, before any hook."""


def between(module: nn.Module) -> bool:
    """Whether calls of a transformer are left out here for guidance passes of other processes."""
    return any(isinstance(module.__dict__.get(slot), Door) for slot in (CALL, COMPILED))


class Door:
    """Stands before a transformer in its ``__dict__``, where torch looks first when the module is called.

    Outside all hooks: of a pass that is left out nothing runs, and no weights are brought to the device. Not by
    replacing `forward`, which offloading replaces, too, and takes back in its own order.
    """

    def __init__(self, answer: Callable[[Door, Call], Any], transformer: nn.Module) -> None:
        self.transformer = transformer
        self.family = family_of(transformer)
        self._answer = answer
        self._slot = CALL
        self._inner: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(self, Call(args, kwargs))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo[id(self.transformer)]
        return types.MethodType(type(copied)._call_impl, copied)

    @property
    def session(self) -> Session | None:
        """What is enabled on the transformer."""
        found: Session | None = self.transformer.__dict__.get(ATTRIBUTE)
        return found

    def attach(self) -> None:
        """Stand before it."""
        self._slot = CALL if self.transformer.__dict__.get(COMPILED) is None else COMPILED
        self._inner = getattr(self.transformer, self._slot)
        self.transformer.__dict__[self._slot] = self

    def detach(self) -> None:
        """Undo `attach`; harmless where there is nothing to undo."""
        if self.transformer.__dict__.get(self._slot) is not self:
            return
        if self._slot == CALL:
            del self.transformer.__dict__[CALL]
        else:
            self.transformer.__dict__[COMPILED] = self._inner
        self._inner = None

    def check(self) -> None:
        """Look whether calls still come by here.

        Raises:
            RuntimeError: they do not.
        """
        own = self.transformer.__dict__.get(self._slot) is self
        if not own or (self._slot == CALL and self.transformer.__dict__.get(COMPILED) is not None):
            raise RuntimeError(f"{type(self.transformer).__name__} was compiled, or its call replaced, after "
                               "guidance_parallel(): call it again")  # fmt: skip

    def compute(self, call: Call) -> Any:
        """Its own output."""
        return self._inner(*call.args, **call.kwargs)
