"""Profiles whose resisting heads choose: the plan against its two parts head by head, and runs in a pipeline."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import vidaccel
from tests import tiny
from tests.methods.online import states
from tests.methods.test_dynamic import Blind
from tests.planning.no_sync import NoSync
from vidaccel import Profile
from vidaccel.heads import HeadOption, HeadsAt, HeadTable
from vidaccel.layout import TokenLayout
from vidaccel.mask import BlockMask
from vidaccel.methods import METHODS, ModelFacts, joined
from vidaccel.methods.base import COMMON
from vidaccel.methods.dynamic import Dynamic
from vidaccel.methods.head_profile import HeadProfile
from vidaccel.methods.mixed import Mixed
from vidaccel.patterns import Pattern, density_of, plan_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.simple import Dense, Skip
from vidaccel.plan import AttentionPlan
from vidaccel.site import Site

GRID = TokenLayout(5, 4, 6)
LAYOUTS = [GRID, TokenLayout(5, 4, 6, text_before=9), TokenLayout(5, 4, 6, text_after=9)]
BLOCK = 16
PATTERNS: tuple[Pattern, ...] = (Skip(), Band(0.05), Band(0.2, "HWF"), Dense())
NEVER_DENSE = {"dense_first_steps": 0, "dense_first_layers": 0}


def layer(*patterns: int) -> tuple[Any, ...]:
    """A layer whose heads will have these patterns; the others are worse or dense. 3 resists."""

    def option(index: int, error: float) -> HeadOption:
        density = density_of(PATTERNS[index], GRID, BLOCK)
        return HeadOption(index, error, density, density)

    return tuple((option(1, 1.0), option(3, 0.0)) if index == 3 else (option(index, 1e-9), option(3, 0.0))
                 for index in patterns)  # fmt: skip


BANDS = ((layer(1, 3, 2), layer(3, 3, 3)), (layer(3, 2, 1), layer(2, 0, 1)))
"""By band and layer: heads 1, all, 0 and none resist."""


def profile(bands: tuple[Any, ...] = BANDS) -> Profile:
    table = HeadTable(BLOCK, PATTERNS, (0.5, 1.0), {"transformer": bands})
    return Profile("head_profile", {"max_error": 1e-3}, NEVER_DENSE, 0, heads=table)


def at(layer: int, step: int, layout: TokenLayout = GRID) -> Site:
    return Site(layer, 2, step, 4, "cond", "transformer", layout)


def mixed(**options: Any) -> Mixed:
    made = Mixed.of(profile(), **{"dynamic": "nabla", "dynamic_density": 0.4, **options})
    assert isinstance(made, Mixed)
    return made


def pairs(plan: AttentionPlan, lanes: int, tokens: int) -> Tensor:
    """What each lane attends to, in the tokens' own order: bool ``[lanes, tokens, tokens]``."""
    if plan.mask is None:
        return torch.ones(lanes, tokens, tokens, dtype=torch.bool)
    masks, found = plan.mask.to_dense(), torch.zeros(lanes, tokens, tokens, dtype=torch.bool)
    natural = torch.arange(tokens)[None]
    queries, keys = (natural if each is None else each.long() for each in (plan.query_order, plan.key_order))
    for lane in range(lanes):
        found[lane][queries[lane % len(queries)][:, None], keys[lane % len(keys)]] = masks[lane % len(masks)]
    return found


