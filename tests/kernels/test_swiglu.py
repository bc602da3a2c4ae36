"""swiglu: kernels against fp64 truth and eager PyTorch; edges; refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import swiglu, swiglu_reference
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded, surrounded
from tests.kernels.three_way import assert_no_worse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of the largest true value: for where eager happens to be exact.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}
SHAPES = [(3, 128), (2, 3, 154), (1, 4100), (5, 2), (40,)]  # last: 2F
KINDS = {
    "random": lambda x: x * 3,
    "hundreds": lambda x: x.sign() * 100 + x,
    "ten thousands": lambda x: x.sign() * 1e4,
    "zero rows": lambda x: x * (torch.arange(x.shape[0]) % 2)[:, None],
}


def make(shape, dtype, device, kind="random"):
    """gate_up, the gradient of y."""
    generator = torch.Generator().manual_seed(0)
    gate_up = KINDS[kind](torch.randn(shape, generator=generator))
    if kind == "ten thousands":
        gate_up[..., shape[-1] // 2 :] /= 1e4  # y fits into fp16
    grad = torch.randn(*shape[:-1], shape[-1] // 2, generator=generator)
    return gate_up.to(device, dtype), grad.to(device, dtype)


def run(form, gate_up, grad, copy=torch.clone):
    leaf = copy(gate_up).requires_grad_()
    y = form(leaf)
    y.backward(copy(grad))
    return {"y": y.detach(), "dgate_up": leaf.grad}


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    "shape, kind",
    [(shape, "random") for shape in SHAPES] + [((7, 200), kind) for kind in list(KINDS)[1:]],
    ids=str,
)
def test_three_way(kernel_device, shape, kind, dtype):
    assert_three_ways(*make(shape, dtype, kernel_device, kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "shape, kind",
    [(shape, "random") for shape in SHAPES] + [((7, 200), kind) for kind in list(KINDS)[1:]],
    ids=str,
)
def test_three_way_natively(shape, kind, dtype):
    assert_three_ways(*make(shape, dtype, "cpu", kind))


def assert_three_ways(gate_up, grad):
    dtype = gate_up.dtype
    truth = run(swiglu_reference, gate_up.double(), grad.double())
    eager = run(swiglu_reference, gate_up, grad)
    with guarded():
        found = run(swiglu, gate_up, grad, copy=surrounded)
    for name, value in truth.items():
        assert found[name].dtype == dtype and found[name].shape == value.shape
        floor = FLOOR[dtype] * float(value.abs().max())
        assert_no_worse(found[name], eager[name], value, floor, name)


def test_by_hand(kernel_device):
    """g = ln 3: s = 3/4, y = 3/4 u ln 3, dy/dg = u (3/4 + 3/16 ln 3), dy/du = 3/4 ln 3."""
    log3 = math.log(3)
    gate_up = torch.tensor([[log3, 0.0, 2.0, 5.0]], device=kernel_device, requires_grad=True)
    for form in (swiglu, swiglu_reference):
        y = form(gate_up)
        assert_close(y.detach().cpu(), torch.tensor([[1.5 * log3, 0.0]]))
        (grad,) = torch.autograd.grad(y, gate_up, torch.ones_like(y))
        wanted = torch.tensor([[1.5 + 0.375 * log3, 2.5, 0.75 * log3, 0.0]])
        assert_close(grad.cpu(), wanted)


def test_gradcheck_of_the_reference():
    gate_up = make((3, 10), torch.float64, "cpu")[0].requires_grad_()
    assert torch.autograd.gradcheck(swiglu_reference, [gate_up])


def test_strides_do_not_matter(kernel_device):
    gate_up, grad = make((6, 64), torch.float32, kernel_device)
    wanted = run(swiglu, gate_up, grad)
    nan = torch.full_like(gate_up, math.nan)
    for strided, grad_strided in (
        (torch.cat((nan, gate_up), dim=1)[:, 64:], torch.cat((nan, grad), dim=1)[:, 64:]),
        (gate_up.T.contiguous().T, grad.T.contiguous().T),
    ):
        assert not strided.is_contiguous() and not grad_strided.is_contiguous()
        found = run(swiglu, strided, grad_strided, copy=lambda x: x.detach())
        assert torch.equal(found["y"], wanted["y"])
        assert torch.equal(found["dgate_up"], wanted["dgate_up"])
    y = swiglu(gate_up.requires_grad_())
    y.sum().backward()  # a gradient of ones that is one number
    assert_close(gate_up.grad, run(swiglu, gate_up.detach(), torch.ones_like(grad))["dgate_up"])


def test_no_rows_and_no_columns(kernel_device):
    for shape in ((0, 24), (2, 0, 24), (3, 0)):
        gate_up, grad = make(shape, torch.bfloat16, kernel_device)
        found = run(swiglu, gate_up, grad)
        assert found["y"].shape == grad.shape and found["dgate_up"].shape == shape


def test_fp64_runs_in_pytorch(kernel_device):
    gate_up, grad = make((3, 10), torch.float64, kernel_device)
    found, wanted = (run(form, gate_up, grad) for form in (swiglu, swiglu_reference))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_second_backward_gives_the_same_bits(kernel_device):
    gate_up, grad = make((3, 128), torch.bfloat16, kernel_device)
    y = swiglu(gate_up.requires_grad_())
    first, second = (torch.autograd.grad(y, gate_up, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_natively_strides_and_what_is_asked_for_do_not_matter():
    gate_up, grad = make((6, 72), torch.bfloat16, "cpu")
    wanted = run(swiglu, gate_up, grad)
    assert torch.equal(swiglu(gate_up), wanted["y"])
    nan = torch.full_like(gate_up, math.nan)
    strided = torch.cat((nan, gate_up), dim=1)[:, 72:], torch.cat((nan, grad), dim=1)[:, 72:]
    for case in (strided, (gate_up.T.contiguous().T, grad.T.contiguous().T)):
        found = run(swiglu, *case, copy=lambda x: x.detach())
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_natively_no_rows_no_columns_and_nan():
    for shape in ((0, 24), (2, 0, 24), (3, 0)):
        gate_up, grad = make(shape, torch.bfloat16, "cpu")
        found = run(swiglu, gate_up, grad)
        assert found["y"].shape == grad.shape and found["dgate_up"].shape == shape
    gate_up, grad = make((3, 80), torch.float32, "cpu")
    gate_up[1, 3] = math.nan
    found = run(swiglu, gate_up, grad)
    assert found["y"].isnan().nonzero().tolist() == [[1, 3]]
    assert found["dgate_up"].isnan().nonzero().tolist() == [[1, 3], [1, 43]]


def test_half_precision_that_no_kernel_takes_runs_in_pytorch():
    gate_up, grad = make((3, 128), torch.float16, "cpu")
    found, wanted = (run(form, gate_up, grad) for form in (swiglu, swiglu_reference))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


REFUSED = {
    "gate_up: list, wanted a tensor": [1.0],
    "gate_up: shape [], wanted [..., 2F]": torch.zeros(()),
    "gate_up: width 3, wanted an even one": torch.zeros(2, 3),
    "gate_up: int64, wanted float32 or": torch.zeros(2, 4).long(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    with pytest.raises(ValueError) as error:
        swiglu(REFUSED[message])
    assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrapped, pytest.raises(ValueError, match="gate_up: a DTensor"):
        swiglu(wrapped(torch.zeros(2, 4)))
