"""The scripts that compare step caches, on tiny pipelines: what they count, keep and decide."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vidaccel
from tests import tiny

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STEPS = 12
SIZE = {"height": 64, "width": 96, "num_frames": 9, "guidance_scale": 3.0}


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """Both, with tiny pipelines for miniatures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = set(sys.modules)
    import caching_peers
    import caching_switch

    monkeypatch.setattr(caching_peers, "loaded", lambda family: quiet())
    monkeypatch.setattr(caching_peers, "arguments", lambda family, steps: {**SIZE, "num_inference_steps": steps})
    yield caching_peers, caching_switch
    for name in set(sys.modules) - known:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


def quiet() -> Any:
    pipe = tiny.tiny_wan()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_what_runs_is_counted_below_hooks(scripts: Any, tmp_path: Path) -> None:
    """By-passed blocks do not count, whoever passes them by; cached attention is a part of a block's work."""
    peers, _ = scripts
    chosen = {
        "static": (peers.by_vidaccel, [{"name": "static", "compute": [0, 1, 2, 5, 8, 11]}]),
        "first block": (peers.by_diffusers, [{"config": "FirstBlockCacheConfig", "threshold": 1e9}]),
        "ours": (peers.by_vidaccel, [{"name": "first_block", "threshold": 1e9, "last_steps": 0}]),
        "attention": (peers.by_diffusers, [{**peers.TAYLORSEER, "cache_identifiers": [peers.ATTENTION],
                                            "cache_interval": 2}]),
        "as shipped": peers.PEERS["diffusers TaylorSeer, as shipped"],
        "half": (peers.by_steps, [{"of_steps": 0.5}]),
        "refused": (peers.by_vidaccel, [{"name": "easycache", "threshold": -1}]),
    }  # fmt: skip
    options = argparse.Namespace(family="wan", work=tmp_path, prompts=1, steps=STEPS, results=tmp_path / "r.jsonl",
                                 cache_dit=None)  # fmt: skip
    peers.run(options, chosen)
    lines = {line["peer"]: line for line in peers.read(tmp_path / "wan.jsonl")}
    assert lines["static"]["computed_share"] == lines["static"]["block_share"] == 0.5 == lines["half"]["block_share"]
    # Of two blocks the first in every step, and the second in the first.
    assert lines["first block"]["block_share"] == pytest.approx((1 + 1 / STEPS) / 2, abs=1e-4)
    assert lines["ours"]["latent_snr"] == lines["first block"]["latent_snr"]
    assert lines["attention"]["block_share"] == 1 > lines["attention"]["computed_share"] > 0.2
    assert lines["as shipped"]["identical"] and lines["as shipped"]["computed_share"] == 1
    assert lines["refused"]["failed"].startswith("ValueError: threshold -1")
    peers.run(options, chosen)
    assert len(peers.read(tmp_path / "wan.jsonl")) == len(chosen)
    peers.report(options)
    words = {line["peer"]: line["words"] for line in peers.read(tmp_path / "r.jsonl")}
    assert words["refused"].startswith("fails: ") and words["as shipped"].startswith("leaves nothing out")
    assert words["static"] == ""


def test_magcache_gets_the_ratios_that_it_prints(scripts: Any) -> None:
    peers, _ = scripts
    found = peers.ratios(quiet(), STEPS)
    assert len(found) == STEPS and found[0] == 1 and all(each > 0 for each in found)


@pytest.mark.parametrize(("budget", "expected"), [(0.3, None), (0.4, 10.0), (0.5, 15.0), (0.7, 22.0), (0.9, 22.0)])
def test_best_between_settings(scripts: Any, budget: float, expected: float | None) -> None:
    """On the line between two settings; what a setting has where that is more; nothing below all."""
    assert scripts[0].best_at([(0.4, 10.0), (0.6, 20.0), (0.65, 22.0), (0.8, 18.0)], budget) == pytest.approx(expected)


def test_means_over_prompts(scripts: Any) -> None:
    lines = [{"options": {"t": at}, "computed_share": share, "latent_snr": snr}
             for at, share, snr in ((1, 0.5, 10), (1, 0.7, 20), (2, 1.0, None))]  # fmt: skip
    assert scripts[0].points(lines) == [(0.6, 15)]


def test_calibrated_settings(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of steps goes by what the miniature brings along, so that no path gets into results."""
    peers, _ = scripts
    given: list[Any] = []
    monkeypatch.setattr(peers.vidaccel, "enable", lambda pipe, method, cache: given.append(cache))
    for options in peers.PEERS["vidaccel static, calibrated"][1]:
        peers.by_vidaccel(quiet(), options, 20)
        assert "file" not in options
    assert [each["file"] for each in given] == ["miniature:wan/cache-20.json"] * 3
    assert [len(vidaccel.caching.cache(each).policy.schedule) for each in given] == [8, 10, 13]


def test_switch(scripts: Any) -> None:
    """A cache that reuses whatever it may: blind without the regime, and with it not; the first block sees nothing."""
    _, switch = scripts
    options = argparse.Namespace(method="random", density=0.3, block=16, threshold=1e9, prompts=1)
    bench = switch.Bench(options, quiet(), {**SIZE, "num_inference_steps": switch.STEPS})
    dense = bench.watched("a red circle")
    assert len(dense[1]) == switch.STEPS
    found = {place: bench.one("a red circle", layers, dense) for place, layers in switch.PLACES.items()}
    for run in found.values():
        assert run["before"]["decisions"] == "ccc" + "r" * 16 + "c"
        assert run["after"]["decisions"] == "cccrrc" + "r" * 13 + "c" and run["after"]["switch"]["forced"]
    assert found["all but the first"]["at_switch"]["indicator"] == 0 < found["all blocks"]["at_switch"]["indicator"]
    assert all(run["at_switch"]["reused"] > 0 for run in found.values())
    record = switch.record(options, "all blocks", [found["all blocks"]])
    assert json.loads(json.dumps(record)) and record["latent_snr"]["after"]["snr_sparse"] > 0
