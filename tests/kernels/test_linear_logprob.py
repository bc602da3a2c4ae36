"""linear_logprob against fp64 truth and eager PyTorch, its memory, its refusals."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import (
    head_blocks,
    linear_logprob,
    linear_logprob_reference,
    linear_logprob_route,
    logit_rows,
    logprob_route,
    pages,
)
from srlm_fast.kernels.logit_rows import Transform
from srlm_fast.kernels.logprob_route import MIN_COLUMNS
from srlm_fast.kernels.native import available
from tests.kernels.head_cases import (
    check,
    check_rows,
    equal,
    hundreds,
    make,
    peaked,
    random,
    run,
    zipf,
)

SMALL = 1  # a workspace that forces blocks of MIN_COLUMNS columns


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
    (zipf, 25, 16, 700, 1 << 20),
    (equal, 9, 8, 513, SMALL),
]


WAYS = ("native", "plain", "widened")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """With the extension; without it; as on a CPU whose half-precision matmul is slow."""
    if request.param == "native" and not available():
        pytest.fail("the extension is not built")
    monkeypatch.setattr(logit_rows, "available", lambda: request.param != "plain")
    monkeypatch.setattr(logprob_route, "CPU_BLOCK_BYTES", 1)  # several blocks, kept ones too
    monkeypatch.setattr(pages, "WORTH_A_MAPPING", 1)
    capability = "AVX2" if request.param == "widened" else "AVX512"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    return request.param


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c[0].__name__}-{'x'.join(map(str, c[1:]))}"
)
def test_three_way(case, dtype, frozen, way):
    kind, t, d, v, workspace = case
    for with_bias in (False, True):
        check(kind, t, d, v, dtype, frozen, with_bias, workspace_bytes=workspace)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [random, peaked, hundreds])
def test_three_way_with_everything(kind, dtype, frozen, way):
    """Softcap, temperature, log-sum-exp and entropy, and the gradients of all three."""
    options = {"softcap": 8.0, "temperature": 0.7, "return_lse": True, "return_entropy": True}
    for workspace in (SMALL, 1 << 22):
        check(kind, 24, 16, 530, dtype, frozen, True, {"workspace_bytes": workspace}, **options)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("workspace", [1 << 20, SMALL], ids=["kept", "again"])
def test_gradcheck(workspace, frozen):
    hidden, head, bias, targets, _ = make(random, 4, 3, 270, torch.float64)
    head, bias = head * 0.3, bias * 0.3
    targets[1] = -100
    inputs = [hidden.requires_grad_(), head, bias]
    if not frozen:
        inputs = [x.requires_grad_() for x in inputs]
    options = {"softcap": 5.0, "temperature": 1.3, "return_lse": True, "return_entropy": True}

    def plain(h, w, b):
        return linear_logprob(h, w, targets, b, workspace_bytes=workspace)

    def ours(h, w, b):
        return tuple(linear_logprob(h, w, targets, b, workspace_bytes=workspace, **options))

    def reference(h, w, b):
        return tuple(linear_logprob_reference(h, w, targets, b, **options))

    for function in (plain, ours, reference):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_every_route_is_taken_and_gives_the_same(monkeypatch):
    """Scored, frozen; trainable with everything kept, some of it, nothing."""
    monkeypatch.setattr(logprob_route, "CPU_BLOCK_BYTES", 33 * 512 * 4)
    hidden, head, bias, targets, grad = make(random, 33, 8, 2000, torch.float32)
    hidden.requires_grad_()
    results, seen = [], set()
    for frozen, columns in itertools.product((False, True), (2000, 1200, 1)):
        head = head.detach().requires_grad_(not frozen)
        options = {"workspace_bytes": 33 * columns * 4}
        route = linear_logprob_route(hidden, head, 33, bias, **options)
        seen.add((route.name, (route.kept > 0) + (route.kept == 2000), route.matmuls > 3))
        assert route.workspace_bytes <= 33 * 4 * max(columns, MIN_COLUMNS)
        assert route.kept_columns == min(512, route.kept)
        hidden.grad = None
        logp = linear_logprob(hidden, head, targets, bias, **options)
        (logp * grad).sum().backward()
        results.append((logp.detach(), hidden.grad))
    trainable = {("trainable", 2, False), ("trainable", 1, True), ("trainable", 0, True)}
    assert seen == trainable | {("frozen", 0, False)}
    with torch.no_grad():
        assert linear_logprob_route(hidden, head, 33, bias).name == "score"
        results.append((linear_logprob(hidden, head, targets, bias), hidden.grad))
    for logp, slope in results:
        assert_close(logp, results[0][0], rtol=1e-5, atol=1e-5)
        assert_close(slope, results[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transform", [Transform(4.0, 0.8), Transform(None, 1.3)], ids=str)
@pytest.mark.parametrize("width", [16, 17, 300])
def test_native_rows_against_their_twins(width, transform, dtype):
    assert logit_rows.runs_native(torch.empty(0, dtype=dtype))
    check_rows(width, dtype, transform, "cpu")


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


def test_second_backward_gives_the_same(monkeypatch):
    """Nothing that backward needs is changed by it, or given back."""
    monkeypatch.setattr(pages, "WORTH_A_MAPPING", 1)
    for frozen, workspace in itertools.product((False, True), (1 << 20, SMALL)):
        hidden, head, _, targets, grad = make(random, 9, 4, 3000, torch.float32)
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


def test_exponentials_make_room_for_the_gradient():
    """bf16, T 1,024, D 512, V 32,000: 62 MiB kept and a gradient of 31 MiB, which do not add up."""
    code = """
