"""norm: against fp64, where squares overflow or vanish, and what is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from srlm_fast.kernels.norm import norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (5, 7), (64,), (3, 1500), (100_003,)], ids=str)
def test_against_fp64(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = norm(x)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close = 1e-5 if dtype == torch.float16 else 1e-6  # PyTorch's own sum of the former
    assert float(found) == pytest.approx(float(x.double().norm()), rel=close, abs=1e-30)


def test_many_equal_numbers_do_not_drown():
    """In bf16, or in one chain of fp32, the sum would stand still."""
    x = torch.full((1 << 21,), 3.0, dtype=torch.bfloat16)
    assert float(norm(x)) == pytest.approx(3 * math.sqrt(1 << 21), rel=1e-7)


def test_rows_that_are_not_contiguous():
    x = torch.arange(12.0).view(3, 4)
    assert float(norm(x[:, :2])) == pytest.approx(math.sqrt(0 + 1 + 16 + 25 + 64 + 81))


def test_what_is_not_finite_shows():
    for value in (math.nan, math.inf):
        x = torch.ones(9000)
        x[8191] = value
        assert not math.isfinite(float(norm(x)))
