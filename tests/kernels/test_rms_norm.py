"""rms_norm and rms_norm_residual: kernels against fp64 truth and eager PyTorch; edges; refusals."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import (
    rms_norm,
    rms_norm_reference,
    rms_norm_residual,
    rms_norm_residual_reference,
)
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded, surrounded
from tests.kernels.three_way import assert_no_worse

module = sys.modules[rms_norm.__module__]  # the package's own name is the function
EPS = 1e-5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of the largest true value: for where eager happens to be exact.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}
SHAPES = [
    (3, 1000),  # a row a program, its end ragged
    (37, 128),  # 8 rows a program, the last one's not all there
    (6, 5, 72),  # heads
    (1, 4096),
    (2, 8192),  # the widest rows of fp32
    (1, 16384),  # the widest of 16 bits
    (2, 3, 2, 16),
    (16,),
    (5, 1),
]
KINDS = {
    "random": lambda x: x,
    "hundreds": lambda x: x.sign() * 100 + x,
    "ten thousands": lambda x: x * 1e4,
    "zero rows": lambda x: x * (torch.arange(x.shape[0]) % 2).view(-1, *(1,) * (x.ndim - 1)),
}


def make(shape, dtype, device, kind="random", seed=0):
    """x, residual, the gradients of both outputs; weight."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for _ in range(4)]
    tensors[:2] = map(KINDS[kind], tensors[:2])
    tensors.append(torch.randn(shape[-1], generator=generator) + 1)
    return [x.to(device, dtype) for x in tensors]


def run(form, x, residual, grad, grad_total, weight, copy=torch.clone):
    """Outputs and gradients of the plain or the residual form, by name."""
    leaves = {"x": x, "weight": weight} | ({} if residual is None else {"residual": residual})
    leaves = {name: copy(leaf).requires_grad_() for name, leaf in leaves.items()}
    if residual is None:
        outputs, grads = [form(leaves["x"], leaves["weight"], EPS)], [grad]
    else:
        outputs = form(leaves["x"], leaves["residual"], leaves["weight"], EPS)
        grads = [grad, grad_total]
    torch.autograd.backward(outputs, [copy(g) for g in grads])
    results = dict(zip(("y", "total"), (y.detach() for y in outputs), strict=False))
    return results | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def assert_three_ways(tensors, with_residual):
    x, residual, grad, grad_total, weight = tensors
    residual = residual if with_residual else None
    ours = rms_norm_residual if with_residual else rms_norm
    reference = rms_norm_residual_reference if with_residual else rms_norm_reference
    wide = [None if t is None else t.double() for t in (x, residual, grad, grad_total, weight)]
    truth = run(reference, *wide)
    eager = run(reference, x, residual, grad, grad_total, weight)
    with guarded():
        found = run(ours, x, residual, grad, grad_total, weight, copy=surrounded)
    for name, value in truth.items():
        assert found[name].dtype == x.dtype and found[name].shape == value.shape
        floor = FLOOR[x.dtype] * float(value.abs().max())
        assert_no_worse(found[name], eager[name], value, floor, name)


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_three_way(kernel_device, shape, dtype, with_residual):
    assert_three_ways(make(shape, dtype, kernel_device), with_residual)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_three_way_on_large_values_and_on_rows_of_zeros(kernel_device, kind, dtype):
    for with_residual in (False, True):
        if (kind, dtype, with_residual) != ("ten thousands", torch.float16, True):  # 65504 at most
            assert_three_ways(make((7, 200), dtype, kernel_device, kind), with_residual)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_programs_that_walk_over_several_tiles(kernel_device, dtype, monkeypatch):
    monkeypatch.setattr(module, "_num_programs", lambda num_tiles, num_warps: 3)
    assert_three_ways(make((7, 3, 1030), dtype, kernel_device), True)


def test_rounds_where_eager_does(kernel_device):
    """n is rounded before it meets w; without that a fifth of the results would differ."""
    x, residual, _, _, weight = make((4, 4096), torch.bfloat16, kernel_device)
    ours, eager = (
        f(x, residual, weight, EPS) for f in (rms_norm_residual, rms_norm_residual_reference)
    )
    assert torch.equal(ours[1], eager[1])
    assert (ours[0] != eager[0]).float().mean() < 1e-3


def test_by_hand():
    """x = (3, 4), eps = 5.5: r = 1 / sqrt(12.5 + 5.5)."""
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, -2.0])
    assert_close(rms_norm(x, weight, 5.5), torch.tensor([[3.0, -8.0]]) / 18**0.5)
    y, total = rms_norm_residual(x - 1, torch.ones(1, 2), weight, 5.5)
    assert_close(y, torch.tensor([[3.0, -8.0]]) / 18**0.5)
    assert_close(total, x)


