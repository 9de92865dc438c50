"""What the options of a command say about sparse attention and the cache, as `vidaccel.enable` takes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from vidaccel.cli import options
from vidaccel.cli.loading import Model, miniature_options

if TYPE_CHECKING:
    from vidaccel.pipelines.generic import Generic

DENSE = "dense"
"""As a method: attention is left alone."""


@dataclass(frozen=True)
class Chosen:
    """What the options say about sparse attention and the cache."""

    method: str | None
    density: float | None
    assignments: list[str]
    schedule: list[str]
    backend: str
    min_tokens: int | None
    precision: str | None
    compensation: str | None
    check_finite: bool
    cache: dict[str, Any] | None
    family: Generic | None = None

    def enable_kwargs(self, model: Model) -> dict[str, Any] | None:
        """Arguments for `vidaccel.enable`, checked before the model is loaded; None for a dense run without a cache."""
        from vidaccel import kernels, methods, profile
        from vidaccel.asked import profiled
        from vidaccel.compensation import compensation as make_compensation
        from vidaccel.schedule import Schedule

        if self.method == DENSE:
            given = (self.assignments, self.schedule, self.precision, self.compensation, self.check_finite, self.family)
            if self.density is not None or any(given):
                raise ValueError("method 'dense' takes no --density, --set, --schedule, --precision, --compensation, "
                                 "--check-finite and --family")  # fmt: skip
            if self.cache is None:
                return None
            _ = model.supported_family()
            return {"method": None, "cache": self.cache}
        family = self._family(model)
        if self.backend != "auto":
            kernels.backend(self.backend)
        kernels.check_precision(self.precision)
        _ = make_compensation(self.compensation)
        is_profile = self.method is not None and self.method.endswith(".json")
        found = profile.Profile.load(str(self.method)) if is_profile else None
        if self.method is None:
            found = profile.find(model.path)
        name = found.method if found else self.method or "radial"
        if name not in methods.METHODS:
            known = ", ".join((DENSE, *methods.METHODS))
            raise ValueError(f"unknown method {name!r}; choose {known} or a profile ending in .json")
        chosen = options.method_options(name, self.assignments, density=self.density)
        min_tokens = self.min_tokens
        if model.is_miniature and found is None:
            chosen = miniature_options(model, name, chosen)
            min_tokens = min_tokens or 0
        # Only to be refused here, before the model is loaded.
        _ = profiled(found, family, chosen) if found else methods.method(name, family, **chosen)
        fields = options.parse(self.schedule, Schedule, "a schedule")
        schedule = {"schedule": Schedule.of(fields)} if fields else {}
        return {"method": self.method or "auto", "backend": self.backend, "min_tokens": min_tokens,
                "precision": self.precision, "compensation": self.compensation, "check_finite": self.check_finite,
                "cache": self.cache, "family": self.family, **chosen, **schedule}  # fmt: skip

    def _family(self, model: Model) -> str:
        """By whose name methods and profiles know the model."""
        return model.supported_family() if self.family is None else options.GENERIC


def identity(kwargs: dict[str, Any] | None, model: Model) -> dict[str, Any]:
    """What tells these arguments of `vidaccel.enable` from others, JSON-ready: files that they name by content.

    Args:
        kwargs: of `Chosen.enable_kwargs`; None for a dense run.
    """
    from vidaccel import profile
    from vidaccel.asked import AUTO, cache_of, profile_of
    from vidaccel.eval.identity import key_of
    from vidaccel.methods.radial import Radial

    if kwargs is None:
        return {"method": DENSE}
    told = {name: asdict(item) if is_dataclass(item) and not isinstance(item, type) else item
            for name, item in kwargs.items()}  # fmt: skip
    found = profile_of(kwargs["method"], model.path)
    if found is not None:
        told |= {"method": found.method, "profile": key_of(found.to_dict())}
    elif kwargs["method"] == AUTO:
        told["method"] = Radial.name
    if isinstance(reference := kwargs.get("profile"), str):
        told["profile"] = key_of(profile.Profile.read(reference).to_dict())
    made = cache_of(kwargs["cache"], found)
    if made is not None:
        told["cache"] = {**made.to_dict(), "calibrations": sorted(each.digest for each in made.calibrations)}
    return told
