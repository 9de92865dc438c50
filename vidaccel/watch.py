"""A pipeline's next run, seen before its first step: what was replaced since `enable` is an error, not a dense run."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from vidaccel.patched import Expert
from vidaccel.pipelines import experts

BAR = "progress_bar"
"""The method that every pipeline calls once its timesteps are set, and before its first step."""
Check = Callable[[Any], None]
"""Of a pipeline."""


class Watch:
    """Stands for a pipeline's `progress_bar` in the instance's ``__dict__``; taking it away undoes everything."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = weakref.ref(pipe)
        self.checks: dict[str, Check] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pipe = self._pipe()
        # None are left in a shallow copy of a pipeline where all was undone.
        for check in self.checks.values():
            check(pipe)
        return getattr(type(pipe), BAR)(pipe, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of the pipeline is not enabled: it gets its class's own method.
        copied = memo[id(self._pipe())]
        return types.MethodType(getattr(type(copied), BAR), copied)


def check(pipe: Any, patched: Sequence[Expert]) -> None:
    """Look whether a run of a pipeline will come by what was patched.

    Raises:
        RuntimeError: a transformer or its hook is another.
    """
    for name, module in experts(pipe).items() if patched else ():
        expert = next((each for each in patched if each.name == name), None)
        if expert is None or expert.transformer is not module:
            what = f"{name} of {type(pipe).__name__} was replaced"
        elif not expert.hooked:
            what = f"the hooks of {type(module).__name__} were removed"
        else:
            continue
        raise RuntimeError(f"{what} after enable_sparse_attention(): call it again, or disable_sparse_attention()")


def attach(pipe: Any, what: str, check: Check) -> None:
    """Check a pipeline before the first step of each run; a bare transformer has none to check before.

    Args:
        what: whose check it is, for `detach`.
        check: raises where a run would not be what was asked for.
    """
    if hasattr(type(pipe), BAR):
        found = pipe.__dict__.get(BAR)
        if not isinstance(found, Watch):
            found = pipe.__dict__[BAR] = Watch(pipe)
        found.checks[what] = check


def detach(pipe: Any, what: str) -> None:
    """Undo `attach`; harmless where there is nothing to undo."""
    found = getattr(pipe, "__dict__", {}).get(BAR)
    if isinstance(found, Watch):
        found.checks.pop(what, None)
        if not found.checks:
            del pipe.__dict__[BAR]
