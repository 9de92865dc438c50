"""A model that is split and enabled, in either order, and made whole again; what cannot be split is said before."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn

import vidaccel
from tests import tiny
from tests.methods.test_mixed import BLOCK, PATTERNS, layer
from tests.parallel import cases
from tests.parallel.test_ulysses import CLASSES, COG, HUNYUAN, SPARSE, TOLERANCE, WAN, build, narrow
from tests.parallel.world import World
from tests.pipelines.models import models
from vidaccel.heads import HeadTable
from vidaccel.parallel.deal import deal, plain
from vidaccel.profile import Profile
from vidaccel.site import Observed


def radial(transformer: nn.Module) -> Any:
    return vidaccel.enable(transformer, "radial", decay=0.0, split=16, sink=False, block=16, **SPARSE)


def places(transformer: nn.Module) -> dict[str, Any]:
    """What of a model is replaced, hooked or set on instances."""
    found: dict[str, Any] = {}
    for name, module in transformer.named_modules():
        found[name] = sorted(module.__dict__), list(module._forward_pre_hooks), getattr(module, "processor", None)
        found[f"{name}()"] = getattr(module.forward, "__func__", None)
    return found


def either_order(name: str) -> dict[str, Any]:
    """Errors of both orders against one process, and what is left afterwards."""
    transformer = build(name, 4)
    call = models()[name].inputs(transformer)
    stock, before = cases.forward(transformer, call), places(transformer)
    with radial(transformer):
        alone = cases.forward(transformer, call)
    radial(transformer)
    cases.split(transformer, cases.config(ulysses=2))
    after = cases.forward(transformer, call)
    # A new setting keeps the split.
    radial(transformer)
    again = cases.forward(transformer, call)
    vidaccel.disable(transformer)
    left = transformer._parallel_config is not None
    exact = places(transformer) == before
    disabled = cases.forward(transformer, call)
    found = {"enabled first": cases.error(after, alone), "again": cases.error(again, alone), "split": left,
             "stock": cases.error(disabled, stock)}  # fmt: skip
    if left:
        return found
    cases.parallelised(transformer, ulysses=2)
    radial(transformer)
    return found | {"exact": exact, "split first": cases.error(cases.forward(transformer, call), alone)}


def test_wan_stays_split_as_its_own_attention_knows_how(world: World) -> None:
    for found in world(either_order, WAN):
        assert found.pop("split")
        assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("name", [HUNYUAN, COG])
def test_others_become_whole_again(name: str, world: World) -> None:
    for found in world(either_order, name):
        assert not found.pop("split") and found.pop("exact") and found.pop("stock") == 0
        assert max(found.values()) < TOLERANCE


def unguarded(name: str, how: str) -> None:
    """A forward by stock attention that does not know of the split."""
    transformer = build(name, 4)
    call = models()[name].inputs(transformer)
    cases.parallelised(transformer, ulysses=2)
    if how == "set aside":
        radial(transformer).detach()
    cases.forward(transformer, call)


@pytest.mark.parametrize("how", ["never enabled", "set aside"])
def test_stock_attention_never_runs_on_parts(how: str, world: World) -> None:
    with pytest.raises(RuntimeError, match="which its own attention does not know"):
        world(unguarded, HUNYUAN, how)


def with_gradients() -> None:
    transformer = build(HUNYUAN, 4)
    call = models()[HUNYUAN].inputs(transformer)
    cases.parallelised(transformer, ulysses=2)
    radial(transformer)
    transformer(**call, return_dict=False)


def test_gradients_are_refused_where_stock_attention_would_compute_them(world: World) -> None:
    with pytest.raises(RuntimeError, match="does not know how the clip is split"):
        world(with_gradients)


def other_plan() -> None:
    transformer: Any = build(WAN, 4)
    plan = dict(type(transformer)._cp_plan)
    del plan["rope"]
    cases.split(transformer, cases.config(ulysses=2), cp_plan=plan)
    radial(transformer)
    cases.forward(transformer, models()[WAN].inputs(transformer))


def odd_tokens() -> None:
    transformer = build(WAN, 4)
    cases.parallelised(transformer, ulysses=2)
    radial(transformer)
    cases.forward(transformer, narrow(models()[WAN].inputs(transformer)))


def few_heads() -> None:
    transformer = build(WAN, 1)
    cases.parallelised(transformer, ulysses=2)
    radial(transformer)
    cases.forward(transformer, models()[WAN].inputs(transformer))


def observed() -> None:
    transformer = build(WAN, 4)
    cases.parallelised(transformer, ulysses=2)
    session, seen = radial(transformer), list[Observed]()
    session.observer = seen.append
    cases.forward(transformer, models()[WAN].inputs(transformer))


@pytest.mark.parametrize(("case", "message"), [
    (other_plan, r"cp_plan=vidaccel\.parallel_plan"),
    (odd_tokens, r"75 video tokens cannot be split evenly over 2 processes: .*ulysses_anything=True"),
    (few_heads, r"1 heads cannot be dealt to 2 processes: use ulysses_degree=1"),
    (observed, "cannot be observed"),
])  # fmt: skip
def test_what_cannot_be_is_said_before_the_first_step(case: Any, message: str, world: World) -> None:
    with pytest.raises(ValueError, match=message):
        world(case)


def test_a_plan_is_there_without_processes() -> None:
    for name in CLASSES:
        assert vidaccel.parallel_plan(build(name, 2))
    with pytest.raises(ValueError, match="its sound attends to the video"):
        vidaccel.parallel_plan(models()["LTX2VideoTransformer3DModel"].build())
    assert not tiny.tiny_wan_transformer()._forward_pre_hooks


def skewed(transformer: nn.Module) -> Profile:
    """Two heads that keep much, and then two that keep little."""
    table = HeadTable(BLOCK, PATTERNS, (1.0,), {"transformer": ((layer(1, 1, 2, 2),) * 2,)})
    return Profile("head_profile", {"max_error": 1e-3}, SPARSE["schedule"], 0, heads=table)


def deals() -> tuple[Any, Any, Tensor]:
    """The deal of a skewed profile, in two generations."""
    transformer = build(WAN, 4)
    call = models()[WAN].inputs(transformer)
    cases.parallelised(transformer, ulysses=2)
    session, found = vidaccel.enable(transformer, skewed(transformer), **SPARSE), []
    for _ in range(2):
        out = cases.forward(transformer, call)
        found.append([layer.processor.exchange.deal for layer in session._experts[0].layers])
    return found[0], found[1], out


def test_heads_are_dealt_by_what_they_cost(world: World) -> None:
    one, other = world(deals)
    assert one[0] == one[1] == other[0], "the same on all, for all generations of one setting"
    transformer = build(WAN, 4)
    session = vidaccel.enable(transformer, skewed(transformer), **SPARSE)
    alone = cases.forward(transformer, models()[WAN].inputs(transformer))
    densities = session.summary().densities()
    assert densities is not None
    costs = [heads for heads in densities.by_head["transformer"] if heads is not None]
    assert one[0] == [deal(heads, 2) for heads in costs]
    assert one[0][0] != plain(4, 2), "it shows nothing"
    assert cases.error(one[2], alone) < TOLERANCE and cases.error(other[2], alone) < TOLERANCE
