"""No method and no compensation carries anything over: every generation is bit-equal to that of a fresh session."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.methods.test_mixed import BLOCK, PATTERNS, layer
from vidaccel import calls as run_calls
from vidaccel.compensation import COMPENSATIONS
from vidaccel.heads import HeadTable
from vidaccel.methods import METHODS, Method
from vidaccel.methods.base import COMMON
from vidaccel.methods.mixed import Mixed
from vidaccel.methods.semantic import CENTROIDS, Semantic
from vidaccel.methods.semantic_tiles import Clusters
from vidaccel.profile import Profile
from vidaccel.site import Site
from vidaccel.summary import Tally

OPTIONS: dict[str, Any] = {"density": 0.4, "block": 16}
SETTING: dict[str, Any] = {"min_tokens": 0, "schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}
"""One dense step, for methods that watch."""
LARGE: dict[str, Any] = {"num_inference_steps": 3, "output_type": "latent"}
SMALL: dict[str, Any] = {**LARGE, "num_frames": 9, "height": 48, "width": 64}
OTHER: dict[str, Any] = {**LARGE, "prompt": "a blue square", "seed": 5}
CASES = [(name, None) for name, each in METHODS.items() if not each.static]
CASES += [(method, name) for name in COMPENSATIONS for method in ("semantic", "svg") if method in METHODS]
SHARE = ("semantic", "mixed")
"""Methods whose branches have centroids in common."""
Calls = list[tuple[Any, tuple[Any, ...], dict[str, Any], Tensor]]


@functools.cache
def pipe() -> Any:
    """Two experts and two guidance branches."""
    return tiny.tiny_wan(two_experts=True)


def mixed() -> Method:
    """Of two heads in two layers, those that choose change in the middle of a run."""
    heads = ((layer(1, 3), layer(3, 3)), (layer(3, 2), layer(2, 1)))
    table = HeadTable(BLOCK, PATTERNS, (0.7, 1.0), {"transformer": heads, "transformer_2": heads})
    profile = Profile("head_profile", {"max_error": 1e-3}, SETTING["schedule"], 0, heads=table)
    return Mixed.of(profile, dynamic="semantic", dynamic_density=0.4, refresh=2)


def session(method: str, compensation: str | None) -> Any:
    if method == "mixed":
        return vidaccel.enable(pipe(), mixed(), **SETTING, compensation=compensation)
    fields = METHODS[method].__dataclass_fields__  # type: ignore[attr-defined]
    options = {name: value for name, value in OPTIONS.items() if name in fields}
    options |= {"refresh": 2} if "refresh" in fields else {}
    return vidaccel.enable(pipe(), method, **SETTING, **options, compensation=compensation)


def stop(pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
    """Ends a generation after its second step: in the middle of the second expert's or of a plan's time."""
    if step == 1:
        raise KeyboardInterrupt
    return {}


@pytest.mark.parametrize(("method", "compensation"), CASES)
def test_nothing_is_carried_over(method: str, compensation: str | None) -> None:
    def fresh(call: dict[str, Any]) -> np.ndarray:
        with session(method, compensation):
            return tiny.generate(pipe(), **call)

    large, small = fresh(LARGE), fresh(SMALL)
    with session(method, compensation) as one:
        # Two generations in a row, after another prompt; then one after an aborted one, and two sizes in turn.
        tiny.generate(pipe(), **OTHER)
        assert np.array_equal(tiny.generate(pipe(), **LARGE), large)
        assert one.summary().tally.sparse == 8 and one.summary().tally.shapes.keys() == {"transformer", "transformer_2"}
        with pytest.raises(KeyboardInterrupt):
            tiny.generate(pipe(), **OTHER, callback_on_step_end=stop)
        assert np.array_equal(tiny.generate(pipe(), **LARGE), large)
        assert np.array_equal(tiny.generate(pipe(), **SMALL), small)
        assert np.array_equal(tiny.generate(pipe(), **LARGE), large)


def recorded(method: str, compensation: str | None) -> Calls:
    """The transformer calls of a generation, branches in turn."""
    calls: Calls = []

    def record(module: Any, args: Any, kwargs: Any, out: Any) -> None:
        calls.append((module, args, kwargs, out[0]))

    hooks = [
        each.register_forward_hook(record, with_kwargs=True) for each in (pipe().transformer, pipe().transformer_2)
    ]
    with session(method, compensation):
        tiny.generate(pipe(), **LARGE)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 6
    return calls


def same_again(calls: Calls, method: str, compensation: str | None) -> bool:
    """Whether calls of one branch give the same where the other never runs."""
    with torch.no_grad(), session(method, compensation) as alone:
        same = [torch.equal(module(*args, **kwargs)[0], out) for module, args, kwargs, out in calls]
        assert alone.summary().tally.sparse == 4
    return all(same)


@pytest.mark.parametrize(("method", "compensation"), [case for case in CASES if case[0] not in SHARE])
def test_branches_have_their_own(method: str, compensation: str | None) -> None:
    calls = recorded(method, compensation)
    assert same_again(calls[0::2], method, compensation) and same_again(calls[1::2], method, compensation)


@pytest.mark.parametrize(("method", "compensation"), [case for case in CASES if case[0] in SHARE])
def test_branches_share_centroids_alone(
    method: str, compensation: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Each branch gives what it gives where the other never runs but its centroids are put where they were found."""
    found: dict[str, list[dict[str, Any]]] = {"cond": [], "uncond": []}
    real = Semantic.clusters

    def note(self: Semantic, query: Tensor, key: Tensor, site: Site, state: dict[str, Any]) -> Clusters:
        found[site.branch].append(dict(state[COMMON]))
        return real(self, query, key, site, state)

    with monkeypatch.context() as patched:
        patched.setattr(Semantic, "clusters", note)
        calls = recorded(method, compensation)
    assert CENTROIDS not in found["cond"][0] and CENTROIDS in found["uncond"][0]
    for number, (branch, commons) in enumerate(found.items()):

        def put(self: Semantic, query: Tensor, key: Tensor, site: Site, state: dict[str, Any],
                branch: str = branch, commons: list[dict[str, Any]] = commons) -> Clusters:  # fmt: skip
            assert commons
            state[COMMON].clear()
            state[COMMON].update(commons.pop(0))
            return real(self, query, key, replace(site, branch=branch), state)

        with monkeypatch.context() as patched:
            patched.setattr(Semantic, "clusters", put)
            assert same_again(calls[number::2], method, compensation) and not commons


def test_what_leaks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that forgets to forget, and one that has one state for all branches, fail these tests."""

    def keeps(self: run_calls.Calls) -> None:
        self.tally = Tally()

    def shares(self: run_calls.Calls, site: Any, whose: str = "method") -> dict[str, Any]:
        return self.state.setdefault((whose, site.expert, "", site.layer), {})

    with monkeypatch.context() as patched, pytest.raises(AssertionError):
        patched.setattr(run_calls.Calls, "forget", keeps)
        test_nothing_is_carried_over("nabla", None)
    with monkeypatch.context() as patched, pytest.raises(AssertionError):
        patched.setattr(run_calls.Calls, "remembered", shares)
        test_branches_have_their_own("nabla", None)
    with monkeypatch.context() as patched, pytest.raises(AssertionError):
        patched.setattr(run_calls.Calls, "remembered", shares)
        test_branches_share_centroids_alone("semantic", None, monkeypatch)
