"""Calibrations at several sizes: what is measured where, what is kept of it, and which sizes are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.calibration.cases import GUIDED, PROMPTS, calibrated
from tests.tiny import tiny_cogvideox, tiny_wan
from vidaccel.calibration import learned
from vidaccel.calibration.generation import Generations
from vidaccel.calibration.grid import Grid
from vidaccel.costs import CostModel
from vidaccel.layout import TokenLayout
from vidaccel.patterns import orders
from vidaccel.patterns.decay import Decay
from vidaccel.patterns.stripes import Stripes
from vidaccel.profile import Profile

ALSO = [{"height": 48, "width": 64}]
"""5x3x4 video tokens."""
QUICK: dict[str, Any] = {"prompts": PROMPTS[:2], "library": "sparse-vdit"}
CHILD = """
import sys, torch
torch.set_num_threads({threads})
from tests.calibration.cases import calibrated
from tests.tiny import tiny_wan
calibrated(tiny_wan(), also={also!r}, work={work!r}, progress=lambda *told: print(*told, flush=True))
"""


@pytest.fixture(scope="module")
def both() -> Profile:
    """Of three prompts, of which the last two measure."""
    return calibrated(tiny_wan(), also=ALSO)


class Stop(Exception):
    pass


def test_the_first_size_is_as_without_another(both: Profile) -> None:
    alone = calibrated(tiny_wan())
    assert both.heads == alone.heads and not alone.heads_at
    assert "also" not in (alone.calibration or {}) and "heads_at" not in alone.to_dict()
    assert both.calibration == {**(alone.calibration or {}), "also": [{"grid": "5x3x4", "height": 48, "width": 64}]}
    ((layout, table),) = ((each.layout, each.heads) for each in both.heads_at)
    assert layout == TokenLayout(5, 3, 4) and table.block == 16 and table != both.heads
    assert table.predicted(table.choose(density=0.6))["density"] <= 0.6


def test_its_errors_are_those_of_a_calibration_made_there(both: Profile) -> None:
    """Candidates that are the same for all heads have the same errors, whichever size is the first one."""
    size = {"generation_kwargs": GUIDED | ALSO[0], "library": "svg", "prompts": PROMPTS[1:], "seed": 1}
    there = calibrated(tiny_wan(), **size).heads
    as_further = calibrated(tiny_wan(), **size | {"generation_kwargs": GUIDED}, also=ALSO).heads_at[0].heads
    assert as_further == there


def test_weights_are_those_of_the_first_size_in_orders_of_the_other() -> None:
    """Learned weights go as they are: their text and grid are the first size's, levels and orders are chosen here."""
    small, block = Grid(TokenLayout(4, 6, 6), 4, 8, (1, 4)), 8
    large = Grid(TokenLayout(4, 10, 12), 4, block, (1, 4))
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(16 + 36 + 36, generator=generator, dtype=torch.float64)
    made = learned.decay(mass, small) + learned.stripes(torch.rand(4, 6, generator=generator).double(), small)
    found = learned.elsewhere(made, large)
    assert len(found) == len(made)
    decays = [each for each in found if isinstance(each, Decay)]
    assert {(each.weights, each.grid) for each in decays} == {(made[0].weights, (4, 6, 6))}  # type: ignore[attr-defined]
    assert tuple(decays) == tuple(learned.at_levels(made[0], large))  # type: ignore[arg-type]
    for level in learned.LEVELS:
        ours = [each for each in decays if each.density == level]
        assert {*orders.AXES} < {each.order for each in ours} and len(ours) == 7
    assert [each for each in found if isinstance(each, Stripes)] == made[len(decays) :]
    assert learned.elsewhere(made[len(decays) :], large) == tuple(made[len(decays) :])
    assert tuple(learned.elsewhere(made, small)) == tuple(made)


def test_round_trip_and_texts_stand_once(both: Profile) -> None:
    values = both.to_dict()
    assert Profile.parse(json.dumps(values), "it") == both
    texts, others = values["heads"]["texts"], values["heads_at"][0]["heads"]["texts"]
    assert texts and not set(texts) & set(others)
    weights = {each.weights for each in both.heads_at[0].heads.patterns if isinstance(each, Decay)}
    assert weights & set(texts)


