"""The cpu backend: the same numbers as brute force, only from the keys of the plan, planned once."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.cases import CASES, Case, band, brute_force, from_rows, relative_error, scattered
from vidaccel.kernels import attention, cpu, cpu_batches
from vidaccel.kernels.cpu_patterns import Call, TileKeys
from vidaccel.kernels.cpu_spans import MAX_BIAS, Shape, spans
from vidaccel.plan import BlockMask

FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


@pytest.fixture
def poisoned():
    """Fresh memory is NaN, so that a result that was never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Pairs(TorchDispatchMode):
    """Counts the query-key pairs and the calls that dense attention computes inside it."""

    def __init__(self):
        super().__init__()
        self.pairs = self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is FLASH:
            batch, heads, rows, _ = args[0].shape
            self.pairs += batch * heads * rows * args[1].shape[2]
            self.calls += 1
        return func(*args, **(kwargs or {}))


def run(case, query, key, value, **options):
    return attention(query, key, value, case.mask, key_lengths=case.key_lengths, backend_name="cpu", **options)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name):
    case = CASES[name]
    query, key, value = case.inputs()
    out, lse = run(case, query, key, value, scale=0.3, return_lse=True)
    expected, expected_lse = brute_force(case, query, key, value, 0.3)
    assert out.dtype == query.dtype and out.shape == query.shape
    assert lse.dtype == torch.float32 and lse.shape == expected_lse.shape
    assert relative_error(out, expected) < 1e-6
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float64, 1e-14)])
@pytest.mark.parametrize("name", ["wide band", "unaligned ranges", "pattern per head", "empty rows"])
def test_dtypes(name, dtype, tolerance):
    case = CASES[name]
    query, key, value = case.inputs(dtype)
    out, lse = run(case, query, key, value, scale=0.25, return_lse=True)
    expected, expected_lse = brute_force(case, query, key, value, 0.25)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert relative_error(out, expected) < tolerance
    torch.testing.assert_close(lse.double(), expected_lse, rtol=max(tolerance, 1e-6), atol=max(tolerance, 1e-6))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mask(data):
    queries, keys = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    block, batch, heads = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    patterns = data.draw(st.sampled_from([1, heads, batch * heads]))
    cuts = st.lists(st.integers(0, keys), max_size=8, unique=True).map(sorted)
    tile = cuts.map(lambda edges: list(zip(edges[::2], edges[1::2], strict=False)))
    tiles = -(-queries // block)
    rows = data.draw(st.lists(st.lists(tile, min_size=tiles, max_size=tiles), min_size=patterns, max_size=patterns))
    lengths = data.draw(st.none() | st.tuples(*[st.integers(0, keys)] * batch))
    case = Case(from_rows(rows, block, queries, keys), batch, heads, 8, lengths, data.draw(st.booleans()))
    query, key, value = case.inputs()
    out, lse = run(case, query, key, value, return_lse=True)
    expected, expected_lse = brute_force(case, query, key, value, 8**-0.5)
    assert relative_error(out, expected) < 1e-5
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-5)


def test_large_scores_stay_finite():
    case = CASES["unaligned ranges"]
    query, key, value = (100 * each for each in case.inputs())
    out, lse = run(case, query, key, value, return_lse=True)
    expected, expected_lse = brute_force(case, query, key, value, 0.25)
    assert relative_error(out, expected) < 1e-5
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-5, atol=1e-3)


def test_full_mask_is_the_dense_call_bit_for_bit():
    mask = BlockMask.full(300, 300)
    query, key, value = torch.randn(3, 2, 300, 4, 32).unbind(0)
    with Pairs() as counted:
        out, _ = attention(query, key, value, mask, backend_name="cpu")
    dense = scaled_dot_product_attention(*(each.transpose(1, 2) for each in (query, key, value)))
    assert torch.equal(out, dense.transpose(1, 2))
    assert counted.pairs == 2 * 4 * 300 * 300


@pytest.mark.parametrize("mask, most", [
    (band(4096, 128, 3), 1.02),
    (scattered(2048, 128, 128, 0.2), 1.1),
    (scattered(1024, 64, 64, 0.2, 4), 1.15),
], ids=["band", "scattered", "pattern per head"])
def test_skips_the_blocks(mask, most):
    query = torch.randn(1, mask.queries, 4, 64)
    with Pairs() as counted:
        attention(query, query, query, mask, backend_name="cpu")
    kept = int(mask.to_dense().sum()) * 4 // mask.patterns
    assert kept <= counted.pairs <= most * kept
    assert counted.calls < mask.patterns * mask.tiles


