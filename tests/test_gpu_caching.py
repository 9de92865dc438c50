"""benchmarks/gpu/caching.py on tiny models: what its lines say happened did, and a second call goes on where it was."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

FOLDER = Path(__file__).parents[1] / "benchmarks" / "gpu"
STEPS = 12
MODULES = ("all", "caching", "caching_runs", "caching_table")
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="benchmarks are not part of the source distribution")
Load = Callable[[str], Any]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Imports a script; benchmarks/ has another one of the same name."""
    sys.path.insert(0, str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)
    with torch.random.fork_rng(devices=[]):
        yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a whole run."""
    out = tmp_path_factory.mktemp("caching") / "tiny.jsonl"
    assert load("caching").main(["--tiny", "--out", str(out), "--git", "0" * 40]) == 0
    return out


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_every_variant_has_its_lines(made: Path, load: Load) -> None:
    lines, variants = read(made), list(load("caching_runs").VARIANTS)
    assert [line["variant"] for line in lines] == variants * 3  # two rounds of Wan, one of HunyuanVideo
    for line in lines:
        assert line["label"] == "random weights: speed only, no quality" and line["tiny"] and line["finite"]
        assert {"created", "device", "versions"} <= set(line) and line["git"] and line["tokens"] == 594
        assert line["seconds"] > 0 and len(line["steps_ms"]) == STEPS
        assert line["passes_per_step"] == (2 if line["model"] == "wan" else 1)
    for line in lines[:: len(variants)]:
        assert line["variant"] == "dense" and line["speedup"] == 1


def test_steps_were_left_out_and_attention_was_sparse(made: Path) -> None:
    for line in read(made):
        name, cache, sparse = line["variant"], line["cache"], line["sparse"]
        assert (cache is not None) == ("hold" in name or "taylor" in name)
        assert (sparse is not None) == name.startswith("sparse")
        assert (line["deciding_ms"] is not None) == (cache is not None)
        if sparse is not None:
            assert sparse["calls"]["sparse"] > 0 and sparse["density"]["all_calls"] < 1
        if cache is None:
            assert set(line["step_ms"]) == {"computed, dense", *(["computed, sparse"] if sparse else [])}
            continue
        assert 0 < line["deciding_ms"]["decide"] < line["seconds"] * 1e3
        assert cache["setting"]["name"] in name and cache["setting"]["predictor"]["name"] in name
        assert {0, STEPS - 1} <= set(cache["computed_steps"])
        assert sparse is None or 3 in cache["computed_steps"], "the first step with sparse attention"
        computed = len(cache["computed_steps"])
        assert computed == STEPS // 2 if "static" in name else STEPS // 2 <= computed < STEPS * 3 / 4
        assert cache["computed_share"] == cache["blocks_share"] == computed / STEPS
        assert line["step_ms"]["reused"] == min(line["step_ms"].values()) and len(line["step_ms"]) > 1


def test_blocks_run_as_often_as_the_line_says(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in the blocks themselves."""
    scripts, runs, calls = load("caching"), load("caching_runs"), [0]
    forward = WanTransformerBlock.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(WanTransformerBlock, "forward", counted)
    bench = runs.Bench(scripts.TINY_CASES[0], scripts.read_options(["--tiny"]))
    for variant in ("dense", "static, hold", "sparse + easycache, taylor"):
        calls[0] = 0
        bench.warm_up(variant)
        assert 2 * 2 <= calls[0] <= 2 * 2 * 2, "a warm-up ends after two steps of two passes of two blocks"
        calls[0] = 0
        line = bench.measured(variant)
        share = line["cache"]["blocks_share"] if line["cache"] else 1
        assert calls[0] == share * STEPS * 2 * 2


