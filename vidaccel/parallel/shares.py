"""What a block is given of a call, where diffusers' hooks leave each process its own tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

HOOK = "ContextParallelSplitHook"


def of_call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a block's call as its own forward gets them.

    The hook that splits a clip sits on the first block: whoever stands before that block sees all tokens, and what
    passes it by must go on with this process's, as the blocks after it expect. Nothing is copied: shares are views.
    """
    registry: Any = getattr(block, "_diffusers_hook", None)
    for hook in () if registry is None else registry.hooks.values():
        if type(hook).__name__ == HOOK:
            args, kwargs = hook.pre_forward(block, *args, **kwargs)
    return args, kwargs
