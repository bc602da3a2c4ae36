"""linear for training: its gradients against fp64 truth and PyTorch's own; edges."""

from __future__ import annotations

import sys

import pytest
import torch

from srlm_fast.kernels.linear import linear, weight_gradient
from tests.kernels.guard import guarded
from tests.kernels.three_way import assert_no_worse

module = sys.modules[linear.__module__]
SHAPES = [(1, 1, 1), (70, 33, 40), (64, 128, 96), (31, 200, 17), (3, 600, 24)]  # T, N, K


def make(num_rows, width, depth, dtype):
    """x, weight, bias, gradient of y."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_rows, depth), (width, depth), (width,), (num_rows, width))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def run(form, x, weight, bias, grad):
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = form(*leaves)
    y.backward(grad)
    return {
        "y": y.detach(),
        **dict(zip(("x", "weight", "bias"), (t.grad for t in leaves), strict=True)),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_three_way(shape, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 4096)  # several pieces, the last one's not all there
    tensors = make(*shape, torch.bfloat16)
    truth = run(torch.nn.functional.linear, *(t.double() for t in tensors))
    eager = run(torch.nn.functional.linear, *tensors)
    with guarded():
        found = run(linear, *tensors)
    assert torch.equal(found["y"], eager["y"])
    for name, value in truth.items():
        assert found[name].dtype == torch.bfloat16
        assert_no_worse(found[name], eager[name], value, 1e-3 * float(value.abs().max()), name)


def test_rows_of_a_wider_matrix_and_further_dimensions():
    x, weight, bias, grad = make(24, 40, 16, torch.bfloat16)
    wanted = run(linear, x, weight, bias, grad)
    wide = torch.cat((grad, grad), 1)[:, :40]
    assert torch.equal(run(linear, x, weight, bias, wide)["weight"], wanted["weight"])
    deep = run(linear, x.view(2, 3, 4, 16), weight, bias, grad.view(2, 3, 4, 40))
    assert all(torch.equal(deep[name].view_as(wanted[name]), wanted[name]) for name in wanted)


def test_only_what_needs_a_gradient_gets_one():
    x, weight, _, grad = make(24, 40, 16, torch.bfloat16)
    linear(x, weight.requires_grad_()).backward(grad)
    assert weight.grad is not None and x.grad is None
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


def test_the_weight_gradient_of_other_dtypes_and_of_no_rows():
    for dtype in (torch.float32, torch.float64):
        x, _, _, grad = make(24, 40, 16, dtype)
        assert torch.equal(weight_gradient(grad, x), grad.T @ x)
    empty = weight_gradient(torch.zeros(0, 40).bfloat16(), torch.zeros(0, 16).bfloat16())
    assert empty.shape == (40, 16) and not empty.any()
