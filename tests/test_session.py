"""State: per branch, expert and layer; new for each generation, also after one that failed."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

import vidaccel
from tests import tiny
from vidaccel.calls import LAYOUTS_KEPT
from vidaccel.costs import CostModel, default_for
from vidaccel.pipelines.processor import Mode
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.site import Site

SPARSE = {"min_tokens": 0, "schedule": {"dense_first_steps": 0, "dense_first_layers": 0}}


@dataclass(frozen=True)
class Recorder(vidaccel.Method):
    """A dynamic method that keeps everything and writes down where it was asked, and what its state held."""

    name: ClassVar[str] = "recorder"
    log: list = dataclasses.field(default_factory=list)

    def plan(self, query, key, value, site, state):
        self.log.append((site.expert, site.branch, site.layer, site.step, site.steps, state.get("calls", 0)))
        state["calls"] = state.get("calls", 0) + 1
        assert query.shape == key.shape == value.shape and query.shape[1] == site.layout.tokens
        return AttentionPlan(BlockMask.full(site.layout.tokens, site.layout.tokens, 16, 16))


@dataclass(frozen=True)
class Banded(Recorder):
    """As `Recorder`, with the options that tell the session what its plans will be like."""

    name: ClassVar[str] = "banded"
    density: float | None = 0.25
    block: int = 16


@dataclass(frozen=True)
class Sites(vidaccel.Method):
    """A static method with a plan for each layer and step: the first `layer + 1` blocks of keys, or all, or no mask."""

    name: ClassVar[str] = "sites"
    static: ClassVar[bool] = True
    log: list = dataclasses.field(default_factory=list)
    dense_layer: int | None = None

    def static_site(self, site):
        return Site(site.layer, site.layers, site.step, site.steps, "", "", site.layout)

    def plan(self, query, key, value, site, state):
        assert query is key is value is None and (site.branch, site.expert, state) == ("", "", {})
        self.log.append((site.layer, site.step, site.steps))
        if site.layer == self.dense_layer:
            return AttentionPlan()
        tokens = site.layout.tokens
        mask = BlockMask.full(tokens, tokens, 16, 16)
        ranges = torch.tensor([[0, 16 * (site.layer + 1 + site.step % 2)]], dtype=torch.int32)
        return AttentionPlan(dataclasses.replace(mask, ranges=ranges.repeat(mask.tiles, 1)))


def costing(session, **coefficients):
    """Let a session judge by these coefficients, and by no number of tokens."""
    model = CostModel(**{"source": "of this test", **coefficients})
    session.setting = dataclasses.replace(session.setting, min_tokens=None, costs=model)
    return model


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


@pytest.fixture(autouse=True)
def _disabled(pipe):
    yield
    vidaccel.disable(pipe)


def test_sites_and_state_of_every_call(pipe):
    method = Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    tiny.generate(pipe)
    expected = [
        ("transformer", branch, layer, step, 4, step)
        for step in range(4)
        for branch in ("cond", "uncond")
        for layer in range(2)
    ]
    assert method.log == expected
    tiny.generate(pipe)
    assert method.log == expected * 2


def test_two_experts_share_the_clock_and_nothing_else():
    pipe, method = tiny.tiny_wan(two_experts=True), Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    tiny.generate(pipe)
    experts = [entry[0] for entry in method.log]
    switch = experts.index("transformer_2")
    assert set(experts[:switch]) == {"transformer"} and set(experts[switch:]) == {"transformer_2"}
    assert sorted({entry[3] for entry in method.log}) == [0, 1, 2, 3]
    assert method.log[switch][3] > 0 and method.log[switch][5] == 0


def test_without_guidance_there_is_one_branch(pipe):
    method = Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    tiny.generate(pipe, guidance_scale=1.0)
    assert {entry[1] for entry in method.log} == {"cond"} and len(method.log) == 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_after_an_interrupted_one_starts_anew(pipe, error):
    method = Recorder()
    vidaccel.enable(pipe, method, **SPARSE)
    whole = tiny.generate(pipe)
    clean = list(method.log)

    def stop(pipe, step, timestep, kwargs):
        raise error

    with pytest.raises(error):
        tiny.generate(pipe, callback_on_step_end=stop)
    method.log.clear()
    assert np.array_equal(tiny.generate(pipe), whole) and method.log == clean


def test_two_resolutions_in_one_process(pipe):
    vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    small, again = {"num_frames": 9, "height": 32, "width": 64}, {}
    first = tiny.generate(pipe, **again), tiny.generate(pipe, **small)
    second = tiny.generate(pipe, **again), tiny.generate(pipe, **small)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)) and first[0].shape != first[1].shape


def test_a_batch_equals_its_rows(pipe):
    vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    latents = torch.randn(2, 16, 5, 8, 12)
    together = tiny.generate(
        pipe,
        prompt=["a red circle", "a blue square"],
        negative_prompt=["blurry"] * 2,
        latents=latents,
        output_type="latent",
    )
    for row, prompt in enumerate(("a red circle", "a blue square")):
        alone = tiny.generate(pipe, prompt=prompt, latents=latents[row : row + 1], output_type="latent")
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-3, atol=1e-4)


def test_min_tokens_keeps_short_calls_dense_and_says_so(pipe):
    stock = tiny.generate(pipe)
    vidaccel.enable(pipe, "radial", block=16, min_tokens=8192)
    assert np.array_equal(tiny.generate(pipe), stock)
    summary = vidaccel.summary(pipe)
    assert summary.to_dict()["calls"]["sparse"] == 0
    assert "min_tokens=8192" in str(summary)


def test_without_a_min_tokens_the_cost_model_alone_decides(pipe):
    stock = tiny.generate(pipe)
    vidaccel.enable(pipe, "radial", block=16)
    assert np.array_equal(tiny.generate(pipe), stock)
    summary = vidaccel.summary(pipe).to_dict()
    assert summary["calls"]["sparse"] == 0 and summary["dense_calls"]["by the cost model"] > 0


@pytest.mark.parametrize("check_finite", [False, True], ids=["beforehand", "when the layer runs"])
def test_a_static_plan_that_would_be_slower_stays_dense_and_says_so(pipe, check_finite):
    stock = tiny.generate(pipe)
    session = vidaccel.enable(pipe, "radial", block=16, check_finite=check_finite, **SPARSE)
    model = costing(session, per_call=1e9)
    assert np.array_equal(tiny.generate(pipe), stock)
    summary = session.summary().to_dict()
    assert summary["dense_calls"] == {"by the cost model": 16} and summary["calls"]["sparse"] == 0
    plan = vidaccel.methods.method("radial", "wan", block=16).plan(
        None, None, None, Site(0, 1, 0, 4, "", "", session._tally.layout), {}
    )
    share = f"{model.cost(plan, heads=2, head_dim=64):.2f}"
    note = f"calls on {session._tally.layout} stay dense by the cost model: sparse attention would take {share} times"
    assert [each[: len(note)] for each in summary["notes"]] == [note] and "of this test" in summary["notes"][0]
    assert note in str(session.summary())


def test_a_plan_that_is_not_slower_runs(pipe):
    session = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    costing(session, per_pair=0.9)
    tiny.generate(pipe)
    assert (
        session.summary().to_dict()["calls"] == {"sparse": 16, "dense": 0} and not session.summary().to_dict()["notes"]
    )


def test_without_coefficients_of_its_own_a_session_takes_those_of_the_device(pipe):
    class Comb(Sites):
        def plan(self, query, key, value, site, state):
            tokens = site.layout.tokens
            ranges = torch.arange(tokens // 2, dtype=torch.int32)[:, None] * 2 + torch.tensor([0, 1]).int()
            full = BlockMask.full(tokens, tokens, 16, 1)
            offsets = full.offsets * len(ranges)
            return AttentionPlan(dataclasses.replace(full, offsets=offsets, ranges=ranges.repeat(full.tiles, 1)))

    session = vidaccel.enable(pipe, Comb(), **{**SPARSE, "min_tokens": 1})
    tiny.generate(pipe)
    assert session.summary().to_dict()["dense_calls"] == {"by the cost model": 16}
    assert default_for("cpu").source in str(session.summary())


@pytest.mark.parametrize("least", [1, 0])
def test_zero_min_tokens_switches_the_cost_model_off_and_others_do_not(pipe, least):
    session = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    costing(session, per_call=1e9)
    session.setting = dataclasses.replace(session.setting, min_tokens=least)
    tiny.generate(pipe)
    assert session.summary().to_dict()["calls"] == ({"sparse": 0, "dense": 16} if least else {"sparse": 16, "dense": 0})


def test_too_few_tokens_are_a_reason_of_their_own(pipe):
    session = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    costing(session, per_call=1e9)
    session.setting = dataclasses.replace(session.setting, min_tokens=10**6)
    tiny.generate(pipe)
    assert session.summary().to_dict()["dense_calls"] == {"under min_tokens": 16}


@pytest.mark.parametrize(
    ("method", "coefficients"),
    [
        (Recorder(), {"per_call": 1e9}),
        (Recorder(), {"per_pair": 0.0, "per_tile": 1e6}),
        (Banded(density=None), {"per_call": 1e9}),
        (Banded(density=0.5), {"per_pair": 2.1}),
    ],
)
def test_a_dynamic_method_is_judged_before_it_plans(pipe, method, coefficients):
    stock = tiny.generate(pipe)
    session = vidaccel.enable(pipe, method, **SPARSE)
    costing(session, **coefficients)
    assert np.array_equal(tiny.generate(pipe), stock) and method.log == []
    assert session.summary().to_dict()["dense_calls"] == {"by the cost model": 16}
    assert {layer.processor.mode for layer in session._experts[0].layers} == {Mode.DENSE}


def test_a_dynamic_method_is_given_the_benefit_of_what_it_does_not_tell(pipe):
    """What it keeps is not known beforehand: the pairs of all of it would be too many, those of no density are not."""
    method = Recorder()
    costing(vidaccel.enable(pipe, method, **SPARSE), per_pair=3.0)
    tiny.generate(pipe)
    assert len(method.log) == 16


def test_a_static_method_has_one_plan_for_each_of_its_sites(pipe):
    method = Sites()
    session = vidaccel.enable(pipe, method, **SPARSE)
    first = tiny.generate(pipe)
    every = [(layer, step, 4) for step in range(4) for layer in (0, 1)]
    assert sorted(method.log) == sorted(every)
    assert np.array_equal(tiny.generate(pipe), first) and len(method.log) == len(every)
    # Layers and steps did get plans of their own: of equal ones the mean density would be one of these.
    tokens = session._tally.layout.tokens
    kept = [16 * (layer + 1 + step % 2) / tokens for layer, step, _ in every]
    assert session._tally.density.density == pytest.approx(sum(kept) / len(kept))


def test_a_static_plan_is_what_the_layer_runs(pipe):
    """Against a method that gives each call the same mask when it runs."""

    @dataclass(frozen=True)
    class Asked(Sites):
        static: ClassVar[bool] = False

        def plan(self, query, key, value, site, state):
            return Sites.plan(self, None, None, None, self.static_site(site), {})

    with vidaccel.enable(pipe, Sites(), **SPARSE):
        known = tiny.generate(pipe)
    with vidaccel.enable(pipe, Asked(), **SPARSE):
        assert np.array_equal(tiny.generate(pipe), known)


def test_layers_whose_plans_are_dense_or_slower_are_told_apart(pipe):
    session = vidaccel.enable(pipe, Sites(dense_layer=1), **SPARSE)
    tiny.generate(pipe)
    tokens = session._tally.layout.tokens
    # One block of keys per tile takes 2/3 of dense attention's time, two take 4/3. The first layer has one block in
    # steps 0 and 2 and two in the others.
    per_pair = tokens**2 / (-(-tokens // 16) * 16 * 16) / 1.5
    costing(session, per_pair=per_pair)
    tiny.generate(pipe)
    assert session.summary().to_dict()["dense_calls"] == {"by the cost model": 4, "as sites planned": 8}
    assert session._tally.sparse == 4
    session = vidaccel.enable(pipe, Sites(), **SPARSE)
    costing(session, per_pair=per_pair)
    tiny.generate(pipe)
    assert "sparse attention would take 1.33 to 2.00 times as long" in str(session.summary())


def test_plans_of_old_layouts_and_numbers_of_steps_are_dropped(pipe):
    session = vidaccel.enable(pipe, Sites(), **SPARSE)
    for steps in range(1, LAYOUTS_KEPT + 3):
        tiny.generate(pipe, num_inference_steps=steps)
    assert session.calls.statics_of.cache_info().currsize == LAYOUTS_KEPT


def test_enabling_again_replaces_and_a_refused_setting_changes_nothing(pipe):
    stock = pipe.transformer.blocks[0].attn1.processor
    first = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    with pytest.raises(ValueError, match="unknown method"):
        vidaccel.enable(pipe, "radical")
    assert pipe.transformer._vidaccel_session is first
    second = vidaccel.enable(pipe, "radial", block=32, **SPARSE)
    assert pipe.transformer._vidaccel_session is second and len(pipe.transformer._forward_pre_hooks) == 1
    assert vidaccel.summary(pipe).options["block"] == 32
    vidaccel.disable(pipe)
    assert pipe.transformer.blocks[0].attn1.processor is stock and not pipe.transformer._forward_pre_hooks
    vidaccel.disable(pipe)
    with pytest.raises(ValueError, match="not enabled"):
        vidaccel.summary(pipe)


def test_static_plan_that_cannot_be_made_fails_before_the_first_step(pipe):
    steps = []
    vidaccel.enable(pipe, "radial", density=0.01, block=16, min_tokens=0)
    with pytest.raises(ValueError, match="least of radial"):
        tiny.generate(pipe, callback_on_step_end=lambda *args: steps.append(args) or {})
    assert steps == []


def test_a_layer_outside_its_transformer_is_an_error(pipe):
    vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    with torch.no_grad(), pytest.raises(RuntimeError, match="outside its transformer"):
        pipe.transformer.blocks[0].attn1(torch.randn(1, 8, 128))


def test_processors_replaced_after_enable_are_an_error(pipe):
    session = vidaccel.enable(pipe, "radial", block=16, **SPARSE)
    module = pipe.transformer.blocks[1].attn1
    ours, module.processor = module.processor, session._experts[0].layers[1].stock
    with pytest.raises(RuntimeError, match="WanTransformer3DModel were replaced after sparse attention was enabled"):
        tiny.generate(pipe)
    module.processor = ours
    tiny.generate(pipe)


def test_a_bare_transformer(pipe):
    transformer, method = pipe.transformer, Recorder()
    call = {"hidden_states": torch.randn(1, 16, 5, 8, 12), "encoder_hidden_states": torch.randn(1, 7, tiny.TEXT_DIM)}
    with pytest.raises(ValueError, match="num_inference_steps"):
        vidaccel.enable(transformer, method)
    with torch.no_grad(), vidaccel.enable(transformer, method, min_tokens=0, num_inference_steps=4) as session:
        for timestep in (900.0, 600.0, 300.0, 100.0):
            transformer(timestep=torch.tensor([timestep]), **call)
    assert [entry[3:5] for entry in method.log] == [(1, 4), (2, 4), (3, 4)]
    assert session.summary().to_dict()["dense_calls"] == {"in first layers": 4, "in first steps": 1}


def test_training_goes_through_the_stock_processor(pipe):
    transformer = pipe.transformer
    call = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 7, tiny.TEXT_DIM)}
    states = torch.randn(1, 16, 5, 8, 12, requires_grad=True)
    with vidaccel.enable(transformer, "radial", block=16, num_inference_steps=4, **SPARSE) as session:
        transformer(hidden_states=states, **call)[0].sum().backward()
    assert states.grad is not None and session.summary().to_dict()["calls"] == {"sparse": 0, "dense": 0}


def test_calls_that_the_method_planned_dense_count_in_its_density():
    from vidaccel.plan import AttentionPlan, BlockMask
    from vidaccel.summary import Tally

    tally, layout = Tally(), vidaccel.TokenLayout(2, 4, 4)
    blocks = torch.eye(2, dtype=torch.bool)[None]
    half = AttentionPlan(BlockMask.from_blocks(blocks, 16, 16, 32, 32))
    tally.count_sparse(half, half.densities(layout), "cpu")
    tally.count_dense("in first steps")
    assert tally.density.video_density == 0.5
    tally.count_dense("as planned", planned=True)
    assert tally.density.video_density == 0.75 and tally.all_calls == pytest.approx(2.5 / 3)
