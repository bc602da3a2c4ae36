"""quantise_rows: the reference's bits, its bounds, edges; refusals."""

from __future__ import annotations

import math

import pytest
import torch

from srlm_fast.kernels import quantise_rows, quantise_rows_reference
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import surrounded

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = [(3, 128), (7, 200), (1, 4100), (5, 1), (2, 33000)]  # the last is too wide for a program
KINDS = {
    "random": lambda x: x,
    "small": lambda x: x * 1e-4,
    "one large": lambda x: torch.cat((x[:, 1:], torch.full_like(x[:, :1], 3e4)), dim=1),
    "equal": torch.ones_like,
    "zero rows": lambda x: x * (torch.arange(x.shape[0]) % 2)[:, None],
}


def make(shape, dtype, device, kind="random"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return KINDS[kind](x).to(device, dtype)


def bits(x8, scale):
    return x8.view(torch.uint8), scale


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "shape, kind",
    [(shape, "random") for shape in SHAPES] + [((6, 200), kind) for kind in list(KINDS)[1:]],
    ids=str,
)
def test_bits_and_bounds(kernel_device, shape, kind, dtype):
    x = make(shape, dtype, kernel_device, kind)
    x8, scale = quantise_rows(surrounded(x))
    assert x8.dtype == torch.float8_e4m3fn and x8.shape == x.shape
    assert scale.dtype == torch.float32 and scale.shape == (len(x), 1)
    for found, wanted in zip(bits(x8, scale), bits(*quantise_rows_reference(x)), strict=True):
        assert torch.equal(found, wanted)
    back, wide, scale = x8.double() * scale.double(), x.double(), scale.double()
    error = (back - wide).abs()
    assert (error <= torch.maximum(wide.abs() * 2**-4, scale * 2**-10) * (1 + 1e-5)).all()
    largest = wide.abs().amax(1)
    assert torch.allclose(back.abs().amax(1), largest, rtol=1e-6, atol=0)


def test_by_hand(kernel_device):
    """Scale 1: the largest is 448. Ties go to even: 17 lies between 16 and 18, 19 above 18 by half
    a step; 2^-10 between 0 and the least number, 2^-9.
    """
    row = [448.0, -448.0, 17.0, 19.0, 2**-9, 2**-10, 0.0, -1.125]
    x8, scale = quantise_rows(torch.tensor([row], device=kernel_device))
    assert scale.item() == 1.0
    assert x8.float().tolist() == [[448.0, -448.0, 16.0, 20.0, 2**-9, 0.0, 0.0, -1.125]]


def test_a_row_does_not_depend_on_its_company(kernel_device):
    x = make((9, 96), torch.bfloat16, kernel_device)
    x8, scale = quantise_rows(x)
    for i in range(len(x)):
        alone = bits(*quantise_rows(x[i : i + 1]))
        assert all(map(torch.equal, alone, bits(x8[i : i + 1], scale[i : i + 1])))


def test_strides_do_not_matter(kernel_device):
    x = make((6, 64), torch.bfloat16, kernel_device)
    nan = torch.full_like(x, math.nan)
    for strided in (torch.cat((nan, x), dim=1)[:, 64:], x.T.contiguous().T):
        assert not strided.is_contiguous()
        assert all(map(torch.equal, bits(*quantise_rows(strided)), bits(*quantise_rows(x))))


def test_no_rows(kernel_device):
    x8, scale = quantise_rows(torch.zeros(0, 24, device=kernel_device))
    assert x8.shape == (0, 24) and scale.shape == (0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows(kernel_device, value):
    x = make((3, 70), torch.bfloat16, kernel_device)
    x[1, 5] = value
    x8, scale = quantise_rows(x)
    back = x8.float() * scale
    assert back[1, 5].isnan() and back[[0, 2]].isfinite().all()


REFUSED = {
    "x: list, wanted a tensor": [1.0],
    "x: shape [3], wanted [T, K]": torch.zeros(3),
    "x: shape [3, 0], wanted at least one column": torch.zeros(3, 0),
    "x: float64, wanted bfloat16 or": torch.zeros(2, 4).double(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    with pytest.raises(ValueError) as error:
        quantise_rows(REFUSED[message])
    assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrapped, pytest.raises(ValueError, match="x: a DTensor"):
        quantise_rows(wrapped(torch.zeros(2, 4)))
