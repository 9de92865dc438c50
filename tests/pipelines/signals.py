"""What families say of a forward, beside what the model really does in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.pipelines.cases import forward
from vidaccel.pipelines import family_of
from vidaccel.pipelines.base import Call


def read_by_attention(transformer: nn.Module, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The family's modulated input of the first block, and the hidden states that its self-attention is called with."""
    family, seen = family_of(transformer), {}
    blocks: Any = getattr(transformer, family.stacks[0])

    def of_block(block: nn.Module, args: Any, kwargs: Any) -> None:
        seen["said"] = family.modulated(block, Call(args, kwargs))

    def of_site(site: nn.Module, args: Any, kwargs: Any) -> None:
        seen["read"] = Call(args, kwargs).get("hidden_states", 0)

    hooks = [blocks[0].register_forward_pre_hook(of_block, with_kwargs=True),
             family.sites(transformer)[0].register_forward_pre_hook(of_site, with_kwargs=True)]  # fmt: skip
    forward(transformer, call)
    for hook in hooks:
        hook.remove()
    return seen["said"], seen["read"]


def embedded_time(transformer: nn.Module, call: dict[str, Any], module: nn.Module) -> tuple[Tensor, Any]:
    """The family's embedding of the call's timesteps, and what `module` of the transformer gives in a forward."""
    given: list[Any] = []
    hook = module.register_forward_hook(lambda module, args, output: given.append(output))
    forward(transformer, call)
    hook.remove()
    family = family_of(transformer)
    return family.time_embedding(transformer, family.timestep(Call((), call)).float()), given[-1]
