"""The reference against brute force, and against the scaled_dot_product_attention of PyTorch."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.kernels.cases import CASES, brute_force, relative_error, scattered
from vidaccel.kernels import attention


@pytest.mark.parametrize("name", CASES)
def test_equals_brute_force(name):
    case = CASES[name]
    query, key, value = case.inputs()
    out, lse = attention(query, key, value, case.mask, key_lengths=case.key_lengths, scale=0.3, return_lse=True,
                         backend_name="reference")
    expected, expected_lse = brute_force(case, query, key, value, 0.3)
    assert out.dtype == query.dtype and out.shape == query.shape and lse.dtype == torch.float32
    assert relative_error(out, expected) < 1e-6
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=1e-5)


def test_default_scale_and_mask_are_those_of_pytorch():
    mask = scattered(96, 16, 16, 0.5)
    query, key, value = torch.randn(3, 2, 96, 4, 32).unbind(0)
    out, lse = attention(query, key, value, mask, backend_name="reference")
    dense = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask.to_dense())
    assert lse is None
    torch.testing.assert_close(out, dense.transpose(1, 2))


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 1e-2), (torch.float16, 1e-3), (torch.float64, 1e-14)])
def test_dtypes(dtype, tolerance):
    case = CASES["pattern per head"]
    query, key, value = case.inputs(dtype)
    out, _ = attention(query, key, value, case.mask, scale=0.25, backend_name="reference")
    assert out.dtype == dtype
    assert relative_error(out, brute_force(case, query, key, value, 0.25)[0]) < tolerance


@pytest.mark.parametrize("tokens, batch, heads, message", [
    (64, 1, 2, "96 x 96 tokens, the call has 64 x 64"),
    (96, 2, 4, "3 patterns of the mask do not fit 2 batch rows of 4 heads"),
])
def test_call_that_does_not_fit_the_plan(tokens, batch, heads, message):
    query = torch.zeros(batch, tokens, heads, 16)
    with pytest.raises(ValueError, match=message):
        attention(query, query, query, scattered(96, 16, 16, 0.5, 3), backend_name="reference")
