"""The corrected interpreter against torch."""

from __future__ import annotations

import pytest
import torch

from srlm_fast.kernels.jit import HAS_TRITON, tl, triton
from tests.conftest import HAS_GPU

pytestmark = pytest.mark.skipif(HAS_GPU or not HAS_TRITON, reason="no interpreter in this process")


@triton.jit
def _cast_kernel(x_ptr, y_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, tl.load(x_ptr + at).to(y_ptr.dtype.element_ty))


@triton.jit
def _arithmetic_kernel(x_ptr, y_ptr, out_ptr, less_ptr, N: tl.constexpr):
    at = tl.arange(0, N)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, x + y)
    tl.store(out_ptr + N + at, x - y)
    tl.store(out_ptr + 2 * N + at, x * y)
    tl.store(out_ptr + 3 * N + at, -x)
    tl.store(out_ptr + 4 * N + at, tl.where(x < y, x, y))
    tl.store(out_ptr + 5 * N + at, tl.maximum(x, y))
    tl.store(out_ptr + 6 * N + at, tl.full((N,), 1.7, tl.bfloat16))
    tl.store(out_ptr + 7 * N + at, tl.fma(x, y, x))
    tl.store(out_ptr + 8 * N + at, tl.clamp(x, -tl.abs(y), tl.abs(y)))
    tl.store(less_ptr + at, ((x < y) & (x != y)).to(tl.int32))
    tl.store(less_ptr + N + at, (x >= y).to(tl.int32))


@triton.jit
def _reduce_kernel(x_ptr, out_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    tl.store(out_ptr, tl.sum(x.to(tl.float32), axis=0))
    tl.store(out_ptr + 1, tl.max(x, axis=0))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, c_ptr, depth, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, cols, depths = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    acc = tl.zeros((M, N), tl.float32)
    for k in range(0, depth, K):  # a run-time bound
        a = tl.load(a_ptr + rows[:, None] * depth + (k + depths)[None, :])
        b = tl.load(b_ptr + cols[:, None] * depth + (k + depths)[None, :])
        acc = tl.dot(a, b.T, acc)
    tl.store(c_ptr + rows[:, None] * N + cols[None, :], acc)


@triton.jit
def _descriptor_kernel(a_desc, b_ptr, out_ptr, M: tl.constexpr, K: tl.constexpr):
    a = a_desc.load([M, K])
    at = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    tl.store(out_ptr + at, a * tl.load(b_ptr + at))


def bits(*patterns: int) -> torch.Tensor:
    return torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(torch.float32)


def values() -> torch.Tensor:
    """4,096 fp32 values: random bit patterns, every kind of tie, the ends of the range."""
    generator = torch.Generator().manual_seed(0)
    ties = bits(0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0xBF818000, 0x00008000, 0x00018000)
    ends = bits(0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001)
    anything = torch.randint(-(2**31), 2**31, (4082,), generator=generator, dtype=torch.int64)
    return torch.cat((ties, ends, anything.to(torch.int32).view(torch.float32)))


def same(ours: torch.Tensor, truth: torch.Tensor) -> bool:
    """The same bits; any NaN is as good as another."""
    equal = ours.view(torch.int16) == truth.view(torch.int16)
    return bool((equal | (ours.isnan() & truth.isnan())).all())


def test_fp32_is_rounded_to_the_nearest_bf16():
    x = values()
    ours = torch.zeros(len(x), dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, ours, N=len(x))
    assert same(ours, x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32, torch.bool])
def test_other_types_to_bf16(dtype):
    x = (values()[14:1038].nan_to_num().clamp(-1e4, 1e4)).to(dtype)
    ours = torch.zeros(len(x), dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, ours, N=len(x))
    assert same(ours, x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int32])
def test_bf16_to_other_types(dtype):
    x = (torch.randn(1024, generator=torch.Generator().manual_seed(0)) * 100).bfloat16()
    ours = torch.zeros(len(x), dtype=dtype)
    _cast_kernel[(1,)](x, ours, N=len(x))
    assert torch.equal(ours, x.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_fp8_and_back(dtype):
    x = (values()[14:1038].nan_to_num().clamp(-440, 440)).to(dtype)
    eight, back = torch.zeros(len(x)).to(torch.float8_e4m3fn), torch.zeros_like(x)
    _cast_kernel[(1,)](x, eight, N=len(x))
    _cast_kernel[(1,)](eight, back, N=len(x))
    assert torch.equal(back, x.to(torch.float8_e4m3fn).to(dtype))


def test_bf16_arithmetic_and_comparison():
    n, generator = 1024, torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, generator=generator).bfloat16() for _ in range(2))
    y[::7] = x[::7]
    out, less = torch.zeros(9, n, dtype=torch.bfloat16), torch.zeros(2, n, dtype=torch.int32)
    _arithmetic_kernel[(1,)](x, y, out, less, N=n)
    constant = torch.full((n,), 1.7, dtype=torch.bfloat16)
    fma = (x.float() * y.float() + x.float()).bfloat16()
    clamped = torch.clamp(x, -y.abs(), y.abs())
    wanted = (x + y, x - y, x * y, -x, torch.minimum(x, y), torch.maximum(x, y), constant)
    assert torch.equal(out, torch.stack((*wanted, fma, clamped)))
    assert torch.equal(less, torch.stack((x < y, x >= y)).int())


def test_bf16_reductions():
    x = (torch.randn(256, generator=torch.Generator().manual_seed(0)) - 5).bfloat16()
    out = torch.zeros(2)
    _reduce_kernel[(1,)](x, out, N=256)
    torch.testing.assert_close(out, torch.stack((x.float().sum(), x.float().max())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dot_accumulates_in_fp32_over_a_runtime_range(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 256, generator=generator).to(dtype) for n in (32, 16))
    ours = torch.zeros(32, 16)
    _dot_kernel[(1,)](a, b, ours, 256, M=32, N=16, K=64)
    torch.testing.assert_close(ours.double(), a.double() @ b.double().T, rtol=1e-5, atol=1e-4)


def test_host_descriptors_load_tiles_and_zeros_beyond_the_end():
    from triton.tools.tensor_descriptor import TensorDescriptor

    a = torch.randn(20, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    b, out = torch.full((16, 32), 3.0).bfloat16(), torch.full((16, 32), 7.0).bfloat16()
    _descriptor_kernel[(1,)](TensorDescriptor.from_tensor(a, [16, 32]), b, out, M=16, K=32)
    wanted = torch.zeros(16, 32).bfloat16()
    wanted[:4, :8] = 3 * a[16:, 32:]
    assert torch.equal(out, wanted)
