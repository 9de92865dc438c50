"""What every way to make up for skipped keys has in common."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vidaccel.plan import AttentionPlan
from vidaccel.site import Site


def check_number(name: str, value: Any, most: float = math.inf) -> None:
    """Refuse what is no finite number from 0 to `most`.

    Raises:
        ValueError: what was given.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not 0 <= value <= most:
        limit = "of at least 0" if most == math.inf else f"from 0 to {most:g}"
        raise ValueError(f"{name} {value!r} is not a number {limit}")


class Attention(Protocol):
    """Runs a plan on the query, key and value of a call."""

    def __call__(self, plan: AttentionPlan, return_lse: bool = False) -> tuple[Tensor, Tensor | None]:
        """See `vidaccel.kernels.attention`; a mask that keeps everything is dense attention."""


class Compensation(ABC):
    """A way to make up for what a plan skips, for the plans of any method. Subclasses are frozen dataclasses.

    It holds no state of a run: what it must remember lives in the `state` dictionary that the session passes, one per
    expert, branch and layer, emptied for each generation.
    """

    name: ClassVar[str]
    """In `enable(..., compensation=...)`, in the CLI and in records."""
    paper: ClassVar[str] = ""
    """Source paper."""

    def check(self, query: Tensor, site: Site) -> None:
        """Refuse, before any work of a run, what `attend` would refuse later; by default nothing.

        Called before each forward of a transformer that has sparse calls now or later in the run.

        Args:
            query: of the shape and type that queries will have, without contents, on the meta device.
            site: where the next sparse call may be.

        Raises:
            ValueError: what is wrong with such calls.
        """
        return None

    @abstractmethod
    def attend(
        self, plan: AttentionPlan, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None, site: Site,
        state: dict[str, Any], attention: Attention,
    ) -> tuple[Tensor, AttentionPlan]:  # fmt: skip
        """One sparse call.

        Args:
            plan: of the method, not dense.
            query, key, value: ``[batch, tokens, heads, head_dim]``, after normalisation and RoPE.
            key_lengths: int ``[batch]``, valid keys; None where all are.
            site: where the call happens.
            state: what this remembers here; free to use.
            attention: runs plans on these states.

        Returns:
            The output, of the query's shape, and the plan that ran, by which density is counted.
        """

    def to_dict(self) -> dict[str, Any]:
        """Name and options, JSON-ready."""
        return {"name": self.name, "options": dataclasses.asdict(self)}  # type: ignore[call-overload]
