"""Rows of a block of logits: their softmax statistics, their exponentials, their gradients.

A block x [N, W] is some of the columns of hidden @ head.T, in the dtype of the matmul that made it,
and is worked on in place. These operations are what
`linear_logprob` is made of.

    z = softcap tanh((x + bias) / softcap) / temperature     no softcap: (x + bias) / temperature
    bend = dz/dx = (1 - tanh^2) / temperature                1 / temperature

`exponentials_` leaves the target's column y out of everything, so that 1 - p_y is never a
difference. Over the columns j != y seen so far, kept in `RowState` (online softmax, arXiv
1805.02867):

    top = max_j z_j     total = sum_j e^(z_j - top)     moment = sum_j e^(z_j - top) (z_j - top)

(top follows the maximum only when that has risen by more than LAZY: exponentials up to e^20 cost
neither fp32 nor bf16 anything, and a top that stays spares corrections of what was made with it),
and x_j becomes e^(z_j - top) bend_j, 0 in the target's cell. `finish` adds the target's own logit,
an fp32 dot product of the row's hidden state with its row of the head, and gives per row

    spread = log(e^(z_y - top) + total)     lse = top + spread
    logp   = logsigmoid(z_y - top - log total)
    miss   = 1 - p_y = e^(log total - spread)
    entropy = miss spread - p_y logp - moment e^(-spread)

and, given product = sum_j x_j head_j, the slope of logp:

    dlogp/dhidden = miss bend_y head_y - e^(-spread) product

`slopes_` turns logits into gradients: with g, g', g'' the gradients of logp, lse and entropy,
l_j = z_j - top - spread and p_j = e^(l_j),

    dL/dx_j = (g' - g - g'' (l_j + entropy)) p_j bend_j                              j != y
    dL/dx_y = (g miss + (g' - g'' (logp + entropy)) p_y) bend_y

Statistics and gradients are computed in fp32 (fp64 for fp64 blocks). Each row is computed by
itself: its bits do not depend on the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import jit
from .jit import tl, triton
from .native import available, native

# The rows of `finish`'s result [7, N].
TOP, SPREAD, MISS, LOGP, LSE, ENTROPY, BEND = range(7)
LOWEST = torch.finfo(torch.float32).min
LAZY = 20.0
FAR = -60.0  # log of the rate below which a row's exponentials are made again

# Columns that one program holds in registers: rows up to ONE_BLOCK are read once, longer ones twice
# (the second time from L2) in steps of STEP; half of both with a softcap or fp32 blocks, which
# would spill. Correct on an H200, not yet tuned there.
ONE_BLOCK, STEP, STEP_WARPS = 32768, 8192, 16
PIECE = 256  # rows widened at a time on a CPU


class Transform(NamedTuple):
    """z as a function of x + bias."""

    softcap: float | None = None
    temperature: float = 1.0

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """z and bend of a wide x."""
        scale = 1.0 / self.temperature
        if self.softcap is None:
            return (x if scale == 1.0 else x * scale), scale
        tanh = torch.tanh(x / self.softcap)
        return tanh * (self.softcap * scale), (1 - tanh.square()) * scale


class RowState(NamedTuple):
    """Statistics [N] of the columns seen so far, the target's left out."""

    top: Tensor
    total: Tensor
    moment: Tensor | None

    @staticmethod
    def empty(num_rows: int, like: Tensor, with_moment: bool) -> RowState:
        """No columns yet. `like` gives the device and, widened, the dtype."""
        new = {"dtype": wide(like.dtype), "device": like.device}
        top = torch.full((num_rows,), LOWEST, **new)
        total = torch.zeros(num_rows, **new)
        return RowState(top, total, torch.zeros_like(total) if with_moment else None)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics: fp64 for fp64, otherwise fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def exponentials_reference(
    x: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    state: RowState,
    transform: Transform,
    store: bool = True,
) -> Tensor:
    """The same in PyTorch, also the way of fp64 and of fp16 on a CPU."""
    z, bend = transform(_biased(x, bias))
    inside, cell = _cells(targets, first, x.shape[1])
    z = z.scatter(1, cell, torch.where(inside, -torch.inf, z.gather(1, cell)))
    highest = z.amax(1)
    top = torch.where(highest > state.top + LAZY, highest, state.top)
    shrink = torch.exp(state.top - top)
    gap = z.sub_(top[:, None])
    if state.moment is not None:
        state.moment.add_((state.top - top) * state.total).mul_(shrink)
        state.moment.add_((gap.exp() * gap).nan_to_num_(0.0, 0.0, 0.0).sum(1))
    expz = gap.exp_()
    state.total.mul_(shrink).add_(expz.sum(1))
    state.top.copy_(top)
    if store:
        x.copy_(expz.mul_(bend))
    return shrink


