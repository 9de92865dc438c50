"""Sparse attention on tensors, for other stacks than diffusers: one function, and the state of a generation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from vidaccel import kernels
from vidaccel.asked import method_of, profile_of, setting_of
from vidaccel.calls import Calls, Spot
from vidaccel.compensation import Compensation
from vidaccel.layout import TokenLayout
from vidaccel.methods import Method
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.pipelines import families
from vidaccel.profile import Profile
from vidaccel.schedule import Schedule
from vidaccel.setting import Setting
from vidaccel.site import Site
from vidaccel.summary import Summary

EXPERT = "transformer"
FAMILY = "tensors"
"""What a summary names where no model family is given."""
DenseAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Place:
    """Where a call happens, as far as the caller says.

    Raises:
        ValueError: numbers that no call has, or one without the other that it needs.
    """

    layer: int | None
    layers: int | None
    step: int | None
    steps: int | None
    branch: str
    expert: str

    def __post_init__(self) -> None:
        for name, least in (("layer", 0), ("layers", 1), ("step", 0), ("steps", 1)):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < least):
                raise ValueError(f"{name}={given!r} is not a whole number of at least {least}")
        if (self.layer is None) != (self.layers is None):
            raise ValueError(f"layer and layers, their number, go together: got layer={self.layer}, "
                             f"layers={self.layers}")  # fmt: skip
        if self.step is None and self.steps is not None:
            raise ValueError(f"steps={self.steps} goes with step: which of them is it?")
        for name in ("layer", "step"):
            at, count = getattr(self, name), getattr(self, f"{name}s")
            if at is not None and count is not None and at >= count:
                raise ValueError(f"{name}={at} is not one of {count}: they count from 0")

    def site(self, layout: TokenLayout) -> Site:
        """The site of such a call on a layout; what is not known is the first."""
        return Site(self.layer or 0, self.layers or 1, self.step or 0, self.steps, self.branch, self.expert, layout)


@dataclass(frozen=True)
class Asked:
    """What a call asks for beside its tensors and its place: the same in all calls of a state."""

    method: Any
    options: dict[str, Any]
    family: str
    schedule: Any
    backend: str
    min_tokens: int | None
    precision: str | None
    check_finite: bool
    compensation: Any
    layer_given: bool
    step_given: bool

    def setting(self) -> Setting:
        """The setting that it is.

        Raises:
            ValueError: a bad value, or a schedule that needs a place where none is given.
        """
        if self.method is None:
            raise ValueError("method=None would leave attention as it is: give a method, its name or a profile")
        if self.family and self.family not in families():
            raise ValueError(f"unknown family {self.family!r}; choose {', '.join(families())}, or none")
        profile = profile_of(self.method, None)
        if profile is not None and profile.cache is not None:
            raise ValueError("the profile reuses steps, which only a pipeline or a transformer has: it has a cache")
        family = families()[self.family].published if self.family else ""
        method = method_of(self.method, profile, family, dict(self.options))
        setting = setting_of(
            method, profile, self._schedule, schedule=self.schedule, backend=self.backend, min_tokens=self.min_tokens,
            steps=None, precision=self.precision, check_finite=self.check_finite, compensation=self.compensation,
        )  # fmt: skip
        dense = setting.schedule
        if not self.step_given and (dense.dense_first_steps or dense.dense_last_steps):
            raise ValueError(f"{dense} keeps steps dense: pass step, and steps, their number")
        if not self.layer_given and dense.dense_first_layers:
            raise ValueError(f"{dense} keeps layers dense: pass layer, and layers, their number")
        return setting

    def _schedule(self) -> Schedule:
        """Where nobody chose one: the usual, as far as it can be told which step and layer is which."""
        first = {} if self.step_given else {"dense_first_steps": 0}
        return Schedule(**first, **({} if self.layer_given else {"dense_first_layers": 0}))

    def difference(self, other: Asked) -> str:
        """The names of what differs."""
        fields = [item.name for item in dataclasses.fields(self)]
        return ", ".join(name for name in fields if getattr(self, name) != getattr(other, name))


class AttentionState:
    """What `sparse_attention` remembers of one generation: what methods and compensations learned, plans, and counts.

    Keep one for each generation that is under way, or one for some in turn, with `reset` in between.
    All calls of a state ask for the same.
    """

    def __init__(self) -> None:
        self.runs = 0
        """Generations seen."""
        self._asked: Asked | None = None
        self._calls: Calls | None = None
        self._begun = False
        self._steps: dict[tuple[str, str], int] = {}
        self._checked: set[tuple[Any, ...]] = set()

    def reset(self) -> None:
        """End a generation and free what was learned in it. Static plans stay, and so does `summary` until the next."""
        self._begun = False
        self._steps.clear()
        self._checked.clear()
        if self._calls is not None:
            self._calls.state.clear()

    def summary(self) -> Summary:
        """The setting, and what the calls since the last `reset` did.

        Raises:
            ValueError: there was none.
        """
        if self._calls is None or self._asked is None:
            raise ValueError("sparse_attention has not been called with this state")
        setting = self._calls.setting
        return Summary(
            self._asked.family or FAMILY, setting.method.name,
            dataclasses.asdict(setting.method),  # type: ignore[call-overload]
            dataclasses.asdict(setting.schedule), setting.min_tokens, setting.backend, setting.precision, self.runs,
            self._calls.tally, setting.compensation.to_dict() if setting.compensation is not None else None,
        )  # fmt: skip

    def _for(self, asked: Asked) -> Calls:
        """What makes the calls of a setting; it is kept from `_begin` on.

        Raises:
            ValueError: a bad setting, or another than before.
        """
        if self._calls is None or self._asked is None:
            return Calls(asked.setting())
        if asked != self._asked:
            raise ValueError("all calls of a state ask for the same, and these differ from the first one's: "
                             f"{asked.difference(self._asked)}; use a state for each setting")  # fmt: skip
        return self._calls

    def _begin(self, calls: Calls, asked: Asked, place: Place) -> None:
        """Take note of a call that was found good.

        Raises:
            ValueError: its step has passed.
        """
        pass_, step = (place.expert, place.branch), place.step or 0
        if step < self._steps.get(pass_, 0):
            raise ValueError(f"step {step} comes after step {self._steps[pass_]} of {place.branch}: a state is for one "
                             "generation; call reset() before the next")  # fmt: skip
        if not self._begun:
            calls.forget()
            self._begun, self.runs = True, self.runs + 1
        self._calls, self._asked, self._steps[pass_] = calls, asked, step


def _uncompiled(function: F) -> F:
    """Run as it is inside compiled code: traced, each step would be a graph of its own."""
    made: F = torch.compiler.disable(function)
    return made


@_uncompiled
def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: TokenLayout,
    method: str | Method | Profile | os.PathLike[str] = "radial",
    state: AttentionState | None = None,
    layer: int | None = None,
    layers: int | None = None,
    step: int | None = None,
    steps: int | None = None,
    branch: str = "cond",
    expert: str = EXPERT,
    family: str = "",
    key_lengths: Tensor | None = None,
    dense: DenseAttention | None = None,
    schedule: Schedule | Mapping[str, Any] | None = None,
    backend: str = "auto",
    min_tokens: int | None = None,
    precision: str | None = None,
    check_finite: bool = False,
    compensation: str | Mapping[str, Any] | Compensation | None = None,
    **options: Any,
) -> Tensor:
    """Self-attention of a video transformer, sparse where the method and the schedule say so, else dense.

    Scores are scaled by ``head_dim ** -0.5``. Nothing waits for a GPU, but for what `check_finite` asks.

    Args:
        query, key, value: ``[batch, tokens, heads, head_dim]``, after normalisation and rotary embedding, of one shape,
            type and device; without gradients.
        layout: which token is which.
        method: a method's name, a `Method`, a `Profile`, or the path of one, as in `vidaccel.enable`.
        state: of this generation, kept by the caller; without one the call stands alone: what a method would remember
            is lost, and plans are made anew.
        layer, layers: which self-attention layer of how many, from 0. Without them none stays dense for it.
        step, steps: which denoising step of how many, from 0. Without them none stays dense for it; `steps` may remain
            unknown where neither schedule nor method needs it.
        branch: what of a step has a memory of its own: the guidance pass, a window of a longer clip.
        expert: which denoiser, where a model has several; profiles know them by their attributes of a pipeline.
        family: "wan", "hunyuanvideo" and so on: whose defaults the method takes.
        key_lengths: int ``[batch]``, valid tokens of each row, at least 1, where the sequence ends in padding.
        dense: computes a dense call, given query, key, value and `key_lengths`, and returns the same shape; torch's
            `scaled_dot_product_attention` by default.
        schedule, backend, min_tokens, precision, check_finite, compensation: see `vidaccel.enable`. Calls that the cost
            model expects to be slower sparse stay dense unless `min_tokens` is 0.
        options: fields of the method, such as ``density=0.25``.

    Returns:
        The output, shaped and typed as `query`.

    Raises:
        ValueError: tensors that do not fit each other or the layout, a bad setting, a place that is missing, another
            setting than in earlier calls of `state`, or a step that has passed.
        FloatingPointError: the output is not finite, and `check_finite` asked to look.
    """
    _check_tensors(query, key, value, layout, key_lengths)
    if state is not None and not isinstance(state, AttentionState):
        raise ValueError(f"state is a vidaccel.AttentionState or None, not a {type(state).__name__}")
    place = Place(layer, layers, step, steps, branch, expert)
    asked = Asked(method, options, family, schedule, backend, min_tokens, precision, check_finite, compensation,
                  layer is not None, step is not None)  # fmt: skip
    own = AttentionState() if state is None else state
    calls = own._for(asked)
    spot = _spot(calls.setting, place, layout, query)
    kind = (expert, spot.site.layers, steps, layout, query.shape, query.dtype, query.device)
    if kind not in own._checked:
        _check_run(calls, spot, query, place, kept=state is not None)
    own._begin(calls, asked, place)
    own._checked.add(kind)
    calls.tally.layout, calls.tally.steps = layout, steps
    out, how = calls.attend(spot, query, key, value, key_lengths, dense or _dense)
    calls.check_finite(out, query, key, value, spot.site, how)
    return out


def _dense(query: Tensor, key: Tensor, value: Tensor, key_lengths: Tensor | None) -> Tensor:
    """Dense attention by torch."""
    mask = None
    if key_lengths is not None:
        mask = torch.arange(key.shape[1], device=key.device) < key_lengths.to(key.device)[:, None]
        mask = mask[:, None, None]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


def _spot(setting: Setting, place: Place, layout: TokenLayout, query: Tensor) -> Spot:
    if place.steps is None and setting.schedule.needs_steps:
        raise ValueError(f"{setting.schedule} is relative to the number of steps: pass steps, or give "
                         "dense_first_steps as a count and no dense_last_steps")  # fmt: skip
    if place.steps is None and setting.method.needs_steps:
        raise ValueError(f"these options of {setting.method.name} need the number of steps: pass step and steps")
    site = place.site(layout)
    return Spot(site, setting.schedule.resolve(place.steps, site.layers), query[:1, :1])


def _check_run(calls: Calls, spot: Spot, query: Tensor, place: Place, kept: bool) -> None:
    """Refuse what cannot be, at the first call of its kind.

    Raises:
        ValueError: why not.
    """
    setting, site = calls.setting, spot.site
    kernels.choose(setting.backend, spot.like, setting.precision)
    if (what := _places(setting, kept)) and (place.layer is None or place.step is None):
        raise ValueError(f"{what} differs between layers and steps: pass layer, layers, step and, if known, steps")
    if isinstance(setting.method, HeadProfile):
        _check_heads(setting.method, spot)
    last = dataclasses.replace(spot, site=dataclasses.replace(site, layer=site.layers - 1))
    calls.check_ahead(last, lambda: torch.empty(query.shape, dtype=query.dtype, device="meta"))


def _places(setting: Setting, kept: bool) -> str | None:
    """What of a setting is not the same everywhere, in words; what is remembered counts where it is kept."""
    method = setting.method
    if isinstance(method, HeadProfile) or (method.static and type(method).static_site is not Method.static_site):
        return f"the plan of method {method.name!r}"
    if kept and not method.static:
        return f"what method {method.name!r} remembers"
    if kept and setting.compensation is not None:
        return f"what compensation {setting.compensation.name!r} remembers"
    return None


def _check_heads(method: HeadProfile, spot: Spot) -> None:
    """Refuse calls that a profile's heads are not those of.

    Raises:
        ValueError: what differs.
    """
    shapes, site = method.sizes.tables[0].shapes(), spot.site
    if site.expert not in shapes:
        raise ValueError(f"the profile has heads for {', '.join(shapes)}, not for expert {site.expert!r}")
    known, given = shapes[site.expert], (site.layers, spot.shape[0])
    if known != given:
        raise ValueError(f"the profile has {known[0]} layers of {known[1]} heads for {site.expert}, the call says "
                         f"{given[0]} of {given[1]}")  # fmt: skip


def _check_tensors(query: Tensor, key: Tensor, value: Tensor, layout: Any, key_lengths: Tensor | None) -> None:
    """Refuse tensors that do not fit each other or the layout.

    Raises:
        ValueError: which, and what would fit.
    """
    if query.ndim != 4 or not query.is_floating_point():
        raise ValueError(f"query is floating point [batch, tokens, heads, head_dim], got {query.dtype} "
                         f"{list(query.shape)}")  # fmt: skip
    for name, each in (("key", key), ("value", value)):
        _check_like(name, each, query)
    if not isinstance(layout, TokenLayout):
        raise ValueError(f"layout is a vidaccel.TokenLayout, not {layout!r}")
    if query.shape[1] != layout.tokens:
        raise ValueError(f"the layout {layout} has {layout.tokens} tokens, the call {query.shape[1]}")
    if key_lengths is not None and (
        key_lengths.shape != query.shape[:1] or key_lengths.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(f"key_lengths is int32 or int64 [{query.shape[0]}], got {key_lengths.dtype} "
                         f"{list(key_lengths.shape)}")  # fmt: skip
    if torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value)):
        raise ValueError("sparse_attention has no gradient: call it under torch.no_grad() or torch.inference_mode()")


def _check_like(name: str, each: Tensor, query: Tensor) -> None:
    if (each.dtype, each.device) != (query.dtype, query.device):
        raise ValueError(f"{name} is {each.dtype} on {each.device}, query {query.dtype} on {query.device}")
    if each.shape == query.shape:
        return
    grouped = each.ndim == 4 and (*each.shape[:2], each.shape[3]) == (*query.shape[:2], query.shape[3])
    hint = "; repeat grouped key and value heads first, as by repeat_interleave along dimension 2" if grouped else ""
    raise ValueError(f"{name} is {list(each.shape)} and query {list(query.shape)}: self-attention has one shape{hint}")
