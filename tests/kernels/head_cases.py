"""Inputs of a head that kernels get wrong, and a run with its gradients."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from srlm_fast.kernels import linear_logprob, linear_logprob_reference, logit_rows
from srlm_fast.kernels.logit_rows import RowState
from tests.kernels.guard import guarded
from tests.kernels.three_way import assert_no_worse

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 2e-4, torch.float64: 1e-13}
NATS = ("logp", "logprobs", "lse", "entropy")
WEIGHTS = (1.0, 0.3, -0.7)


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


def zipf(t, d, v, generator):
    """Word j has about 1 / (j + 1) of the probability, and so have the targets."""
    ranks = torch.arange(1, v + 1).float()
    head = torch.randn(v, d, generator=generator) * 0.3
    head[:, 0] = -ranks.log()
    hidden = torch.randn(t, d, generator=generator)
    hidden[:, 0] = 1.0
    return hidden, head


def make(kind, t, d, v, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, head = kind(t, d, v, generator)
    targets = torch.randint(v, (t,), generator=generator)
    if kind is peaked:
        targets[::2] = (hidden[::2] @ head.T).argmax(-1)
    if kind is zipf:
        shares = 1 / torch.arange(1, v + 1)
        targets = torch.multinomial(shares, t, replacement=True, generator=generator)
    bias = torch.randn(v, generator=generator)
    grad = torch.randn(t, generator=generator)
    grad[0] = 0.0
    return hidden.to(dtype), head.to(dtype), bias.to(dtype), targets, grad


def run(function, hidden, head, targets, bias, grad, frozen, **options):
    """Log-probs (and lse, entropy where asked for) and the gradients that are wanted."""
    leaves = {"hidden": hidden.clone().requires_grad_()}
    if not frozen:
        leaves["head"] = head.clone().requires_grad_()
        if bias is not None:
            leaves["bias"] = bias.clone().requires_grad_()
    values = function(
        leaves["hidden"], leaves.get("head", head), targets, leaves.get("bias", bias), **options
    )
    values = {"logp": values} if isinstance(values, torch.Tensor) else values._asdict()
    # Of different weight, so that none of the gradients can hide behind another.
    terms = zip(values.values(), WEIGHTS, strict=False)
    sum((v * (grad * w).to(v)).sum() for v, w in terms).backward()
    out = {name: value.detach() for name, value in values.items()}
    return out | {name: leaf.grad for name, leaf in leaves.items()}


def check(kind, t, d, v, dtype, frozen, with_bias, ours_options=None, device="cpu", **options):
    """linear_logprob against fp64 truth and eager PyTorch of the same dtype. Options of both come
    as keywords, those of ours alone in `ours_options`.
    """
    ours_options = dict(ours_options or {})
    for name in ("workspace_bytes", "overwrite_hidden", "batch_invariant"):
        if name in options:
            ours_options[name] = options.pop(name)
    hidden, head, bias, targets, grad = make(kind, t, d, v, dtype)
    if kind is not peaked:
        targets[t // 2] = -100
    bias = bias if with_bias else None
    inputs = [x if x is None else x.to(device) for x in (hidden, head, targets, bias, grad)]
    truth = run(linear_logprob_reference, *(wide(x) for x in inputs), frozen, **options)
    eager = run(linear_logprob_reference, *inputs, frozen, **options)
    with guarded():
        ours = run(linear_logprob, *inputs, frozen, **options, **ours_options)
    names = {"logprobs": "logp"}
    for name, value in truth.items():
        result = ours[name]
        assert result.dtype == (torch.float32 if name in NATS else dtype), name
        scale = max(1.0, float(value.abs().max()))
        if dtype == torch.bfloat16 and kind is equal:
            scale = max(scale, 4.0)  # half a rounding of the logits, which here eager's cancels
        assert_no_worse(result, eager[name], value, FLOOR[dtype] * scale, names.get(name, name))


def wide(x):
    return x.double() if x is not None and x.is_floating_point() else x


def check_rows(width, dtype, transform, device):
    """exponentials_ and slopes_ of two blocks, of which the second is far higher, against their
    twins.
    """
    draw = torch.Generator().manual_seed(0)
    num_rows = 6
    targets = torch.tensor([0, 5, 1000, -7, width + 2, 9], device=device) + 3
    bias = torch.randn(width, generator=draw).to(dtype).to(device)
    states = [RowState.empty(num_rows, bias, True) for _ in range(2)]
    close = (
        {"rtol": 1e-2, "atol": 1e-6} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    )
    for first, height in ((0, 0.0), (3, 60.0), (11, 5.0)):
        padded = torch.randn(num_rows, width + 16, generator=draw) + height
        padded = padded.to(dtype).to(device)
        x, guard = padded[:, :width], padded[:, width:].clone()
        wanted, args = x.clone(), (bias, targets, first)
        ours = logit_rows.exponentials_(x, *args, states[0], transform)
        theirs = logit_rows.exponentials_reference(wanted, *args, states[1], transform)
        assert_close(x, wanted, **close)
        assert_close(ours, theirs, rtol=1e-4, atol=1e-30)
        assert torch.equal(padded[:, width:], guard)
        for a, b in zip(*states, strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)
    facts = torch.rand(7, num_rows, generator=draw).to(device)
    facts[logit_rows.TOP], facts[logit_rows.SPREAD] = states[0].top, 7.0
    facts[logit_rows.LOGP] *= -3.0
    upstream = torch.randn(3, num_rows, generator=draw).to(device)
    x = torch.randn(num_rows, width, generator=draw).add_(60.0).to(dtype).to(device)
    wanted = x.clone()
    logit_rows.slopes_(x, bias, targets, 3, facts, upstream, transform)
    logit_rows.slopes_reference(wanted, bias, targets, 3, facts, upstream, transform)
    assert_close(x, wanted, **close)
