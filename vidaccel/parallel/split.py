"""How one clip is split over processes, as diffusers' context parallelism set it up, and the collectives between them.

The collectives are custom ops, so that torch.compile sees opaque calls, and no data but the tensors themselves travels:
every rank computes all sizes by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vidaccel.parallel import alive

_NUMBERS = itertools.count()
# What the ops find a group by: weak, so that it keeps nothing alive. Numbers are never reused.
_GROUPS: weakref.WeakValueDictionary[int, Group] = weakref.WeakValueDictionary()


@dataclass(frozen=True, eq=False)
class Group:
    """Some processes that compute one clip, as one of them sees them.

    Args:
        rank: of this process in the group, from 0.
        size: processes in the group; one alone needs no process group.
        process_group: of torch.distributed.
    """

    rank: int
    size: int
    process_group: Any = None
    number: int = field(default_factory=lambda: next(_NUMBERS), init=False)

    def __post_init__(self) -> None:
        _GROUPS[self.number] = self

    def all_to_all(self, outgoing: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """A tensor to each rank, and one from each.

        Args:
            outgoing: one for each rank, this one too; all of one type.
            shapes: of what each rank sends here.

        Returns:
            What came, by rank, contiguous.

        Raises:
            RuntimeError: another process has gone.
        """
        packed = torch.cat([each.reshape(-1) for each in outgoing])
        counts = [torch.Size(shape).numel() for shape in shapes]
        flat = exchange(packed, [each.numel() for each in outgoing], counts, self.number)
        return [each.view(*shape) for each, shape in zip(flat.split(counts), shapes, strict=True)]

    def gather(self, tensor: Tensor, dim: int, sizes: Sequence[int] | None = None) -> Tensor:
        """The tensors of all ranks behind each other along `dim`, on every rank.

        Args:
            tensor: of this rank.
            dim: along which they may differ.
            sizes: along it, by rank; None: all are as large as this rank's.

        Raises:
            RuntimeError: another process has gone.
        """
        if self.size == 1:
            return tensor
        shapes = [list(tensor.shape) for _ in range(self.size)]
        for shape, size in zip(shapes, sizes or (), strict=bool(sizes)):
            shape[dim] = size
        return torch.cat(self.all_to_all([tensor] * self.size, shapes), dim)

    def pass_on(self, tensor: Tensor, shape: Sequence[int]) -> Callable[[], Tensor]:
        """Send a tensor to the next rank of the ring, and get one from the rank before; nothing waits for either.

        Args:
            tensor: of this rank, not to be changed before it has gone.
            shape: of what comes.

        Returns:
            Waits for both (on a GPU, its stream does), then gives what came.

        Raises:
            RuntimeError: another process has gone; so may the result.
        """
        from torch import distributed

        group, arriving, tensor = self.process_group, tensor.new_empty(tuple(shape)), tensor.contiguous()
        after, before = (distributed.get_global_rank(group, (self.rank + step) % self.size) for step in (1, -1))
        both = [
            distributed.P2POp(distributed.isend, tensor, after, group),
            distributed.P2POp(distributed.irecv, arriving, before, group),
        ]
        with named(self):
            works = distributed.batch_isend_irecv(both)

        def arrived() -> Tensor:
            with named(self):
                for work in works:
                    work.wait()
            # What goes is named here, so that it lives until it has gone.
            del both[:]
            return arriving

        return arrived

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over all ranks, in fp32 and with the same bits on all: summed in the order of the ranks.

        Args:
            tensor: small, of one shape on all ranks: each gets every other's.

        Raises:
            RuntimeError: another process has gone.
        """
        return self.gather(tensor.float()[None], 0).mean(0)


