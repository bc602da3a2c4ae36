"""The packed matmul at every level of the instruction set, against float64 and against itself."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from srlm_fast.kernels.native import native

from .helpers import ISAS, isa_level

DTYPES = [torch.float32, torch.bfloat16]
# (out, in): whole panels and tiles, and one more or less of each
SHAPES = [(64, 64), (32, 256), (16, 32), (97, 33), (48, 31), (33, 100), (1, 1), (130, 770)]
ROWS = [1, 5, 16, 17, 31, 32, 33, 70]


def native_linear(x, weight, bias=None, out=None, gated=False):
    """x [T, K], weight [N, K] -> [T, N] fp32, or [T, N/2] when gated; added to `out` if given."""
    width = len(weight) // 2 if gated else len(weight)
    result = torch.full((len(x), width), torch.nan) if out is None else out.clone()
    layer = (weight.data_ptr(), 0 if bias is None else bias.data_ptr(), *weight.shape)
    is_bf16, add = x.dtype == torch.bfloat16, out is not None
    native().linear(x.data_ptr(), len(x), layer, is_bf16, add, gated, result.data_ptr())
    return result


def case(rows, out, width, dtype, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=draw).to(dtype)
    weight = (torch.randn(out, width, generator=draw) / width**0.5).to(dtype)
    return x, weight, torch.randn(out, generator=draw)


def worst(found, wanted):
    return (found.double() - wanted).abs().max().item()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_errors_are_those_of_fp32_sums(isa, dtype, shape):
    """Products of bfloat16 are exact in fp32, so both dtypes are held to torch's fp32 matmul."""
    for rows in ROWS:
        x, weight, bias = case(rows, *shape, dtype)
        exact = x.double() @ weight.double().T
        floor = 2e-6 + 2 * worst(x.float() @ weight.float().T, exact)
        start = torch.randn(rows, shape[0])
        with isa_level(isa):
            assert worst(native_linear(x, weight), exact) <= floor
            assert worst(native_linear(x, weight, bias), exact + bias) <= floor
            assert worst(native_linear(x, weight, bias, start), exact + bias + start) <= floor


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] % 2 == 0], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gated_is_silu_of_the_first_half_times_the_second(isa, dtype, shape, with_bias):
    x, weight, bias = case(37, *shape, dtype)
    bias = bias if with_bias else None
    both = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    gate, up = both.chunk(2, dim=1)
    with isa_level(isa):
        found = native_linear(x, weight, bias, gated=True)
    assert worst(found, F.silu(gate) * up) <= 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_has_the_same_bits_in_any_company(isa, dtype):
    x, weight, bias = case(70, 97, 259, dtype)
    with isa_level(isa):
        together = native_linear(x, weight, bias)
        for first, last in [(0, 1), (69, 70), (3, 20), (13, 46), (1, 70)]:
            part = native_linear(x[first:last].contiguous(), weight, bias)
            assert torch.equal(part, together[first:last])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_threads_changes_no_bit(isa, dtype):
    x, weight, _ = case(70, 320, 512, dtype)
    threads, found = torch.get_num_threads(), []
    try:
        with isa_level(isa):
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(native_linear(x, weight))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_rows_of_many_blocks():
    """More rows than one block of the loop over rows holds."""
    for dtype in DTYPES:
        x, weight, _ = case(700, 40, 1024, dtype)
        found = native_linear(x, weight)
        assert worst(found, x.double() @ weight.double().T) <= 5e-6
        assert torch.equal(native_linear(x[650:].contiguous(), weight), found[650:])


@pytest.mark.parametrize("isa", ISAS)
def test_not_a_number_stays_one(isa):
    x, weight, _ = case(20, 40, 64, torch.bfloat16)
    x[7, 3] = torch.nan
    with isa_level(isa):
        found = native_linear(x, weight)
    assert found[7].isnan().all()
    assert not found[[*range(7), *range(8, 20)]].isnan().any()


LEVELS = """
import os, sys
from srlm_fast.kernels.native import native
for name in sys.argv[1:]:
    if not os.fork():
        os.environ["SRLM_FAST_ISA"] = name
        print(native().isa(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_levels_are_named_and_can_be_held_down():
    assert native().isa() in ISAS
    assert ISAS[0] == "generic"
    with pytest.raises(ValueError, match="SRLM_FAST_ISA: 'sse9'"):
        native().set_isa("sse9")
    # The extension is loaded, and reads its environment, behind the fork.
    command = [sys.executable, "-c", LEVELS, *ISAS]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ISAS