import re, torch
from srlm_fast.kernels import linear_logprob, linear_logprob_route
def memory(key):
    return int(re.search(key + r":\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
hidden = torch.randn(1024, 512).bfloat16().requires_grad_()
head = torch.randn(32000, 512).bfloat16().requires_grad_()
targets = torch.randint(32000, (1024,))
linear_logprob(hidden[:8], head[:512], targets[:8] % 512).sum().backward()
hidden.grad = head.grad = None
before = memory("VmRSS")
linear_logprob(hidden, head, targets).sum().backward()
print(linear_logprob_route(hidden, head, 1024).kept, memory("VmHWM") - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, extra = out.stdout.split()
    assert kept == "32000"
    assert float(extra) < 62.5 + 18, f"{extra} MiB above the inputs"


@pytest.mark.parametrize("route", ["score", "frozen", "trainable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_invariant(route, dtype):
    """A row alone, among few and among many: the same bits of log-prob and gradient."""
    hidden, head, bias, targets, grad = make(random, 300, 48, 5000, dtype)
    head.requires_grad_(route == "trainable")

    def rows(part):
        leaf = hidden[part].clone().requires_grad_(route != "score")
        logp = linear_logprob(leaf, head, targets[part], bias, batch_invariant=True)
        if route != "score":
            (logp * grad[part]).sum().backward()
        return logp.detach(), leaf.grad

    logp, slope = rows(slice(None))
    for part in (slice(7, 8), slice(5, 38), slice(3, 203)):
        alone = rows(part)
        assert torch.equal(alone[0], logp[part])
        assert route == "score" or torch.equal(alone[1], slope[part])


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_the_same_call_gives_the_same_bits(frozen):
    hidden, head, bias, targets, grad = make(random, 300, 16, 3000, torch.bfloat16)
    first, second = (
        run(linear_logprob, hidden, head, targets, bias, grad, frozen) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_overwritten_hidden_holds_the_gradient(dtype):
    hidden, head, bias, targets, grad = make(random, 37, 16, 700, dtype)
    targets[[3, 20]] = -100
    hidden[20] = float("nan")
    wanted = run(linear_logprob, hidden, head, targets, bias, grad, True)
    leaf = hidden.clone().requires_grad_()
    states = leaf * 1.0
    states.retain_grad()
    logp = linear_logprob(states, head, targets, bias, overwrite_hidden=True)
    (logp * grad).sum().backward()
    assert torch.equal(logp.detach(), wanted["logp"])
    assert torch.equal(states.grad, wanted["hidden"]) and torch.equal(leaf.grad, states.grad)
    assert torch.equal(states.detach(), states.grad)  # the same memory, but for the hook


def test_overwriting_what_another_operation_reads_is_caught():
    hidden, head, _, targets, _ = make(random, 5, 4, 9, torch.float32)
    states = hidden.requires_grad_().exp()  # whose backward reads its result
    logp = linear_logprob(states, head, targets, overwrite_hidden=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logp.sum().backward()


def test_every_row_counts_without_an_ignore_index():
    hidden, head, _, targets, _ = make(random, 5, 4, 200, torch.float32)
    logp = linear_logprob(hidden, head, targets, ignore_index=None)
    assert torch.equal(logp, linear_logprob(hidden, head, targets))
    targets[2] = -100
    with pytest.raises(ValueError, match=r"targets: -100, wanted 0\.\.199$"):
        linear_logprob(hidden, head, targets, ignore_index=None)


def test_a_nan_stays_in_its_row():
    hidden, head, bias, targets, grad = make(random, 5, 4, 200, torch.float32)
    hidden[2, 1] = float("nan")
    ours = run(linear_logprob, hidden, head, targets, bias, grad, True)
    alone = torch.arange(5) != 2
    assert ours["logp"][2].isnan() and ours["hidden"][2].isnan().all()
    assert ours["logp"][alone].isfinite().all() and ours["hidden"][alone].isfinite().all()


def test_classes_that_cannot_come():
    """Bias -inf: no share in the sum, -inf as a target, no NaN elsewhere; one class left: 0."""
    hidden, head, bias, targets, _ = make(random, 4, 3, 300, torch.float32)
    bias[100:] = -torch.inf
    targets[:2] = torch.tensor([5, 200])
    logp = linear_logprob(hidden.requires_grad_(), head, targets, bias)
    assert_close(
        logp[0], linear_logprob_reference(hidden, head[:100], targets % 100, bias[:100])[0]
    )
    assert logp[1] == -torch.inf
    logp[0].backward()
    assert hidden.grad.isfinite().all()
    bias[1:] = -torch.inf
    assert linear_logprob(hidden, head, torch.zeros(4, dtype=torch.int64), bias).tolist() == [0] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_of_any_stride(dtype):
    hidden, head, bias, targets, grad = make(random, 7, 8, 600, dtype)
    for strided in (torch.stack([bias, bias + 1], 1)[:, 0], bias[:1].expand(600)):
        wanted = run(linear_logprob, hidden, head, targets, strided.clone(), grad, True)
        found = run(linear_logprob, hidden, head, targets, strided, grad, True)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_blocks_stay_within_the_route_with_every_gradient(frozen, monkeypatch):
    """Also where the backward pass makes the logits again, from lse and entropy."""
    made = []
    workspace = head_blocks.Blocks.workspace

    def seen(self, h, width):
        made.append(h.shape[0] * width * h.element_size())
        return workspace(self, h, width)

    monkeypatch.setattr(head_blocks.Blocks, "workspace", seen)
    monkeypatch.setattr(logprob_route, "CPU_BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(logprob_route, "CPU_ROWS", 64)
    hidden, head, bias, targets, grad = make(random, 500, 8, 4000, torch.float32)
    for budget in (1 << 19, 1 << 23):
        leaf = head.clone().requires_grad_(not frozen)
        states = hidden.clone().requires_grad_()
        options = {"workspace_bytes": budget, "return_lse": True, "return_entropy": True}
        out = linear_logprob(states, leaf, targets, bias, **options)
        (out.logprobs * grad + out.lse - out.entropy).sum().backward()
        route = linear_logprob_route(states, leaf, 500, bias, **options)
        assert max(made, default=0) <= route.workspace_bytes <= max(budget, 500 * MIN_COLUMNS * 4)
        made.clear()


def test_nothing_is_kept_after_the_backward_pass():
    hidden, head, _, targets, _ = make(random, 9, 8, 300, torch.float32)
    logp = linear_logprob(hidden, head.requires_grad_(), targets)
    loss = logp.sum()
    loss.backward(retain_graph=True)
    assert logp.grad_fn.kept
    loss.backward()
    assert not logp.grad_fn.kept


def test_second_derivatives_are_refused():
    hidden, head, _, targets, _ = make(random, 9, 8, 300, torch.float32)
    logp = linear_logprob(hidden.requires_grad_(), head, targets)
    with pytest.raises(RuntimeError, match="create_graph=True, wanted first derivatives"):
        torch.autograd.grad(logp.sum(), hidden, create_graph=True)


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
REFUSED_OPTIONS = {
    "temperature: 0.0, wanted a number above 0": {"temperature": 0.0},
    "temperature: nan": {"temperature": math.nan},
    "softcap: -1.0, wanted a number above 0, or None": {"softcap": -1.0},
    "workspace_bytes: -1, wanted 0 or more": {"workspace_bytes": -1},
    "workspace_bytes: 1000000.0, wanted 0 or more": {"workspace_bytes": 1e6},
    "temperature: Tensor, wanted a number": {"temperature": torch.ones(())},
    "temperature: '1', wanted a number": {"temperature": "1"},
    "ignore_index: 1.5, wanted an integer": {"ignore_index": 1.5},
    "overwrite_hidden: this call takes the route 'score'": {"overwrite_hidden": True},
}


@pytest.mark.parametrize("message", REFUSED_OPTIONS)
def test_refusals_name_the_option(message):
    with pytest.raises(ValueError) as error:
        linear_logprob(
            torch.zeros(3, 4),
            torch.zeros(7, 4),
            torch.tensor([0, 6, 1]),
            **REFUSED_OPTIONS[message],
        )
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("num_rows", [-1, 4, 2.0, "3"])
def test_a_route_of_no_such_rows_is_refused(num_rows):
    with pytest.raises(ValueError, match=r"num_rows: .*, wanted an integer in 0\.\.3"):
        linear_logprob_route(torch.zeros(3, 4), torch.zeros(7, 4), num_rows)


def test_overwriting_is_refused_where_it_cannot_be():
    head, targets = torch.zeros(7, 4), torch.tensor([0, 6, 1])
    with pytest.raises(ValueError, match="overwrite_hidden: hidden is a leaf"):
        leaf = torch.zeros(3, 4, requires_grad=True)
        linear_logprob(leaf, head, targets, overwrite_hidden=True)
    hidden = torch.zeros(4, 3, requires_grad=True).T
    with pytest.raises(ValueError, match="overwrite_hidden: hidden has strides"):
        linear_logprob(hidden, head, targets, overwrite_hidden=True)
    with pytest.raises(ValueError, match="overwrite_hidden: found return_lse"):
        linear_logprob(hidden.contiguous(), head, targets, overwrite_hidden=True, return_lse=True)
    with pytest.raises(ValueError, match="overwrite_hidden: this call takes the route 'trainable'"):
        linear_logprob(hidden, head.requires_grad_(), targets, overwrite_hidden=True)


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
