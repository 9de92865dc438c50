"""A mask cut to some rows and some keys keeps what the whole one keeps of them, pair by pair."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.kernels.cases import CASES, from_rows, scattered
from vidaccel.mask import BlockMask
from vidaccel.parallel.rows import Span, cut_columns, cut_rows, front_of


def _columns(whole: Tensor, columns: tuple[Span, ...]) -> Tensor:
    return torch.cat([whole[..., start:end] for start, end in columns], dim=-1)


def _thirds(length: int) -> list[Span]:
    """Three spans of odd lengths, the whole of it and its last token."""
    edges = sorted({0, length // 3, 2 * length // 3, length})
    return [*itertools.pairwise(edges), (0, length), (length - 1, length)]


@pytest.mark.parametrize("name", CASES)
def test_cut_to_rows(name: str) -> None:
    mask = CASES[name].mask
    for start, end in _thirds(mask.queries):
        cut = cut_rows(mask, (start, end))
        cut.validate()
        front = front_of(mask, (start, end))
        assert cut.queries == end - start + front and front < mask.query_block
        assert torch.equal(cut.to_dense()[:, front:], mask.to_dense()[:, start:end])


@pytest.mark.parametrize("name", CASES)
def test_cut_to_columns(name: str) -> None:
    mask = CASES[name].mask
    spans = _thirds(mask.keys)
    apart = [(spans[0], spans[2])] if len(spans) == 5 else []
    for columns in [*((each,) for each in spans), tuple(spans[:-2]), *apart]:
        cut = cut_columns(mask, columns)
        cut.validate()
        assert cut.keys == sum(end - start for start, end in columns)
        assert torch.equal(cut.to_dense(), _columns(mask.to_dense(), columns))


def test_rows_then_columns_of_random_masks() -> None:
    generator = torch.Generator().manual_seed(3)
    for patterns, block in itertools.product((1, 2, 6), (8, 16, 40)):
        mask = scattered(151, block, 24, 0.2, patterns)
        low, middle, high = sorted(torch.randperm(152, generator=generator)[:3].tolist())
        cut = cut_columns(cut_rows(mask, (low, high)), ((0, low + 1), (middle + 1, 151)))
        cut.validate()
        expected = _columns(mask.to_dense()[:, low:high], ((0, low + 1), (middle + 1, 151)))
        assert torch.equal(cut.to_dense()[:, low % block :], expected)


def test_ranges_that_come_to_touch_become_one() -> None:
    mask = from_rows([[[(0, 10), (20, 30)]]], 16, 16, 40)
    assert cut_columns(mask, ((5, 10), (20, 25))).ranges.tolist() == [[0, 10]]
    assert cut_columns(mask, ((5, 11), (20, 25))).ranges.tolist() == [[0, 5], [6, 11]]


def test_what_nothing_is_kept_of_has_no_ranges() -> None:
    mask = from_rows([[[(0, 10)], [(20, 30)]]], 16, 32, 40)
    assert cut_columns(cut_rows(mask, (0, 16)), ((12, 40),)).ranges.shape == (0, 2)
    assert cut_columns(cut_rows(mask, (17, 32)), ((0, 20),)).ranges.shape == (0, 2)


def test_slack_at_the_end_of_a_mask_is_left_out() -> None:
    mask = scattered(100, 16, 16, 0.4, 2)
    slack = BlockMask(mask.offsets, torch.nn.functional.pad(mask.ranges, (0, 0, 0, 9)), 16, 16, 100, 100)
    cut = cut_columns(cut_rows(slack, (30, 90)), ((10, 70),))
    cut.validate()
    assert torch.equal(cut.to_dense()[:, 14:], mask.to_dense()[:, 30:90, 10:70])


def test_cuts_that_are_none_are_refused() -> None:
    mask = scattered(100, 16, 16, 0.4)
    for rows in ((5, 5), (-1, 4), (90, 101)):
        with pytest.raises(ValueError, match=r"none of \[0, 100\)"):
            cut_rows(mask, rows)
    for columns in ((), ((5, 5),), ((0, 101),), ((-1, 4),), ((10, 20), (15, 30)), ((10, 20), (0, 5))):
        with pytest.raises(ValueError, match=r"not disjoint spans in order of \[0, 100\)"):
            cut_columns(mask, columns)
