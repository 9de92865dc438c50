"""A session that leaves every attention call dense and shows it to a watcher first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from vidaccel.api import set_aside
from vidaccel.methods import Method
from vidaccel.patched import Layer
from vidaccel.pipelines import experts
from vidaccel.plan import AttentionPlan
from vidaccel.schedule import Schedule
from vidaccel.session import Session
from vidaccel.setting import Setting
from vidaccel.site import Site

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


class ProbeSession(Session):
    """Every layer of every step dense, bit for bit as without vidaccel, after `watch` has seen its inputs."""

    def __init__(self, owner: Any, modules: dict[str, nn.Module], watch: Watch) -> None:
        super().__init__(owner, modules, Setting(Probe(), Schedule(0, 0, 0), "auto", 0, None))
        self.watch = watch

    def attend(
        self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None
    ) -> Tensor:  # fmt: skip
        out = super().attend(layer, query, key, value, key_lengths)
        self.watch(self._site(layer), query, key, value, key_lengths)
        return out


@contextlib.contextmanager
def watched(pipe: Any, watch: Watch) -> Iterator[None]:
    """A block in which `watch` sees all self-attention of a pipeline; what was enabled comes back after it.

    Raises:
        ValueError: no family supports the pipeline, or its processors are not diffusers' own.
    """
    with set_aside(pipe):
        session = ProbeSession(pipe, experts(pipe), watch)
        session.attach()
        try:
            yield
        finally:
            session.detach()
