"""The call on tensors: against softmax by hand, against sessions call by call, and what it refuses."""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention

import vidaccel
from tests import tiny
from vidaccel import AttentionPlan, AttentionState, BlockMask, TokenLayout, sparse_attention
from vidaccel.heads import HeadOption, HeadTable
from vidaccel.kernels import op
from vidaccel.methods import method
from vidaccel.patterns import density_of
from vidaccel.patterns.bands import Band
from vidaccel.patterns.simple import Dense
from vidaccel.session import Session
from vidaccel.site import Site

LAYOUT = TokenLayout(5, 4, 6)
ALL = {"min_tokens": 0, "schedule": {"dense_first_steps": 0, "dense_first_layers": 0}}
RADIAL = {"method": "radial", "block": 16, "min_tokens": 0}
DRAFT = {"method": "draft", "block": 16, "density": 0.4, "min_tokens": 0}


def tensors(layout: TokenLayout = LAYOUT, batch: int = 2, heads: int = 2, head_dim: int = 64, dtype=torch.float32):
    return tuple(torch.randn(batch, layout.tokens, heads, head_dim, dtype=dtype) for _ in range(3))


def by_hand(query, key, value, keep) -> torch.Tensor:
    """Softmax in double precision over the pairs of `keep`, bool ``[1 or heads, queries, keys]``."""
    query, key, value = (each.double().transpose(1, 2) for each in (query, key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    return (scores.masked_fill(~keep, -torch.inf).softmax(-1) @ value).transpose(1, 2)


def dense(query, key, value) -> torch.Tensor:
    return scaled_dot_product_attention(*(each.transpose(1, 2) for each in (query, key, value))).transpose(1, 2)


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as caught:
        sparse_attention(*args, **{"layout": LAYOUT, **RADIAL, **kwargs})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@dataclass(frozen=True)
class Recorder(vidaccel.Method):
    """Keeps all, and writes down where it was asked, what it remembered, and what it put into its state."""

    name: ClassVar[str] = "recorder"
    log: list = field(default_factory=list)
    kept: list = field(default_factory=list)

    def plan(self, query, key, value, site, state):
        self.log.append((site.expert, site.branch, site.layer, site.step, site.steps, state.get("calls", 0)))
        state["calls"] = state.get("calls", 0) + 1
        state["tensor"] = torch.zeros(4)
        self.kept.append(weakref.ref(state["tensor"]))
        return AttentionPlan(BlockMask.full(site.layout.tokens, site.layout.tokens, 16, 16))


@pytest.mark.parametrize("backend", ["reference", "cpu", "auto"])
@pytest.mark.parametrize("layout", [LAYOUT, TokenLayout(8, 5, 6, 7, 9)], ids=str)
def test_the_kept_pairs_and_no_others(backend, layout):
    query, key, value = tensors(layout)
    plan = method("radial", "", block=16).plan(None, None, None, Site(0, 1, 0, None, "", "", layout), {})
    keep = plan.mask.to_dense()
    assert 0.1 < keep.float().mean() < 0.95
    out = sparse_attention(query, key, value, layout=layout, backend=backend, **RADIAL)
    assert out.shape == query.shape and out.dtype == query.dtype
    torch.testing.assert_close(out.double(), by_hand(query, key, value, keep), rtol=1e-5, atol=1e-5)


def test_only_what_the_issue_names_is_needed():
    """Without a place nothing is dense for it; short calls are, by the cost model, and bit for bit."""
    query, key, value = tensors()
    state = AttentionState()
    out = sparse_attention(query, key, value, layout=LAYOUT, method="radial", state=state, block=16)
    assert torch.equal(out, dense(query, key, value))
    assert state.summary().to_dict()["dense_calls"] == {"by the cost model": 1}
    assert "min_tokens=0 turns this off" in str(state.summary())
    state = AttentionState()
    assert not torch.equal(sparse_attention(query, key, value, layout=LAYOUT, state=state, **RADIAL), out)
    summary = state.summary()
    assert summary.to_dict()["calls"] == {"sparse": 1, "dense": 0} and summary.tally.backend == "cpu"
    assert "on tensors" in str(summary) and 0 < summary.tally.density.video_density < 1


def test_one_call_alone_equals_the_first_of_a_state():
    inputs = tensors()
    place = {"layer": 0, "layers": 1, "step": 0, "steps": 1, "schedule": ALL["schedule"]}
    alone = sparse_attention(*inputs, layout=LAYOUT, **DRAFT)
    assert torch.equal(alone, sparse_attention(*inputs, layout=LAYOUT, state=AttentionState(), **place, **DRAFT))


def test_strided_inputs_and_other_types():
    query, key, value = tensors(dtype=torch.bfloat16)
    expected = sparse_attention(query, key, value, layout=LAYOUT, **RADIAL)
    strided = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key, value)]
    assert not strided[0].is_contiguous()
    out = sparse_attention(*strided, layout=LAYOUT, **RADIAL)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_padding_at_the_end_is_no_key(sparse):
    layout = TokenLayout(4, 3, 5, text_after=20)
    query, key, value = tensors(layout)
    lengths = torch.tensor([60 + 3, 60 + 20])
    setting = {"layout": layout, "key_lengths": lengths, **RADIAL, "min_tokens": 0 if sparse else 10**6}
    out = sparse_attention(query, key, value, **setting)
    plan = method("radial", "", block=16).plan(None, None, None, Site(0, 1, 0, None, "", "", layout), {})
    keep = plan.mask.to_dense() if sparse else torch.ones(1, 80, 80, dtype=torch.bool)
    keep = keep & (torch.arange(80) < lengths[:, None])[:, None, None]
    torch.testing.assert_close(out.double(), by_hand(query, key, value, keep), rtol=1e-5, atol=1e-5)
    changed = [each.clone() for each in (key, value)]
    for each in changed:
        each[0, 63:] = 100.0
    assert torch.equal(sparse_attention(query, *changed, **setting)[:, :63], out[:, :63])