def test_a_second_call_does_what_is_missing(made: Path, load: Load, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    lines, out = made.read_text(encoding="utf-8").splitlines(), tmp_path / "tiny.jsonl"
    out.write_text("\n".join(lines[:1] + lines[2:]) + "\n", encoding="utf-8")
    options = ["--tiny", "--out", str(out), "--git", "0" * 40]
    assert load("caching").main([*options, "--minutes", "-1"]) == 0
    assert "left out for lack of time: wan-tiny" in capsys.readouterr().out and len(read(out)) == len(lines) - 1
    assert load("caching").main(options) == 0
    dense, sparse = read(out)[len(lines) - 1 :]
    assert (dense["variant"], sparse["variant"], sparse["round"]) == ("dense", "sparse", 0)
    assert sparse["dense_seconds"] == dense["seconds"] and sparse["created"] == dense["created"]
    assert load("caching").main(options) == 0 and len(read(out)) == len(lines) + 1


def test_medians_and_their_product(load: Load) -> None:
    same = dict.fromkeys(load("caching_table").ONE_RUN, 0) | {"device": {"gpu": "some"}}
    lines = [{**same, "round": number, "variant": variant, "seconds": 1 / speedup, "speedup": speedup}
             for number, by in enumerate((1, 2, 6)) for variant, speedup in
             (("dense", 1), ("sparse", 1.5 * by), ("static, hold", 2), ("sparse + static, hold", by))]  # fmt: skip
    found = load("caching_table").medians([*lines, {**same, "variant": "sparse", "failed": "no memory"}])
    assert [each["speedup"] for each in found] == [1, 3, 2, 2] and [each["runs"] for each in found] == [3] * 4
    assert [each["product"] for each in found] == [None, None, None, 6]


@pytest.mark.parametrize("change, words", [
    ({"finite": False}, "finite"), ({"cache": {"computed_steps": [0, 1]}}, "left out no step"),
    ({"sparse": {"calls": {"sparse": 0}}}, "no attention was sparse"), ({}, None),
])  # fmt: skip
def test_a_run_that_did_not_do_what_it_should(load: Load, change: dict[str, Any], words: str | None) -> None:
    good = {"finite": True, "cache": None, "sparse": None, "steps_ms": [1.0, 1.0]}
    found = load("caching").problem({**good, **change}, good)
    assert words in found if words else found is None


@pytest.mark.parametrize("steps, switch", [(12, 3), (20, 5), (50, 12), (13, 1), (20, 6)])
def test_half_of_the_steps(load: Load, steps: int, switch: int) -> None:
    found = load("caching_runs").half(steps, switch)
    assert len(found) == steps // 2 and found == sorted(set(found)) and {0, switch, steps - 1} <= set(found)
    assert max(after - before for before, after in zip(found, found[1:], strict=False)) <= 4


def test_real_sizes(load: Load) -> None:
    sized = {case.name: case.sized(81) for case in load("caching").CASES}
    assert {model.layout.tokens for name, model in sized.items() if name.endswith("480p")} == {32_760}
    assert {model.layout.tokens for name, model in sized.items() if name.endswith("720p")} == {75_600}
    assert sized["wan-1.3b-720p"].config["num_layers"] == 30 and sized["wan-14b-480p"].config["num_layers"] == 40


@pytest.mark.parametrize("options, words", [
    (["--tiny", "--steps", "8"], "fewer than 12 steps"), ([], "need a GPU"), (["--case", "other"], "invalid choice"),
])  # fmt: skip
def test_bad_options(load: Load, options: list[str], words: str, capsys: pytest.CaptureFixture[str],
                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        load("caching").main(options)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_one_call_for_all(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which part runs when, and in which time."""
    whole, calls = load("all"), []
    out = tmp_path / "kernels.jsonl"
    monkeypatch.setattr(whole, "kernels", lambda given: (out.touch(), calls.append(("kernels", given)), 1)[-1])
    monkeypatch.setattr(whole.caching, "main", lambda given: (calls.append(("caching", given)), 0)[-1])
    assert whole.main(["--out", str(out), "--smoke", "--minutes", "5", "--density", "0.5"]) == 1
    assert whole.main(["--out", str(out), "--git", "abc"]) == 0
    assert whole.main(["--out", str(out), "--part", "tuning"]) == 1
    assert whole.main(["--out", str(out), "--part", "caching"]) == 0
    assert [name for name, _ in calls] == ["kernels", "caching", "caching", "kernels", "caching"]
    assert calls[0][1] == ["--smoke", "--out", str(out), "--minutes", "5.0", "--density", "0.5"]
    assert calls[1][1][:2] == ["--out", str(tmp_path / "caching.jsonl")] and calls[1][1][-1] == "--tiny"
    assert 4.9 < float(calls[1][1][3]) <= 5 and calls[2][1][-2:] == ["--git", "abc"]
    assert calls[3][1][:2] == ["--part", "tuning"]
