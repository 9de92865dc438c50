"""A stock attention processor with its attention replaced: its own code, run with other globals.

Nothing of it is written anew: the function is bound to a copy of its module's globals, in which diffusers'
``dispatch_attention_fn`` and torch's ``scaled_dot_product_attention`` are those of one processor of ours. The module
itself stays as it is, so that models and threads do not see each other.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor
from torch.nn import functional

from vidaccel.pipelines.arrivals import Arrivals
from vidaccel.pipelines.processor import Processor

SDPA = functional.scaled_dot_product_attention
DISPATCH = inspect.signature(dispatch_attention_fn)
# Torch's has no signature to read.
SDPA_DEFAULTS = {"dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}


class Stand:
    """A module some of whose attributes are others."""

    def __init__(self, module: Any, **others: Any) -> None:
        self.__dict__.update(others)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def replaced(function: Any, dispatch: Callable[..., Tensor], sdpa: Callable[..., Tensor]) -> dict[str, Any]:
    """Of the globals that a function names, those by which it reaches attention, with ours in their place."""
    if not isinstance(function, types.FunctionType):
        return {}
    used = set(_names(function.__code__))
    layers = Stand(functional, scaled_dot_product_attention=sdpa)
    nn = Stand(torch.nn, functional=layers)
    found: dict[str, Any] = {}
    for name in used & function.__globals__.keys():
        value = function.__globals__[name]
        if value is dispatch_attention_fn:
            found[name] = dispatch
        elif value is SDPA:
            found[name] = sdpa
        elif "scaled_dot_product_attention" not in used:
            continue
        elif value is functional:
            found[name] = layers
        elif value is torch.nn and "functional" in used:
            found[name] = nn
        elif value is torch and {"nn", "functional"} <= used:
            found[name] = Stand(torch, nn=nn)
    return found


def attends(processor: Any) -> bool:
    """Whether a processor's own code reaches attention in a way that can be replaced."""
    return bool(replaced(type(processor).__call__, dispatch_attention_fn, SDPA))


