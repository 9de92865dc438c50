"""The public calls: `enable`, `disable` and `summary`, as functions and as methods of diffusers pipelines."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vidaccel import guidance, kernels
from vidaccel.asked import AUTO, aimed, cache_of, method_of, profile_of, setting_of
from vidaccel.caching import Cache, CachePolicy
from vidaccel.caching.runtime import whole
from vidaccel.compensation import Compensation
from vidaccel.methods import Method, ModelFacts
from vidaccel.parallel import alive, plans
from vidaccel.pipelines import compiled, experts, family_for, family_of
from vidaccel.pipelines.base import Family
from vidaccel.pipelines.generic import Generic
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule
from vidaccel.session import ATTRIBUTE, Session
from vidaccel.summary import Summary


def enable(
    pipe: Any,
    /,
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
    family: str | Generic | None = None,
    target: str | None = None,
    **options: Any,
) -> Session:
    """Make the self-attention of a video pipeline sparse, until `disable`; enabling again replaces the setting.

    Args:
        pipe: a diffusers pipeline, or a bare transformer.
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
            options of the policy and limits of `vidaccel.caching.Cache`; a policy; or a `Cache`. The profile's by
            default, else None: every step is computed; "none" says so whatever the profile has.
        family: None for that of the transformer's class. "generic", or a `vidaccel.Generic` that says more, is for a
            class that has none: its stock processors run with the attention replaced.
        target: what the profile's measured points are chosen by, such as "psnr>=30" or "speedup>=2": the fastest that
            keeps so much fidelity, by the worse end of its interval, or the most faithful that is so fast.
        options: fields of the method, such as ``density=0.25``.

    Returns:
        The session, which also works in a ``with`` block.

    Raises:
        ValueError: whatever cannot be done, before anything is changed; what was enabled stays enabled.

    With `precision`, INT8 scores follow SageAttention (Zhang et al., 2024).
    """
    modules = experts(pipe)
    if any(plans.configured(each) is not None for each in modules.values()):
        # So that what only this process finds amiss below ends the others, too.
        alive.watch()
    transformer = next(iter(modules.values()))
    told = family_for(family, modules)
    known = told or family_of(transformer)
    if method is None and cache is None:
        raise ValueError('method=None leaves attention alone, and there is no cache: nothing would be enabled; give a '
                         'cache, or method="auto"')  # fmt: skip
    profile = profile_of(method, getattr(getattr(pipe, "config", None), "_name_or_path", None))
    if target is not None:
        profile = aimed(profile, target)
    reuse = cache_of(cache, profile)
    chosen = method_of(method, profile, known.published, options)
    models = {name: facts(module, told) for name, module in modules.items()}
    if profile is not None:
        profile.check(models)
    chosen.check_models(models)
    if reuse is not None and (wrapped := compiled(pipe)):
        raise ValueError(whole(wrapped))
    if reuse is not None:
        reuse.policy.check_models(models)
        for calibration in reuse.calibrations:
            calibration.check_models(models)
    setting = setting_of(
        chosen, profile, lambda: known.schedule(pipe, transformer), schedule=schedule, backend=backend,
        min_tokens=min_tokens, steps=num_inference_steps, precision=precision, check_finite=check_finite,
        compensation=compensation, cache=reuse,
    )  # fmt: skip
    if not hasattr(pipe, "scheduler"):
        setting.schedule.resolve(num_inference_steps, 1, setting.computed)
    device = getattr(pipe, "_execution_device", None) or transformer.device
    kernels.choose(backend, known.probe(transformer, device), setting.precision)  # type: ignore[arg-type]
    session = Session(pipe, modules, dataclasses.replace(setting, family=told))
    _replace(pipe, session)
    return session


def _sessions(target: Any) -> list[Session]:
    """What is enabled on a pipeline or its transformers, also where a transformer was replaced since."""
    holders = (target, *experts(target).values())
    return list(dict.fromkeys(found for each in holders if (found := each.__dict__.get(ATTRIBUTE)) is not None))


def _replace(target: Any, session: Session) -> None:
    previous = _sessions(target)
    for old in previous:
        old.detach()
    try:
        session.attach()
    except BaseException:
        for old in previous:
            old.attach()
        raise


def disable(target: Any) -> None:
    """Make a pipeline or transformer exactly what it was before `enable`; harmless if it is not enabled.

    A model whose own attention cannot compute it split over processes becomes whole again, on every process.

    Raises:
        ValueError: `target` has no video transformer.
    """
    for session in _sessions(target):
        session.detach()
    for transformer in experts(target).values():
        if plans.guarded(transformer):
            plans.undo(transformer)
            plans.unguard(transformer)


def parallel_plan(transformer: nn.Module) -> dict[str, Any]:
    """How one clip is split over processes: what ``enable_parallelism`` takes as its ``cp_plan``.

    Needed where a model is split before it is enabled; afterwards ``enable_parallelism(config=...)`` finds it by
    itself. See docs/parallel.md.

    Args:
        transformer: a denoiser.

    Raises:
        ValueError: its class has no family, or one clip of it cannot be split.
    """
    family = family_of(transformer)
    plan = family.parallel_plan(transformer)
    alive.watch()
    if ATTRIBUTE not in transformer.__dict__:
        plans.guard(transformer, family)
    return plan


@contextlib.contextmanager
def set_aside(pipe: Any) -> Iterator[None]:
    """A pipeline without what is enabled on it and without its own progress bar; both come back after the block.

    Raises:
        ValueError: `pipe` has no video transformer, or computes a part of its guidance passes.
    """
    for transformer in experts(pipe).values():
        guidance.check_whole(transformer)
    found = _sessions(pipe)
    bar: dict[str, Any] | None = pipe.__dict__.get("_progress_bar_config")
    for session in found:
        session.detach()
    pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
    try:
        yield
    finally:
        disable(pipe)
        for session in found:
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
    for session in _sessions(target):
        return session.summary()
    raise ValueError(f"sparse attention is not enabled on this {type(target).__name__}: call enable first")


def facts(transformer: nn.Module, family: Family | None = None) -> ModelFacts:
    """What methods may know of a denoiser, of the family of its class unless another is given.

    Raises:
        ValueError: no family supports its class.
    """
    family = family or family_of(transformer)
    values: Any = transformer.config
    config = {name: item for name, item in dict(values).items() if not name.startswith("_")}
    return ModelFacts(type(transformer).__name__, config, len(family.sites(transformer)), *family.heads(transformer))
