"""vidaccel: the same video sooner. Importing it adds `enable_sparse_attention` to diffusers pipelines."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline

from vidaccel._version import __version__
from vidaccel.api import disable, enable, parallel_plan, summary
from vidaccel.caching import POLICIES, Cache, CachePolicy
from vidaccel.calibration import calibrate, calibrate_cache
from vidaccel.guidance import guidance_parallel
from vidaccel.layout import TokenLayout
from vidaccel.methods import METHODS, Method
from vidaccel.miniature import load_miniature
from vidaccel.pipelines.generic import Generic
from vidaccel.plan import AttentionPlan, BlockMask, ExtraKeys
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule
from vidaccel.session import Session
from vidaccel.site import Site
from vidaccel.summary import Summary
from vidaccel.tensors import AttentionState, sparse_attention

__all__ = [
    "METHODS",
    "POLICIES",
    "AttentionPlan",
    "AttentionState",
    "BlockMask",
    "Cache",
    "CachePolicy",
    "ExtraKeys",
    "Generic",
    "Method",
    "Profile",
    "Schedule",
    "Session",
    "Site",
    "Summary",
    "TokenLayout",
    "__version__",
    "calibrate",
    "calibrate_cache",
    "disable",
    "enable",
    "guidance_parallel",
    "load_miniature",
    "parallel_plan",
    "sparse_attention",
    "summary",
]


def _attach(cls: Any) -> None:
    """Add the three methods to a pipeline class, leaving any of the same name alone."""
    methods = {
        "enable_sparse_attention": enable,
        "disable_sparse_attention": disable,
        "sparse_attention_summary": summary,
    }
    for name, function in methods.items():
        if not hasattr(cls, name):
            setattr(cls, name, function)


_attach(DiffusionPipeline)
try:
    from diffusers import ModularPipeline
except ImportError:  # diffusers before it had modular pipelines
    pass
else:
    _attach(ModularPipeline)
