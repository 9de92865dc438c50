"""The scoring kernels against torch in Triton's interpreter; test_triton_scores.py runs this in a process.

Everything that is allocated starts as NaN, and so does padding.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.planning.score_cases import close, lse_of, orders, plan_list, poisoned, random_mask, states
from vidaccel.plan import AttentionPlan, BlockMask
from vidaccel.planning import antidiagonal, dispatch, mass, pool, sampled, triton_antidiagonal
from vidaccel.planning.rows import keys_of_rows
from vidaccel.triton_launch import Launch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # then, and only then, torch fills what it allocates with NaN
    assert torch.utils.deterministic.fill_uninitialized_memory and torch.zeros(1).new_empty(9).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def far_apart(tensor: Tensor) -> Tensor:
    """The same numbers with their tokens in a larger storage, last token first in it: a strange view."""
    batch, tokens, heads, head_dim = tensor.shape
    storage = torch.full((heads, batch, tokens * 3, head_dim + 5), float("nan"), dtype=tensor.dtype)
    view = storage[:, :, 1::3, 2 : 2 + head_dim].permute(1, 2, 0, 3)
    view.copy_(tensor)
    return view


def check_pool(tensor: Tensor, block: int, order: Tensor | None = None, lengths: Tensor | None = None) -> None:
    with dispatch.forced("torch"):
        expected = pool.summary(tensor, block, order=order, lengths=lengths)
    with dispatch.forced("triton"):
        both = pool.summary(far_apart(tensor), block, order=order, lengths=lengths)
        mean = pool.block_mean(tensor, block, order=order, lengths=lengths)
        alike = pool.self_similarity(tensor, block, order=order, lengths=lengths)
    assert torch.equal(both.mean, mean) and torch.equal(both.similarity, alike)
    close(mean, expected.mean, TOLERANCE[tensor.dtype])
    close(alike, expected.similarity, TOLERANCE[tensor.dtype])


@DTYPES
@pytest.mark.parametrize(
    "tokens, block, head_dim", [(183, 64, 64), (101, 48, 96), (1, 16, 128), (7, 100, 20), (9, 1, 16)]
)
def test_pool(tokens: int, block: int, head_dim: int, dtype: torch.dtype) -> None:
    tensor = states(2, tokens, 3, head_dim, dtype)
    for order in (None, orders(1, tokens), orders(3, tokens), orders(6, tokens)):
        check_pool(tensor, block, order)


def test_pool_of_padding_and_zeros() -> None:
    lengths = torch.tensor([50, 0, 77, -4])
    tensor = poisoned(states(4, 77, 2, 16), lengths.clamp(min=0))
    tensor[2, 3:5] = 0
    check_pool(tensor, 16, None, lengths)
    check_pool(tensor[:1], 16, orders(2, 77, last=50), lengths[:1])


def check_antidiagonal(query: Tensor, key: Tensor, sizes: tuple[int, int, int], lengths: Tensor | None = None) -> None:
    scale = query.shape[-1] ** -0.5 * 4  # sharp enough for blocks to differ
    with dispatch.forced("torch"):
        expected = antidiagonal.block_scores(query, key, *sizes, scale=scale, key_lengths=lengths)
    with dispatch.forced("triton"):
        scores = antidiagonal.block_scores(far_apart(query), far_apart(key), *sizes, scale=scale, key_lengths=lengths)
    close(scores, expected, TOLERANCE[query.dtype])


@DTYPES
@pytest.mark.parametrize(
    "queries, keys, sizes, head_dim",
    [
        (183, 183, (64, 64, 8), 64), (150, 131, (48, 96, 16), 96), (1, 1, (16, 16, 8), 128), (70, 3, (8, 8, 8), 16),
        (33, 150, (256, 40, 4), 20), (65, 140, (3, 128, 1), 64), (40, 300, (8, 200, 2), 120),
    ],
)  # fmt: skip
def test_antidiagonal(
    queries: int, keys: int, sizes: tuple[int, int, int], head_dim: int, dtype: torch.dtype
) -> None:  # fmt: skip
    check_antidiagonal(states(2, queries, 2, head_dim, dtype), states(2, keys, 2, head_dim, dtype, 1), sizes)


def test_antidiagonal_of_padding() -> None:
    lengths = torch.tensor([50, 0, 77])
    key = poisoned(states(3, 77, 2, 16, seed=1), lengths)
    check_antidiagonal(states(3, 45, 2, 16), key, (16, 24, 8), lengths)


def test_antidiagonal_of_large_scores() -> None:
    """Far past the range of exp: only differences from the maximum may be exponentiated."""
    check_antidiagonal(states(1, 80, 2, 64) * 10, states(1, 80, 2, 64, seed=1) * 10, (16, 16, 4))


def test_antidiagonal_in_groups_of_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = states(2, 70, 3, 16), states(2, 45, 3, 16, seed=1)
    scratch = []
    prepare = triton_antidiagonal.prepare_cells
    monkeypatch.setattr(triton_antidiagonal, "prepare_cells", lambda *a: scratch.append(a[2].nbytes) or prepare(*a))
    for limit, launches in ((1, 6), (4 * 18 * 3 * 4, 2), (1 << 20, 1)):
        scratch.clear()
        monkeypatch.setattr(antidiagonal, "WORKING_BYTES", limit)
        check_antidiagonal(query, key, (16, 16, 4))
        assert len(scratch) == launches and max(scratch) <= max(limit, 4 * 18 * 3)


def test_antidiagonal_blocks_that_are_too_large_run_in_torch() -> None:
    query = states(1, 300, 1, 16)
    with pytest.raises(ValueError, match="a block has 150 cells, the kernels at most 128"), dispatch.forced("triton"):
        antidiagonal.block_scores(query, query, 2, 300, 2, scale=1.0)
    assert antidiagonal.block_scores(query, query, 2, 300, 2, scale=1.0).shape == (1, 150, 1)


def check_mass(
    query: Tensor, key: Tensor, sizes: tuple[int, int], lse: Tensor | None = None, **options: Tensor
) -> None:
    scale = query.shape[-1] ** -0.5 * 2
    lse = lse_of(query, key, scale, options.get("key_lengths")) if lse is None else lse
    with dispatch.forced("torch"):
        expected = mass.block_mass(query, key, lse, *sizes, scale=scale, **options)
    with dispatch.forced("triton"):
        result = mass.block_mass(far_apart(query), far_apart(key), lse, *sizes, scale=scale, **options)
    close(result, expected, TOLERANCE[query.dtype])


@DTYPES
@pytest.mark.parametrize(
    "queries, keys, sizes, head_dim",
    [
        (183, 183, (64, 64), 64), (150, 131, (48, 24), 96), (1, 1, (16, 16), 128), (270, 3, (200, 1), 16),
        (33, 150, (256, 100), 20), (65, 140, (3, 5), 64), (40, 300, (1, 200), 120), (300, 70, (130, 65), 16),
    ],
)  # fmt: skip
def test_mass(queries: int, keys: int, sizes: tuple[int, int], head_dim: int, dtype: torch.dtype) -> None:
    check_mass(states(2, queries, 2, head_dim, dtype), states(2, keys, 2, head_dim, dtype, 1), sizes)


@pytest.mark.parametrize("query_rows, key_rows", [(1, 1), (2, 4), (4, 2)])
def test_mass_in_orders(query_rows: int, key_rows: int) -> None:
    query, key = states(2, 83, 2, 16), states(2, 77, 2, 16, seed=1)
    check_mass(
        query, key, (32, 20), query_order=orders(query_rows, 83), key_order=orders(key_rows, 77, 1)
    )  # fmt: skip


def test_mass_of_padding() -> None:
    lengths = torch.tensor([50, 0, 77])
    query, key = states(3, 45, 2, 16), poisoned(states(3, 77, 2, 16, seed=1), lengths)
    check_mass(query, key, (16, 24), key_lengths=lengths)
    check_mass(query[:1], key[:1], (16, 24), key_lengths=lengths[:1], key_order=orders(2, 77, last=50))


def test_mass_of_rows_without_keys() -> None:
    query, key = states(1, 70, 2, 16), states(1, 40, 2, 16, seed=1)
    lse = lse_of(query, key, 0.5)
    lse[..., 3:40] = float("-inf")
    query[:, 3:40] = float("nan")  # such rows are not even read
    check_mass(query.nan_to_num(0.0), key, (16, 8), lse)
    with dispatch.forced("triton"):
        assert torch.isfinite(mass.block_mass(query, key, lse, 16, 8, scale=0.5)).all()


def test_keys_of_rows() -> None:
    rows = torch.tensor([0, 36, 5, 5, 17])
    for plan in plan_list(37, 41, 2, 3, 16):
        for lanes in (None, range(2, 5), range(5, 6)):
            with dispatch.forced("torch"):
                expected = keys_of_rows(plan, rows, lanes)
            with dispatch.forced("triton"):
                assert torch.equal(keys_of_rows(plan, rows, lanes), expected)


def check_errors(
    tensors: list[Tensor], rows: Tensor, plans: list[AttentionPlan], lengths: Tensor | None = None
) -> None:  # fmt: skip
    scale = tensors[0].shape[-1] ** -0.5 * 2
    with dispatch.forced("torch"):
        expected = sampled.output_errors(*tensors, rows, plans, scale=scale, key_lengths=lengths)
    with dispatch.forced("triton"):
        strange = [far_apart(each) for each in tensors]
        result = sampled.output_errors(*strange, rows, plans, scale=scale, key_lengths=lengths)
    close(result.error, expected.error, TOLERANCE[tensors[0].dtype])
    close(result.norm, expected.norm, TOLERANCE[tensors[0].dtype])


def tensors_of(queries: int, keys: int, head_dim: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    tokens = (queries, keys, keys)
    return [states(2, tokens[seed], 3, head_dim, dtype, seed) for seed in range(3)]


@DTYPES
@pytest.mark.parametrize(
    "queries, keys, rows, head_dim", [(37, 101, 7, 64), (37, 5, 20, 96), (1, 1, 1, 16), (9, 70, 3, 20)]
)
def test_errors(queries: int, keys: int, rows: int, head_dim: int, dtype: torch.dtype) -> None:
    plans = plan_list(queries, keys, 2, 3, head_dim)[: 6 if dtype == torch.float32 else 5]
    places = torch.randint(queries, (rows,), generator=torch.Generator().manual_seed(rows))
    check_errors(tensors_of(queries, keys, head_dim, dtype), places, plans)


def test_errors_with_padding() -> None:
    lengths = torch.tensor([30, 0])
    query, key, value = tensors_of(37, 41, 16)
    plans = plan_list(37, 41, 2, 3, 16, last=30)
    check_errors([query, poisoned(key, lengths), poisoned(value, lengths)], torch.tensor([0, 36, 9]), plans, lengths)


def test_errors_of_more_candidates_than_a_byte_has_bits() -> None:
    plans = [AttentionPlan(random_mask(1, 20, 40, key_block=1 + at, kept=0.3)) for at in range(11)]
    check_errors(tensors_of(20, 40, 16), torch.tensor([0, 19]), plans)


def test_errors_in_groups_of_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (1, 41 * 3 * 4):
        monkeypatch.setattr(sampled, "WORKING_BYTES", limit)
        check_errors(tensors_of(37, 41, 16), torch.tensor([0, 36, 9]), plan_list(37, 41, 2, 3, 16))


def test_shared_candidates_have_one_mask_for_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the masks of two lanes do not fit: nothing is worked on in groups."""
    monkeypatch.setattr(sampled, "WORKING_BYTES", 1)
    grids = []
    run = Launch.run
    monkeypatch.setattr(Launch, "run", lambda launch: (grids.append(launch.grid), run(launch)))
    plans = [AttentionPlan(random_mask(1, 37, 41)), AttentionPlan(BlockMask.full(37, 41))]
    check_errors(tensors_of(37, 41, 16), torch.tensor([0, 36]), plans)
    assert [lanes for _, lanes in grids] == [1, 1, 6]