@dataclass
class Played:
    """One attention call of a session."""

    inputs: tuple
    out: torch.Tensor
    place: dict[str, Any]
    layout: TokenLayout


@pytest.fixture(scope="module")
def pipe():
    return tiny.tiny_wan()


def played(pipe, monkeypatch, *args: Any, **kwargs: Any) -> tuple[Session, list[Played]]:
    """A generation with this setting, and each of its attention calls."""
    calls: list[Played] = []
    attend = Session.attend

    def recorded(self, layer, query, key, value, key_lengths):
        out = attend(self, layer, query, key, value, key_lengths)
        site = self._site(layer)
        place = {"layer": site.layer, "layers": site.layers, "step": site.step, "steps": site.steps,
                 "branch": site.branch, "expert": site.expert, "key_lengths": key_lengths}  # fmt: skip
        inputs = tuple(each.clone() for each in (query, key, value))
        calls.append(Played(inputs, out.clone(), place, site.layout))
        return out

    with monkeypatch.context() as patched:
        patched.setattr(Session, "attend", recorded)
        # Looked at for infinities, every call goes by this function.
        with vidaccel.enable(pipe, *args, check_finite=True, **kwargs) as session:
            tiny.generate(pipe)
    return session, calls


def check_alike(pipe, monkeypatch, chosen: Any, **kwargs: Any) -> AttentionState:
    """Every call of a session, made again by `sparse_attention`: the same bits, and the same counted."""
    session, calls = played(pipe, monkeypatch, chosen, **kwargs)
    assert len(calls) == 16
    state = AttentionState()
    schedule = dataclasses.asdict(session.setting.schedule)
    for each in calls:
        out = sparse_attention(*each.inputs, layout=each.layout, method=chosen, state=state, family="wan",
                               **each.place, **{"schedule": schedule, **kwargs})  # fmt: skip
        assert torch.equal(out, each.out), each.place
    made, expected = state.summary().to_dict(), session.summary().to_dict()
    assert made == expected and made["calls"]["sparse"] > 0
    assert str(state.summary()) == str(session.summary())
    return state


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        ("radial", {"block": 16}),
        ("draft", {"block": 16, "density": 0.4}),
        ("draft", {"block": 16, "density": ((0.5, 0.8), (1.0, 0.3)), "refresh": 2}),
        ("semantic", {"block": 16, "density": 0.5, "refresh": 3, "drift": 0.1}),
        ("svg", {"block": 16}),
        ("neighborhood", {"block": 16, "density": 0.5}),
        ("radial", {"block": 16, "compensation": "centroid"}),
        ("radial", {"block": 16, "compensation": {"name": "residual", "refresh": 2}}),
        ("radial", {"block": 16, "precision": "int8", "backend": "reference"}),
        ("radial", {"block": 16, "backend": "reference"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(each) for each in value.values()),
)
def test_every_call_of_a_session(pipe, monkeypatch, chosen, options):
    check_alike(pipe, monkeypatch, chosen, min_tokens=0, **options)


