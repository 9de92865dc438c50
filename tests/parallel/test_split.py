"""Collectives between processes, on plain tensors, and how a clip is split."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from diffusers import ContextParallelConfig

from tests.parallel import cases
from tests.parallel.world import World
from vidaccel.parallel.split import Group, Split


def of(ulysses: int, ring: int = 1, anything: bool = False) -> Split:
    """The split of a configuration that was set up as `enable_parallelism` does it."""
    config = cases.config(ulysses, ring, anything)
    config.setup(torch.distributed.get_rank(), torch.distributed.get_world_size(), torch.device("cpu"), config.mesh)
    return Split.of(SimpleNamespace(context_parallel_config=config))


def _facts(ulysses: int, ring: int) -> tuple[Any, ...]:
    split = of(ulysses, ring)
    return str(split), *((each.rank, each.size) for each in (split.ulysses, split.ring, split.every)), split.sizes(8)


def test_the_groups_of_a_split(world: World) -> None:
    assert world(_facts, 2, 1) == [
        ("Ulysses over 2 processes", (rank, 2), (0, 1), (rank, 2), (4, 4)) for rank in range(2)
    ]
    assert world(_facts, 1, 2) == [("ring over 2 processes", (0, 1), (rank, 2), (rank, 2), (4, 4)) for rank in range(2)]


def test_the_ring_is_the_slower_dimension_of_both(four: World) -> None:
    assert [each[1:4] for each in four(_facts, 2, 2)] == [
        ((rank % 2, 2), (rank // 2, 2), (rank, 4)) for rank in range(4)
    ]


def _collectives() -> tuple[Any, ...]:
    group = of(2).every
    mine = torch.arange(3.0).reshape(1, 3) + 10 * group.rank
    # To each rank as many rows as its number tells, and one more.
    sent = [mine[:, :2].contiguous(), mine]
    came = group.all_to_all(sent, [(1, 2 + group.rank)] * 2)
    uneven = group.gather(torch.full((2, 1 + group.rank), float(group.rank)), 1, (1, 2))
    mean = group.mean(torch.tensor([1.0, 2.0**24]) if group.rank else torch.tensor([2.0, 1.0]))
    return came, group.gather(mine, 0), uneven, mean


def test_collectives(world: World) -> None:
    for rank, (came, even, uneven, mean) in enumerate(world(_collectives)):
        assert [each.tolist() for each in came] == [[[0.0, 1.0, 2.0][: 2 + rank]], [[10.0, 11.0, 12.0][: 2 + rank]]]
        assert even.tolist() == [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
        assert uneven.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
        assert mean.tolist() == [1.5, 2.0**23]


def _compiled() -> tuple[int, bool]:
    group = of(2).every
    counter = torch._dynamo.testing.CompileCounter()

    def around(tensor: torch.Tensor) -> torch.Tensor:
        return group.gather(tensor * 2, 0) + 1

    found = torch.compile(around, fullgraph=True, backend=counter)(torch.arange(4.0))
    return counter.frame_count, torch.equal(found, around(torch.arange(4.0)))


def test_collectives_inside_one_compiled_graph(world: World) -> None:
    assert world(_compiled) == [(1, True)] * 2


def _fails_on_one() -> None:
    if torch.distributed.get_rank() == 1:
        raise KeyError("only here")


def test_an_error_of_one_rank_reaches_the_test(world: World) -> None:
    with pytest.raises(KeyError, match="only here"):
        world(_fails_on_one)
    assert world(_facts, 2, 1)[0][1] == (0, 2), "and the next finds the processes as they were"


def _sizes(ranks: int, tokens: int, anything: bool = False, ring: int = 1) -> tuple[int, ...]:
    return Split(Group(0, ranks // ring), Group(0, ring), Group(0, ranks), anything).sizes(tokens)


def test_sizes_are_those_of_the_hooks_of_diffusers() -> None:
    for ranks, tokens in ((2, 7), (4, 4), (4, 11), (3, 9)):
        expected = tuple(len(part) for part in torch.zeros(tokens).tensor_split(ranks))
        assert _sizes(ranks, tokens, anything=True) == expected
    assert _sizes(2, 8) == (4, 4)


def test_what_cannot_be_split_is_said_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"15 video tokens .* evenly over 2 .*\(ulysses_anything=True\)"):
        _sizes(2, 15)
    with pytest.raises(ValueError, match=r"\(ring_anything=True\)"):
        _sizes(2, 15, ring=2)
    with pytest.raises(ValueError, match=r"\(ulysses_anything=True\) with ring_degree=1"):
        _sizes(4, 15, ring=2)
    with pytest.raises(ValueError, match="1 video tokens cannot be split over 2 processes"):
        _sizes(2, 1, anything=True)


def test_a_configuration_that_is_no_split_is_refused() -> None:
    with pytest.raises(ValueError, match="was not set up"):
        Split.of(ContextParallelConfig(ulysses_degree=2))
    with pytest.raises(ValueError, match="tensor parallelism"):
        Split.of(SimpleNamespace(context_parallel_config=None, tensor_parallel_config=object()))
