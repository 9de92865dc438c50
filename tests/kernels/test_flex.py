"""The flex backend: the numbers of brute force, and block lists that name each block once and as what it is."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.cases import CASES, Case, band, brute_force, from_rows, relative_error, scattered
from vidaccel.kernels import flex
from vidaccel.kernels.flex_mask import _BLOCKS, Blocks, size_of
from vidaccel.plan import AttentionPlan, BlockMask


def run(case, query, key, value, scale=0.3, return_lse=True):
    return flex.attention(query, key, value, AttentionPlan(case.mask), key_lengths=case.key_lengths, scale=scale,
                          return_lse=return_lse)


def stretched(tiles, size, length):
    return tiles.repeat_interleave(size, dim=-1)[..., :length]


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name):
    case = CASES[name]
    query, key, value = case.inputs()
    out, lse = run(case, query, key, value)
    expected, expected_lse = brute_force(case, query, key, value, 0.3)
    assert out.dtype == query.dtype and out.shape == query.shape
    assert lse.dtype == torch.float32 and lse.shape == expected_lse.shape
    assert relative_error(out, expected) < 1e-6
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float64, 1e-12)])
def test_dtypes(dtype, tolerance):
    case = CASES["unaligned ranges"]
    query, key, value = case.inputs(dtype)
    out, lse = run(case, query, key, value)
    expected, _ = brute_force(case, query, key, value, 0.3)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert relative_error(out, expected) < tolerance


def test_log_sum_exp_only_on_request():
    case = CASES["scattered"]
    out, lse = run(case, *case.inputs(), return_lse=False)
    assert lse is None
    torch.testing.assert_close(out, run(case, *case.inputs())[0])


def test_rows_without_keys():
    case = CASES["key lengths 0 and too long"]
    out, lse = run(case, *case.inputs())
    assert not out[0].any() and bool((lse[0] == -math.inf).all()) and bool(lse[1].isfinite().all())


def test_orders_are_undone():
    mask, tokens = scattered(190, 16, 16, 0.4), 190
    order = torch.stack([torch.randperm(tokens) for _ in range(2)]).int()
    case = Case(mask)
    query, key, value = case.inputs()
    plan = AttentionPlan(mask, query_order=order, key_order=order)
    out, lse = flex.attention(query, key, value, plan, key_lengths=None, scale=0.3, return_lse=True)
    for head in range(2):
        place = order[head].long()
        expected, expected_lse = brute_force(case, query[:, place], key[:, place], value[:, place], 0.3)
        torch.testing.assert_close(out[0, place, head].double(), expected[0, :, head], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse[0, head, place].double(), expected_lse[0, head], rtol=1e-4, atol=1e-5)


MASKS = {
    "a plan's block is a block": scattered(700, 128, 128, 0.4, 2),
    "blocks of 64": scattered(700, 64, 64, 0.4, 2),
    "smaller tiles": scattered(700, 16, 32, 0.7),
    "tiles astride": scattered(700, 96, 96, 0.5),
    "no common measure": scattered(331, 50, 37, 0.6, 2, keys=290),
    "band": band(1000, 128, 2),
    "touching ranges": from_rows([[[(0, 40), (40, 128)], [(3, 64), (64, 130)]]], 128, 200, 200),
    "two ranges in a block": from_rows([[[(1, 3), (9, 12), (60, 70)]]], 100, 100, 100),
    "none": from_rows([[[], []]], 64, 100, 100),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_blocks_are_what_the_mask_says(mask):
    """On a GPU only blocks that are listed are computed, and full ones without a mask: the lists decide."""
    blocks, exact = Blocks.of(mask), mask.to_dense()
    rows, columns = blocks.size
    padded = torch.nn.functional.pad(exact, (0, -mask.keys % columns, 0, -mask.queries % rows))
    cells = padded.view(len(exact), -1, rows, padded.shape[2] // columns, columns)
    inside = torch.nn.functional.pad(torch.ones_like(exact[0]), (0, 0, 0, -mask.queries % rows))
    outside = ~torch.nn.functional.pad(inside, (0, -mask.keys % columns)).view(cells.shape[1:])
    last = torch.arange(cells.shape[3]) * columns + columns > mask.keys
    assert torch.equal(blocks.some, cells.any(4).any(2))
    assert torch.equal(blocks.full, (cells | outside).all(4).all(2) & ~last)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_flex_lists(mask):
    flex_mask = Blocks.of(mask).flex(1, 2, None)
    blocks = Blocks.of(mask)
    assert blocks.size == flex_mask.BLOCK_SIZE and flex_mask.seq_lengths == (mask.queries, mask.keys)
    # FlexAttention's own reading of the lists: partial and full ones together, no block twice.
    assert torch.equal(flex_mask.to_dense()[0].bool(), blocks.some.expand(flex_mask.to_dense().shape[1:]))
    listed = flex_mask.kv_num_blocks + flex_mask.full_kv_num_blocks
    assert torch.equal(listed[0], blocks.some.sum(-1, dtype=torch.int32))
    full = flex_mask.full_kv_num_blocks
    assert torch.equal(full[0], blocks.full.sum(-1, dtype=torch.int32)) and not (blocks.full & ~blocks.some).any()


def test_padding_cuts_blocks_per_batch_row():
    mask = BlockMask.full(512, 512)
    flex_mask = Blocks.of(mask).flex(3, 2, torch.tensor([512, 200, 0], dtype=torch.int32))
    assert flex_mask.full_kv_num_blocks[:, 0, 0].tolist() == [4, 1, 0]
    assert flex_mask.kv_num_blocks[:, 0, 0].tolist() == [0, 1, 0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_key_table_is_exact(data):
    queries, keys = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 300))
    tile, patterns = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 2))
    cuts = st.lists(st.integers(0, keys), max_size=10, unique=True).map(sorted)
    one = cuts.map(lambda edges: list(zip(edges[::2], edges[1::2], strict=False)))
    tiles = -(-queries // tile)
    rows = data.draw(st.lists(st.lists(one, min_size=tiles, max_size=tiles), min_size=patterns, max_size=patterns))
    mask = from_rows(rows, tile, queries, keys)
    keep = Blocks.of(mask)._keeps(patterns, None)
    index = torch.meshgrid(torch.arange(patterns), torch.arange(queries), torch.arange(keys), indexing="ij")
    assert torch.equal(keep(torch.zeros_like(index[0]), *index), mask.to_dense())


def test_real_plans_of_whole_blocks_have_no_partial_block():
    blocks = Blocks.of(scattered(128 * 40, 128, 128, 0.3))
    assert torch.equal(blocks.some, blocks.full)


def test_block_sizes():
    assert [size_of(block) for block in (128, 256, 384, 64, 192, 16, 96, 1)] == [128, 128, 128, 64, 64, 64, 64, 64]


def test_translates_once_and_forgets_dead_masks():
    mask = scattered(200, 16, 16, 0.5)
    case = Case(mask)
    run(case, *case.inputs())
    made = Blocks.of(mask)
    run(case, *case.inputs())
    assert Blocks.of(mask) is made
    alive = weakref.ref(made)
    del mask, case, made
    gc.collect()
    assert alive() is None or alive() not in _BLOCKS.values()


def test_a_second_mask_of_a_shape_compiles_nothing():
    import torch._dynamo

    one, other = scattered(400, 64, 64, 0.4, 2), BlockMask.from_blocks(
        scattered(400, 64, 64, 0.4, 2).to_dense()[:, ::64, ::64].flip(1), 64, 64, 400, 400)  # fmt: skip
    assert Blocks.of(one).keys.shape == Blocks.of(other).keys.shape
    inputs = Case(one).inputs()
    run(Case(one), *inputs)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    out, _ = run(Case(other), *inputs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert relative_error(out, brute_force(Case(other), *inputs, 0.3)[0]) < 1e-6


def test_any_number_of_shapes():
    """torch refuses, or silently runs the slow way, after eight compilations of one function."""
    for tokens in range(20, 60, 3):
        case = Case(BlockMask.full(tokens, tokens, 16, 16))
        out, _ = run(case, *case.inputs())
        assert relative_error(out, brute_force(case, *case.inputs(), 0.3)[0]) < 1e-6


def test_refuses_what_it_cannot_run():
    assert flex.why_not(torch.zeros(1, 4, 1, 8)) is None
    assert "meta" in flex.why_not(torch.zeros(1, 4, 1, 8, device="meta"))
    assert "'int8'" in flex.why_not(torch.zeros(1, 4, 1, 8), "int8")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["full with ragged tails", "scattered, larger key blocks", "unaligned ranges",
                                  "pattern per batch and head", "empty rows", "key lengths per pattern"])
def test_on_a_gpu(name):
    case = CASES[name]
    query, key, value = case.inputs(torch.float16)
    lengths = None if case.key_lengths is None else case.key_lengths.cuda()
    out, lse = flex.attention(query.cuda(), key.cuda(), value.cuda(), AttentionPlan(case.mask.to("cuda")),
                              key_lengths=lengths, scale=0.3, return_lse=True)
    expected, expected_lse = brute_force(case, query, key, value, 0.3)
    assert relative_error(out.cpu(), expected) < 1e-2
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-2, atol=1e-2)