@dataclass(frozen=True)
class Given(Dynamic):
    """Gives a plan that it was given."""

    name: ClassVar[str] = "given"
    what: AttentionPlan = dataclasses.field(default_factory=AttentionPlan)

    def choose(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> AttentionPlan:
        return self.what


def random_plan(lanes: int, orders: int, groups: int = 0) -> AttentionPlan:
    generator = torch.Generator().manual_seed(lanes + orders)
    tokens, tiles = GRID.tokens, -(-GRID.tokens // BLOCK)
    blocks = torch.rand(lanes, tiles, tiles, generator=generator) < 0.4
    mask = BlockMask.from_blocks(blocks, BLOCK, BLOCK, tokens, tokens)
    # Slack at the end, as a mask that was made on a GPU has.
    mask = dataclasses.replace(mask, ranges=torch.cat([mask.ranges, mask.ranges.new_zeros(7, 2)]), _copies={})
    order = [torch.stack([torch.randperm(tokens, generator=generator) for _ in range(orders)]).int() if orders else None
             for _ in range(2)]  # fmt: skip
    cuts = torch.tensor([0, 3, 50, tokens], dtype=torch.int32).expand(max(1, orders), -1) if groups else None
    return AttentionPlan(mask, *order, key_groups=cuts)


@pytest.mark.parametrize(
    ("lanes", "orders", "batch"),
    [(1, 0, 1), (1, 1, 1), (2, 2, 1), (0, 0, 1), (2, 1, 1), (1, 0, 2), (1, 1, 2), (2, 2, 2), (4, 4, 2), (4, 0, 2),
     (1, 4, 2), (0, 0, 2)],
)  # fmt: skip
def test_lanes_are_those_of_the_two_parts(lanes: int, orders: int, batch: int) -> None:
    """Heads 1 and 3 of 5 choose; the method gives one lane, a lane a head or a lane a batch row and head, or none."""
    patterns, heads = (PATTERNS[1], Dense(), PATTERNS[2], Dense(), PATTERNS[0]), (1, 3)
    own = random_plan(lanes, orders) if lanes else AttentionPlan()
    plan = joined.joined(patterns, heads, own, GRID, BLOCK, batch, torch.device("cpu"))
    assert plan.mask is not None and plan.mask.patterns == 5 * batch
    plan.mask.validate()
    static = pairs(plan_of([patterns[0], patterns[2], patterns[4]], GRID, BLOCK), 3, GRID.tokens)
    chosen = pairs(own, 2 * batch, GRID.tokens)
    found = pairs(plan, 5 * batch, GRID.tokens)
    for row in range(batch):
        expected = torch.stack([static[0], chosen[2 * row], static[1], chosen[2 * row + 1], static[2]])
        assert torch.equal(found[5 * row : 5 * row + 5], expected)


def test_groups_of_keys_are_the_methods_and_as_many_equal_ones() -> None:
    patterns = (PATTERNS[1], Dense(), Dense())
    plan = joined.joined(patterns, (1, 2), random_plan(2, 2, 3), GRID, BLOCK, 1, torch.device("cpu"))
    assert plan.key_groups is not None and plan.key_groups.tolist() == [[0, 40, 80, 120]] + [[0, 3, 50, 120]] * 2


def test_masks_that_do_not_fit_are_not_joined() -> None:
    one, index = BlockMask.full(64, 64, 16, 16), torch.zeros(2, dtype=torch.int64)
    for others in ([], [one, BlockMask.full(64, 64, 32, 16)], [one, BlockMask.full(64, 48, 16, 16)]):
        with pytest.raises(ValueError, match="masks to join have equal query blocks"):
            BlockMask.join(others, index, 9)
    assert BlockMask.join([one, BlockMask.full(64, 64, 16, 8)], index, 9).key_block == 8


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dynamic", [name for name, each in METHODS.items() if issubclass(each, Dynamic)])
def test_heads_that_resist_have_the_methods_plan_of_themselves(dynamic: str, layout: TokenLayout) -> None:
    made = mixed(dynamic=dynamic)
    tensors = states(layout, batch=2)
    for layer_at, step, heads in ((0, 0, (1,)), (1, 0, (0, 1, 2)), (0, 2, (0,)), (1, 2, ())):
        site = at(layer_at, step, layout)
        assert made.resisting(site) == heads
        plan = made.plan(*tensors, site, {})
        patterns = [PATTERNS[0] if head in heads else each for head, each in enumerate(made.patterns(site))]
        expected = pairs(plan_of(patterns, layout, BLOCK), 6, layout.tokens)
        if heads:
            own = made.chooses.plan(*(each[:, :, list(heads)] for each in tensors), site, {})
            chosen = pairs(own, 2 * len(heads), layout.tokens).unflatten(0, (2, len(heads)))
            expected = expected.unflatten(0, (2, 3))
            expected[:, list(heads)] = chosen
            expected = expected.flatten(0, 1)
        assert torch.equal(pairs(plan, 6, layout.tokens), expected)


def test_a_lower_bar_lets_more_heads_choose_and_layers_without_a_choice_stay_dense() -> None:
    least = density_of(PATTERNS[2], GRID, BLOCK)
    assert mixed(resists=least * 0.999).resisting(at(0, 0)) == (1, 2)
    only = tuple((HeadOption(3, 0.0, 1.0, 1.0),) for _ in range(3))
    made = Mixed.of(profile(((only, only), BANDS[1])), dynamic="nabla")
    assert isinstance(made, Mixed) and made.resisting(at(0, 0)) == ()
    assert made.plan(*states(GRID), at(0, 0), {}).mask is None


def test_plans_are_kept_as_long_as_the_methods_and_other_heads_start_anew() -> None:
    made, state, tensors = mixed(refresh=9), {}, states(GRID)  # type: tuple[Mixed, dict[str, Any], list[Tensor]]
    first = made.plan(*tensors, at(0, 0), state)
    assert not made.reused(state)
    assert made.plan(*tensors, at(0, 1), state) is first and made.reused(state)
    # Head 0 chooses from here on, head 1 no longer.
    assert made.plan(*tensors, at(0, 2), state) is not first and not made.reused(state)
    assert made.plan(*tensors, at(1, 2), {}).mask is not None


def test_the_method_watches_the_heads_that_will_choose() -> None:
    made, seen = mixed(dynamic="semantic"), []  # type: tuple[Mixed, list[Any]]
    assert made.observes and not mixed().observes

    class Watching(Blind):
        def observe(self, query: Tensor, key: Tensor, value: Tensor, site: Site, state: dict[str, Any]) -> None:
            seen.append((query.shape[2], query[0, 0, :, 0].tolist()))
            state["watched"] = True

    object.__setattr__(made, "_chooses", Watching())
    tensors = states(GRID)
    first = tensors[0][0, 0, :, 0].tolist()
    made.observe(*tensors, at(0, 0), {})
    later = Mixed.of(profile(((layer(1, 2, 1), BANDS[0][1]), BANDS[1])), dynamic="semantic")
    object.__setattr__(later, "_chooses", Watching())
    state: dict[str, Any] = {}
    later.observe(*tensors, at(0, 0), state)
    later.observe(*tensors, at(1, 2), {})
    assert seen == [(1, [first[1]]), (1, [first[0]])]
    # What was seen is there when the heads come to choose.
    later.plan(*tensors, at(0, 2), state)
    assert state["inner"]["watched"]


def test_its_method_knows_of_a_compensation() -> None:
    made = mixed(dynamic="semantic")
    beside = made.compensated("centroid")
    assert beside == made and beside.chooses.rank == "error" and made.chooses.rank is None  # type: ignore[attr-defined]
    assert beside.compensated(None).chooses.rank == "error", "a rank that is settled stays"  # type: ignore[attr-defined]


def test_branches_share_what_the_method_has_in_common_for_its_heads() -> None:
    made, common = mixed(dynamic="semantic"), {}  # type: tuple[Mixed, dict[str, Any]]
    states_of: dict[str, dict[str, Any]] = {branch: {COMMON: common} for branch in ("cond", "uncond")}

    def centroids(step: int, branch: str) -> Tensor:
        site = dataclasses.replace(at(0, step), branch=branch)
        made.plan(*states(GRID, seed=step), site, states_of[branch])
        inner = states_of[branch]["inner"]
        assert "centroids" not in inner
        kept: Tensor = inner[COMMON]["centroids"][1]
        return kept

    first, inner = centroids(0, "cond"), states_of["cond"]["inner"][COMMON]
    centroids(0, "uncond")
    assert states_of["uncond"]["inner"] is not states_of["cond"]["inner"]
    assert states_of["uncond"]["inner"][COMMON] is inner
    # Another head chooses, and then the first one again: the other branch, which missed that, follows.
    centroids(2, "cond")
    assert states_of["cond"]["inner"][COMMON] is not inner
    assert torch.equal(centroids(0, "cond"), first), "from random tokens, as at first"
    centroids(0, "uncond")
    assert states_of["uncond"]["inner"][COMMON] is states_of["cond"]["inner"][COMMON] is not inner


def test_nothing_waits() -> None:
    made = mixed()
    tensors = [each.to("meta") for each in states(LAYOUTS[1], batch=2)]
    made.plan(*tensors, at(0, 0, LAYOUTS[1]), {})
    with NoSync():
        plan = made.plan(*tensors, at(0, 0, LAYOUTS[1]), {})
        plan.densities(LAYOUTS[1])
    assert plan.mask is not None and plan.mask.ranges.device.type == "meta" and plan.mask.patterns == 6


@pytest.fixture
def saved(tmp_path: Any) -> str:
    two = tuple(tuple(heads[:2] for heads in band) for band in BANDS)
    return str(profile(two).save_pretrained(tmp_path / "model"))


def test_runs_in_a_pipeline(saved: str) -> None:
    pipe = tiny.tiny_wan()
    stock = tiny.generate(pipe, output_type="latent")
    setting: dict[str, Any] = {"min_tokens": 0, "schedule": NEVER_DENSE}
    with vidaccel.enable(pipe, "mixed", profile=saved, dynamic="semantic", dynamic_density=0.4, **setting) as session:
        sparse = tiny.generate(pipe, output_type="latent")
        assert np.array_equal(tiny.generate(pipe, output_type="latent"), sparse)
        achieved = session.summary().densities()
        assert session.summary().options["model_family"] == "wan"
    assert np.abs(sparse - stock).max() > 1e-3 and achieved is not None
    assert max(value or 0 for value in achieved.by_layer["transformer"]) < 0.8
    # Resisting heads that keep everything are those of the profile alone.
    with vidaccel.enable(pipe, "mixed", profile=saved, dynamic="nabla", dynamic_density=1.0, **setting):
        whole = tiny.generate(pipe, output_type="latent")
    with vidaccel.enable(pipe, "head_profile", profile=saved, **setting):
        np.testing.assert_allclose(tiny.generate(pipe, output_type="latent"), whole, atol=2e-4)


def test_fields_make_the_same_again(saved: str) -> None:
    made = METHODS["mixed"].for_family("wan", profile=saved, dynamic="nabla", dynamic_density=[[0, 0.5], [1, 0.2]])
    values = json.loads(json.dumps(dataclasses.asdict(made)))  # type: ignore[call-overload]
    assert Mixed(**values) == made and hash(Mixed(**values)) == hash(made) and made.needs_steps
    assert isinstance(made, Mixed) and made.chooses.density == ((0, 0.5), (1, 0.2)) and made.chooses.block == BLOCK
    assert HeadProfile(saved) != made


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"dynamic": "radial"}, "'radial' is not one for heads that resist"), ({"dynamic": "x"}, "unknown method 'x'"),
     ({"resists": 0}, "density 0 is outside"), ({"dynamic_density": 2}, "density 2 is outside"),
     ({"refresh": 0}, "refresh 0 is not"), ({"drift": 0.1}, "can do nothing"), ({"profile": ""}, "needs a profile")],
)  # fmt: skip
def test_bad_options(saved: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Mixed(**{"profile": saved, "dynamic": "nabla", **options})


def test_models_are_checked_as_of_a_profile() -> None:
    facts = ModelFacts("WanTransformer3DModel", {}, 2, 4, 64)
    with pytest.raises(ValueError, match="the model has 2 of 4"):
        mixed().check_models({"transformer": facts})


def test_at_another_size_other_heads_resist() -> None:
    """Each size has its table: the heads that choose are those that resisted there."""
    small = TokenLayout(5, 3, 4)
    table = HeadTable(BLOCK, PATTERNS, (0.5, 1.0), {"transformer": BANDS[::-1]})
    both = dataclasses.replace(profile(), calibration={"grid": str(GRID)}, heads_at=(HeadsAt(small, table),))
    made = Mixed.of(both, dynamic="nabla", dynamic_density=0.4)
    assert isinstance(made, Mixed)
    for layer, step in ((0, 0), (1, 0), (0, 3), (1, 3)):
        assert made.resisting(at(layer, step)) == mixed().resisting(at(layer, step))
        assert made.resisting(at(layer, step, small)) == mixed().resisting(at(layer, 3 - step))
    assert made.resisting(at(0, 0)) == (1,) and made.resisting(at(0, 0, small)) == (0,)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, small.tokens, 3, 64, generator=generator) for _ in range(3))
    plan = made.plan(q, k, v, at(0, 0, small), {COMMON: {}})
    assert plan.mask is not None and plan.mask.patterns == 3
    assert pairs(plan, 3, small.tokens)[1].sum() == pairs(plan_of([PATTERNS[2]], small, BLOCK), 1, small.tokens).sum()


def test_all_sizes_have_one_block() -> None:
    table = HeadTable(32, PATTERNS, (0.5, 1.0), {"transformer": BANDS})
    both = dataclasses.replace(profile(), calibration={"grid": str(GRID)},
                               heads_at=(HeadsAt(TokenLayout(5, 3, 4), table),))  # fmt: skip
    made = Mixed.of(both, dynamic="nabla", dynamic_density=0.4)
    assert isinstance(made, Mixed) and made.block == made.chooses.block == BLOCK