def exponentials_(
    x: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    state: RowState,
    transform: Transform,
    store: bool = True,
) -> Tensor:
    """x [N, W] becomes its exponentials relative to the new top; the state is brought up to date.

    bias [W]; targets [N] int64, columns of the whole head; first: the column of the head where the
    block begins. Without `store` x holds nothing of use afterwards. Returns shrink [N] =
    e^(old top - new top), with which products of earlier blocks are to be multiplied.
    """
    if jit.runs_triton(x) and x.dtype != torch.float64:
        return _exponentials_triton(x, bias, targets, first, state, transform, store)
    if runs_native(x):
        return _exponentials_native(x, bias, targets, first, state, transform, store)
    return exponentials_reference(x, bias, targets, first, state, transform, store)


def slopes_reference(
    x: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    facts: Tensor,
    upstream: Tensor,
    transform: Transform,
) -> None:
    """The same in PyTorch, also the way of fp64 and of fp16 on a CPU."""
    z, bend = transform(_biased(x, bias))
    grad_logp, grad_lse, grad_entropy = upstream[:, :, None]
    fact = facts[:, :, None]
    inside, cell = _cells(targets, first, x.shape[1])
    log_p = (z - fact[TOP]).sub_(fact[SPREAD])
    p = log_p.exp()
    weight = grad_lse - grad_logp - grad_entropy * (log_p.clamp_(min=LOWEST) + fact[ENTROPY])
    grad = p * weight * bend
    own_logp = fact[LOGP].clamp(min=LOWEST)
    own = grad_lse - grad_entropy * (own_logp + fact[ENTROPY])
    own = (grad_logp * fact[MISS] + own * own_logp.exp()) * fact[BEND]
    x.copy_(grad.scatter_(1, cell, torch.where(inside, own, grad.gather(1, cell))))


def slopes_(
    x: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    first: int,
    facts: Tensor,
    upstream: Tensor,
    transform: Transform,
) -> None:
    """Logits x [N, W] become dL/dx. facts [7, N] of `finish`; upstream [3, N]: dL/d(logp, lse,
    entropy); the others as in `exponentials_`.
    """
    if jit.runs_triton(x) and x.dtype != torch.float64:
        _slopes_triton(x, bias, targets, first, facts, upstream, transform)
    elif runs_native(x):
        _slopes_native(x, bias, targets, first, facts, upstream, transform)
    else:
        slopes_reference(x, bias, targets, first, facts, upstream, transform)


