"""What methods that choose keys share: budgets, plans kept for some steps, drift, and watching dense first steps."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.methods.online import site_of, states
from tests.planning.no_sync import NoSync
from vidaccel.asked import profiled
from vidaccel.cli.options import method_options
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods import METHODS
from vidaccel.methods.base import COMMON, Method
from vidaccel.methods.budget import check_budget, density_at
from vidaccel.methods.drift import drifted
from vidaccel.methods.dynamic import Dynamic
from vidaccel.plan import AttentionPlan
from vidaccel.profile import Profile
from vidaccel.site import Site

LAYOUT = TokenLayout(3, 4, 5, text_after=4)
CURVE = ((0.3, 0.4), (1.0, 0.1))
SPARSE: dict[str, Any] = {"min_tokens": 0, "schedule": {"dense_first_steps": 0, "dense_first_layers": 0}}


@dataclass(frozen=True)
class Kept(Dynamic):
    """Keeps the first keys, as many as the density says, and writes down where it was asked and what it saw."""

    name: ClassVar[str] = "kept"
    observes: ClassVar[bool] = True
    block: int = 16
    log: list[Site] = field(default_factory=list, compare=False)
    seen: list[Site] = field(default_factory=list, compare=False)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        self.log.append(site)
        tokens = site.layout.tokens
        mask = BlockMask.full(tokens, tokens, self.block, self.block)
        ends = torch.full((mask.tiles,), max(1, round(tokens * (self.density_at(site) or 1.0))), dtype=torch.int32)
        return AttentionPlan(dataclasses.replace(mask, ranges=torch.stack([ends * 0, ends], 1), _copies={}))

    def observe(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> None:
        self.seen.append(site)
        state["observed"] = state.get("observed", 0) + 1


@dataclass(frozen=True)
class Blind(Kept):
    """As `Kept`, but it does not ask to observe."""

    name: ClassVar[str] = "blind"
    observes: ClassVar[bool] = False


@dataclass(frozen=True)
class Still(Kept):
    """As `Kept`, but static: it wants to observe and cannot, as its plans are made without queries and keys."""

    name: ClassVar[str] = "still"
    static: ClassVar[bool] = True

    def plan(self, query: Any, key: Any, value: Any, site: Site, state: dict[str, Any]) -> AttentionPlan:
        return self.choose(query, key, value, site, state)


@dataclass(frozen=True)
class Sharing(Kept):
    """As `Kept`, and its branches write down together where they were."""

    name: ClassVar[str] = "sharing"

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        state[COMMON].setdefault("sites", []).append(site)
        return super().choose(query, key, value, site, state)


def planned(method: Dynamic, steps: list[int], tensors: list[Tensor] | None = None) -> list[AttentionPlan]:
    state: dict[str, Any] = {}
    query, key, value = tensors or states(LAYOUT)
    return [method.plan(query, key, value, site_of(LAYOUT, step), state) for step in steps]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.tiny_wan()


@pytest.mark.parametrize("refresh", [1, 2, 3])
def test_a_plan_serves_as_many_steps_as_asked(refresh: int) -> None:
    method = Kept(refresh=refresh)
    plans = planned(method, list(range(7)))
    assert [site.step for site in method.log] == list(range(0, 7, refresh))
    for step, plan in enumerate(plans):
        assert plan is plans[step - step % refresh]


def test_only_computed_steps_count_and_a_step_counts_once() -> None:
    method = Kept(refresh=2)
    first, again, far, new = planned(method, [0, 0, 9, 10])
    assert first is again is far and new is not first
    assert [site.step for site in method.log] == [0, 10]


def test_calls_of_another_shape_or_type_start_anew_and_keep_what_was_observed() -> None:
    method, state = Kept(refresh=9), {}  # type: tuple[Kept, dict[str, Any]]
    method.observe(*states(LAYOUT), site_of(LAYOUT, 0), state)
    first = method.plan(*states(LAYOUT), site_of(LAYOUT, 1), state)
    assert state["observed"] == 1
    half = [each.half() for each in states(LAYOUT)]
    assert method.plan(*half, site_of(LAYOUT, 2), state) is not first and "observed" not in state
    assert len(method.log) == 2
    method.plan(*states(LAYOUT, batch=2), site_of(LAYOUT, 3), state)
    assert len(method.log) == 3


def test_calls_of_another_shape_empty_what_branches_have_in_common() -> None:
    method, common = Sharing(), {}  # type: tuple[Sharing, dict[str, Any]]
    cond, uncond = {COMMON: common}, {COMMON: common}
    for state in (cond, uncond):
        method.plan(*states(LAYOUT), site_of(LAYOUT, 1), state)
    assert len(common["sites"]) == 2
    half = [each.half() for each in states(LAYOUT)]
    for number, state in enumerate((uncond, cond), start=1):
        method.plan(*half, site_of(LAYOUT, 2), state)
        assert len(common["sites"]) == number and state[COMMON] is common


def test_branches_of_a_layer_have_one_dictionary_in_common_for_a_generation(pipe: Any) -> None:
    method = Sharing(density=0.5)
    with vidaccel.enable(pipe, method, **SPARSE) as session:
        for _ in range(2):
            tiny.generate(pipe, output_type="latent")
        found = {key: state for key, state in session.calls.state.items() if "sites" in state}
    assert found.keys() == {("method", "transformer", COMMON, layer) for layer in (0, 1)}
    for (*_, layer), state in found.items():
        assert [(site.step, site.branch, site.layer) for site in state["sites"]] == [
            (step, branch, layer) for step in range(4) for branch in ("cond", "uncond")
        ]


@pytest.mark.parametrize(
    ("share", "density"), [(0.0, 0.4), (0.25, 0.4), (0.3, 0.4), (0.5, 0.4 - 0.3 * 0.2 / 0.7), (0.65, 0.25), (1.0, 0.1)]
)
def test_density_of_a_curve(share: float, density: float) -> None:
    site = dataclasses.replace(site_of(LAYOUT, round(share * 20)), steps=21)
    assert density_at(CURVE, site) == pytest.approx(density)
    assert Kept(density=CURVE).density_at(site) == density_at(CURVE, site)


def test_curves_of_one_knot_short_runs_and_steps_past_the_end() -> None:
    def at(step: int, steps: int) -> float | None:
        return density_at(CURVE, dataclasses.replace(site_of(LAYOUT, step), steps=steps))

    assert at(0, 1) == 0.4 and at(0, 2) == 0.4 and at(1, 2) == 0.1 and at(7, 4) == pytest.approx(0.1)
    assert density_at(((1, 0.3),), site_of(LAYOUT, 49)) == 0.3
    assert density_at(None, site_of(LAYOUT)) is None and density_at(0.2, site_of(LAYOUT)) == 0.2


def test_a_curve_is_the_density_of_each_step_of_a_run(pipe: Any) -> None:
    method = Kept(density=((0, 0.8), (1, 0.2)))
    with vidaccel.enable(pipe, method, **SPARSE) as session:
        tiny.generate(pipe, output_type="latent")
        achieved = session.summary().densities()
    assert achieved is not None
    assert achieved.by_step == pytest.approx((0.8, 0.6, 0.4, 0.2), abs=0.005)


def test_a_curve_of_json_is_the_curve() -> None:
    given = Kept(density=json.loads(json.dumps(CURVE)))
    assert given == Kept(density=CURVE) and hash(given) == hash(Kept(density=CURVE)) and given.density == CURVE
    fields = {name: value for name, value in dataclasses.asdict(given).items() if name not in ("log", "seen")}
    assert Kept(**json.loads(json.dumps(fields))) == given
    assert Kept.for_family("wan", density=[[0.3, 0.4], [1.0, 0.1]]) == given


def test_a_curve_on_the_command_line_and_in_a_profile(tmp_path: Path) -> None:
    options = method_options("nabla", ["density=[[0.3, 0.4], [1.0, 0.1]]"])
    assert METHODS["nabla"].for_family("wan", **options) == METHODS["nabla"].for_family("wan", density=CURVE)
    assert method_options("nabla", ["density=0.2"]) == {"density": 0.2}
    with pytest.raises(ValueError, match=r"is not none or a number or a list as JSON"):
        method_options("nabla", ["density=[0.3"])
    Profile("nabla", {"density": CURVE}).save(tmp_path / "p.json")
    assert profiled(Profile.load(tmp_path / "p.json"), "wan", {}) == METHODS["nabla"].for_family("wan", density=CURVE)


def test_a_curve_without_a_number_of_steps_is_refused_before_the_first_step(pipe: Any) -> None:
    late = {"min_tokens": 0, "schedule": {"dense_first_steps": 2, "dense_first_layers": 0}}
    with pytest.raises(ValueError, match="kept need the number of steps of a run.*pass num_inference_steps"):
        vidaccel.enable(pipe.transformer, Kept(density=CURVE), **late)
    assert not hasattr(pipe.transformer, "_vidaccel_session")
    with vidaccel.enable(pipe.transformer, Kept(density=CURVE), num_inference_steps=4, **late) as session:
        assert session.summary().options["density"] == CURVE
    with vidaccel.enable(pipe.transformer, Kept(density=0.5), **late):
        pass
    with pytest.raises(ValueError, match="density curve needs the number of steps"):
        density_at(CURVE, dataclasses.replace(site_of(LAYOUT), steps=None))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"density": 0.2, "top_p": 0.9}, "not both"), ({"density": 0}, "density 0 is outside"),
     ({"density": True}, "outside"), ({"density": "0.2"}, "outside"), ({"density": []}, "no curve"),
     ({"top_p": 1.5}, "top_p 1.5 is outside"), ({"top_p": math.nan}, "outside"),
     ({"density": [0.3, 0.4]}, "has pairs"), ({"density": [[0.3, 0.4, 1]]}, "has pairs"),
     ({"density": [[1.0, 0.0]]}, "has pairs"), ({"density": [[0.3, 0.4]]}, "rise from at least 0 to 1"),
     ({"density": [[0.5, 0.4], [0.5, 0.3], [1, 0.2]]}, "rise"), ({"density": [[-1, 0.4], [1, 0.2]]}, "rise"),
     ({"density": [[math.nan, 0.4], [1, 0.2]]}, "rise"), ({"density": [["a", 0.4], [1, 0.2]]}, "rise"),
     ({"block": 24}, "power of two"), ({"refresh": 0}, "refresh 0 is not"),
     ({"refresh": 2, "drift": 0}, "drift 0 is not a number above 0"), ({"refresh": 2, "drift": math.nan}, "not a num"),
     ({"drift": 0.1}, "can do nothing")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Kept(**options)


def test_no_budget_is_the_default_one_and_either_replaces_the_other() -> None:
    assert Kept().density == 0.25 and Kept(top_p=0.9).density is None
    assert Kept.merged({"density": 0.2, "block": 32}, {"top_p": 0.8}) == {"block": 32, "top_p": 0.8}
    check_budget(None, None)


def test_drift_makes_a_plan_anew_one_step_after_the_keys_changed() -> None:
    method, state = Kept(refresh=99, drift=0.5), {}  # type: tuple[Kept, dict[str, Any]]
    query, key, value = states(LAYOUT)
    made = []
    for step in range(9):
        # A change of 2 %, and from step 4 on one of 100 %.
        now = key * (1.02 if step % 2 else 1.0) * (2 if step >= 4 else 1)
        made.append(method.plan(query, now, value, site_of(LAYOUT, step), state))
    assert [site.step for site in method.log] == [0, 5]
    assert made[4] is made[0] and made[5] is made[8] is not made[0]


def test_drift_is_measured_from_the_keys_of_the_last_plan_not_of_the_last_step() -> None:
    method, state = Kept(refresh=99, drift=0.5), {}  # type: tuple[Kept, dict[str, Any]]
    query, key, value = states(LAYOUT)
    for step in range(6):
        method.plan(query, key * (1 + 0.2 * step), value, site_of(LAYOUT, step), state)
    # At step 3 the change since step 0 is 60 %: seen then, acted on in step 4.
    assert [site.step for site in method.log] == [0, 4]


def test_drift_and_refresh_start_each_other_anew() -> None:
    method, state = Kept(refresh=3, drift=0.5), {}  # type: tuple[Kept, dict[str, Any]]
    query, key, value = states(LAYOUT)
    for step in range(8):
        method.plan(query, key * (3 if step >= 1 else 1), value, site_of(LAYOUT, step), state)
    assert [site.step for site in method.log] == [0, 2, 5]


def test_drift_looks_at_no_text_and_in_the_measure_that_it_says() -> None:
    query, key, value = states(LAYOUT)
    method, state = Kept(refresh=99, drift=1e-6), {}  # type: tuple[Kept, dict[str, Any]]
    for step in range(4):
        key[:, LAYOUT.video_end :] = float(step)
        method.plan(query, key, value, site_of(LAYOUT, step), state)
    assert len(method.log) == 1
    # One block holds all of the video: the measure is that of its mean.
    video = key[:, : LAYOUT.video_end]
    change = 0.3 * torch.randn(video.shape[2:], generator=torch.Generator().manual_seed(1))
    size = float(change.norm() / video.mean(1).norm())
    for limit, moved in ((size * 0.999, True), (size * 1.001, False)):
        state = {}
        assert not drifted(limit, video, state, renew=True)
        assert not drifted(limit, video + change, state, renew=False)
        assert drifted(limit, video, state, renew=False) == moved


def test_drift_waits_for_nothing_when_it_looks() -> None:
    _, key, _ = states(LAYOUT)
    state: dict[str, Any] = {}
    with NoSync():
        for _ in range(2):
            drifted(0.5, key, state, renew=True)
            drifted(0.5, key, state, renew=False)
            del state["drift_signal"]
    assert drifted(None, key, {}, renew=True) is False


def test_a_method_watches_dense_first_steps_of_layers_that_will_be_sparse(pipe: Any) -> None:
    schedule = {"dense_first_steps": 2, "dense_first_layers": 1}
    method = Kept(density=0.5)
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=schedule) as session:
        watched = tiny.generate(pipe, output_type="latent")
        counts = session.summary().to_dict()
    assert [(site.step, site.branch, site.layer) for site in method.seen] == [
        (step, branch, 1) for step in (0, 1) for branch in ("cond", "uncond")
    ]
    assert counts["dense_calls"] == {"in first layers": 8, "in first steps": 4}
    # Watching changes nothing of what comes out.
    for other in (Blind(density=0.5), Still(density=0.5)):
        with vidaccel.enable(pipe, other, min_tokens=0, schedule=schedule):
            assert torch.equal(torch.tensor(tiny.generate(pipe, output_type="latent")), torch.tensor(watched))
        assert other.log and not other.seen


@pytest.mark.parametrize("schedule", [{"dense_first_steps": 0, "dense_last_steps": 2, "dense_first_layers": 1},
                                      {"dense_first_steps": 1.0, "dense_first_layers": 0}])  # fmt: skip
def test_a_method_watches_nothing_that_no_sparse_call_follows(pipe: Any, schedule: dict[str, Any]) -> None:
    method = Kept(density=0.5)
    with vidaccel.enable(pipe, method, min_tokens=0, schedule=schedule):
        tiny.generate(pipe, output_type="latent")
    assert method.seen == []


def test_too_short_calls_are_not_watched(pipe: Any) -> None:
    method = Kept(density=0.5)
    with vidaccel.enable(pipe, method, min_tokens=10**6):
        tiny.generate(pipe, output_type="latent")
    assert method.seen == [] and method.log == []


def test_the_default_is_to_watch_and_remember_nothing() -> None:
    state: dict[str, Any] = {}
    Method.observe(Blind(), *states(LAYOUT), site_of(LAYOUT), state)
    assert state == {} and not Method.observes
