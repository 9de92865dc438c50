"""What the tests of a split clip share: tiny models of real classes, split as a user splits them."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import vidaccel
from vidaccel.pipelines import experts


def parallelised(target: Any, *, ulysses: int = 1, ring: int = 1, anything: bool = False) -> Any:
    """A pipeline or a transformer, split by diffusers' own call with the plan that vidaccel has for its class."""
    for transformer in experts(target).values():
        split(transformer, config(ulysses, ring, anything), cp_plan=vidaccel.parallel_plan(transformer))
    return target


def split(transformer: Any, config: Any, **options: Any) -> None:
    """`enable_parallelism`, which divides by the number of accelerators; here there are none."""
    with mock.patch("torch.accelerator.device_count", return_value=1):
        transformer.enable_parallelism(config=config, **options)


def config(ulysses: int = 1, ring: int = 1, anything: bool = False) -> Any:
    """A fresh configuration of diffusers on a mesh that tests share: each new one makes process groups."""
    from diffusers import ContextParallelConfig

    if anything:
        _gather_any_sizes()
    also = {"ulysses_anything" if ring == 1 else "ring_anything": True} if anything else {}
    return ContextParallelConfig(ulysses_degree=ulysses, ring_degree=ring, mesh=_mesh(ring, ulysses), **also)


@functools.cache
def _mesh(ring: int, ulysses: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (ring, ulysses), mesh_dim_names=("ring", "ulysses"))


def _gather_any_sizes() -> None:
    """In this process, from now on, let diffusers gather unequal parts by padding: gloo, unlike NCCL, cannot."""
    from diffusers.hooks import context_parallel
    from diffusers.models._modeling_parallel import gather_size_by_comm

    def gathered(tensor: Tensor, dim: int, group: Any) -> Tensor:
        sizes = gather_size_by_comm(tensor.shape[dim], group)
        padded = tensor.new_zeros([max(sizes) if axis == dim else size for axis, size in enumerate(tensor.shape)])
        padded.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim)

    context_parallel._all_gather_anything = gathered


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm; 0 only where all bits are the same."""
    if torch.equal(found, expected):
        return 0.0
    return max(float((found - expected).norm() / expected.norm()), 1e-30)


@torch.no_grad()
def forward(transformer: nn.Module, call: dict[str, Any]) -> Tensor:
    """One pass of a transformer."""
    out: Tensor = transformer(**call, return_dict=False)[0]
    return out