def finish_reference(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    state: RowState,
    transform: Transform,
    product: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """The same in PyTorch, also the way of every CPU: it touches [N, D] only."""
    dtype = state.top.dtype
    x = _own_logits(hidden, head, targets, dtype)
    z, bend = transform(x if bias is None else x + bias.index_select(0, targets))
    own, rest = z - state.top, state.total.log()
    spread = torch.logaddexp(own, rest)
    miss = torch.exp(rest - spread)
    logp = F.logsigmoid(own - rest)
    # Where no other column has any weight, top is not of this row's scale.
    lse = torch.where(state.total > 0, state.top + spread, z)
    entropy = torch.zeros_like(logp)
    if state.moment is not None:
        p = logp.exp()
        entropy = torch.where(miss > 0, miss * spread - state.moment * torch.exp(-spread), 0.0)
        entropy -= torch.where(p > 0, p * logp, 0.0)
    if slope is not None:
        others = product.to(dtype) * torch.exp(-spread)[:, None]
        own_row = head.index_select(0, targets).to(dtype)
        slope.copy_(own_row.mul_((miss * bend)[:, None]).sub_(others))
    facts = torch.stack((state.top, spread, miss, logp, lse, entropy, torch.zeros_like(logp)))
    facts[BEND] = bend
    return facts


def finish(
    hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    state: RowState,
    transform: Transform,
    product: Tensor | None = None,
    slope: Tensor | None = None,
) -> Tensor:
    """hidden [N, D], head [V, D], bias [V], targets [N], the state of all columns -> facts [7, N].

    Given product [N, D] = sum_j x_j head_j, dlogp/dhidden is written into slope [N, D], which may
    be `hidden` itself.
    """
    if jit.runs_triton(hidden) and hidden.dtype != torch.float64:
        return _finish_triton(hidden, head, bias, targets, state, transform, product, slope)
    return finish_reference(hidden, head, bias, targets, state, transform, product, slope)


def _own_logits(hidden: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """hidden_t . head_y [N], summed in `dtype`; by pieces, to spare widened copies of [N, D]."""
    pieces = zip(hidden.split(PIECE), targets.split(PIECE), strict=True)
    return torch.cat([(h.to(dtype) * head[y].to(dtype)).sum(1) for h, y in pieces])


def seal_reference(x: Tensor, targets: Tensor, first: int, top: Tensor, facts: Tensor) -> Tensor:
    """The same in PyTorch, also the way of every CPU: it touches N cells."""
    log_rate = (top - facts[TOP]).sub_(facts[SPREAD])
    inside, cell = _cells(targets, first, x.shape[1])
    far = torch.where((log_rate < FAR) & inside[:, 0], log_rate, 0.0)
    if bool(far.any()):
        x.mul_(far.exp().to(x.dtype)[:, None])
    log_rate -= far
    own = (-facts[MISS] * facts[BEND] * torch.exp(-log_rate)).to(x.dtype)
    # By index: scatter_ widens the whole of a bf16 block on a CPU.
    place = (torch.arange(x.shape[0], device=x.device), cell[:, 0])
    x[place] = torch.where(inside[:, 0], own, x[place])
    return log_rate.exp_()


def seal_(x: Tensor, targets: Tensor, first: int, top: Tensor, facts: Tensor) -> Tensor:
    """Makes exponentials x [N, W], relative to `top` [N], the rows of dlogp/dx: p_j = rate x_j.

    The target's cell becomes -(1 - p_y) bend_y / rate. Returns rate [N]; dlogp/dx = -rate x. Rows
    whose sum lies far above what this block has seen are made relative to it first, since 1 / rate
    would overflow.
    """
    if jit.runs_triton(x) and x.dtype != torch.float64:
        return _seal_triton(x, targets, first, top, facts)
    return seal_reference(x, targets, first, top, facts)


def add_scaled_rows(acc: Tensor, part: Tensor, scale: Tensor) -> None:
    """acc [N, D] += scale [N] times part [N, D], in the dtype of acc."""
    if runs_native(part) and part.is_contiguous() and acc.is_contiguous():
        bf16 = part.dtype == torch.bfloat16
        addresses = (part.data_ptr(), bf16, scale.data_ptr(), *part.shape, acc.data_ptr())
        return native().add_scaled_rows(*addresses)
    acc.add_(part * scale[:, None])


def scale_rows(x: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    """out [N, D] = scale [N] times x [N, D], rounded once; out may be x."""
    native_pair = runs_native(x) and x.is_contiguous() and out.is_contiguous()
    if native_pair and x.dtype == out.dtype and scale.dtype == torch.float32:
        bf16 = x.dtype == torch.bfloat16
        addresses = (scale.data_ptr(), *x.shape, out.data_ptr())
        native().scale_rows(x.data_ptr(), bf16, *addresses)
        return out
    return torch.mul(x, scale[:, None], out=out)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    """x + bias in a wide copy."""
    out = x.to(wide(x.dtype), copy=True)
    return out if bias is None else out.add_(bias)


def _cells(targets: Tensor, first: int, width: int) -> tuple[Tensor, Tensor]:
    """[N, 1]: whether a row's target is in this block, and a cell of the block for each row."""
    cell = targets[:, None] - first
    return (cell >= 0) & (cell < width), cell.clamp(0, width - 1)


# Native: csrc/logit_rows.cpp, one pass for the maximum and one for everything else.


def runs_native(x: Tensor) -> bool:
    """Whether csrc/ has these operations for the tensor's dtype and device."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and available()


def _native_block(x: Tensor, bias: Tensor | None, transform: Transform) -> tuple:
    return (
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        *x.shape,
        x.stride(0),
        0 if bias is None else bias.float().data_ptr(),
        transform.softcap or 0.0,
        transform.temperature,
    )


def _exponentials_native(x, bias, targets, first, state, transform, store):
    shrink = torch.empty_like(state.top)
    bias = None if bias is None else bias.float()
    native().logit_exponentials(
        _native_block(x, bias, transform),
        targets.data_ptr(),
        first,
        state.top.data_ptr(),
        state.total.data_ptr(),
        0 if state.moment is None else state.moment.data_ptr(),
        shrink.data_ptr(),
        store,
    )
    return shrink


def _slopes_native(x, bias, targets, first, facts, upstream, transform):
    bias = None if bias is None else bias.float()
    native().logit_slopes(
        _native_block(x, bias, transform),
        targets.data_ptr(),
        first,
        facts.data_ptr(),
        upstream.data_ptr(),
    )


# Triton.


@triton.jit
def _tanh(u):
    """Through the exponential; near 0, where that loses digits, the series (error below 1e-7)."""
    e = tl.exp(-2.0 * tl.abs(u))
    far = (1.0 - e) / (1.0 + e)
    s = u * u
    near = u * (1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    return tl.where(s < 0.09, near, tl.where(u < 0, -far, far))


@triton.jit
def transformed(x, softcap, scale, HAS_CAP: tl.constexpr):
    """z and bend of x."""
    bend = tl.zeros_like(x) + scale
    if HAS_CAP:
        t = _tanh(x / softcap)
        z = t * (softcap * scale)
        bend = (1.0 - t * t) * scale
    else:
        z = x * scale
    return z, bend


@triton.jit
def _load_logits(
    x_ptr, bias_ptr, cols, width, softcap, scale, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr
):
    x = tl.load(x_ptr + cols, mask=cols < width, other=0.0).to(tl.float32)
    if HAS_BIAS:
        x += tl.load(bias_ptr + cols, mask=cols < width, other=0.0).to(tl.float32)
    return transformed(x, softcap, scale, HAS_CAP)


@triton.jit
def _exponentials_kernel(
    x_ptr,
    bias_ptr,
    targets_ptr,
    top_ptr,
    total_ptr,
    moment_ptr,
    shrink_ptr,
    softcap,
    scale,
    first,
    width,
    stride,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    STORE: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    LAZY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    own = tl.load(targets_ptr + row) - first
    old_top = tl.load(top_ptr + row)
    cols = tl.arange(0, BLOCK)
    if ONE_BLOCK:
        z, bend = _load_logits(x_ptr, bias_ptr, cols, width, softcap, scale, HAS_BIAS, HAS_CAP)
        z = tl.where((cols < width) & (cols != own), z, float("-inf"))
        highest = tl.max(z, axis=0)
        top = tl.where(highest > old_top + LAZY, highest, old_top)
        gap = z - top
        expz = tl.exp(gap)
        total = tl.sum(expz, axis=0)
        if HAS_MOMENT:
            moment = tl.sum(tl.where(expz > 0, expz * gap, 0.0), axis=0)
        if STORE:
            tl.store(x_ptr + cols, (expz * bend).to(x_ptr.dtype.element_ty), mask=cols < width)
    else:
        highests = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, width, BLOCK):
            at = start + cols
            z, bend = _load_logits(x_ptr, bias_ptr, at, width, softcap, scale, HAS_BIAS, HAS_CAP)
            z = tl.where((at < width) & (at != own), z, float("-inf"))
            highests = tl.maximum(highests, z)
        highest = tl.max(highests, axis=0)
        top = tl.where(highest > old_top + LAZY, highest, old_top)
        totals = tl.zeros((BLOCK,), tl.float32)
        moments = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, width, BLOCK):
            at = start + cols
            z, bend = _load_logits(x_ptr, bias_ptr, at, width, softcap, scale, HAS_BIAS, HAS_CAP)
            gap = tl.where((at < width) & (at != own), z, float("-inf")) - top
            expz = tl.exp(gap)
            totals += expz
            if HAS_MOMENT:
                moments += tl.where(expz > 0, expz * gap, 0.0)
            if STORE:
                tl.store(x_ptr + at, (expz * bend).to(x_ptr.dtype.element_ty), mask=at < width)
        total = tl.sum(totals, axis=0)
        moment = tl.sum(moments, axis=0)
    shrink = tl.exp(old_top - top)
    old_total = tl.load(total_ptr + row)
    if HAS_MOMENT:
        old = tl.load(moment_ptr + row) + (old_top - top) * old_total
        tl.store(moment_ptr + row, old * shrink + moment)
    tl.store(total_ptr + row, old_total * shrink + total)
    tl.store(top_ptr + row, top)
    tl.store(shrink_ptr + row, shrink)


@triton.jit
def _slopes_kernel(
    x_ptr,
    bias_ptr,
    targets_ptr,
    facts_ptr,
    upstream_ptr,
    softcap,
    scale,
    first,
    width,
    stride,
    num_rows,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x_ptr += row * stride
    own = tl.load(targets_ptr + row) - first
    facts_ptr += row
    top = tl.load(facts_ptr)
    spread = tl.load(facts_ptr + num_rows)
    miss = tl.load(facts_ptr + 2 * num_rows)
    own_logp = tl.maximum(tl.load(facts_ptr + 3 * num_rows), -3.0e38)
    entropy = tl.load(facts_ptr + 5 * num_rows)
    own_bend = tl.load(facts_ptr + 6 * num_rows)
    grad_logp = tl.load(upstream_ptr + row)
    grad_lse = tl.load(upstream_ptr + num_rows + row)
    grad_entropy = tl.load(upstream_ptr + 2 * num_rows + row)

    z, bend = _load_logits(x_ptr, bias_ptr, at, width, softcap, scale, HAS_BIAS, HAS_CAP)
    log_p = z - top - spread
    p = tl.exp(log_p)
    log_p = tl.maximum(log_p, -3.0e38)
    grad = p * (grad_lse - grad_logp - grad_entropy * (log_p + entropy)) * bend
    own_grad = (grad_lse - grad_entropy * (own_logp + entropy)) * tl.exp(own_logp)
    own_grad = (grad_logp * miss + own_grad) * own_bend
    grad = tl.where(at == own, own_grad, grad)
    tl.store(x_ptr + at, grad.to(x_ptr.dtype.element_ty), mask=at < width)


@triton.jit
def _finish_kernel(
    hidden_ptr,
    head_ptr,
    bias_ptr,
    targets_ptr,
    top_ptr,
    total_ptr,
    moment_ptr,
    product_ptr,
    slope_ptr,
    facts_ptr,
    softcap,
    scale,
    num_rows,
    num_classes,
    width,
    hidden_stride,
    head_stride,
    product_stride,
    slope_stride,
    HAS_BIAS: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    HAS_SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets_ptr + row).to(tl.int64)
    # Where the host has not looked, a target that is no column of the head gives NaN.
    known = (target >= 0) & (target < num_classes)
    target = tl.where(known, target, 0)
    hidden_ptr += row * hidden_stride
    head_ptr += target * head_stride
    cols = tl.arange(0, BLOCK)
    terms = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        at = start + cols
        h = tl.load(hidden_ptr + at, mask=at < width, other=0.0).to(tl.float32)
        terms += h * tl.load(head_ptr + at, mask=at < width, other=0.0).to(tl.float32)
    x = tl.sum(terms, axis=0)
    if HAS_BIAS:
        x += tl.load(bias_ptr + target).to(tl.float32)
    z, bend = transformed(tl.where(known, x, float("nan")), softcap, scale, HAS_CAP)

    top = tl.load(top_ptr + row)
    total = tl.load(total_ptr + row)
    own = z - top
    rest = tl.log(total)
    high = tl.maximum(own, rest)
    spread = high + tl.log(tl.exp(own - high) + tl.exp(rest - high))
    # logsigmoid(gap): log(1 + e) loses its digits where e is small, hence its series there.
    gap = own - rest
    e = tl.exp(-tl.abs(gap))
    log1p = tl.where(e < 1e-3, e * (1.0 - e * (0.5 - e / 3.0)), tl.log(1.0 + e))
    logp = tl.minimum(gap, 0.0) - log1p
    miss = tl.exp(rest - spread)
    share = tl.exp(-spread)
    facts_ptr += row
    tl.store(facts_ptr, top)
    tl.store(facts_ptr + num_rows, spread)
    tl.store(facts_ptr + 2 * num_rows, miss)
    tl.store(facts_ptr + 3 * num_rows, logp)
    tl.store(facts_ptr + 4 * num_rows, tl.where(total > 0, top + spread, z))
    entropy = 0.0
    if HAS_MOMENT:
        p = tl.exp(logp)
        entropy = tl.where(miss > 0, miss * spread - tl.load(moment_ptr + row) * share, 0.0)
        entropy -= tl.where(p > 0, p * logp, 0.0)
    tl.store(facts_ptr + 5 * num_rows, entropy)
    tl.store(facts_ptr + 6 * num_rows, bend)
    if HAS_SLOPE:
        for start in range(0, width, BLOCK):
            at = start + cols
            mask = at < width
            w = tl.load(head_ptr + at, mask=mask, other=0.0).to(tl.float32)
            others = tl.load(product_ptr + row * product_stride + at, mask=mask, other=0.0)
            u = miss * bend * w - share * others.to(tl.float32)
            out = slope_ptr + row * slope_stride + at
            tl.store(out, u.to(slope_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _seal_kernel(
    x_ptr,
    targets_ptr,
    top_ptr,
    facts_ptr,
    rate_ptr,
    first,
    width,
    stride,
    num_rows,
    FAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    own = tl.load(targets_ptr + row) - first
    facts_ptr += row
    log_rate = tl.load(top_ptr + row) - tl.load(facts_ptr) - tl.load(facts_ptr + num_rows)
    inside = (own >= 0) & (own < width)
    if inside & (log_rate < FAR):
        shrink = tl.exp(log_rate)
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            # Not the target's cell, which is written below by another thread.
            mask = (at < width) & (at != own)
            x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32) * shrink
            tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=mask)
        log_rate = 0.0
    slope = -tl.load(facts_ptr + 2 * num_rows) * tl.load(facts_ptr + 6 * num_rows)
    cell = (slope * tl.exp(-log_rate)).to(x_ptr.dtype.element_ty)
    tl.store(x_ptr + own, cell, mask=inside)
    tl.store(rate_ptr + row, tl.exp(log_rate))


def switches(bias: Tensor | None, transform: Transform) -> dict[str, bool]:
    return {"HAS_BIAS": bias is not None, "HAS_CAP": transform.softcap is not None}


def scalars(transform: Transform) -> tuple[float, float]:
    # An int would be typed as one, and compiled for anew.
    return float(transform.softcap or 1.5), float(1.0 / transform.temperature)


def _exponentials_triton(x, bias, targets, first, state, transform, store):
    num_rows, width = x.shape
    shrink = torch.empty_like(state.top)
    heavy = 2 if transform.softcap is not None or x.dtype == torch.float32 else 1
    one_block = width <= ONE_BLOCK // heavy
    block = max(jit.power_of_2(width), 64) if one_block else STEP // heavy
    _exponentials_kernel[(num_rows,)](
        x,
        x if bias is None else bias,
        targets,
        state.top,
        state.total,
        state.total if state.moment is None else state.moment,
        shrink,
        *scalars(transform),
        first,
        width,
        x.stride(0),
        **switches(bias, transform),
        HAS_MOMENT=state.moment is not None,
        STORE=store,
        ONE_BLOCK=one_block,
        LAZY=LAZY,
        BLOCK=block,
        num_warps=min(max(block // 1024, 1), 32) if one_block else STEP_WARPS,
    )
    return shrink


def _slopes_triton(x, bias, targets, first, facts, upstream, transform):
    num_rows, width = x.shape
    block = min(max(jit.power_of_2(width), 64), STEP)
    _slopes_kernel[(num_rows, jit.cdiv(width, block))](
        x,
        x if bias is None else bias,
        targets,
        facts,
        upstream,
        *scalars(transform),
        first,
        width,
        x.stride(0),
        num_rows,
        **switches(bias, transform),
        BLOCK=block,
        num_warps=min(max(block // 512, 1), STEP_WARPS),
    )


def _finish_triton(hidden, head, bias, targets, state, transform, product, slope):
    num_rows, width = hidden.shape
    facts = torch.empty((7, num_rows), dtype=state.top.dtype, device=hidden.device)
    block = min(max(jit.power_of_2(width), 64), 2048)
    _finish_kernel[(num_rows,)](
        hidden,
        head,
        head if bias is None else bias,
        targets,
        state.top,
        state.total,
        state.total if state.moment is None else state.moment,
        hidden if product is None else product,
        hidden if slope is None else slope,
        facts,
        *scalars(transform),
        num_rows,
        head.shape[0],
        width,
        hidden.stride(0),
        head.stride(0),
        0 if product is None else product.stride(0),
        0 if slope is None else slope.stride(0),
        **switches(bias, transform),
        HAS_MOMENT=state.moment is not None,
        HAS_SLOPE=slope is not None,
        BLOCK=block,
        num_warps=4,
    )
    return facts


def _seal_triton(x, targets, first, top, facts):
    num_rows, width = x.shape
    rate = torch.empty_like(top)
    _seal_kernel[(num_rows,)](
        x,
        targets,
        top,
        facts,
        rate,
        first,
        width,
        x.stride(0),
        num_rows,
        FAR=FAR,
        BLOCK=min(max(jit.power_of_2(width), 64), 2048),
        num_warps=4,
    )
    return rate
