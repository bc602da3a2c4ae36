"""linear_logprob against fp64 truth and eager PyTorch, its memory, its refusals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import linear_logprob, linear_logprob_reference
from tests.kernels.three_way import assert_no_worse

module = sys.modules[linear_logprob.__module__]  # the package's own name is the function
SMALL = 1  # a workspace that forces blocks of MIN_BLOCK columns
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float64: 1e-13}


def random(t, d, v, generator):
    """Logits of a few units."""
    return torch.randn(t, d, generator=generator), torch.randn(v, d, generator=generator)


def peaked(t, d, v, generator):
    """Rows equal to head rows: p -> 1 for half of the targets, p -> 0 for the others."""
    head = torch.randn(v, d, generator=generator) * 3
    return head[torch.randint(v, (t,), generator=generator)], head


def hundreds(t, d, v, generator):
    """Logits of +-100."""
    hidden = torch.randn(t, d, generator=generator)
    head = torch.sign(torch.randn(v, d, generator=generator))
    return hidden / hidden.norm(dim=1, p=1, keepdim=True) * 100, head


def equal(t, d, v, generator):
    """All logits of a row the same."""
    return torch.randn(t, d, generator=generator), torch.ones(v, d) * 0.3


def make(kind, t, d, v, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, head = kind(t, d, v, generator)
    targets = torch.randint(v, (t,), generator=generator)
    if kind is peaked:
        targets[::2] = (hidden[::2] @ head.T).argmax(-1)
    bias = torch.randn(v, generator=generator)
    grad = torch.randn(t, generator=generator)
    grad[0] = 0.0
    return hidden.to(dtype), head.to(dtype), bias.to(dtype), targets, grad


def run(function, hidden, head, targets, bias, grad, frozen, **options):
    """Log-probs and the gradients that are wanted."""
    leaves = {"hidden": hidden.clone().requires_grad_()}
    if not frozen:
        leaves["head"] = head.clone().requires_grad_()
        if bias is not None:
            leaves["bias"] = bias.clone().requires_grad_()
    logp = function(
        leaves["hidden"], leaves.get("head", head), targets, leaves.get("bias", bias), **options
    )
    (logp * grad.to(logp)).sum().backward()
    return {"logp": logp.detach()} | {name: leaf.grad for name, leaf in leaves.items()}


CASES = [
    # kind, T, D, V, workspace: V at one block, over one, with a ragged tail; one row; one class
    (random, 37, 16, 61, 1 << 20),
    (random, 37, 16, 700, 37 * 256 * 4),
    (random, 1, 8, 300, SMALL),
    (random, 5, 8, 1, 1 << 20),
    (peaked, 20, 16, 600, SMALL),
    (peaked, 20, 16, 600, 1 << 20),
    (hundreds, 20, 16, 530, 20 * 256 * 4),
    (hundreds, 20, 16, 530, 1 << 20),
    (equal, 9, 8, 513, SMALL),
]


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0].__name__}-{'x'.join(map(str, c[1:]))}"
)
def test_three_way(case, dtype, frozen):
    kind, t, d, v, workspace = case
    for with_bias, native in itertools.product((False, True), repeat=2):
        hidden, head, bias, targets, grad = make(kind, t, d, v, dtype)
        if kind is not peaked:
            targets[t // 2] = -100
        bias = bias if with_bias else None
        wide = [None if x is None else x.double() for x in (hidden, head, bias)]
        truth = run(linear_logprob_reference, *wide[:2], targets, wide[2], grad, frozen)
        eager = run(linear_logprob_reference, hidden, head, targets, bias, grad, frozen)
        with pytest.MonkeyPatch.context() as patch:
            if native:  # the matmuls in the input's own dtype, as on a CPU that has bf16 arithmetic
                patch.setattr(module, "matmul_dtype", lambda hidden: hidden.dtype)
            ours = run(
                linear_logprob, hidden, head, targets, bias, grad, frozen, workspace_bytes=workspace
            )
        assert ours["logp"].dtype == torch.float32
        for name, value in truth.items():
            scale = max(1.0, float(value.abs().max()))
            assert_no_worse(ours[name], eager[name], value, FLOOR[dtype] * scale, name)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("workspace", [1 << 20, SMALL], ids=["kept", "recompute"])
def test_gradcheck(workspace, frozen):
    hidden, head, bias, targets, _ = make(random, 4, 3, 270, torch.float64)
    head, bias = head * 0.3, bias * 0.3
    targets[1] = -100
    inputs = [hidden.requires_grad_(), head, bias]
    if not frozen:
        inputs = [x.requires_grad_() for x in inputs]

    def function(h, w, b):
        return linear_logprob(h, w, targets, b, workspace_bytes=workspace)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    reference = lambda h, w, b: linear_logprob_reference(h, w, targets, b)  # noqa: E731
    assert torch.autograd.gradcheck(reference, inputs, fast_mode=True)


def test_every_route_is_taken_and_gives_the_same():
    hidden, head, bias, targets, grad = make(random, 33, 8, 600, torch.float64)
    hidden.requires_grad_()
    results = {}
    for frozen, workspace in itertools.product((False, True), (1 << 20, SMALL)):
        head = head.detach().requires_grad_(not frozen)
        taken = module.route(hidden, head, bias, workspace)
        hidden.grad = None
        logp = linear_logprob(hidden, head, targets, bias, workspace_bytes=workspace)
        (logp * grad).sum().backward()
        results[taken, workspace] = (logp.detach(), hidden.grad)
    assert {taken for taken, _ in results} == {"frozen", "kept", "recompute"}
    with torch.no_grad():
        assert module.route(hidden, head, bias) == "score"
        results["score", 0] = (linear_logprob(hidden, head, targets, bias), hidden.grad)
    first = results.pop(("kept", 1 << 20))
    for logp, slope in results.values():
        assert_close(logp, first[0], rtol=1e-12, atol=1e-12)
        assert_close(slope, first[1], rtol=1e-12, atol=1e-12)


def test_by_hand():
    """z = (0, ln 3): p = (1/4, 3/4)."""
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    head = torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
    logp = linear_logprob(hidden, head, torch.tensor([0, 1]))
    assert_close(logp, torch.tensor([math.log(1 / 4), math.log(3 / 4)]))
    logp[1].backward()
    assert_close(head.grad, torch.tensor([[-1 / 4], [1 / 4]]))
    assert_close(hidden.grad, torch.tensor([[0.0], [math.log(3) / 4]]))


def test_certain_and_hopeless_targets_keep_their_digits():
    """p -> 1: 1 - p = e^-30, which 1 - exp(logp) would round to 0. p -> 0: logp = -30."""
    hidden, head = torch.ones(2, 1, requires_grad=True), torch.tensor([[30.0], [0.0]])
    logp = linear_logprob(hidden, head, torch.tensor([0, 1]))
    logp.sum().backward()
    miss = math.exp(-30) / (1 + math.exp(-30))
    assert_close(logp.detach().double(), torch.tensor([-miss, -30.0]).double(), rtol=1e-6, atol=0.0)
    assert_close(
        hidden.grad.double(), torch.tensor([[30 * miss], [-30.0]]).double(), rtol=1e-5, atol=0.0
    )


def test_ignored_rows_reach_nothing():
    """Their result is 0, their gradient is 0, and a NaN in them does not spread."""
    hidden, head, _, targets, grad = make(random, 6, 4, 20, torch.float32)
    targets[[1, 4]] = -100
    kept = targets != -100
    spoilt = hidden.clone()
    spoilt[~kept] = float("nan")
    ours = run(linear_logprob, spoilt, head, targets, None, grad, False)
    clean = run(linear_logprob, hidden[kept], head, targets[kept], None, grad[kept], False)
    assert torch.equal(ours["logp"][kept], clean["logp"]) and not ours["logp"][~kept].any()
    assert torch.equal(ours["hidden"][kept], clean["hidden"]) and not ours["hidden"][~kept].any()
    assert torch.equal(ours["head"], clean["head"])


@pytest.mark.parametrize("rows", [0, 3])
def test_no_row_that_counts(rows):
    hidden, head = torch.randn(rows, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    logp = linear_logprob(hidden, head, torch.full((rows,), -100))
    logp.sum().backward()
    assert logp.shape == (rows,) and logp.dtype == torch.float32 and not logp.any()
    assert hidden.grad.shape == hidden.shape and not hidden.grad.any() and not head.grad.any()


def test_another_ignore_index_and_int32_targets():
    hidden, head, _, targets, _ = make(random, 5, 4, 9, torch.float32)
    targets[2] = 0
    logp = linear_logprob(hidden, head, targets.int(), ignore_index=0)
    assert_close(logp, linear_logprob_reference(hidden, head, targets, ignore_index=0))
    assert logp[2] == 0 and logp.count_nonzero() >= 1


def test_strides_do_not_matter():
    hidden, head, bias, targets, grad = make(random, 11, 6, 300, torch.float32)
    wanted = run(linear_logprob, hidden, head, targets, bias, grad, False, workspace_bytes=SMALL)
    strided = [
        hidden.T.contiguous().T,
        torch.stack([head, head], -1)[..., 0],
        torch.stack([targets, targets], -1)[:, 0],
    ]
    assert not any(x.is_contiguous() for x in strided)
    leaves = [strided[0].detach().requires_grad_(), strided[1].detach().requires_grad_()]
    logp = linear_logprob(*leaves, strided[2], bias, workspace_bytes=SMALL)
    (logp * grad).sum().backward()
    assert_close(logp.detach(), wanted["logp"])
    assert_close(leaves[0].grad, wanted["hidden"])
    assert_close(leaves[1].grad, wanted["head"])


def test_second_backward_gives_the_same():
    """Nothing that backward needs is changed by it."""
    for frozen, workspace in itertools.product((False, True), (1 << 20, SMALL)):
        hidden, head, _, targets, grad = make(random, 9, 4, 300, torch.float32)
        hidden.requires_grad_()
        head.requires_grad_(not frozen)
        loss = (linear_logprob(hidden, head, targets, workspace_bytes=workspace) * grad).sum()
        loss.backward(retain_graph=True)
        first = hidden.grad.clone()
        hidden.grad = None
        loss.backward()
        assert torch.equal(first, hidden.grad)


def test_head_gradient_is_summed_in_fp32():
    """4,096 equal rows in bf16: a sum kept in bf16 would stop growing at 256 times one of them."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    head = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(4096, dtype=torch.int64)
    logp = linear_logprob(hidden, head, targets, workspace_bytes=SMALL)
    logp.sum().backward()
    assert_close(head.grad, torch.tensor([[2048.0], [-2048.0]], dtype=torch.bfloat16))