def test_every_call_of_a_session_that_the_cost_model_judges(pipe, monkeypatch):
    _, calls = played(pipe, monkeypatch, "radial", block=16)
    state = AttentionState()
    for each in calls:
        out = sparse_attention(*each.inputs, layout=each.layout, state=state, method="radial", block=16, **each.place)
        assert torch.equal(out, each.out)
    assert set(state.summary().to_dict()["dense_calls"]) == {"in first steps", "in first layers", "by the cost model"}


def head_profile(layers: int = 2, heads: int = 2) -> vidaccel.Profile:
    """Two bands of steps; in the first the heads of each layer differ from those in the second."""
    patterns = (Band(0.05), Band(0.2, "HWF"), Dense())

    def head(index: int):
        own = density_of(patterns[index], LAYOUT, 16)
        return (HeadOption(index, 1e-9, own, own), HeadOption(2, 0.0, 1.0, 1.0))

    first = tuple(tuple(head((layer + at) % 2) for at in range(heads)) for layer in range(layers))
    table = HeadTable(16, patterns, (0.5, 1.0), {"transformer": (first, tuple(each[::-1] for each in first))})
    return vidaccel.Profile("head_profile", {"max_error": 0.01}, {"dense_first_steps": 1, "dense_first_layers": 0}, 0,
                            heads=table)  # fmt: skip


def test_every_call_of_a_session_with_a_profile(pipe, monkeypatch, tmp_path):
    profile = head_profile()
    profile.save(tmp_path / "made.json")
    check_alike(pipe, monkeypatch, str(tmp_path / "made.json"))
    state = check_alike(pipe, monkeypatch, profile)
    by_head = state.summary().densities().by_head["transformer"]
    assert by_head[0] != by_head[1] and len(by_head[0]) == 2
    # What the profile says of steps and of short calls holds, and what the caller says replaces it.
    assert state.summary().schedule["dense_first_steps"] == 1 and state.summary().min_tokens == 0
    check_alike(pipe, monkeypatch, profile, schedule={"dense_first_steps": 0, "dense_first_layers": 0})


def test_profiles_need_their_place_and_their_heads(tmp_path):
    inputs, profile = tensors(), head_profile()
    place = {"layer": 0, "layers": 2, "step": 1, "steps": 4}
    own = {"method": profile, "block": 16, "min_tokens": None}
    schedule = {"dense_first_steps": 0, "dense_first_layers": 0}
    assert "pass layer, layers, step" in refused(*inputs, **own, schedule=schedule)
    assert "dense_first_steps=1" in refused(*inputs, **own, layer=0, layers=2)
    sparse_attention(*inputs, layout=LAYOUT, **place, **own)
    assert "2 layers of 2 heads" in refused(*inputs, **own, **{**place, "layers": 3})
    assert "says 2 of 3" in refused(*tensors(heads=3), **own, **place)
    assert "transformer_2" in refused(*inputs, **own, **place, expert="transformer_2")
    assert "no profile" in refused(*inputs, method=str(tmp_path / "absent.json"))


