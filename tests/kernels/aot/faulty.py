"""Launches with one fault each, to show that test_compile.py can fail."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from tests.kernels.aot import Launch


@triton.jit
def _sum_kernel(x_ptr, out_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    tl.store(out_ptr + tl.arange(0, N), x - tl.sum(x, axis=0))


@triton.jit
def _product_kernel(a_ptr, b_ptr, c_ptr, M: tl.constexpr, K: tl.constexpr, SLOW: tl.constexpr):
    rows, depths = tl.arange(0, M), tl.arange(0, K)
    a = tl.load(a_ptr + rows[:, None] * K + depths[None, :])
    b = tl.load(b_ptr + depths[:, None] * M + rows[None, :])
    if SLOW:
        c = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        c = tl.dot(a, b)
    tl.store(c_ptr + rows[:, None] * M + rows[None, :], c)


def product(m: int, k: int, slow: bool = False) -> None:
    a, b = torch.zeros(m, k).bfloat16(), torch.zeros(k, m).bfloat16()
    _product_kernel[(1,)](a, b, torch.zeros(m, m), M=m, K=k, SLOW=slow, num_warps=4)


def spilling() -> None:
    x = torch.zeros(2048)
    _sum_kernel[(1,)](x, x, N=2048, num_warps=1, maxnreg=32)


def raising() -> None:
    product(32, 32)
    raise ZeroDivisionError("on purpose")


def launches(arch: int) -> Iterator[Launch]:
    matmul = {"_product_kernel"}
    if arch != 90:
        return
    yield Launch("sound", lambda: product(64, 64), matmul)
    yield Launch("sound and small", lambda: product(16, 16), matmul)
    yield Launch("spills", spilling)
    yield Launch("no tensor cores", lambda: product(64, 64, slow=True), matmul)
    yield Launch("too much shared memory", lambda: product(128, 1024), matmul)
    yield Launch("compiles nothing", lambda: None)
    yield Launch("raises", raising, matmul)
    yield Launch("another name", lambda: product(64, 64), {"_sum_kernel"})