def test_memory_stays_within_the_workspace():
    """fp32, T 2,048, V 16,384: all logits would be 128 MiB, thrice in eager's backward."""
    code = """
import resource, torch
from srlm_fast.kernels import linear_logprob
hidden, head = torch.randn(2048, 8, requires_grad=True), torch.randn(16384, 8, requires_grad=True)
targets = torch.randint(16384, (2048,))
linear_logprob(hidden[:64], head, targets[:64]).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_logprob(hidden, head, targets, workspace_bytes=8 << 20).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 40, f"{out.stdout} MiB above the inputs"


REFUSED = {
    "hidden: shape [2, 3, 4]": lambda h, w, y, b: (torch.zeros(2, 3, 4), w, y, b),
    "hidden: int64": lambda h, w, y, b: (h.long(), w, y, b),
    "hidden: list": lambda h, w, y, b: ([1.0], w, y, b),
    "head: shape [7, 5], wanted [V, 4]": lambda h, w, y, b: (h, torch.zeros(7, 5), y, b),
    "head: bfloat16, wanted float32": lambda h, w, y, b: (h, w.bfloat16(), y, b),
    "head: on meta": lambda h, w, y, b: (h, w.to("meta"), y, b),
    "head: no rows": lambda h, w, y, b: (h, w[:0], y, None),
    "targets: shape [2], wanted [3]": lambda h, w, y, b: (h, w, y[:2], b),
    "targets: float32": lambda h, w, y, b: (h, w, y.float(), b),
    "targets: 7, wanted 0..6": lambda h, w, y, b: (h, w, torch.tensor([0, 7, 1]), b),
    "targets: -1, wanted 0..6": lambda h, w, y, b: (h, w, torch.tensor([0, -1, 1]), b),
    "bias: shape [6], wanted [7]": lambda h, w, y, b: (h, w, y, b[:6]),
    "bias: float64": lambda h, w, y, b: (h, w, y, b.double()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_argument(message):
    good = (torch.zeros(3, 4), torch.zeros(7, 4), torch.tensor([0, 6, -100]), torch.zeros(7))
    linear_logprob(*good)
    with pytest.raises(ValueError) as error:
        linear_logprob(*REFUSED[message](*good))
    assert str(error.value).startswith(message)


def test_a_dtensor_is_refused_by_name():
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        head = distribute_tensor(torch.zeros(7, 4), mesh, [Replicate()])
        with pytest.raises(ValueError, match="head: a DTensor"):
            linear_logprob(torch.zeros(3, 4), head, torch.zeros(3, dtype=torch.int64))
    finally:
        destroy_process_group()