def run(state: AttentionState, method: Any, steps: int = 4, seed: int = 0, **kwargs: Any) -> list[torch.Tensor]:
    """A small generation: two layers and two branches a step."""
    generator, outs = torch.Generator().manual_seed(seed), []
    for step in range(steps):
        for branch in ("cond", "uncond"):
            for layer in range(2):
                inputs = [torch.randn(1, 120, 2, 64, generator=generator) for _ in range(3)]
                outs.append(sparse_attention(
                    *inputs, layout=LAYOUT, method=method, state=state, layer=layer, layers=2, step=step, steps=steps,
                    branch=branch, **kwargs,
                ))  # fmt: skip
    return outs


def test_memory_is_per_expert_branch_and_layer_and_ends_with_the_generation():
    recorder, state = Recorder(), AttentionState()
    run(state, recorder, **ALL)
    expected = [
        ("transformer", branch, layer, step, 4, step)
        for step in range(4)
        for branch in ("cond", "uncond")
        for layer in range(2)
    ]
    assert recorder.log == expected
    run(state, recorder, expert="transformer_2", **ALL)
    assert [each[-1] for each in recorder.log[16:]] == [each[-1] for each in expected] and state.runs == 1
    assert any(each() is not None for each in recorder.kept)
    state.reset()
    assert not any(each() is not None for each in recorder.kept)
    assert state.summary().to_dict()["calls"]["sparse"] == 32  # until the next begins
    recorder.log.clear()
    run(state, recorder, **ALL)
    assert recorder.log == expected and state.runs == 2 and state.summary().to_dict()["calls"]["sparse"] == 16


@pytest.mark.parametrize("options", [{"refresh": 2}, {"refresh": 1, "compensation": "residual"}])
def test_generations_are_alike_whether_reset_or_in_a_state_of_their_own(options):
    setting = {"block": 16, "density": 0.4, **ALL, **options}
    state = AttentionState()
    first = run(state, "draft", **setting)
    plans = state.summary().to_dict()["plans"]
    assert plans == ({"made": 8, "reused": 8} if options["refresh"] == 2 else {"made": 16, "reused": 0})
    run(state, "draft", **setting, seed=1) if state.reset() else None
    run(state, "draft", **setting, seed=1)
    state.reset()
    for again in (run(state, "draft", **setting), run(AttentionState(), "draft", **setting)):
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_static_plans_are_made_once_and_outlive_a_generation(monkeypatch):
    made = []
    cls = vidaccel.METHODS["radial"]
    plan = cls.plan
    monkeypatch.setattr(cls, "plan", lambda self, *args: made.append(args) or plan(self, *args))
    state = AttentionState()
    for _ in range(2):
        run(state, "radial", block=16, **ALL)
        state.reset()
    assert len(made) == 1


def test_a_generation_that_begins_without_a_reset_is_refused():
    state = AttentionState()
    run(state, "draft", block=16, **ALL)
    with pytest.raises(ValueError, match=r"step 0 comes after step 3 of cond: .* call reset\(\)"):
        run(state, "draft", block=16, **ALL)


def test_a_schedule_is_followed():
    state = AttentionState()
    run(state, "radial", block=16, min_tokens=0, schedule={"dense_first_steps": 0.25, "dense_last_steps": 1})
    assert state.summary().to_dict()["dense_calls"] == {"in first layers": 8, "in first steps": 2, "in last steps": 2}
    state = AttentionState()
    run(state, "radial", block=16, min_tokens=0)
    assert state.summary().schedule == dataclasses.asdict(vidaccel.Schedule())


def test_dense_calls_are_the_callers_if_it_says_how():
    seen = []

    def own(query, key, value, key_lengths):
        seen.append((query.shape, key_lengths))
        return torch.full_like(query, 7.0)

    state = AttentionState()
    outs = run(state, "radial", block=16, min_tokens=0, dense=own, schedule={"dense_first_steps": 1})
    assert len(seen) == 4 + 6 and seen[0] == ((1, 120, 2, 64), None)
    assert [bool((out == 7).all()) for out in outs] == [True] * 4 + [True, False] * 6


