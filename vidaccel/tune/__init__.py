"""The tuner: a joint search over sparse attention and step caching, by real generations, that ends in a profile."""

from __future__ import annotations

from vidaccel.tune.run import Tuned, tune

__all__ = ["Tuned", "tune"]
