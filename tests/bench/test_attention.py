"""The gate, and what is measured behind it."""

import math

import pytest
import torch

from vidaccel import kernels
from vidaccel.bench import attention, gate, peers, plans
from vidaccel.bench.attention import Board, measured
from vidaccel.bench.peers import Peer, Unavailable
from vidaccel.bench.shapes import SMOKE, Shape
from vidaccel.layout import TokenLayout

SHAPE = Shape("small", TokenLayout(3, 9, 11), 3, 32)


@pytest.fixture
def board() -> Board:
    return Board(torch.device("cpu"), torch.float32, seed=3)


def backend(name):
    return lambda plan, query: lambda *inputs: kernels.attention(*inputs, plan, backend_name=name)[0]


def spoilt(change):
    """The reference's output with something wrong in it."""

    def make(plan, query):
        def run(*inputs):
            out = kernels.attention(*inputs, plan, backend_name="reference")[0].clone()
            change(out)
            return out

        return run

    return make


@pytest.mark.parametrize("kind", plans.KINDS)
def test_error_is_that_of_fp64(board, kind):
    plan = plans.make(kind, SHAPE, 0.4, "cpu", block=32)
    inputs = board.inputs(SHAPE)[0]
    out = kernels.attention(*inputs, plan, backend_name="reference")[0]
    assert gate.error(out, inputs, plan) < 1e-6
    assert gate.error(out * 1.02, inputs, plan) == pytest.approx(0.02, rel=1e-3)


def test_error_sees_the_wrong_order(board):
    plan = plans.make("clustered", SHAPE, 0.4, "cpu", block=32)
    inputs = board.inputs(SHAPE)[0]
    out = kernels.attention(*inputs, plan.mask, backend_name="reference")[0]
    assert gate.error(out, inputs, plan) > 0.1


def test_one_element_that_is_not_finite_is_enough(board):
    plan = plans.make("banded", SHAPE, 0.4, "cpu", block=32)
    inputs = board.inputs(SHAPE)[0]
    out = kernels.attention(*inputs, plan, backend_name="reference")[0]
    out[0, 97, 1, 5] = float("nan")  # of a head and a tile that are not sampled
    assert gate.error(out, inputs, plan) == math.inf


@pytest.mark.parametrize("change", [
    lambda out: out.mul_(1.05), lambda out: out.zero_(), lambda out: out[0, 40, 1].fill_(float("inf")),
], ids=["off by five percent", "never written", "infinite"])  # fmt: skip
def test_a_red_check_has_no_speed(board, change):
    plan = plans.make("random", SHAPE, 0.4, "cpu", block=32)
    line = measured(Peer("spoilt", spoilt(change)), board.inputs(SHAPE), plan, SHAPE.dense_flop,
                    plan.density(SHAPE.layout))  # fmt: skip
    assert "red" in line and not {"p50_ms", "tflops", "attended_tflops"} & set(line)


def test_what_cannot_run_says_why(board):
    plan = plans.make("random", SHAPE, 0.4, "cpu", block=32)

    def unavailable(plan, query):
        raise Unavailable("no such GPU")

    def broken(plan, query):
        raise RuntimeError("out of memory\nand more")

    given = board.inputs(SHAPE), plan, SHAPE.dense_flop, plan.density(SHAPE.layout)
    assert measured(Peer("none", unavailable), *given) == {"skipped": "no such GPU"}
    assert measured(Peer("broken", broken), *given) == {"failed": "RuntimeError: out of memory"}


def test_rates_are_counted_from_the_plan(board, monkeypatch):
    monkeypatch.setattr(attention, "percentiles", lambda *_: {"p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.0})
    plan = plans.make("banded", SHAPE, 0.4, "cpu", block=32)
    found = plan.density(SHAPE.layout)
    line = measured(Peer("cpu", backend("cpu")), board.inputs(SHAPE), plan, SHAPE.dense_flop, found)
    pairs = int(plan.mask.to_dense().sum()) * SHAPE.heads
    assert line["attended_tflops"] == pytest.approx(4 * 32 * pairs / 2e-3 / 1e12)
    assert line["tflops"] == pytest.approx(line["attended_tflops"] * found.computed_density / found.density)


def test_inputs_are_random_and_fresh(board):
    sets = board.inputs(SHAPE)
    assert len(sets) == attention.ROTATION
    flat = torch.stack([torch.stack(each) for each in sets])
    assert flat.shape == (3, 3, 1, SHAPE.tokens, 3, 32) and float(flat.std()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(flat[0], flat[1])
    assert all(torch.equal(*pair) for pair in zip(sets[0], board.inputs(SHAPE)[0], strict=True))


def test_efficiency_is_against_the_best_dense_of_the_run(board, monkeypatch):
    ms = iter([4.0, 2.0, 9.0])
    monkeypatch.setattr(attention, "percentiles", lambda *_: dict.fromkeys(("p20_ms", "p50_ms", "p80_ms"), next(ms)))
    full = [Peer("slow", backend("cpu")), Peer("fast", backend("reference")), Peer("8 bits", backend("cpu"), 0.03)]
    monkeypatch.setattr(peers, "dense", lambda device: full)
    dense = list(board.dense_lines(SHAPE))
    assert board.dense[SHAPE.name] == dense[1]["tflops"]
    monkeypatch.setattr(attention, "percentiles", lambda *_: dict.fromkeys(("p20_ms", "p50_ms", "p80_ms"), 0.5))
    line = next(board.sparse_lines(SHAPE, "banded", 0.3))
    assert line["efficiency"] == pytest.approx(line["tflops"] / dense[1]["tflops"])
    assert line["speedup"] == pytest.approx(board.dense_ms(SHAPE) / 0.5)


def test_on_a_cpu_our_backend_and_the_emulation_of_fewer_bits_run(board):
    lines = list(board.sparse_lines(SMOKE[1], "banded", 1.0))
    assert [line["implementation"] for line in lines] == ["vidaccel", "flex", "vidaccel-int8", "vidaccel-fp8"]
    assert all("p50_ms" in line for line in lines), lines
    assert not {"vidaccel-int8", "vidaccel-fp8"} & {
        line["implementation"] for line in board.sparse_lines(SMOKE[1], "banded", 0.3)
    }