def test_all_calls_of_a_state_ask_for_the_same():
    inputs, state = tensors(), AttentionState()
    sparse_attention(*inputs, layout=LAYOUT, state=state, **RADIAL)
    assert "differ from the first one's: options;" in refused(*inputs, state=state, block=32)
    assert "method, options" in refused(*inputs, state=state, method="draft", block=16, density=0.5)
    assert "one's: step_given;" in refused(*inputs, state=state, step=0, steps=4)
    sparse_attention(*inputs, layout=LAYOUT, state=state, **RADIAL)


def test_a_refused_first_call_leaves_no_trace():
    inputs, state = tensors(), AttentionState()
    for wrong in ({"density": 2.0}, {"backend": "triton"}, {"schedule": {"dense_first_steps": 3}}, {"density": 1e-3}):
        refused(*inputs, state=state, **wrong)
    with pytest.raises(ValueError, match="has not been called"):
        state.summary()
    sparse_attention(*inputs, layout=LAYOUT, state=state, **RADIAL)
    assert state.runs == 1


def test_what_would_fail_later_is_refused_in_the_dense_steps():
    inputs = tensors()
    place = {"layer": 0, "layers": 2, "step": 0, "steps": 4}
    assert "least of radial" in refused(*inputs, **place, density=1e-3)
    assert "max_state_mb" in refused(*inputs, **place, compensation={"name": "residual", "max_state_mb": 0.01})
    assert "triton" in refused(*inputs, **place, backend="triton")


def test_tensors_that_do_not_fit_are_refused():
    query, key, value = tensors()
    assert "has 120 tokens, the call 119" in refused(query[:, 1:], key[:, 1:], value[:, 1:])
    assert "self-attention has one shape" in refused(query, key[:, :60], value[:, :60])
    assert "repeat_interleave" in refused(query, key[:, :, :1], value[:, :, :1])
    assert "value is [2, 120, 2, 32]" in refused(query, key, value[..., :32])
    assert "key is torch.bfloat16" in refused(query, key.bfloat16(), value)
    assert "key is torch.float32 on meta" in refused(query, key.to("meta"), value)
    assert "[batch, tokens, heads, head_dim]" in refused(query.flatten(2), key.flatten(2), value.flatten(2))
    assert "floating point" in refused(query.int(), key.int(), value.int())
    assert "TokenLayout" in refused(query, key, value, layout=(5, 4, 6))
    assert "int32 or int64 [2]" in refused(query, key, value, key_lengths=torch.tensor([1]))
    assert "int32 or int64 [2]" in refused(query, key, value, key_lengths=torch.tensor([1.0, 2.0]))
    assert "no gradient" in refused(query.requires_grad_(), key, value)
    with torch.no_grad():
        sparse_attention(query, key, value, layout=LAYOUT, **RADIAL)


def test_places_that_cannot_be_are_refused():
    inputs = tensors()
    assert "layer=3, layers=None" in refused(*inputs, layer=3)
    assert "layer=2 is not one of 2" in refused(*inputs, layer=2, layers=2)
    assert "step=4 is not one of 4" in refused(*inputs, step=4, steps=4)
    assert "steps=4 goes with step" in refused(*inputs, steps=4)
    assert "step=-1" in refused(*inputs, step=-1) and "layer=True" in refused(*inputs, layer=True, layers=2)


def test_settings_that_cannot_be_are_refused():
    inputs, draft = tensors(), {"method": "draft", "density": 0.5}
    assert "keeps steps dense: pass step" in refused(*inputs, schedule={"dense_first_layers": 0})
    assert "keeps layers dense: pass layer" in refused(*inputs, schedule={"dense_first_steps": 0})
    assert "relative to the number of steps: pass steps" in refused(*inputs, step=0, layer=0, layers=2)
    assert "what method 'draft' remembers" in refused(*inputs, **draft, state=AttentionState())
    assert "'draft' remembers" in refused(*inputs, **draft, state=AttentionState(), step=0, schedule=ALL["schedule"])
    assert "compensation 'centroid' remembers" in refused(*inputs, state=AttentionState(), compensation="centroid")
    curve = {"method": "draft", "density": ((0.5, 0.8), (1.0, 0.3)), "schedule": ALL["schedule"]}
    assert "need the number of steps" in refused(*inputs, **curve, step=0, layer=0, layers=2)
    assert "unknown family 'wam'; choose" in refused(*inputs, family="wam")
    assert "unknown method 'radical'" in refused(*inputs, method="radical")
    assert "method=None" in refused(*inputs, method=None)
    assert "no option 'cache'" in refused(*inputs, cache="easycache")
    assert "AttentionState" in refused(*inputs, state={})
    with pytest.raises(FloatingPointError, match="layer 0 of transformer at step 0"):
        inputs[2][0, 0] = torch.nan
        sparse_attention(*inputs, layout=LAYOUT, check_finite=True, **RADIAL)