def _names(code: types.CodeType) -> Iterator[str]:
    """The globals and attributes that a function and those inside it name."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def rebound(processor: Any, dispatch: Callable[..., Tensor], sdpa: Callable[..., Tensor]) -> Callable[..., Any]:
    """The processor's call, bound to it, with other attention functions."""
    function = type(processor).__call__
    others = function.__globals__ | replaced(function, dispatch, sdpa)
    made = types.FunctionType(function.__code__, others, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    return types.MethodType(made, processor)


class ReboundProcessor(Processor):
    """Self-attention over the grid through the session, by the stock processor's own code.

    Calls with gradients, and calls with another number of keys than queries, are stock.
    """

    def __init__(self, inner: Any, handle: Tensor, host: Arrivals) -> None:
        super().__init__(inner, handle)
        self._host = host
        self._call = rebound(inner, self._dispatched, self._scaled)
        self._module: Any = None
        self._seen: list[tuple[int, int]] = []
        """Queries and keys of each attention of the present call."""
        self._dense: Callable[..., Tensor] = _stock_sdpa

    def __getattr__(self, name: str) -> Any:
        # Blocks may ask a processor what it is; never asked for what __init__ sets.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def through(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the attention module, which stands first or is called ``attn``.

        Raises:
                RuntimeError: it did not attend to its own tokens, which are those of the grid, once.
        """
        module = self._module = args[0] if args else kwargs.get("attn")
        self._seen = []
        try:
            out = self._call(*args, **kwargs)
        finally:
            self._module = None
        if not any(queries == keys for queries, keys in self._seen):
            seen = ", ".join(f"{queries} queries on {keys} keys" for queries, keys in self._seen) or "none that we see"
            raise RuntimeError(f"{self._host.name(module)} makes no self-attention ({seen}): {self._host.others()}")
        return out

    def dense(self, query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None = None) -> Tensor:
        mask = None
        if key_lengths is not None:
            mask = (torch.arange(key.shape[1], device=key.device) < key_lengths[:, None])[:, None, None]
        return self._dense(query, key, value, mask)

    def _dispatched(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Stands for `dispatch_attention_fn`: ``[batch, tokens, heads, head_dim]``."""
        given = DISPATCH.bind(query, key, value, *args, **kwargs)
        mask = given.arguments.pop("attn_mask", None)
        rest = {name: each for name, each in given.arguments.items() if name not in ("query", "key", "value")}
        return self._attention(functools.partial(_stock_dispatch, rest), query, key, value, mask, rest)

    def _scaled(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Stands for `scaled_dot_product_attention`: ``[batch, heads, tokens, head_dim]``."""
        if query.ndim != 4:
            raise RuntimeError(f"{self._host.name(self._module)} attends with {query.ndim} dimensions, not [batch, "
                               "heads, tokens, head_dim]")  # fmt: skip
        rest = dict(zip(SDPA_DEFAULTS, args, strict=False)) | kwargs
        query, key, value = (each.transpose(1, 2) for each in (query, key, value))
        stock = functools.partial(_stock_sdpa, rest=rest)
        return self._attention(stock, query, key, value, attn_mask, rest).transpose(1, 2)

    def _attention(
        self, stock: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None,
        rest: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """One attention of a call; tensors ``[batch, tokens, heads, head_dim]``."""
        own = query.shape[1] == key.shape[1]
        if own and any(queries == keys for queries, keys in self._seen):
            raise RuntimeError(f"{self._host.name(self._module)} makes several self-attentions in a call, such as one "
                               "for each row of the batch; one of all tokens is what can be made sparse")  # fmt: skip
        self._seen.append((query.shape[1], key.shape[1]))
        if not own:
            return stock(query, key, value, mask)
        # The op has no gradient.
        if torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)):
            self._host.trained()
            return stock(query, key, value, mask)
        self._host.arrived(self._module, query)
        self._refuse(query, key, value, rest)
        lengths = None if mask is None else self._host.lengths(self._module, mask, key.shape[1])
        self._dense = stock
        return self.attend(query, key, value, lengths)

    def _refuse(self, query: Tensor, key: Tensor, value: Tensor, rest: dict[str, Any]) -> None:
        """Refuse what the op cannot compute.

        Raises:
            RuntimeError: an attention of another kind.
        """
        scale = rest.get("scale")
        wrong = [f"{name}={rest[name]!r}" for name in ("dropout_p", "is_causal", "attention_kwargs", "parallel_config")
                 if rest.get(name)]  # fmt: skip
        if scale is not None and not math.isclose(scale, query.shape[-1] ** -0.5, rel_tol=1e-6):
            wrong.append(f"scale={scale!r}")
        if key.shape != query.shape or value.shape != query.shape:
            wrong.append(f"queries {list(query.shape)}, keys {list(key.shape)}, values {list(value.shape)}")
        if wrong:
            raise RuntimeError(f"{self._host.name(self._module)} attends with {', '.join(wrong)}, which vidaccel's "
                               f"attention cannot do: {self._host.others()}")  # fmt: skip


def _stock_dispatch(rest: dict[str, Any], query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Tensor:
    out: Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask, **rest)
    return out


def _stock_sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Any = None, rest: dict[str, Any] | None = None
) -> Tensor:
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    return SDPA(query, key, value, attn_mask=mask, **rest or {}).transpose(1, 2)


@functools.cache
def processor_class(stock: type) -> type[ReboundProcessor]:
    """The class of our processors for a stock class: callers read the names of its call's parameters."""
    original: Any = stock.__call__

    @functools.wraps(original)
    def call(self: ReboundProcessor, *args: Any, **kwargs: Any) -> Any:
        return self.through(*args, **kwargs)

    # A graph would hold the processor of the first layer for all of them.
    call = torch.compiler.disable(call)
    own = {"__call__": call, "__doc__": ReboundProcessor.__doc__}
    return type(f"Rebound{stock.__name__}", (ReboundProcessor,), own)
