"""A session that leaves every attention call dense and shows it to a watcher first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vidaccel.api import set_aside
from vidaccel.methods import Method
from vidaccel.pipelines import experts
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule
from vidaccel.session import Session
from vidaccel.setting import Setting
from vidaccel.site import Observer, Site

Watch = Callable[[Site, Tensor, Tensor, Tensor, Tensor | None], None]
"""Called with the site, query, key, value and the valid keys of each batch row."""


@dataclass(frozen=True)
class Probe(Method):
    """Dense attention, planned call by call, so that each call passes through the session."""

    name: ClassVar[str] = "probe"

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        return AttentionPlan(None)


@contextlib.contextmanager
def observed_dense(pipe: Any, observer: Observer) -> Iterator[Session]:
    """A block in which `observer` sees all self-attention of a pipeline, every layer of every step dense, bit for bit
    as without vidaccel; what was enabled comes back after it.

    Raises:
        ValueError: no family supports the pipeline, or its processors are not diffusers' own.
    """
    with set_aside(pipe):
        session = Session(pipe, experts(pipe), Setting(Probe(), Schedule(0, 0, 0), "auto", 0, None))
        session.observer = observer
        session.attach()
        try:
            yield session
        finally:
            session.detach()


@contextlib.contextmanager
def watched(pipe: Any, watch: Watch) -> Iterator[None]:
    """As `observed_dense`, for what needs no more of a call than a `Watch` is given."""
    with observed_dense(
        pipe, lambda seen: watch(seen.site, seen.query, seen.key, seen.value, seen.key_lengths)
    ):  # fmt: skip
        yield
