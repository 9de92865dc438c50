"""How much memory operations hold at once, followed on tensors that may be without contents."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Follows the bytes of all storages that operations make; what an operation takes inside itself is not seen.

    Args:
        given: tensors that do not count.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.held: Counter[int] = Counter()
        self.size = self.most = 0
        self.given = {each.untyped_storage()._cdata for each in given}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in self.given:
                self._hold(each)
        return out

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if not self.held[name]:
            self.size += size
            self.most = max(self.most, self.size)
        self.held[name] += 1
        weakref.finalize(tensor, self._drop, name, size)

    def _drop(self, name: int, size: int) -> None:
        self.held[name] -= 1
        if not self.held[name]:
            self.size -= size
