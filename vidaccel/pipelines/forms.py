"""The forms in which transformers return a prediction."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vidaccel.pipelines.base import Call


def replaced(output: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """An output with another prediction: a tuple that begins with it, or an object that has it as `sample`."""
    if isinstance(output, tuple):
        return (replace(output[0]), *output[1:])
    return type(output)(sample=replace(output.sample))


def asked(transformer: nn.Module, call: Call, prediction: Tensor) -> Any:
    """An output of this prediction alone, in the form that a call asks for by `return_dict`."""
    forward = inspect.signature(type(transformer).forward)
    given = forward.bind_partial(transformer, *call.args, **call.kwargs).arguments
    if not given.get("return_dict", forward.parameters["return_dict"].default):
        return (prediction,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=prediction)
