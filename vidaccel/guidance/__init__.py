"""`guidance_parallel`: the guidance passes of a step on two groups of processes, at the same time."""

from __future__ import annotations

from typing import Any

from torch import nn

from vidaccel.guidance.door import between
from vidaccel.guidance.handle import GuidanceParallel, wrapped
from vidaccel.parallel.groups import group_of
from vidaccel.pipelines import compiled, experts, family_of

__all__ = ["GuidanceParallel", "check_whole", "guidance_parallel"]


def guidance_parallel(pipe: Any, mesh: Any = None) -> GuidanceParallel:
    """Compute the conditional and the unconditional pass of each step at the same time, on two groups of processes.

    All processes must run the pipeline with the same inputs and equally seeded generators, and all get the whole clip.
    Goes with `enable` and with diffusers' `enable_parallelism` inside each group, in any order.

    Args:
        pipe: a pipeline that calls its transformer once for each guidance pass.
        mesh: a ``DeviceMesh`` with a dimension "guidance" of size 2, for more than two processes.

    Returns:
        What is in place until its ``detach()``, or the end of a ``with`` block. Calling again replaces it.

    Raises:
        RuntimeError: torch.distributed has no process group.
        ValueError: a pipeline whose passes cannot be computed at the same time, or processes that are not two groups.
    """
    refuse(pipe)
    handle = GuidanceParallel(pipe, group_of(mesh))
    handle.fits()
    handle.attach()
    return handle


def refuse(pipe: Any) -> None:
    """Refuse a pipeline whose passes cannot be computed at the same time.

    Raises:
        ValueError: which, and why.
    """
    name = type(pipe).__name__
    if isinstance(pipe, nn.Module):
        raise ValueError(f"guidance_parallel() needs the pipeline: a {name} by itself has no guidance passes")
    family = family_of(next(iter(experts(pipe).values())))
    if (reason := family.no_guidance_groups(name)) is not None:
        raise ValueError(f"the guidance passes of {name} cannot be computed at the same time: {reason}")
    if (inside := compiled(pipe)) is not None:
        raise ValueError(wrapped(inside))


def check_whole(transformer: nn.Module) -> None:
    """Refuse a transformer some of whose calls are left out here, for what measures all of them.

    Raises:
        ValueError: it is one.
    """
    if between(transformer):
        raise ValueError(f"this {type(transformer).__name__} computes one of the guidance passes alone, by "
                         "guidance_parallel(), and measurements need all: detach() that first")  # fmt: skip
