"""Plans: block maps to ranges and back, densities by counting, and what is not a mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidaccel.layout import TokenLayout
from vidaccel.plan import AttentionPlan, BlockMask


@st.composite
def block_maps(draw):
    """A random block map with the mask made of it."""
    queries, keys = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    query_block, key_block = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    patterns, seed = draw(st.integers(1, 3)), draw(st.integers(0, 999))
    density = draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    shape = (patterns, -(-queries // query_block), -(-keys // key_block))
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    return blocks, BlockMask.from_blocks(blocks, query_block, key_block, queries, keys)


def ranges_mask(*tiles, block=4, keys=12):
    """One pattern, each tile a list of ranges."""
    offsets = torch.tensor([[0, *torch.tensor([len(tile) for tile in tiles]).cumsum(0).tolist()]], dtype=torch.int32)
    ranges = torch.tensor([pair for tile in tiles for pair in tile], dtype=torch.int32).reshape(-1, 2)
    return BlockMask(offsets, ranges, block, block, block * len(tiles), keys)


@settings(max_examples=150, deadline=None)
@given(block_maps())
def test_ranges_are_the_blocks(case):
    blocks, mask = case
    mask.validate()
    row, column = torch.arange(mask.queries) // mask.query_block, torch.arange(mask.keys) // mask.key_block
    assert torch.equal(mask.to_dense(), blocks[:, row][:, :, column])


@settings(max_examples=80, deadline=None)
@given(block_maps())
def test_neighbouring_blocks_are_one_range(case):
    blocks, mask = case
    rises = torch.nn.functional.pad(blocks, (1, 0)).int().diff(dim=-1).clamp(min=0)
    assert len(mask.ranges) == int(rises.sum())


def test_a_mask_is_made_without_waiting_for_its_blocks():
    """On a device without data nothing can be read: all shapes are known beforehand, and the slack is empty."""
    blocks = torch.rand(3, 7, 9) < 0.4
    roomy = BlockMask.from_blocks(blocks.to("meta"), 16, 8, 110, 70)
    assert roomy.ranges.shape == (3 * 7 * 5, 2) and roomy.offsets.shape == (3, 8)
    mask = BlockMask.from_blocks(blocks, 16, 8, 110, 70)
    slack = torch.zeros(3 * 7 * 5 - len(mask.ranges), 2, dtype=torch.int32)
    roomy = BlockMask(mask.offsets, torch.cat([mask.ranges, slack]), 16, 8, 110, 70)
    roomy.validate()
    assert torch.equal(roomy.to_dense(), mask.to_dense()) and torch.equal(roomy.trimmed().ranges, mask.ranges)
    layout = TokenLayout(1, 1, 70)
    assert AttentionPlan(roomy).density(layout) == AttentionPlan(mask).density(layout)
    roomy.ranges[-1] = torch.tensor([3, 5])
    with pytest.raises(ValueError, match="what follows"):
        roomy.validate()


def test_length_of_ranges_is_counted_where_that_waits_for_nothing():
    mask = ranges_mask([(0, 2), (4, 12)], [], [(3, 5)])
    assert mask.range_length == 4 and mask.to("meta").range_length == 4
    blocks = torch.zeros(1, 3, 3, dtype=torch.bool)
    assert BlockMask.from_blocks(blocks, 4, 4, 12, 12).range_length == 4
    assert BlockMask.from_blocks(blocks.to("meta"), 4, 4, 12, 12).range_length == 4


@settings(max_examples=80, deadline=None)
@given(block_maps())
def test_row_of_range(case):
    _, mask = case
    rows = mask.row_of_range()
    for pattern in range(mask.patterns):
        for tile in range(mask.tiles):
            start, stop = mask.offsets[pattern, tile], mask.offsets[pattern, tile + 1]
            assert bool((rows[start:stop] == pattern * mask.tiles + tile).all())
    assert len(rows) == len(mask.ranges)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_densities_are_counts(data):
    layout = TokenLayout(*(data.draw(st.integers(1, 4)) for _ in range(3)), data.draw(st.integers(0, 9)),
                         data.draw(st.integers(0, 9)))
    query_block, key_block = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    tokens, patterns = layout.tokens, data.draw(st.integers(1, 3))
    shape = (patterns, -(-tokens // query_block), -(-tokens // key_block))
    blocks = torch.rand(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 999)))) < 0.4
    mask = BlockMask.from_blocks(blocks, query_block, key_block, tokens, tokens)
    found = AttentionPlan(mask).density(layout)
    video = slice(layout.video_start, layout.video_end)
    assert found.density == pytest.approx(float(mask.to_dense().double().mean()))
    assert found.video_density == pytest.approx(float(mask.to_dense()[:, video, video].double().mean()))
    padded = int(blocks.sum()) * query_block * key_block / (patterns * tokens**2)
    assert found.computed_density == pytest.approx(padded)


def test_dense_plan_has_density_one():
    layout = TokenLayout(2, 3, 4, text_after=5)
    for plan in (AttentionPlan(), AttentionPlan(BlockMask.full(29, 29, 8, 8))):
        found = plan.density(layout)
        assert (found.density, found.video_density) == (1.0, 1.0)


def test_computed_density_pads_every_range_to_whole_key_blocks():
    mask = ranges_mask([(0, 1), (5, 6)], [(0, 4)], [], keys=12)
    assert AttentionPlan(mask).density(TokenLayout(1, 3, 4)).computed_density == pytest.approx((2 + 1) * 16 / 144)


@pytest.mark.parametrize("queries, keys", [(1, 1), (128, 128), (129, 77), (300, 513)])
def test_full_keeps_every_pair(queries, keys):
    mask = BlockMask.full(queries, keys)
    mask.validate()
    assert bool(mask.to_dense().all()) and mask.to_dense().shape == (1, queries, keys)


def test_nbytes_counts_the_tensors():
    mask = ranges_mask([(0, 3)], [(1, 2), (5, 9)], [])
    assert mask.nbytes == 4 * (4 + 6)


def test_copies_are_kept():
    mask = ranges_mask([(0, 3)], [(1, 2)], [])
    assert mask.to("cpu") is mask
    copy = mask.to("meta")
    assert copy is not mask and copy is mask.to(torch.device("meta"))
    assert (copy.offsets.device.type, copy.queries, copy.query_block) == ("meta", 12, 4)


def test_masks_are_told_apart_by_identity():
    one, other = BlockMask.full(4, 4, 2, 2), BlockMask.full(4, 4, 2, 2)
    assert one != other and len({one, other, one}) == 2


def test_memory_is_a_few_bytes_per_block():
    blocks = torch.rand(1, 900, 900) < 0.3
    mask = BlockMask.from_blocks(blocks, 128, 128, 900 * 128, 900 * 128)
    assert mask.nbytes < 4 * blocks.numel()


@pytest.mark.parametrize("tiles", [
    [[(3, 3)], [], []],
    [[(5, 4)], [], []],
    [[(-1, 4)], [], []],
    [[], [(8, 13)], []],
    [[], [], [(4, 8), (0, 2)]],
    [[(0, 5), (4, 8)], [], []],
])
def test_validate_names_bad_ranges(tiles):
    with pytest.raises(ValueError, match="range"):
        ranges_mask(*tiles).validate()


@pytest.mark.parametrize("offsets", [[[0, 2, 1, 3]], [[1, 1, 2, 3]], [[0, 1, 2, 2]], [[0, 1, 2, 4]],
                                     [[0, 1, 1, 1], [2, 2, 3, 3]]])
def test_validate_names_bad_offsets(offsets):
    ranges = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.int32)
    with pytest.raises(ValueError, match="rise from 0"):
        BlockMask(torch.tensor(offsets, dtype=torch.int32), ranges, 4, 4, 12, 12).validate()


def test_touching_ranges_and_ranges_of_different_tiles_are_valid():
    mask = ranges_mask([(0, 5), (5, 8)], [(2, 3)], [(0, 12)])
    mask.validate()
    assert int(mask.to_dense().sum()) == 4 * (8 + 1 + 12)


GOOD = {"offsets": torch.zeros(1, 4, dtype=torch.int32), "ranges": torch.zeros(0, 2, dtype=torch.int32),
        "query_block": 4, "key_block": 4, "queries": 12, "keys": 12}


@pytest.mark.parametrize("field, bad, message", [
    ("offsets", torch.zeros(1, 4), "int32, got torch.float32"),
    ("offsets", torch.zeros(1, 3, dtype=torch.int32), r"\[patterns, 4\], got \[1, 3\]"),
    ("offsets", torch.zeros(4, dtype=torch.int32), r"\[patterns, 4\], got \[4\]"),
    ("ranges", torch.zeros(0, 2, dtype=torch.int64), "int32"),
    ("ranges", torch.zeros(0, 3, dtype=torch.int32), r"\[count, 2\], got \[0, 3\]"),
    ("query_block", 0, "at least one token"),
    ("key_block", 0, "at least one token"),
    ("queries", 0, "at least one token"),
    ("keys", 0, "at least one token"),
])
def test_fields_that_do_not_fit(field, bad, message):
    BlockMask(**GOOD)
    with pytest.raises(ValueError, match=message):
        BlockMask(**{**GOOD, field: bad})


@pytest.mark.parametrize("blocks", [
    torch.ones(2, 3, dtype=torch.bool), torch.ones(1, 3, 2, dtype=torch.bool), torch.ones(1, 2, 3),
])
def test_block_maps_that_do_not_fit(blocks):
    with pytest.raises(ValueError, match=r"bool \[patterns, 2, 3\], got"):
        BlockMask.from_blocks(blocks, 16, 8, 30, 24)
