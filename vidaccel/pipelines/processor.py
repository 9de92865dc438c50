"""What stands in for a stock attention processor."""

from __future__ import annotations

import copy
from enum import Enum
from typing import Any, Protocol

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn import functional

from vidaccel.kernels import op


class Mode(Enum):
    """How a patched layer attends in this transformer call."""

    DENSE = "dense"
    STATIC = "static"
    """By a plan that is known beforehand."""
    BY_HANDLE = "by handle"
    """As the session decides when the layer runs."""


class Exchange(Protocol):
    """What goes between processes around an attention call: a `vidaccel.parallel.exchange.Exchange`."""

    @property
    def video(self) -> int:
        """Video tokens of the whole sequence."""

    def gathered(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the tokens here with all heads, to all tokens with the heads that are this process's."""

    def scattered(self, out: Tensor) -> Tensor:
        """Back."""


class Processor:
    """A replacement attention processor: hands query, key and value to the session, and the rest to the stock one.

    A plain object that holds no tensor of a device, so that nothing of it is saved, moved or hooked.
    """

    def __init__(self, inner: Any, handle: Tensor) -> None:
        self.inner = inner
        self.handle = handle
        self.mode = Mode.BY_HANDLE
        self.backend = ""
        self.plan: op.Arguments | None = None
        """What `Mode.STATIC` computes, and by which backend."""
        self.exchange: Exchange | None = None
        """Where one clip is split over processes."""
        self.stock_splits = True
        """Whether the stock processor knows how it is split, too."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """Attention as the session decided for this transformer call, or decides now.

        Args:
            query, key, value: ``[batch, tokens, heads, head_dim]``; of a split clip, the tokens that are here.
            key_lengths: int ``[batch]``, valid keys of each row of the whole sequence, where that ends in padding.
        """
        if self.exchange is None:
            return self._attended(query, key, value, key_lengths)
        query, key, value = self.exchange.gathered(query, key, value)
        return self.exchange.scattered(self._attended(query, key, value, key_lengths))

    def whole(self, video: int) -> int:
        """Video tokens of the whole sequence, of which a call is given so many."""
        return video if self.exchange is None else self.exchange.video

    def stock(self, *args: Any, **kwargs: Any) -> Any:
        """What the stock processor makes of a call.

        Raises:
            RuntimeError: the clip is split in a way that it does not know.
        """
        if self.exchange is not None and not self.stock_splits:
            raise RuntimeError(
                f"{type(self.inner).__name__} would compute this call, which has gradients or a mask of its own, and "
                "does not know how the clip is split over processes: run it without gradients, or without the split"
            )
        return self.inner(*args, **kwargs)

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
        """The same as `attend` of one process."""
        if self.mode is Mode.DENSE:
            return self.dense(query, key, value, key_lengths)
        if self.mode is Mode.STATIC and self.plan is not None:
            sparse: Tensor = op.block_sparse(query, key, value, key_lengths, self.backend, *self.plan)
            return sparse
        out: Tensor = op.attention(query, key, value, self.handle, key_lengths)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy of a model is not enabled: it gets a copy of what was there.
        return copy.deepcopy(self.inner, memo)

    @property
    def _attention_backend(self) -> Any:
        return getattr(self.inner, "_attention_backend", None)

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.inner._attention_backend = backend

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.inner, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        # For what is left to the stock processor: ours goes by what the session finds on the model.
        if hasattr(self.inner, "_parallel_config"):
            self.inner._parallel_config = config

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        """Attention exactly as the stock processor computes it; arguments as in `attend`."""
        out: Tensor = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        return out


class SdpaProcessor(Processor):
    """One whose stock processor calls torch's attention itself, whatever backend of diffusers is set."""

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def left_to_stock(states: Tensor, *others: Any) -> bool:
    """Whether a call is the stock processor's: the op has no gradient, and knows nothing of `others` that are given.

    Args:
        states: what the queries are made of.
        others: masks, or what else keys are made of.
    """
    training = torch.is_grad_enabled() and states.requires_grad
    return training or any(each is not None for each in others)
