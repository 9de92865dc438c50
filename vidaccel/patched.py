"""What a session has put into a model: processors at its attention layers, and a hook before each forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from vidaccel.kernels import op
from vidaccel.methods.base import Method
from vidaccel.pipelines.base import Call, Family
from vidaccel.pipelines.generic import GenericFamily
from vidaccel.pipelines.processor import Mode, Processor
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

DENSE = "dense"


@dataclass(frozen=True)
class Untouched(Method):
    """Attention as it is: of a session that only caches, which puts no processor into a model."""

    name: ClassVar[str] = DENSE
    static: ClassVar[bool] = True

    def plan(
        self, query: Tensor | None, key: Tensor | None, value: Tensor | None, site: Site, state: dict[str, Any]
    ) -> AttentionPlan:
        return AttentionPlan()


class Host(Protocol):
    """The session, as its patches see it."""

    def begin(self, expert: Expert, call: Call) -> None:
        """A transformer is called."""

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """A layer attends."""


class Layer:
    """One patched attention layer: what the op's handle stands for."""

    def __init__(self, session: Host, expert: str, index: int, family: Family, module: Any) -> None:
        self.session = session
        self.expert = expert
        self.index = index
        self.module = module
        self.stock = module.processor
        self.processor: Processor = family.processor(self.stock, op.handle(self))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """Dense or sparse attention, as the session decides for this moment of the run."""
        return self.session.attend(self, query, key, value, key_lengths)

    def patch(self) -> None:
        """Put our processor in place."""
        self.module.processor = self.processor

    def restore(self) -> None:
        """Put the very same stock processor back, unless someone else has replaced ours."""
        if self.module.processor is self.processor:
            self.module.processor = self.stock


class Expert:
    """One patched transformer: its layers, none unless `sparse`, and the hook before its forward."""

    def __init__(self, session: Host, name: str, transformer: nn.Module, family: Family, sparse: bool) -> None:
        self.session, self.name, self.transformer, self.family = session, name, transformer, family
        self.layers = self._made() if sparse else []
        self.carriers: list[Layer] = []
        """Of a session that leaves attention alone: what computes it where the stock processors cannot."""
        self._handle: Any = None
        self._after: Any = None

    @property
    def patched(self) -> list[Layer]:
        """Every layer with a processor of ours."""
        return self.layers or self.carriers

    def carry(self) -> None:
        """Compute dense attention in place of the stock processors, for a session that leaves it alone."""
        if not self.patched:
            self.carriers = self._made()
            for layer in self.carriers:
                layer.processor.mode = Mode.DENSE
                layer.patch()

    def _made(self) -> list[Layer]:
        """Every layer with a processor of ours, which is not in place yet."""
        modules: list[Any] = self.family.sites(self.transformer)
        foreign = [type(module.processor).__name__ for module in modules if not self.family.stock(module.processor)]
        if foreign:
            raise ValueError(
                f"{type(self.transformer).__name__} has the attention processor {foreign[0]}, which is not "
                "diffusers' own: remove what set it before enabling sparse attention"
            )
        return [Layer(self.session, self.name, index, self.family, module) for index, module in enumerate(modules)]

    def hook(self) -> None:
        """Be called before each forward."""
        # Never compiled: a compiler then guards on the modes that the hook sets, one graph for each.
        hook = torch.compiler.disable(self.before_forward)
        self._handle = self.transformer.register_forward_pre_hook(hook, with_kwargs=True)
        if self.layers and isinstance(self.family, GenericFamily):
            self._after = self.transformer.register_forward_hook(torch.compiler.disable(self.after_forward))

    def unhook(self) -> None:
        """Undo `hook`; harmless where there is nothing to undo."""
        for handle in (self._handle, self._after):
            if handle is not None:
                handle.remove()

    @property
    def hooked(self) -> bool:
        """Whether the hook is still there."""
        return self._handle is not None and self._handle.id in self.transformer._forward_pre_hooks

    def before_forward(self, transformer: nn.Module, args: Any, kwargs: Any) -> None:
        """Tell the session of a transformer call, and the layers how to attend in it."""
        if transformer is not self.transformer:
            # A deep copy has the same hook, and stock processors.
            return
        if any(layer.module.processor is not layer.processor for layer in self.patched):
            raise RuntimeError(
                f"attention processors of {type(transformer).__name__} were replaced after sparse attention was "
                "enabled, as fuse_qkv_projections() does: disable it, then enable it again"
            )
        self.session.begin(self, Call(args, kwargs))

    def after_forward(self, transformer: nn.Module, args: Any, output: Any) -> None:
        """Let a family that knows its layers only by what it was told look whether they ran."""
        if transformer is self.transformer and isinstance(self.family, GenericFamily):
            self.family.finished(transformer)
