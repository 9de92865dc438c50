"""What a user asks for, as one `Setting`: a method by name, as it is or from a profile, and what goes with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from vidaccel import compensation as compensations
from vidaccel import profile as profiles
from vidaccel import stored_cache
from vidaccel.caching import Cache
from vidaccel.caching import cache as make_cache
from vidaccel.compensation import Compensation
from vidaccel.methods import METHODS, Method, named
from vidaccel.methods import method as make_method
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.patched import Untouched
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule
from vidaccel.setting import Setting

AUTO = "auto"
NONE = "none"
"""As a cache: none, whatever the profile has."""


def profile_of(method: Any, model: str | None) -> Profile | None:
    """The profile that a method is asked for by; None where it is none.

    Args:
        method: a `Profile`, the path of one, or "auto": then it is the one of the model.
        model: folder or repository id; None where it is not known.

    Raises:
        ValueError: a path without a profile.
    """
    if isinstance(method, Profile):
        return method
    if isinstance(method, os.PathLike) or (isinstance(method, str) and method.endswith(".json")):
        return Profile.from_pretrained(method) if os.path.isdir(method) else Profile.load(method)
    return profiles.find(model) if method == AUTO else None


def aimed(profile: Profile | None, target: str) -> Profile:
    """The profile with the settings of its point for a target.

    Raises:
        ValueError: no profile, no target, or no point that meets it.
    """
    if profile is None:
        raise ValueError(f"target {target!r} is for a profile with measured points: give its path, or have it as "
                         f"{profiles.FILE} in the model's folder; vidaccel tune makes one")  # fmt: skip
    return profile.aimed(target)


def cache_of(cache: Any, profile: Profile | None) -> Cache | None:
    """The cache that is asked for: what is given, else the profile's; "none" is none.

    Raises:
        ValueError: no such policy or option, a bad value, or none where the profile has nothing else.
    """
    if cache is None and profile is not None:
        cache = stored_cache.resolved(profile.cache, profile.calibrations)
    made = None if isinstance(cache, str) and cache == NONE else make_cache(cache)
    if made is None and profile is not None and profile.method == Untouched.name:
        raise ValueError("the profile leaves attention alone, and there is no cache: nothing would be enabled")
    return made


def method_of(method: Any, profile: Profile | None, family: str, options: dict[str, Any]) -> Method:
    """The method that is asked for, with the defaults of a model family overridden by `options`.

    Raises:
        ValueError: no such method or option, a bad value, or options beside what has its own.
    """
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


def profiled(profile: Profile, family: str, options: Mapping[str, Any]) -> Method:
    """The method of a profile for a model family, with some of its options overridden.

    Raises:
        ValueError: no such method or option, or a bad value.
    """
    if profile.method == Untouched.name:
        if options:
            raise ValueError(f"the profile leaves attention alone: it has no option {next(iter(options))!r}")
        return Untouched()
    cls = named(profile.method)
    merged = cls.merged(profile.options, dict(options))
    if profile.heads is not None and issubclass(cls, HeadProfile) and "profile" not in options:
        return cls.of(profile, **{**cls.family_defaults(family), **merged})
    try:
        return cls.for_family(family, **merged)
    except TypeError as error:
        raise ValueError(f"options of the profile do not fit method {profile.method!r}: {error}") from error


def setting_of(
    method: Method,
    profile: Profile | None,
    default: Callable[[], Schedule],
    *,
    schedule: Schedule | Mapping[str, Any] | None,
    backend: str,
    min_tokens: int | None,
    steps: int | None,
    precision: str | None,
    check_finite: bool,
    compensation: str | Mapping[str, Any] | Compensation | None,
    cache: Cache | None = None,
) -> Setting:
    """One setting of what is given, of what the profile has for the rest, and of defaults; see `vidaccel.enable`.

    Args:
        method: as `method_of` made it.
        default: the schedule where neither the user nor the profile nor the method has one.

    Raises:
        ValueError: a bad value.
    """
    if schedule is None:
        schedule = (profile.schedule if profile and profile.schedule else method.schedule()) or default()
    min_tokens = profile.min_tokens if min_tokens is None and profile else min_tokens
    if min_tokens is not None and (not isinstance(min_tokens, int) or min_tokens < 0):
        raise ValueError(f"min_tokens={min_tokens!r} is not a whole number of at least 0")
    precision = profile.precision if precision is None and profile else precision
    compensation = profile.compensation if compensation is None and profile else compensation
    made_up = compensations.compensation(compensation)
    method = method.compensated(made_up.name if made_up else None)
    return Setting(method, Schedule.of(schedule), backend, min_tokens, steps, precision, check_finite, made_up,
                   cache=cache, measured=profile.aim.evidence if profile and profile.aim else None)  # fmt: skip