def test_gradcheck_of_the_references():
    x, residual, _, _, weight = (t.double() for t in make((3, 5), torch.float32, "cpu"))
    inputs = [t.requires_grad_() for t in (x, residual, weight)]
    assert torch.autograd.gradcheck(lambda x, r, w: rms_norm_reference(x, w, EPS), inputs)
    assert torch.autograd.gradcheck(
        lambda x, r, w: rms_norm_residual_reference(x, r, w, EPS), inputs
    )


def strided_cases(device):
    """[T, H, D] as views that no reshape can make flat, and one whose columns are not adjacent."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(6, 9, 64, generator=generator).to(device)
    return {
        "heads of a projection": wide[:, 2:7],
        "every other token": wide[::2, :5],
        "columns apart": wide[:, :5].transpose(1, 2)[:, :, :5],
        "flat rows of a wider matrix": wide.flatten(1)[:, 64:192],
        "four dimensions": wide.unflatten(0, (2, 3))[:, :, 2:7],
        "the same row": wide[0, 0].expand(4, 64),
    }


@pytest.mark.parametrize("case", strided_cases("cpu"))
def test_strides_do_not_matter(kernel_device, case):
    x = strided_cases(kernel_device)[case]
    _, residual, grad, grad_total, weight = make(x.shape, torch.float32, kernel_device)
    dense = x.contiguous()
    for strided, flat in (
        ((x, residual, grad, grad_total), (dense, residual, grad, grad_total)),
        ((residual, x, grad, grad_total), (residual, dense, grad, grad_total)),
        ((grad, residual, x, grad_total), (grad, residual, dense, grad_total)),
        ((grad, residual, grad_total, x), (grad, residual, grad_total, dense)),
        ((x, None, grad, None), (dense, None, grad, None)),
    ):
        form = rms_norm if strided[1] is None else rms_norm_residual
        apart = torch.stack((weight, weight + 1), 1)[:, 0]
        found = run(form, *strided, apart, copy=lambda t: t.detach())
        for name, value in run(form, *flat, weight).items():
            assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("used", ["y", "total", "both"])
def test_either_output_alone_has_its_gradient(kernel_device, used):
    x, residual, grad, grad_total, weight = make((5, 40), torch.float32, kernel_device)
    leaves = [t.requires_grad_() for t in (x, residual, weight)]
    expected = [t.detach().clone().requires_grad_() for t in leaves]
    for form, inputs in ((rms_norm_residual, leaves), (rms_norm_residual_reference, expected)):
        y, total = form(*inputs, EPS)
        loss = (y * grad).sum() * (used != "total") + (total * grad_total).sum() * (used != "y")
        loss = {"y": (y * grad).sum(), "total": (total * grad_total).sum(), "both": loss}[used]
        loss.backward()
    for ours, theirs in zip(leaves, expected, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    leaves[0].grad.zero_()
    assert leaves[1].grad.any(), "the two gradients share memory"


def test_a_frozen_weight_gets_no_gradient(kernel_device):
    x, _, grad, _, weight = make((5, 40), torch.float32, kernel_device)
    x.requires_grad_()
    rms_norm(x, weight, EPS).backward(grad)
    expected = x.detach().clone().requires_grad_()
    rms_norm_reference(expected, weight, EPS).backward(grad)
    assert weight.grad is None
    assert_close(x.grad, expected.grad)


def test_no_rows(kernel_device):
    for shape in ((0, 24), (0, 3, 24), (2, 0, 24)):
        x, residual, grad, grad_total, weight = make(shape, torch.bfloat16, kernel_device)
        found = run(rms_norm_residual, x, residual, grad, grad_total, weight)
        assert found["y"].shape == found["total"].shape == found["dx"].shape == shape
        assert not found["dweight"].any() and found["dweight"].shape == (24,)


def test_wide_rows_and_fp64_run_in_pytorch(kernel_device):
    wide = {torch.float32: 8193, torch.bfloat16: 16385, torch.float64: 8}
    for dtype, shape in ((dtype, (2, width)) for dtype, width in wide.items()):
        x, residual, _, _, weight = make(shape, dtype, kernel_device)
        assert torch.equal(rms_norm(x, weight, EPS), rms_norm_reference(x, weight, EPS))
        ours, reference = (
            f(x, residual, weight, EPS) for f in (rms_norm_residual, rms_norm_residual_reference)
        )
        assert torch.equal(ours[0], reference[0]) and torch.equal(ours[1], reference[1])


def test_second_backward_gives_the_same_bits(kernel_device):
    x, residual, grad, grad_total, weight = make((9, 300), torch.bfloat16, kernel_device)
    leaves = [t.requires_grad_() for t in (x, residual, weight)]
    outputs = rms_norm_residual(*leaves, EPS)
    first, second = (
        torch.autograd.grad(outputs, leaves, (grad, grad_total), retain_graph=True)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


def test_a_row_does_not_depend_on_its_neighbours(kernel_device):
    x, _, _, _, weight = make((20, 128), torch.bfloat16, kernel_device)
    y = rms_norm(x, weight, EPS)
    for rows in (slice(3, 4), slice(17, 20)):
        assert torch.equal(rms_norm(x[rows], weight, EPS), y[rows])


def test_nan_stays_in_its_row(kernel_device):
    x, _, _, _, weight = make((20, 128), torch.float32, kernel_device)
    x[3, 5] = float("nan")
    bad = rms_norm(x, weight, EPS).isnan()
    assert bad[3].all() and bad.sum() == 128


NATIVE = [DTYPES["fp32"], DTYPES["bf16"]]


@pytest.mark.parametrize("with_residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("dtype", NATIVE, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [*SHAPES, (130, 48)], ids=lambda s: "x".join(map(str, s)))
def test_three_way_natively(shape, dtype, with_residual):
    assert_three_ways(make(shape, dtype, "cpu"), with_residual)


@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_three_way_natively_on_large_values_and_on_rows_of_zeros(kind):
    for dtype in NATIVE:
        assert_three_ways(make((7, 200), dtype, "cpu", kind), True)


@pytest.mark.parametrize("case", strided_cases("cpu"))
def test_natively_strides_do_not_matter(case):
    x = strided_cases("cpu")[case]
    _, residual, grad, grad_total, weight = make(x.shape, torch.float32, "cpu")
    for place in range(4):
        tensors = [residual, grad, grad_total]
        tensors.insert(place, x)
        found = run(rms_norm_residual, *tensors, weight, copy=lambda t: t.detach())
        wanted = run(rms_norm_residual, *(t.contiguous() for t in tensors), weight)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_natively_bits_depend_on_no_gradient_no_thread_and_no_neighbour():
    x, residual, grad, grad_total, weight = make((200, 136), torch.bfloat16, "cpu")
    many = run(rms_norm_residual, x, residual, grad, grad_total, weight)
    y, total = rms_norm_residual(x[150:153], residual[150:153], weight, EPS)
    assert torch.equal(y, many["y"][150:153]) and torch.equal(total, many["total"][150:153])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = run(rms_norm_residual, x, residual, grad, grad_total, weight)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(again[name], many[name]) for name in many)


def test_half_precision_that_no_kernel_takes_runs_in_pytorch():
    x, _, grad, _, weight = make((6, 50), torch.float16, "cpu")
    ours, eager = (run(f, x, None, grad, None, weight) for f in (rms_norm, rms_norm_reference))
    assert all(torch.equal(ours[name], eager[name]) for name in eager)


GOOD = {"x": torch.zeros(3, 4), "residual": torch.zeros(3, 4), "weight": torch.zeros(4)}
REFUSED = {
    "x: list, wanted a tensor": {"x": [1.0]},
    "x: shape [], wanted [..., D]": {"x": torch.zeros(())},
    "x: int64, wanted float32 or": {"x": torch.zeros(3, 4, dtype=torch.int64)},
    "weight: shape [5], wanted [4]": {"weight": torch.zeros(5)},
    "weight: shape [4, 1], wanted [4]": {"weight": torch.zeros(4, 1)},
    "weight: bfloat16, wanted float32": {"weight": torch.zeros(4).bfloat16()},
    "weight: on meta, wanted cpu": {"weight": torch.zeros(4, device="meta")},
    "residual: shape [4], wanted [3, 4]": {"residual": torch.zeros(4)},
    "residual: float64, wanted float32": {"residual": torch.zeros(3, 4).double()},
    "residual: on meta, wanted cpu": {"residual": torch.zeros(3, 4, device="meta")},
    "residual: NoneType, wanted a tensor": {"residual": None},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    given = GOOD | REFUSED[message]
    forms = [lambda: rms_norm_residual(*given.values(), EPS)]
    if not message.startswith("residual"):
        forms.append(lambda: rms_norm(given["x"], given["weight"], EPS))
    for form in forms:
        with pytest.raises(ValueError) as error:
            form()
        assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrapped:
        for name, tensor in GOOD.items():
            given = GOOD | {name: wrapped(tensor)}
            with pytest.raises(ValueError, match=f"{name}: a DTensor"):
                rms_norm_residual(*given.values(), EPS)
            if name != "residual":
                with pytest.raises(ValueError, match=f"{name}: a DTensor"):
                    rms_norm(given["x"], given["weight"], EPS)
