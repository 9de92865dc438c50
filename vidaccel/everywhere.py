"""Every supported transformer computed by vidaccel from its construction on: for other projects' test-suites.

Each self-attention runs through the family's processor and the block-sparse op under a mask that keeps every pair, so
that results are those of stock to rounding. No token grid is needed, so that there are no hooks; no schedule, no
session: a model is patched when it is made, and calls that a family leaves to stock are left to it.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidaccel import kernels
from vidaccel.mask import BlockMask
from vidaccel.patched import Layer
from vidaccel.pipelines import supported_classes
from vidaccel.pipelines.base import Family

BLOCK = 64
MASKS_KEPT = 32


@functools.lru_cache(MASKS_KEPT)
def _everything(queries: int, keys: int) -> BlockMask:
    return BlockMask.full(queries, keys, BLOCK, BLOCK)


class Everywhere:
    """All supported transformers of diffusers that are made between `install` and `uninstall`; a context manager, too.

    Args:
        backend: "auto", "triton", "cpu", "flex" or "reference".

    Raises:
        ValueError: no such backend.
    """

    def __init__(self, backend: str = "auto") -> None:
        if backend not in ("auto", *kernels.BACKENDS):
            raise ValueError(f"backend {backend!r} is not one of auto, {', '.join(kernels.BACKENDS)}")
        self.backend = backend
        self.calls = 0
        """Attention calls that went through the op."""
        self.transformers = 0
        """Models that were patched."""
        self.left: Counter[str] = Counter()
        """Calls that no backend can run, which stock computed, by the reason."""
        self._inits: dict[type[nn.Module], Callable[..., None] | None] = {}
        self._layers: weakref.WeakSet[Layer] = weakref.WeakSet()

    def install(self) -> None:
        """From now on patch every transformer that is made; harmless where it is installed."""
        if not self._inits:
            for cls, family in supported_classes().items():
                self._wrap(cls, family)

    def uninstall(self) -> None:
        """Give classes and living models back exactly what they had; harmless where there is nothing to undo."""
        for cls, own in self._inits.items():
            if own is None:
                del cls.__init__
            else:
                cls.__init__ = own  # type: ignore[method-assign]
        self._inits.clear()
        for layer in list(self._layers):
            layer.restore()
        self._layers.clear()

    def __enter__(self) -> Everywhere:
        self.install()
        return self

    def __exit__(self, *exception: object) -> None:
        self.uninstall()

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """One attention call, ``[batch, tokens, heads, head_dim]``: every pair, through the block-sparse op."""
        try:
            kernels.choose(self.backend, query)
        except ValueError as error:
            self.left[str(error)] += 1
            return layer.processor.dense(query, key, value, key_lengths)
        mask = _everything(query.shape[1], key.shape[1])
        out, _ = kernels.attention(query, key, value, mask, key_lengths=key_lengths, backend_name=self.backend)
        self.calls += 1
        return out

    def begin(self, expert: Any, call: Any) -> None:
        """There are no hooks that would tell of transformer calls."""

    def _wrap(self, cls: type[nn.Module], family: Family) -> None:
        self._inits[cls] = cls.__dict__.get("__init__")
        original: Callable[..., None] = cls.__init__

        @functools.wraps(original)
        def made(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            self._patch(module, family)

        cls.__init__ = made  # type: ignore[method-assign,assignment]

    def _patch(self, transformer: nn.Module, family: Family) -> None:
        # Models may be made under the "meta" device; handles are read on the CPU.
        with torch.device("cpu"):
            modules = [each for each in family.sites(transformer) if family.stock(each.processor)]
            for index, module in enumerate(modules):
                layer = Layer(self, "transformer", index, family, module)
                # The op's handle keeps nothing alive, and a block may outlive its transformer.
                layer.processor.layer = layer  # type: ignore[attr-defined]
                layer.patch()
                self._layers.add(layer)
        self.transformers += bool(modules)
