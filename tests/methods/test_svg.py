"""Sparse VideoGen: the published widths, which head is which, density, presets, and runs in pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.online import PIPES, check_choice, check_nothing_waits, check_pipeline, near_on, site_of, states
from vidaccel.eval.settings import Choice
from vidaccel.layout import TokenLayout
from vidaccel.methods import method
from vidaccel.methods.candidates import Sample, candidates
from vidaccel.methods.svg import PRESETS, Svg, band_width, bands_of
from vidaccel.patterns import density_of
from vidaccel.patterns.bands import Band

TEXTS = [TokenLayout(5, 6, 7), TokenLayout(5, 6, 7, text_before=9), TokenLayout(5, 6, 7, text_after=11)]
MINIATURE = TokenLayout(13, 9, 13)


@pytest.mark.parametrize(
    ("tokens", "text", "density", "width"),
    [(75_600, 0, 0.3, 12_348.5), (75_600, 0, 0.25, 10_128.5), (32_760, 0, 0.3, 5_351.0),
     (119_056, 256, 0.25, 15_655.3), (17_776, 226, 0.25, 2_122.7)],
)  # fmt: skip
def test_published_band_widths(tokens: int, text: int, density: float, width: float) -> None:
    assert round(band_width(tokens, text, density), 1) == width


def test_band_width_holds_its_density() -> None:
    tokens, text, density = 400, 10, 0.3
    place = torch.arange(tokens)
    pairs = ((place[:, None] - place).abs() < band_width(tokens, text, density)).sum()
    assert (float(pairs) + 2 * tokens * text) / tokens**2 == pytest.approx(density, abs=0.005)
    assert band_width(400, 0, 1) == 400
    for bad in (0.04, 1.01, float("nan")):
        with pytest.raises(ValueError, match="is not from 0.0500, which the pairs of 10 text tokens among 400"):
            band_width(tokens, text, bad)


@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_spatial_and_temporal_heads_are_told_apart(layout: TokenLayout) -> None:
    """A head of near frames, one of equal places, and the two again at the other batch row, swapped."""
    spatial, temporal = near_on(layout, 0), near_on(layout, 1) + near_on(layout, 2)
    query = torch.stack([torch.stack([spatial, temporal], 1), torch.stack([temporal, spatial], 1)])
    value = torch.randn_like(query)
    state: dict[str, Any] = {}
    plan = Svg(density=0.4, block=16).plan(query * 4, query, value, site_of(layout), state)
    assert state["index"].tolist() == [0, 1, 1, 0]
    assert plan.mask is not None and plan.query_order is not None
    natural = torch.arange(layout.tokens)
    assert [torch.equal(order.long(), natural) for order in plan.query_order] == [True, False, False, True]


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("layout", TEXTS, ids=str)
def test_choice_is_that_of_whole_masks(layout: TokenLayout, sink: bool) -> None:
    chosen = Svg(density=0.4, block=16, rows=40, sink=sink)
    plans = candidates(bands_of(chosen, layout).run, layout, 16, torch.device("cpu")).plans
    plan = check_choice(chosen, layout, plans, Sample(40))
    assert plan.mask is not None
    kept = plan.mask.to_dense()
    for head, order in enumerate(plan.query_order if plan.query_order is not None else []):
        text = (order < layout.video_start) | (order >= layout.video_end)
        assert kept[head][text].all() and kept[head][:, text].all()


def test_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    check_nothing_waits(Svg(density=0.4, block=16), TEXTS[2], monkeypatch)
    check_nothing_waits(Svg(preset="hunyuanvideo-480p"), TokenLayout(5, 6, 7, text_after=1), monkeypatch)


@pytest.mark.parametrize("grid", ["13x9x13", "21x30x52"])
@pytest.mark.parametrize("density", [0.5, 0.3, 0.2, 0.1])
@pytest.mark.parametrize("family", ["wan", "hunyuanvideo"])
def test_density_is_met_by_both_bands(grid: str, density: float, family: str) -> None:
    layout, block = TokenLayout.parse(grid), 16 if grid == "13x9x13" else 128
    chosen = method("svg", family, density=density, block=block)
    assert isinstance(chosen, Svg)
    for band in bands_of(chosen, layout).run:
        assert density_of(band, layout, block) == pytest.approx(density, abs=0.011)
        assert isinstance(band, Band) and bool(band.sink) == (family == "wan" and band.order == "FHW")
    assert bands_of(chosen, layout).notes == ()


def test_density_that_is_not_near_is_noted() -> None:
    notes = bands_of(Svg(density=0.02, sink=True), TokenLayout(21, 30, 52)).notes
    assert notes and notes[0].startswith("svg: density 0.02 was asked for; the nearest on 21x30x52 is 0.05")


def test_choice_is_kept_for_as_long_as_asked() -> None:
    layout, state = TEXTS[0], {}  # type: tuple[TokenLayout, dict[str, Any]]
    chosen = Svg(density=0.4, block=16, refresh=3)
    index, reused = [], []
    for step in range(4):
        tensors = states(layout, heads=24, seed=step)
        chosen.plan(*tensors, site_of(layout, step), state)
        index.append(state["index"])
        reused.append(chosen.reused(state))
    assert reused == [False, True, True, False]
    assert torch.equal(index[0], index[1]) and torch.equal(index[0], index[2])
    assert not torch.equal(index[0], index[3])
    # Another grid, or another batch, is a choice of its own.
    plan = chosen.plan(*states(TEXTS[1], batch=2), site_of(TEXTS[1], 3), state)
    assert len(state["index"]) == 6 and plan.mask is not None and plan.mask.queries == TEXTS[1].tokens
    assert not chosen.reused(state)


def test_rows_differ_between_layers_and_steps_and_span_the_clip() -> None:
    layout, cpu = TokenLayout(21, 30, 52, text_before=226), torch.device("cpu")
    drawn = [Sample(64).draw(site_of(layout, step, layer), cpu) for step, layer in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert torch.equal(drawn[0], drawn[3])
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:3])
    stretch = (drawn[0] - 226) * 64 // layout.video_tokens
    assert torch.equal(stretch, torch.arange(64))
    limited = Sample(64, limit=10_000).draw(site_of(layout), cpu)
    assert 226 <= limited.min() < 500 and 9_000 < limited.max() < 10_226
    # Places within a stretch, over many draws: each tenth has its share.
    inside = torch.cat([Sample(64).draw(site_of(layout, step), cpu) for step in range(50)]) - 226
    tenth = torch.histc((inside * 64 / layout.video_tokens).frac(), 10, 0, 1) / len(inside)
    assert (tenth - 0.1).abs().max() < 0.02


@pytest.mark.parametrize(
    ("preset", "layers", "schedule"),
    [("wan2.1-14b-t2v-720p", 40, (10, 2)), ("wan2.1-14b-i2v-720p", 40, (17, 2)), ("hunyuanvideo-720p", 60, (5, 2)),
     ("hunyuanvideo-480p", 60, (2, 0)), ("cogvideox1.5-i2v", 42, (10, 2)), ("cosmos-704p", 36, (15, 2))],
)  # fmt: skip
def test_schedules_of_presets(preset: str, layers: int, schedule: tuple[int, int]) -> None:
    found = Svg(preset=preset).schedule()
    assert found is not None and Svg().schedule() is None
    resolved = found.resolve(50, layers)
    assert (resolved.first_step, resolved.first_layer) == schedule and resolved.end_step == 50


@pytest.mark.parametrize(
    ("preset", "layout", "run", "judged"),
    [("wan2.1-14b-t2v-720p", TokenLayout(21, 45, 80), 97 * 128, 55 * 128),
     ("wan2.1-14b-i2v-480p", TokenLayout(21, 30, 52), 42 * 128, 23 * 128),
     ("hunyuanvideo-720p", TokenLayout(33, 45, 80, text_after=256), 122 * 128 - 1, 41 * 128),
     ("cogvideox1.5-i2v", TokenLayout(11, 48, 85, text_before=226), 45 * 128 - 1, 46 * 128)],
)  # fmt: skip
def test_bands_of_presets(preset: str, layout: TokenLayout, run: int, judged: int) -> None:
    """In tokens: the width in whole blocks, and 2 frames (Wan) or 1.5 to tell heads apart by."""
    bands = bands_of(Svg(preset=preset), layout)
    for half, pair in ((run, bands.run), (judged, bands.judged)):
        for band, order in zip(pair, ("FHW", "HWF"), strict=True):
            assert isinstance(band, Band) and (int(band.width * layout.video_tokens), band.order) == (half, order)
            assert bool(band.sink) == (preset.startswith("wan") and order == "FHW")


def test_preset_judges_by_its_own_masks_and_first_rows() -> None:
    layout, state = TokenLayout(11, 20, 20), {}  # type: tuple[TokenLayout, dict[str, Any]]
    chosen = Svg(preset="wan2.1-14b-t2v-720p")
    plan = chosen.plan(*states(layout), site_of(layout), state)
    run, judged = (candidates(each, layout, 128, torch.device("cpu")).plans for each in
                   (bands_of(chosen, layout).run, bands_of(chosen, layout).judged))  # fmt: skip
    assert plan.mask is not None and run[0].mask is not None and judged[0].mask is not None
    assert run[0].mask.to_dense().sum() != judged[0].mask.to_dense().sum()
    for head, index in enumerate(state["index"].tolist()):
        mask = run[index].mask
        assert mask is not None and torch.equal(plan.mask.to_dense()[head], mask.to_dense()[0])


@pytest.mark.parametrize("family", PIPES)
def test_runs_in_pipelines(family: str) -> None:
    check_pipeline("svg", family)


def test_density_axis_of_an_eval() -> None:
    assert Choice.of("svg").crosses()
    assert not Choice.of({"name": "svg", "preset": "hunyuanvideo-480p"}).crosses()
    assert not Choice.of({"name": "svg", "density": 0.2}).crosses()


def test_defaults_of_families() -> None:
    assert method("svg", "wan") == Svg(density=0.3, rows=64, sink=True)
    assert method("svg", "cogvideox") == Svg(density=0.25, rows=32, sink=False)
    for preset in PRESETS:
        assert method("svg", "wan", preset=preset) == Svg(preset=preset)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"density": 0}, "density 0 is outside"), ({"density": float("nan")}, "outside"), ({"block": 100}, "power of two"),
     ({"rows": 0}, "rows 0 is not"), ({"refresh": 0}, "refresh 0 is not"), ({"preset": "wan"}, "unknown preset 'wan'"),
     ({"preset": "hunyuanvideo-480p", "density": 0.2}, "has its own density, not 0.2"),
     ({"preset": "hunyuanvideo-480p", "rows": 8}, "has its own rows, not 8"),
     ({"preset": "hunyuanvideo-480p", "sink": True}, "has its own sink"),
     ({"preset": "hunyuanvideo-480p", "block": 64}, "has its own block, not 64")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        method("svg", "wan", **options)


def test_preset_on_a_grid_that_is_mostly_text_is_an_error() -> None:
    layout = TokenLayout(5, 6, 7, text_before=226)
    with pytest.raises(ValueError, match=r"density 0\.25 is not from"):
        Svg(preset="cogvideox1.5-i2v").plan(*states(layout), site_of(layout), {})