def test_band_is_a_few_calls_on_views():
    mask = band(4096, 128, 3)
    plan = cpu_batches.program(mask, Call(1, 4, 64, 4, None))
    assert max(part.count for part in plan.parts if isinstance(part, cpu_batches.Window)) >= 20
    assert len(plan.parts) <= 8


def test_keys_outside_the_plan_are_never_read():
    blocks = torch.zeros(1, 8, 8, dtype=torch.bool)
    blocks[0, :, [1, 4, 5]] = True
    mask = BlockMask.from_blocks(blocks, 16, 16, 128, 128)
    query, key, value = torch.randn(3, 2, 128, 2, 16).unbind(0)
    unseen = ~mask.to_dense()[0].any(0)
    key[:, unseen], value[:, unseen] = float("nan"), float("nan")
    key[1, 70:], value[1, 70:] = float("nan"), float("nan")
    out, _ = attention(query, key, value, mask, key_lengths=torch.tensor([128, 70]), backend_name="cpu")
    assert bool(out.isfinite().all())


def test_inputs_are_left_alone():
    case = CASES["pattern per head"]
    inputs = case.inputs()
    before = [each.clone() for each in inputs]
    run(case, *inputs)
    assert all(torch.equal(*pair) for pair in zip(inputs, before, strict=True))


def test_plans_once_per_shape_and_key_lengths(monkeypatch):
    mask, planned, plan = scattered(160, 16, 16, 0.4), [], cpu_batches._plan
    monkeypatch.setattr(cpu_batches, "_plan", lambda mask, call: planned.append(call) or plan(mask, call))
    query = torch.randn(2, 160, 2, 16)
    for lengths in (None, [160, 90], [160, 90], None):
        key_lengths = None if lengths is None else torch.tensor(lengths)
        attention(query, query, query, mask, key_lengths=key_lengths, backend_name="cpu")
    assert len(planned) == 2
    attention(query[:1], query[:1], query[:1], mask, backend_name="cpu")
    assert len(planned) == 3


def test_keeps_few_plans_and_none_of_a_dead_mask():
    mask = scattered(64, 16, 16, 0.6)
    query = torch.randn(1, 64, 1, 16)
    for length in range(64):
        attention(query, query, query, mask, key_lengths=torch.tensor([length]), backend_name="cpu")
    assert len(cpu_batches._programs[mask]) == cpu_batches.KEPT_PROGRAMS
    alive = weakref.ref(next(iter(cpu_batches._programs[mask].values())))
    assert alive() is not None
    del mask
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("tile", [[(3, 3)], [(-1, 4)], [(30, 41)], [(5, 9), (2, 4)], [(2, 6), (5, 9)]])
def test_contents_that_are_not_a_mask(tile):
    query = torch.randn(1, 40, 1, 16)
    with pytest.raises(ValueError, match="BlockMask"):
        attention(query, query, query, from_rows([[tile, [], []]], 16, 40, 40), backend_name="cpu")


def test_refuses_what_it_cannot_run():
    assert cpu.why_not(torch.zeros(1, 4, 1, 8)) is None
    assert "meta" in cpu.why_not(torch.zeros(1, 4, 1, 8, device="meta"))
    assert "float32, bfloat16, float16, float64, not int32" in cpu.why_not(torch.zeros(1, 4, 1, 8, dtype=torch.int32))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.floats(0, 1), st.integers(0, 1000), st.sampled_from([1, 4, 40]))
def test_spans_cover_each_tile_with_keys_once(tiles, density, seed, lanes):
    blocks = torch.rand(1, tiles, 12, generator=torch.Generator().manual_seed(seed)) < density
    mask = BlockMask.from_blocks(blocks, 16, 16, tiles * 16 - 3, 12 * 16)
    runs = spans(TileKeys.of(mask, 0, mask.keys), 16, mask.queries, Shape(lanes, 64, 4))
    covered = [tile for first, last in runs for tile in range(first, last)]
    assert covered == blocks[0].any(1).nonzero().flatten().tolist()


@pytest.mark.parametrize("mask", [scattered(4096, 64, 64, 0.3, 4), band(4096, 16, 12)], ids=["gathered", "biased"])
def test_buffers_stay_small(mask):
    plan = cpu_batches.program(mask, Call(1, 4, 64, 4, None))
    gathers = [part for part in plan.parts if isinstance(part, cpu_batches.Gathered)]
    assert all(2 * part.keys.numel() * 64 * 4 <= cpu_batches.GATHER_BYTES for part in gathers)
    assert plan.gathered * 64 * 4 <= cpu_batches.GATHER_BYTES
    assert plan.bias_elements <= MAX_BIAS
    assert gathers if mask.patterns == 4 else plan.bias_elements > MAX_BIAS / 8