def test_a_run_has_the_heads_of_its_size(both: Profile) -> None:
    for size, table in ((GUIDED, both.heads), (GUIDED | ALSO[0], both.heads_at[0].heads)):
        pipe = tiny_wan()
        session = pipe.enable_sparse_attention(both, min_tokens=0)
        pipe(prompt=PROMPTS[0], generator=torch.Generator().manual_seed(0), output_type="latent", **size)
        summary = pipe.sparse_attention_summary().to_dict()
        assert summary["calls"]["sparse"] > 0 and not summary.get("notes")
        assert table is not None
        predicted = table.predicted(table.choose(density=0.6))["density"]
        method = session.setting.method
        layout = TokenLayout(5, size["height"] // 16, size["width"] // 16)
        assert method._density(layout) == pytest.approx(predicted, abs=1e-3)  # type: ignore[attr-defined]


def test_goes_on_in_each_size(tmp_path: Path, both: Profile) -> None:
    """Stopped in the first prompt of each size; progress is of all."""
    steps, total, told = 4, 4 * (3 + 2), []

    def stopping(at: int) -> Any:
        def progress(what: str, done: int, of: int) -> None:
            assert of == total
            if done >= at:
                raise Stop
        return progress

    for at, first, further in ((2, 0, 0), (3 * steps + 1, 3, 0), (4 * steps + 3, 3, 1)):
        with pytest.raises(Stop):
            calibrated(tiny_wan(), also=ALSO, work=tmp_path, progress=stopping(at))
        names = [len(list(folder.glob("prompt-*"))) for folder in (tmp_path, tmp_path / "height-48-width-64")]
        assert names == [first, further]
    found = calibrated(tiny_wan(), also=ALSO, work=tmp_path, progress=lambda *each: told.append(each))
    assert found == both
    assert told[0] == ("mapping prompt 1", 4, total)
    assert told[-1] == ("measuring prompt 3 at height=48, width=64", total, total)
    # Without the further size what it measured is not asked for; with another one beside it, it is kept.
    assert calibrated(tiny_wan(), work=tmp_path) == calibrated(tiny_wan())
    told.clear()
    more = [{"num_frames": 9}, *ALSO]
    three = calibrated(tiny_wan(), also=more, work=tmp_path, progress=lambda *each: told.append(each))
    assert [str(each.layout) for each in three.heads_at] == ["3x4x6", "5x3x4"]
    assert three.heads_at[1] == both.heads_at[0] and len(told) == 3 + 2 * (steps + 1) + 2


def test_killed_within_the_further_size(tmp_path: Path, both: Profile) -> None:
    root, work = Path(__file__).resolve().parents[2], tmp_path / "work"
    code = CHILD.format(threads=torch.get_num_threads(), also=ALSO, work=str(work))
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": str(root)})  # fmt: skip
    assert child.stdout is not None
    while "height" not in child.stdout.readline():
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.stdout.close()
    child.wait()
    assert len(list(work.glob("prompt-*"))) == 3
    assert calibrated(tiny_wan(), also=ALSO, work=work) == both


def test_what_the_first_size_learned_is_part_of_the_others_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    calibrated(tiny_wan(), also=ALSO, work=tmp_path, **QUICK)
    real = Generations.own
    monkeypatch.setattr(Generations, "own", lambda self, grid: dict(list(real(self, grid).items())[1:]))
    with pytest.raises(ValueError, match="height-48-width-64' holds a calibration with other settings"):
        calibrated(tiny_wan(), also=ALSO, work=tmp_path, **QUICK)


def test_without_learned_patterns_all_prompts_measure_at_each_size() -> None:
    told: list[Any] = []
    options = QUICK | {"library": "geometry"}
    found = calibrated(tiny_wan(), also=ALSO, progress=lambda *each: told.append(each[0]), **options)
    assert told[-1] == "measuring prompt 2 at height=48, width=64" and "measuring prompt 1 at" in " ".join(told)
    assert len(found.heads_at) == 1


def test_text_before_the_video() -> None:
    found = calibrated(tiny_cogvideox(), PROMPTS[:2], generation_kwargs=GUIDED, also=ALSO, library="svg")
    assert str(found.heads_at[0].layout) == "5x3x4 after 16 text"
    assert Profile.parse(json.dumps(found.to_dict()), "it") == found


def test_one_timing_serves_all_sizes_of_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(*given: Any) -> CostModel:
        asked.append(given)
        return CostModel(per_range=300.0, source="timed")

    monkeypatch.setattr(CostModel, "measured", measured)
    calibrated(tiny_wan(), PROMPTS[:1], also=ALSO, library="svg", cost="measured")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ({"height": 48}, "is not a list of at most 8 sizes"),
        ("48x64", "is not a list of at most 8 sizes"),
        ([{"height": 16 * at} for at in range(1, 10)], "is not a list of at most 8 sizes"),
        ([{}], "{} is not a size"),
        (["48x64"], "'48x64' is not a size"),
        ([{"height": "48"}], "height='48' is not a whole number"),
        ([{"height": 0}], "height=0 is not a whole number"),
        ([{"height": True}], "height=True is not a whole number"),
        ([{"prompt": 3}], "prompt is the same at all sizes"),
        ([{"num_inference_steps": 3}], "num_inference_steps is the same at all sizes"),
        ([*ALSO, *ALSO], "height=48, width=64 is calibrated twice"),
        ([{"rows": 3}], "WanPipeline takes no rows"),
        ([{"height": 64, "width": 96}], "height=64, width=96 is calibrated twice"),
        ([{"height": 64}], "height=64 is calibrated twice"),
        ([{"height": 48}, {"height": 48, "width": 96}], "height=48, width=96 is calibrated twice"),
    ],
)  # fmt: skip
def test_bad_sizes_are_refused_before_anything_runs(also: Any, message: str, tmp_path: Path) -> None:
    pipe = tiny_wan()
    pipe.transformer.forward = lambda *args, **kwargs: pytest.fail("it ran")
    with pytest.raises(ValueError, match=message):
        calibrated(pipe, also=also, work=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_size_of_a_grid_that_was_measured_is_refused_in_its_first_call() -> None:
    """One frame more makes no latent frame more."""
    told: list[str] = []
    with pytest.raises(ValueError, match="num_frames=18 has the token grid 5x4x6, as another one has"):
        calibrated(tiny_wan(), also=[{"num_frames": 18}], progress=lambda *each: told.append(each[0]), **QUICK)
    assert not any("num_frames" in each for each in told)


def test_a_density_that_is_out_of_reach_at_one_size_names_it() -> None:
    with pytest.raises(ValueError, match=r"on 5x4x6: density 0.001 is below"):
        calibrated(tiny_wan(), also=ALSO, target_density=0.001, **QUICK | {"library": "svg"})
