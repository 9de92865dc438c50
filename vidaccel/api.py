"""The public calls: `enable`, `disable` and `summary`, as functions and as methods of diffusers pipelines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vidaccel import compensation as compensations
from vidaccel import kernels
from vidaccel import profile as profiles
from vidaccel.caching import Cache, CachePolicy
from vidaccel.caching import cache as make_cache
from vidaccel.caching.runtime import whole
from vidaccel.compensation import Compensation
from vidaccel.methods import METHODS, Method, ModelFacts, named
from vidaccel.methods import method as make_method
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.patched import Untouched
from vidaccel.pipelines import compiled, experts, family_of
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule
from vidaccel.session import ATTRIBUTE, Session
from vidaccel.setting import Setting
from vidaccel.summary import Summary

AUTO = "auto"


def enable(
    target: Any,
    method: str | Method | Profile | os.PathLike[str] | None = AUTO,
    *,
    schedule: Schedule | Mapping[str, Any] | None = None,
    backend: str = "auto",
    min_tokens: int | None = None,
    num_inference_steps: int | None = None,
    precision: str | None = None,
    check_finite: bool = False,
    compensation: str | Mapping[str, Any] | Compensation | None = None,
    cache: str | Mapping[str, Any] | CachePolicy | Cache | None = None,
    **options: Any,
) -> Session:
    """Make the self-attention of a video pipeline sparse, until `disable`; enabling again replaces the setting.

    Args:
        target: a diffusers pipeline, or a bare transformer.
        method: a method's name, a `Method`, a `Profile`, or the path of one: a name that ends in ".json", or a
            `pathlib.Path`, also of a folder with one. "auto" is the profile in the model's folder or shipped for the
            model, else "radial" with the family's defaults. None leaves attention alone, for a cache by itself.
        schedule: which steps and layers stay dense; the profile's or the family's by default.
        backend: "auto", "triton", "cpu", "flex" or "reference".
        min_tokens: calls with fewer tokens stay dense; so do those that the cost model expects to be slower sparse than
            dense (see `vidaccel.costs`), unless this is 0. The profile's by default, else the cost model alone.
        num_inference_steps: steps of a run, for bare transformers; pipelines know it.
        precision: "int8" (scores in INT8, values in fp16) or "fp8" (scores in INT8, values in e4m3) to compute sparse
            calls in fewer bits; the summary then has the error against the model's own type. The profile's by default,
            else None: the model's own type.
        check_finite: stop with an error that names layer and step where an attention output is not finite. For
            debugging: it waits for the GPU in every call.
        compensation: what makes up for skipped keys, by name, as ``{"name": ..., OPTION: ...}`` or as it is: see
            `vidaccel.compensation`. The profile's by default, else None: nothing does.
        cache: which steps reuse what earlier ones computed: a policy's name; ``{"name": ..., OPTION: ...}`` with
            options of the policy and limits of `vidaccel.caching.Cache`; a policy; or a `Cache`. None computes every
            step.
        options: fields of the method, such as ``density=0.25``.

    Returns:
        The session, which also works in a ``with`` block.

    Raises:
        ValueError: whatever cannot be done, before anything is changed; what was enabled stays enabled.

    With `precision`, INT8 scores follow SageAttention (Zhang et al., 2024).
    """
    modules = experts(target)
    transformer = next(iter(modules.values()))
    family = family_of(transformer)
    if method is None and cache is None:
        raise ValueError('method=None leaves attention alone, and there is no cache: nothing would be enabled; give a '
                         'cache, or method="auto"')  # fmt: skip
    profile = _profile(target, method)
    reuse = make_cache(cache)
    chosen = _method(method, profile, family.name, options)
    models = {name: facts(module) for name, module in modules.items()}
    if profile is not None:
        profile.check(models)
    chosen.check_models(models)
    if reuse is not None and (wrapped := compiled(target)):
        raise ValueError(whole(wrapped))
    if reuse is not None:
        reuse.policy.check_models(models)
        for calibration in reuse.calibrations:
            calibration.check_models(models)
    if schedule is None:
        own = profile.schedule if profile and profile.schedule else chosen.schedule()
        schedule = own or family.schedule(target, transformer)
    resolved = Schedule.of(schedule)
    if not hasattr(target, "scheduler"):
        resolved.resolve(num_inference_steps, 1, reuse.computed if reuse else None)
    min_tokens = profile.min_tokens if min_tokens is None and profile else min_tokens
    if min_tokens is not None and (not isinstance(min_tokens, int) or min_tokens < 0):
        raise ValueError(f"min_tokens={min_tokens!r} is not a whole number of at least 0")
    precision = profile.precision if precision is None and profile else precision
    compensation = profile.compensation if compensation is None and profile else compensation
    device = getattr(target, "_execution_device", None) or transformer.device
    kernels.choose(backend, family.probe(transformer, device), precision)  # type: ignore[arg-type]
    made_up = compensations.compensation(compensation)
    chosen = chosen.compensated(made_up.name if made_up else None)
    setting = Setting(chosen, resolved, backend, min_tokens, num_inference_steps, precision, check_finite, made_up,
                      cache=reuse)  # fmt: skip
    session = Session(target, modules, setting)
    _replace(modules, session)
    return session


def _replace(modules: dict[str, nn.Module], session: Session) -> None:
    previous = {id(old): old for module in modules.values() if (old := module.__dict__.get(ATTRIBUTE)) is not None}
    for old in previous.values():
        old.detach()
    try:
        session.attach()
    except BaseException:
        for old in previous.values():
            old.attach()
        raise


def disable(target: Any) -> None:
    """Make a pipeline or transformer exactly what it was before `enable`; harmless if it is not enabled.

    Raises:
        ValueError: `target` has no video transformer.
    """
    for module in experts(target).values():
        session = module.__dict__.get(ATTRIBUTE)
        if session is not None:
            session.detach()


@contextlib.contextmanager
def set_aside(pipe: Any) -> Iterator[None]:
    """A pipeline without what is enabled on it and without its own progress bar; both come back after the block.

    Raises:
        ValueError: `pipe` has no video transformer.
    """
    found = {id(old): old for module in experts(pipe).values() if (old := module.__dict__.get(ATTRIBUTE))}
    bar: dict[str, Any] | None = pipe.__dict__.get("_progress_bar_config")
    for session in found.values():
        session.detach()
    pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
    try:
        yield
    finally:
        disable(pipe)
        for session in found.values():
            session.attach()
        if bar is None:
            del pipe._progress_bar_config
        else:
            pipe.set_progress_bar_config(**bar)


def summary(target: Any) -> Summary:
    """What is enabled on a pipeline or transformer and what its last run did.

    Raises:
        ValueError: sparse attention is not enabled on `target`.
    """
    for module in experts(target).values():
        session = module.__dict__.get(ATTRIBUTE)
        if isinstance(session, Session):
            return session.summary()
    raise ValueError(f"sparse attention is not enabled on this {type(target).__name__}: call enable first")


def facts(transformer: nn.Module) -> ModelFacts:
    """What methods may know of a denoiser.

    Raises:
        ValueError: no family supports its class.
    """
    family = family_of(transformer)
    values: Any = transformer.config
    config = {name: item for name, item in dict(values).items() if not name.startswith("_")}
    return ModelFacts(type(transformer).__name__, config, len(family.sites(transformer)), *family.heads(transformer))


def profiled(profile: Profile, family: str, options: Mapping[str, Any]) -> Method:
    """The method of a profile for a model family, with some of its options overridden.

    Raises:
        ValueError: no such method or option, or a bad value.
    """
    cls = named(profile.method)
    merged = cls.merged(profile.options, dict(options))
    if profile.heads is not None and issubclass(cls, HeadProfile) and "profile" not in options:
        return cls.of(profile, **merged)
    try:
        return cls.for_family(family, **merged)
    except TypeError as error:
        raise ValueError(f"options of the profile do not fit method {profile.method!r}: {error}") from error


def _profile(target: Any, method: Any) -> Profile | None:
    if isinstance(method, Profile):
        return method
    if isinstance(method, os.PathLike) or (isinstance(method, str) and method.endswith(".json")):
        return Profile.from_pretrained(method) if os.path.isdir(method) else Profile.load(method)
    config = getattr(target, "config", None)
    return profiles.find(getattr(config, "_name_or_path", None)) if method == AUTO else None


def _method(method: Any, profile: Profile | None, family: str, options: dict[str, Any]) -> Method:
    if isinstance(method, Method):
        if options:
            raise ValueError(f"options ({', '.join(options)}) go with a method's name; {method!r} has its own")
        return method
    if method is None:
        if options:
            raise ValueError(f"method=None leaves attention alone and has no options, got {', '.join(options)}")
        return Untouched()
    if profile is not None:
        return profiled(profile, family, options)
    if not isinstance(method, str):
        raise ValueError(f"method {method!r} is neither a name ({', '.join(METHODS)}) nor a Method nor a profile")
    return make_method("radial" if method == AUTO else method, family, **options)