@pytest.mark.parametrize("strides", [(1 << 33, 1 << 31, 64, 1), (1 << 33, 64, 1 << 31, 1)], ids=["tokens", "heads"])
def test_strides_past_32_bits(strides: tuple[int, ...]) -> None:
    """Two tokens or two heads 2^31 elements apart; the memory between them is never touched."""
    torch.use_deterministic_algorithms(False)  # nothing here may fill four gigabytes
    near = states(1, 2, 2, 64).half()
    far = torch.empty_strided((1, 2, 2, 64), strides, dtype=torch.float16)
    far.copy_(near)
    torch.use_deterministic_algorithms(True)
    lse, order, rows = lse_of(near, near, 0.2), orders(1, 2), torch.tensor([1, 0])
    plans = [AttentionPlan(random_mask(1, 2, 2, 1, 1)), AttentionPlan(BlockMask.full(2, 2), order, order)]
    with dispatch.forced("triton"):
        for call in (
            lambda x: pool.summary(x, 1).mean,
            lambda x: pool.block_mean(x, 2, order=order),
            lambda x: antidiagonal.block_scores(x, x, 1, 1, 1, scale=0.2),
            lambda x: mass.block_mass(x, x, lse, 1, 1, scale=0.2, query_order=order),
            lambda x: sampled.output_errors(x, x, x, rows, plans, scale=0.2).error,
        ):
            assert torch.equal(call(far), call(near))


def test_large_head_dims_run_in_torch() -> None:
    tensor = states(1, 20, 2, 160)
    lse = lse_of(tensor, tensor, 0.1)
    with dispatch.forced("triton"), pytest.raises(ValueError, match="head_dim is 160, kernels have at most 128"):
        mass.block_mass(tensor, tensor, lse, 8, 8, scale=0.1)
    close(mass.block_mass(tensor, tensor, lse, 8, 8, scale=0.1).sum(-1), torch.ones(2, 3), 1e-5)


def test_bf16_runs_in_torch_here() -> None:
    tensor = states(1, 20, 2, 16, torch.bfloat16)
    with dispatch.forced("triton"), pytest.raises(ValueError, match="interpreter computes bfloat16 on its bits"):
        pool.block_mean(tensor, 4)
    close(pool.block_mean(tensor, 4), tensor.float().unflatten(1, (5, 4)).mean(2), 1e-5)