def test_a_schedule_of_counts_does_without_the_number_of_steps():
    state = AttentionState()
    for step in range(3):
        sparse_attention(*tensors(), layout=LAYOUT, state=state, step=step, layer=1, layers=2,
                         schedule={"dense_first_steps": 1}, **DRAFT)  # fmt: skip
    assert state.summary().to_dict()["dense_calls"] == {"in first steps": 1}


def test_compiled_code_steps_out_for_it():
    state, setting = AttentionState(), {"block": 16, "density": 0.4, **ALL}
    expected = [out * 2 for out in run(AttentionState(), "draft", **setting)]
    place, counter = {"layer": 0, "layers": 2}, CompileCounter()

    @torch.compile(backend=counter)
    def block(query, key, value, place):
        query = query + 0
        given = {"layout": LAYOUT, "method": "draft", "state": state, "steps": 4, **place, **setting}
        out = sparse_attention(query, key, value, **given)
        return out * 2

    generator, outs = torch.Generator().manual_seed(0), []
    for step in range(4):
        for branch in ("cond", "uncond"):
            for layer in range(2):
                inputs = [torch.randn(1, 120, 2, 64, generator=generator) for _ in range(3)]
                outs.append(block(*inputs, {**place, "layer": layer, "step": step, "branch": branch}))
    assert all(torch.equal(one, two) for one, two in zip(outs, expected, strict=True))
    assert counter.frame_count >= 2  # before and after


class Layer:
    """What docs/tensor-api.md says of whole graphs: an object behind the op."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.step, self.setting = 0, setting
        self.handle = op.handle(self)

    def attend(self, query, key, value, key_lengths):
        place = {"layout": LAYOUT, "step": self.step}
        return sparse_attention(query, key, value, key_lengths=key_lengths, **place, **self.setting)


@pytest.mark.parametrize("chosen", [{"method": "radial"}, {"method": "draft", "density": 0.4}])
def test_in_a_whole_graph_behind_the_op(chosen):
    setting = {**chosen, "block": 16, "layer": 0, "layers": 1, "steps": 4, "min_tokens": 0,
               "schedule": {"dense_first_steps": 1, "dense_first_layers": 0}}  # fmt: skip
    layer, state, counter = Layer({**setting, "state": AttentionState()}), AttentionState(), CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def block(query, key, value):
        return op.attention(query, key, value, layer.handle) * 2

    for layer.step in range(4):
        inputs = tensors()
        expected = sparse_attention(*inputs, layout=LAYOUT, step=layer.step, state=state, **setting) * 2
        assert torch.equal(block(*inputs), expected)
    assert counter.frame_count == 1
    assert state.summary().to_dict() == layer.setting["state"].summary().to_dict()


@pytest.mark.gpu
@pytest.mark.parametrize("chosen", [RADIAL, DRAFT])
def test_on_a_gpu_as_on_the_cpu(chosen):
    inputs = tensors(head_dim=64, dtype=torch.bfloat16)
    state = AttentionState()
    place = {"layer": 0, "layers": 1, "step": 0, "steps": 1, "schedule": ALL["schedule"]}
    out = sparse_attention(*(each.cuda() for each in inputs), layout=LAYOUT, state=state, **place, **chosen)
    expected = sparse_attention(*inputs, layout=LAYOUT, backend="reference", **place, **chosen)
    assert out.is_cuda and state.summary().tally.backend == "triton"
    torch.testing.assert_close(out.cpu().float(), expected.float(), rtol=2e-2, atol=2e-2)