@dataclass(frozen=True, eq=False)
class Split:
    """How the video tokens of one clip are split.

    Args:
        ulysses: the ranks that exchange heads for tokens.
        ring: the ranks between which keys and values go round.
        every: all ranks of the clip, in the order in which their tokens follow each other: ring first, then Ulysses.
        anything: whether the ranks may have different numbers of tokens.
    """

    ulysses: Group
    ring: Group
    every: Group
    anything: bool

    @classmethod
    def of(cls, config: Any) -> Split:
        """The split that diffusers' `enable_parallelism` set up.

        Args:
            config: a ``ContextParallelConfig``, or the ``ParallelConfig`` that holds it.

        Raises:
            ValueError: it is no context parallelism, or it was not set up.
        """
        context = getattr(config, "context_parallel_config", config)
        if context is None or not hasattr(context, "ulysses_degree"):
            raise ValueError(
                "this model is split by its weights (tensor parallelism), which vidaccel does not know: use "
                "ContextParallelConfig(ulysses_degree=...), or enable nothing of vidaccel on it"
            )
        if context._flattened_mesh is None:
            raise ValueError("this ContextParallelConfig was not set up: hand it to the model's enable_parallelism()")
        ulysses, ring, every = map(_group, (context._ulysses_mesh, context._ring_mesh, context._flattened_mesh))
        anything = getattr(context, "ulysses_anything", False) or getattr(context, "ring_anything", False)
        return cls(ulysses, ring, every, anything)

    def __str__(self) -> str:
        parts = {"Ulysses": self.ulysses.size, "ring": self.ring.size}
        return " and ".join(f"{name} over {size} processes" for name, size in parts.items() if size > 1)

    def sizes(self, tokens: int) -> tuple[int, ...]:
        """Of so many video tokens, how many each rank of `every` has.

        Raises:
            ValueError: they cannot be split evenly, and must be; or there are fewer than ranks.
        """
        ranks = self.every.size
        if tokens < ranks:
            raise ValueError(f"{tokens} video tokens cannot be split over {ranks} processes: use fewer")
        if tokens % ranks and not self.anything:
            option = "ring_anything" if self.ulysses.size == 1 else "ulysses_anything"
            also = "" if 1 in (self.ulysses.size, self.ring.size) else " with ring_degree=1"
            raise ValueError(
                f"{tokens} video tokens cannot be split evenly over {ranks} processes: give "
                f"ContextParallelConfig({option}=True){also}, or choose a size of video or a number of processes that "
                "fits"
            )
        least, more = divmod(tokens, ranks)
        return tuple(least + (rank < more) for rank in range(ranks))


def _group(mesh: Any) -> Group:
    return Group(mesh.get_local_rank(), mesh.size(), mesh.get_group())


@torch.library.custom_op("vidaccel::exchange", mutates_args=())
def exchange(packed: Tensor, sent: Sequence[int], received: Sequence[int], group: int) -> Tensor:
    """Parts of a flat tensor to all ranks of a group, and parts from all, flat.

    Args:
        packed: ``[elements]``, what goes to each rank behind each other.
        sent, received: elements to and from each rank.
        group: the `Group`'s number.

    Raises:
        RuntimeError: another process has gone.
    """
    from torch import distributed

    processes = _GROUPS[group]
    out = packed.new_empty(sum(received))
    if processes.size == 1:
        return out.copy_(packed)
    with named(processes):
        distributed.all_to_all_single(out, packed, list(received), list(sent), group=processes.process_group)
    return out


@exchange.register_fake
def _(packed: Tensor, sent: Sequence[int], received: Sequence[int], group: int) -> Tensor:
    return packed.new_empty(sum(received))


@contextlib.contextmanager
def named(group: Group) -> Iterator[None]:
    """Say of a collective that fails inside the block whose it was, and what that means.

    Raises:
        RuntimeError: it failed.
    """
    try:
        yield
    except RuntimeError as error:
        known = alive.last_words()
        cause = f"{known}." if known else "The first error in the output of all of them is the cause."
        raise RuntimeError(
            f"a collective of rank {group.rank} of {group.size} failed: another process that computes this clip has "
            f"ended or cannot be reached. {cause} Here: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
