"""rope and rope_qk: kernels against fp64 truth and eager PyTorch; edges; refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import rope, rope_qk, rope_qkv, rope_reference
from srlm_fast.kernels.rope import rope_angles
from tests.kernels.dtensors import dtensors
from tests.kernels.guard import guarded, surrounded
from tests.kernels.three_way import assert_no_worse

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of the largest true value: for where eager happens to be exact.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-4}
SHAPES = [  # T, H, G, K
    (3, 8, 2, 64),
    (1, 1, 1, 2),
    (2, 14, 2, 128),
    (3, 3, 5, 18),
    (2, 5, 1, 80),
]
KINDS = {"random": 1.0, "hundreds": 100.0, "ten thousands": 1e4, "zeros": 0.0}


def make(shape, dtype, device, kind="random"):
    """q, k and the gradients of their rotations; cos, sin at positions up to 8,000."""
    num_tokens, num_q_heads, num_k_heads, width = shape
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(num_tokens, heads, width, generator=generator)
        for heads in (num_q_heads, num_k_heads) * 2
    ]
    tensors[:2] = (x.clamp(-3, 3) * KINDS[kind] for x in tensors[:2])
    positions = torch.randint(8000, (num_tokens,), generator=generator)
    frequencies = 1.0 / 10000.0 ** (torch.arange(width // 2) * 2 / width)
    angles = rope_angles(positions, frequencies, 1.2)
    return [x.to(device, dtype) for x in tensors], [a.to(device) for a in angles]


def pair_reference(q, k, cos, sin):
    return rope_reference(q, cos, sin), rope_reference(k, cos, sin)


def pair_one_by_one(q, k, cos, sin):
    return rope(q, cos, sin), rope(k, cos, sin)


def run(form, q, k, grad_q, grad_k, cos, sin, copy=torch.clone):
    leaves = [copy(x).requires_grad_() for x in (q, k)]
    outputs = form(*leaves, copy(cos), copy(sin))
    torch.autograd.backward(outputs, [copy(grad_q), copy(grad_k)])
    return {
        "q": outputs[0].detach(),
        "k": outputs[1].detach(),
        "dq": leaves[0].grad,
        "dk": leaves[1].grad,
    }


def assert_three_ways(tensors, angles, form):
    truth = run(pair_reference, *(x.double() for x in (*tensors, *angles)))
    eager = run(pair_reference, *tensors, *angles)
    with guarded():
        found = run(form, *tensors, *angles, copy=surrounded)
    for name, value in truth.items():
        assert found[name].dtype == tensors[0].dtype and found[name].shape == value.shape
        floor = FLOOR[found[name].dtype] * float(value.abs().max())
        assert_no_worse(found[name], eager[name], value, floor, name)


@pytest.mark.parametrize("form", [rope_qk, pair_one_by_one], ids=["together", "one by one"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_three_way(kernel_device, shape, dtype, form):
    assert_three_ways(*make(shape, dtype, kernel_device), form)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_three_way_on_large_values_and_on_zeros(kernel_device, kind, dtype):
    assert_three_ways(*make(SHAPES[0], dtype, kernel_device, kind), rope_qk)


def test_angles_in_the_dtype_of_x(kernel_device):
    tensors, angles = make(SHAPES[0], torch.bfloat16, kernel_device)
    assert_three_ways(tensors, [a.bfloat16() for a in angles], rope_qk)


def test_by_hand(kernel_device):
    """A quarter turn, then half of one: (1, 2) -> (-2, 1); pairs are half the width apart."""
    x = torch.tensor([[[1.0, 3.0, 2.0, 4.0]]], device=kernel_device)
    angles = torch.tensor([[math.pi / 2, math.pi]], device=kernel_device)
    turned = torch.tensor([[[-2.0, -3.0, 1.0, -4.0]]], device=kernel_device)
    for form in (rope, rope_reference):
        assert_close(form(x, angles.cos(), angles.sin()), turned)


def test_the_gradient_is_turned_back(kernel_device):
    """A rotation's transpose is its inverse."""
    (q, k, *_), _ = make(SHAPES[0], torch.float32, kernel_device)
    angles = torch.rand(q.shape[0], q.shape[2] // 2, device=kernel_device)
    leaves = [x.requires_grad_() for x in (q, k)]
    outputs = rope_qk(*leaves, angles.cos(), angles.sin())
    torch.autograd.backward(outputs, [y.detach() for y in outputs])
    for x in leaves:
        assert_close(x.grad, x.detach())


def test_gradcheck_of_the_reference():
    tensors, (cos, sin) = make((2, 2, 1, 6), torch.float64, "cpu")
    x = tensors[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rope_reference(x, cos, sin), [x])


def test_heads_of_a_fused_projection_are_not_copied(kernel_device):
    """q and k are cut out of [T, (H + 2 G) K]; the gradient of v's part is zero."""
    (q, k, grad_q, grad_k), (cos, sin) = make((5, 6, 2, 32), torch.float32, kernel_device)
    wanted = run(pair_reference, q, k, grad_q, grad_k, cos, sin)
    qkv = torch.cat((q, k, torch.full_like(k, math.nan)), dim=1).flatten(1).requires_grad_()
    found = rope_qk(*qkv.view(5, -1, 32).split((6, 2, 2), dim=1)[:2], cos, sin)
    assert_close(found[0], wanted["q"])
    assert_close(found[1], wanted["k"])
    torch.autograd.backward(found, [grad_q, grad_k])
    assert_close(qkv.grad[:, : 6 * 32].view_as(q), wanted["dq"])
    assert_close(qkv.grad[:, 6 * 32 : 8 * 32].view_as(k), wanted["dk"])
    assert not qkv.grad[:, 8 * 32 :].any()


def test_strides_do_not_matter(kernel_device):
    (q, k, grad_q, grad_k), (cos, sin) = make((5, 6, 2, 32), torch.float32, kernel_device)
    wanted = run(pair_reference, q, k, grad_q, grad_k, cos, sin)
    strided = [
        q.transpose(0, 1).contiguous().transpose(0, 1),
        k.transpose(1, 2).contiguous().transpose(1, 2),
        grad_q.transpose(0, 2).contiguous().transpose(0, 2),
        torch.cat((grad_k, grad_k), 2)[:, :, 32:],
    ]
    for angles in (
        (torch.cat((cos, cos), 1)[:, 16:], torch.cat((sin, sin, sin), 1)[:, 16:32]),
        (torch.stack((cos, cos), -1)[..., 0], sin.T.contiguous().T),
    ):
        assert not any(x.is_contiguous() for x in (*strided, *angles))
        found = run(rope_qk, *strided, *angles, copy=lambda x: x.detach())
        for name, value in wanted.items():
            assert_close(found[name], value, msg=name)


def test_a_gradient_for_k_alone(kernel_device):
    tensors, angles = make(SHAPES[0], torch.float32, kernel_device)
    wanted = run(pair_reference, *tensors, *angles)
    q, k = (x.requires_grad_() for x in tensors[:2])
    rope_qk(q, k, *angles)[1].backward(tensors[3])
    assert_close(k.grad, wanted["dk"])
    assert q.grad is None or not q.grad.any()


def test_no_tokens(kernel_device):
    tensors, angles = make((0, 4, 2, 16), torch.bfloat16, kernel_device)
    for name, value in run(rope_qk, *tensors, *angles).items():
        assert value.shape == (0, 4 if "q" in name else 2, 16)


def test_fp64_runs_in_pytorch(kernel_device):
    tensors, angles = make(SHAPES[0], torch.float64, kernel_device)
    found, wanted = (run(f, *tensors, *angles) for f in (rope_qk, pair_reference))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_second_backward_gives_the_same_bits(kernel_device):
    (q, k, *grads), angles = make(SHAPES[0], torch.bfloat16, kernel_device)
    leaves = [x.requires_grad_() for x in (q, k)]
    outputs = rope_qk(*leaves, *angles)
    first, second = (
        torch.autograd.grad(outputs, leaves, grads, retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


NATIVE = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("form", [rope_qk, pair_one_by_one], ids=["together", "one by one"])
@pytest.mark.parametrize("dtype", NATIVE, ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_three_way_natively(shape, dtype, form):
    assert_three_ways(*make(shape, dtype, "cpu"), form)


def test_natively_large_values_zeros_and_angles_in_the_dtype_of_x():
    for kind in KINDS:
        tensors, angles = make(SHAPES[0], torch.bfloat16, "cpu", kind)
        assert_three_ways(tensors, angles, rope_qk)
        assert_three_ways(tensors, [a.bfloat16() for a in angles], rope_qk)


def test_half_precision_that_no_kernel_takes_runs_in_pytorch():
    tensors, angles = make(SHAPES[0], torch.float16, "cpu")
    found, wanted = (run(form, *tensors, *angles) for form in (rope_qk, pair_reference))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def fused(q, k, v):
    return torch.cat((q, k, v), 1).flatten(1)


@pytest.mark.parametrize("dtype", [*NATIVE, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_a_fused_projection_gives_the_bits_of_its_parts(shape, dtype):
    (q, k, grad_q, grad_k), angles = make(shape, dtype, "cpu")
    wanted = run(rope_qk, q, k, grad_q, grad_k, *angles)
    leaf = fused(q, k, k + 1).requires_grad_()
    found = rope_qkv(leaf * 1, (shape[1], shape[2], shape[2]), *angles)
    assert torch.equal(found[0], wanted["q"]) and torch.equal(found[1], wanted["k"])
    assert torch.equal(found[2], k + 1)
    torch.autograd.backward(found, [grad_q, grad_k, grad_k * 2])
    assert torch.equal(leaf.grad, fused(wanted["dq"], wanted["dk"], grad_k * 2))


def test_a_fused_projection_under_a_checkpoint():
    from torch.utils.checkpoint import checkpoint

    (q, k, *_), angles = make(SHAPES[0], torch.float32, "cpu")
    leaves = [fused(q, k, k).requires_grad_() for _ in range(2)]

    def squares(leaf):
        return sum(x.square().sum() for x in rope_qkv(leaf * 1, (8, 2, 2), *angles))

    squares(leaves[0]).backward()
    checkpoint(squares, leaves[1], use_reentrant=False).backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)


def test_a_fused_projection_that_somebody_saved_is_missed():
    (q, k, *_), angles = make(SHAPES[0], torch.float32, "cpu")
    leaf = fused(q, k, k).requires_grad_()
    qkv = leaf * 1
    square = qkv * qkv
    outputs = rope_qkv(qkv, (8, 2, 2), *angles)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (square.sum() + sum(x.sum() for x in outputs)).backward()


def test_a_fused_projection_of_another_width_is_refused():
    with pytest.raises(ValueError, match="qkv: width 25, wanted a multiple of 12 heads"):
        rope_qkv(torch.zeros(3, 25), (8, 2, 2), torch.zeros(3, 1), torch.zeros(3, 1))


GOOD = {
    "q": torch.zeros(3, 4, 6),
    "k": torch.zeros(3, 2, 6),
    "cos": torch.zeros(3, 3),
    "sin": torch.zeros(3, 3),
}
REFUSED = {
    "q: list, wanted a tensor": {"q": [1.0]},
    "q: shape [3, 6], wanted [T, H, K]": {"q": torch.zeros(3, 6)},
    "q: width 5, wanted an even one": {"q": torch.zeros(3, 4, 5)},
    "q: int64, wanted float32 or": {"q": torch.zeros(3, 4, 6).long()},
    "k: shape [2, 2, 6], wanted [3, G, 6]": {"k": torch.zeros(2, 2, 6)},
    "k: shape [3, 2, 4], wanted [3, G, 6]": {"k": torch.zeros(3, 2, 4)},
    "k: bfloat16, wanted float32": {"k": torch.zeros(3, 2, 6).bfloat16()},
    "k: on meta, wanted cpu": {"k": torch.zeros(3, 2, 6, device="meta")},
    "cos: shape [3, 6], wanted [3, 3]": {"cos": torch.zeros(3, 6)},
    "cos: float16, wanted float32": {"cos": torch.zeros(3, 3).half()},
    "sin: shape [2, 3], wanted [3, 3]": {"sin": torch.zeros(2, 3)},
    "sin: on meta, wanted cpu": {"sin": torch.zeros(3, 3, device="meta")},
    "sin: requires a gradient, wanted a constant": {"sin": torch.zeros(3, 3, requires_grad=True)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    given = GOOD | REFUSED[message]
    with pytest.raises(ValueError) as error:
        rope_qk(*given.values())
    assert str(error.value).startswith(message)
    if not message.startswith("k"):
        with pytest.raises(ValueError) as error:
            rope(given["q"], given["cos"], given["sin"])
        assert str(error.value).startswith(message.replace("q:", "x:"))


def test_a_dtensor_is_refused_by_name():
    with dtensors() as wrapped:
        for name, tensor in GOOD.items():
            with pytest.raises(ValueError, match=f"{name}: a DTensor"):
                rope_qk(*(GOOD | {name: wrapped(tensor)}).values())
