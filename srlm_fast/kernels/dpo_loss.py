"""Preference losses on pairs of responses, from sums of log-probs or from their tokens.

P pairs of S sequences (responses) of T tokens in all, packed; c, r the policy's log-probs of a
pair's chosen and rejected response, c0, r0 the reference's (nats, summed over n_c and n_r response
tokens, fp32 or fp64). With the difference of log-ratios d = (c - c0) - (r - r0) and the scaled
m = beta d:

    sigmoid  f(m) = -log sigmoid(m)        DPO, arXiv 2305.18290 eq. 7
    robust   ((1 - e) f(m) - e f(-m)) / (1 - 2e), f of sigmoid: unbiased when labels are
             flipped with probability e = label_smoothing; rDPO, arXiv 2403.00409
    hinge    f(m) = max(0, 1 - m)          SLiC, arXiv 2305.10425, on log-ratios: arXiv 2309.06657
    ipo      f(d) = (d - 1 / (2 beta))^2   IPO, arXiv 2310.12036 eq. 17
    simpo    f(m) = -log sigmoid(m - gamma), d = c / n_c - r / n_r: no reference, means instead of
             sums, a target margin; SimPO, arXiv 2405.14734 eq. 6

A soft label l in [0, 1], the probability that chosen is the better one, makes it
l f(m) + (1 - l) f(-m) (conservative DPO for sigmoid), so that label 0 is the pair turned around,
target margin included. Label smoothing e is the label l' = l (1 - 2e) + e; "robust" is the inverse
map, l' = (l - e) / (1 - 2e), so that every loss is one f and one label. Equal log-ratios give
exactly ln 2 under sigmoid. +-1e4 is finite everywhere.

Length-normalised, each log-ratio is first divided by its response's number of tokens: the form of
IPO that its authors use, and TRL's sigmoid_norm. Rewards stay beta times the sums; SimPO's own are
beta times the means, before gamma. An empty response has sum 0 and mean 0.

nll_weight a adds a (-c / n_c) to a pair's loss, whatever its label: the mean over pairs of the mean
over tokens (RPO, arXiv 2404.19733), not the mean over all tokens.

    dloss/dc = s g / n_c - a / n_c         dloss/dr = -s g / n_r     (n = 1 where not normalised,
    g = l' f'(m) - (1 - l') f'(-m)                                    but for the a of NLL)
    f'(m) = -sigmoid(gamma - m)  |  -1 where m < 1, else 0  |  2 (d - 1 / (2 beta))
    s = beta, but 1 for ipo

A token's coefficient is its sequence's: the sum of the above over the pairs that the sequence is
in, each times weight / denominator.

The token form is one launch forward, one backward. A program sums one sequence in fp64 and rounds
once (half an ulp of fp32, however long it is). The program that arrives last, told by an integer
counter, does all pairs in fp32; it reads the stored sums in the order of the pairs, so the bits do
not depend on who is last. It leaves two slopes per pair. Backward, a program looks through the
pairs for its sequence, adds up those slopes in the order of the pairs (no atomics, so any number of
pairs may share a candidate) and writes the sum to each of its tokens. The coefficient is not
written to tokens forward because no program could, short of waiting for the whole grid, and because
it would be T values written, kept and read again that S programs make from 2 P.

    bytes moved (fp32, int64)   forward 4 T + 28 S + 80 P   backward 4 T + 16 S + 16 P,
                                and 16 S P out of L2: 34 MB at P = 1,024, S = 2 P
    kept for backward           24 P + 8, beside boundaries and pairs
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import jit
from .contracts import once_differentiable, wants_graph
from .dpo_arguments import LOSSES as LOSSES
from .dpo_arguments import Pair, Settings, check_pairs, check_tokens, settings_of
from .jit import tl, triton


@dataclass(frozen=True)
class DpoOutput:
    """`loss` is differentiable, of `dpo_loss` `losses` too; the rest is for reading."""

    loss: Tensor  # scalar: mean of losses, weighted by `weights`
    losses: Tensor  # [P], unweighted, the NLL term included
    rewards: Pair  # beta * (log-prob - reference's) of chosen and rejected, [P] each
    margins: Tensor  # [P], reward of chosen - reward of rejected
    accuracy: Tensor  # scalar: share of pairs whose margin is above 0
    sums: Tensor | None = None  # [S] of `dpo_loss_tokens`: nats
    counts: Tensor | None = None  # [S], tokens


def dpo_loss_reference(
    policy: Pair,
    ref: Pair | None,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    labels: Tensor | None = None,
    lengths: Pair | None = None,
    length_normalized: bool = True,
    gamma: float = 0.0,
    nll_weight: float = 0.0,
) -> Tensor:
    """The losses [P] as the papers write them, in eager PyTorch."""
    ratios = policy if ref is None else [p - q.detach() for p, q in zip(policy, ref, strict=True)]
    if lengths is not None:
        lengths = [length.clamp(min=1) for length in lengths]
        if length_normalized or loss == "simpo":
            ratios = [ratio / length for ratio, length in zip(ratios, lengths, strict=True)]
    d = ratios[0] - ratios[1]
    label = torch.ones_like(d) if labels is None else labels
    nll = -nll_weight * policy[0] / lengths[0] if nll_weight else 0.0
    e = label_smoothing
    if loss == "robust":
        better = (-(1 - e) * F.logsigmoid(beta * d) + e * F.logsigmoid(-beta * d)) / (1 - 2 * e)
        worse = (-(1 - e) * F.logsigmoid(-beta * d) + e * F.logsigmoid(beta * d)) / (1 - 2 * e)
        return label * better + (1 - label) * worse + nll
    if loss == "hinge":
        better, worse = F.relu(1 - beta * d), F.relu(1 + beta * d)
    elif loss == "ipo":
        better, worse = (d - 1 / (2 * beta)) ** 2, (d + 1 / (2 * beta)) ** 2
    else:
        better, worse = -F.logsigmoid(beta * d - gamma), -F.logsigmoid(-beta * d - gamma)
    label = label * (1 - e) + (1 - label) * e
    return label * better + (1 - label) * worse + nll


def dpo_loss_tokens_reference(
    logps: Tensor,
    boundaries: Tensor,
    pairs: Tensor,
    ref: Tensor | None,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    labels: Tensor | None = None,
    length_normalized: bool = False,
    gamma: float = 0.0,
    nll_weight: float = 0.0,
) -> Tensor:
    """The losses [P] of packed tokens, one sequence after another."""
    sums = torch.stack([part.sum() for part in logps.tensor_split(boundaries[1:-1].cpu())])
    policy, counts = sums[pairs.long()].unbind(1), boundaries.diff()[pairs.long()].unbind(1)
    refs = None if ref is None else ref[pairs.long()].unbind(1)
    shape = (label_smoothing, labels, counts, length_normalized, gamma, nll_weight)
    return dpo_loss_reference(policy, refs, loss, beta, *shape)


# Tokens per step, pairs per step, warps: where sequences are longer than 1,024 tokens on average,
# and where not. Bound by memory and by launching, so the same for every architecture. Two pairs a
# thread: at four sm_90 spills. H200: 63 us of device time for 8.4 million tokens, both ways.
_TILES = {True: (4096, 512, 8), False: (1024, 256, 4)}


@triton.jit
def _forward_kernel(
    logps_ptr, boundaries_ptr, pairs_ptr, ref_ptr, labels_ptr, weights_ptr,
    sums_ptr, counts_ptr, table_ptr, loss_ptr, stats_ptr, arrived_ptr,
    beta, gamma, nll_weight, label_factor, label_offset, denominator,
    num_tokens, num_pairs,
    stride_logps, stride_boundaries, stride_pair, stride_side,
    stride_ref, stride_labels, stride_weights,
    KIND: tl.constexpr, REFERENCE_FREE: tl.constexpr, NORMALIZED: tl.constexpr,
    HAS_LABELS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_NLL: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program s sums sequence s; the last to arrive does the pairs."""
    seq = tl.program_id(0).to(tl.int64)
    begin, end = _segment(boundaries_ptr, stride_boundaries, seq, num_tokens)
    partial = tl.zeros([BLOCK_T], dtype=tl.float64)
    for start in range(begin, end, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        logp = tl.load(logps_ptr + token * stride_logps, mask=token < end, other=0.0)
        partial += logp.to(tl.float64)
    tl.store(sums_ptr + seq, tl.sum(partial, 0).to(tl.float32))
    tl.store(counts_ptr + seq, end - begin)

    # The stores above come before the counter for every thread of this program; acquire and release
    # on the counter make those of all other programs visible to the last one.
    tl.debug_barrier()
    num_seqs = tl.num_programs(0)
    arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
    if arrived == num_seqs - 1:
        tl.store(arrived_ptr, 0)
        _all_pairs(
            pairs_ptr, ref_ptr, labels_ptr, weights_ptr,
            sums_ptr, counts_ptr, table_ptr, loss_ptr, stats_ptr,
            beta, gamma, nll_weight, label_factor, label_offset, denominator,
            num_seqs, num_pairs,
            stride_pair, stride_side, stride_ref, stride_labels, stride_weights,
            KIND, REFERENCE_FREE, NORMALIZED, HAS_LABELS, HAS_WEIGHTS, HAS_NLL, BLOCK_P,
        )  # fmt: skip


@triton.jit
def _all_pairs(
    pairs_ptr, ref_ptr, labels_ptr, weights_ptr,
    sums_ptr, counts_ptr, table_ptr, loss_ptr, stats_ptr,
    beta, gamma, nll_weight, label_factor, label_offset, denominator,
    num_seqs, num_pairs,
    stride_pair, stride_side, stride_ref, stride_labels, stride_weights,
    KIND: tl.constexpr, REFERENCE_FREE: tl.constexpr, NORMALIZED: tl.constexpr,
    HAS_LABELS: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_NLL: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Rows of the table: losses, two rewards, margins, weight * slope of chosen, of rejected."""
    loss_sum = tl.zeros([BLOCK_P], dtype=tl.float32)
    weight_sum = tl.zeros([BLOCK_P], dtype=tl.float32)
    num_right = tl.zeros([BLOCK_P], dtype=tl.float32)
    for start in range(0, num_pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P).to(tl.int64)
        inside = pair < num_pairs
        chosen = tl.load(pairs_ptr + pair * stride_pair, mask=inside, other=0).to(tl.int64)
        rejected = tl.load(
            pairs_ptr + pair * stride_pair + stride_side, mask=inside, other=0
        ).to(tl.int64)  # fmt: skip
        # A sequence that there is none of is not read: its pair is NaN.
        known = inside & (chosen >= 0) & (chosen < num_seqs)
        known = known & (rejected >= 0) & (rejected < num_seqs)
        ratio_c = tl.load(sums_ptr + chosen, mask=known, other=float("nan"))
        ratio_r = tl.load(sums_ptr + rejected, mask=known, other=float("nan"))
        length_c = tl.load(counts_ptr + chosen, mask=known, other=1)
        length_r = tl.load(counts_ptr + rejected, mask=known, other=1)
        length_c = tl.maximum(length_c, 1).to(tl.float32)
        length_r = tl.maximum(length_r, 1).to(tl.float32)
        nll = -ratio_c / length_c
        if not REFERENCE_FREE:
            ratio_c -= tl.load(ref_ptr + chosen * stride_ref, mask=known, other=0.0)
            ratio_r -= tl.load(ref_ptr + rejected * stride_ref, mask=known, other=0.0)
        score_c, score_r = ratio_c, ratio_r
        if NORMALIZED:
            score_c, score_r = ratio_c / length_c, ratio_r / length_r
        if REFERENCE_FREE:
            ratio_c, ratio_r = score_c, score_r

        m = score_c - score_r
        if KIND != 2:
            m = beta * m
        better, better_slope = _branch(m, beta, gamma, KIND)
        worse, worse_slope = _branch(-m, beta, gamma, KIND)
        label = tl.full([BLOCK_P], 1.0, tl.float32)
        if HAS_LABELS:
            label = tl.load(labels_ptr + pair * stride_labels, mask=inside, other=1.0)
        label = label_factor * label + label_offset
        losses = label * better + (1 - label) * worse
        slope = label * better_slope - (1 - label) * worse_slope
        if KIND != 2:
            slope = beta * slope
        slope_c, slope_r = slope, -slope
        if NORMALIZED:
            slope_c, slope_r = slope_c / length_c, slope_r / length_r
        if HAS_NLL:
            losses += nll_weight * nll
            slope_c -= nll_weight / length_c
        weight = tl.full([BLOCK_P], 1.0, tl.float32)
        if HAS_WEIGHTS:
            weight = tl.load(weights_ptr + pair * stride_weights, mask=inside, other=0.0)

        reward_c, reward_r = beta * ratio_c, beta * ratio_r
        margin = reward_c - reward_r
        row = table_ptr + pair
        tl.store(row, losses, mask=inside)
        tl.store(row + num_pairs, reward_c, mask=inside)
        tl.store(row + 2 * num_pairs, reward_r, mask=inside)
        tl.store(row + 3 * num_pairs, margin, mask=inside)
        tl.store(row + 4 * num_pairs, weight * slope_c, mask=inside)
        tl.store(row + 5 * num_pairs, weight * slope_r, mask=inside)
        loss_sum += tl.where(inside, weight * losses, 0.0)
        weight_sum += tl.where(inside, weight, 0.0)
        num_right += tl.where(inside & (margin > 0), 1.0, 0.0)

    total = tl.sum(weight_sum, 0)
    divisor = tl.where(denominator > 0, denominator, tl.where(total > 0, total, 1.0))
    tl.store(loss_ptr, tl.sum(loss_sum, 0) / divisor)
    tl.store(stats_ptr, tl.sum(num_right, 0) / tl.maximum(num_pairs, 1))
    tl.store(stats_ptr + 1, divisor)


@triton.jit
def _branch(m, beta, gamma, KIND: tl.constexpr):
    """f(m) and f'(m); a NaN stays one."""
    if KIND == 0:
        x = m - gamma
        z = tl.exp(-tl.abs(x))
        u = 1 + z
        # log(1 + z) in fp32 drops a z below 1e-8 and half the digits of one below 1e-4; the
        # quotient puts back what rounding u has taken.
        lost = u == 1
        log1p = tl.where(lost, z, tl.log(u) * (z / tl.where(lost, 1.0, u - 1)))
        value = tl.where(x > 0, 0.0, -x) + log1p
        slope = -tl.where(x > 0, z, 1.0) / u
    elif KIND == 1:
        value = tl.where(m >= 1, 0.0, 1 - m)
        slope = tl.where(m < 1, -1.0, 0.0)
    else:
        gap = m - 1 / (2 * beta)
        value = gap * gap
        slope = 2 * gap
    return value, slope


@triton.jit
def _segment(boundaries_ptr, stride_boundaries, seq, num_tokens):
    """Where a sequence begins and ends: within the tokens, whatever the boundaries say."""
    begin = tl.load(boundaries_ptr + seq * stride_boundaries).to(tl.int64)
    end = tl.load(boundaries_ptr + (seq + 1) * stride_boundaries).to(tl.int64)
    begin = tl.minimum(tl.maximum(begin, 0), num_tokens)
    end = tl.minimum(tl.maximum(end, begin), num_tokens)
    return begin, end


@triton.jit
def _backward_kernel(
    grad_ptr, boundaries_ptr, pairs_ptr, table_ptr, stats_ptr, out_ptr,
    num_tokens, num_pairs,
    stride_boundaries, stride_pair, stride_side,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Program s writes the gradient of sequence s to each of its tokens."""
    seq = tl.program_id(0).to(tl.int64)
    slopes = tl.zeros([BLOCK_P], dtype=tl.float32)
    for start in range(0, num_pairs, BLOCK_P):
        pair = start + tl.arange(0, BLOCK_P).to(tl.int64)
        inside = pair < num_pairs
        chosen = tl.load(pairs_ptr + pair * stride_pair, mask=inside, other=-1)
        rejected = tl.load(pairs_ptr + pair * stride_pair + stride_side, mask=inside, other=-1)
        row = table_ptr + pair
        # Both sides of one pair in one addition: a sequence paired with itself cancels exactly.
        of_chosen = tl.load(row + 4 * num_pairs, mask=inside & (chosen == seq), other=0.0)
        slopes += of_chosen + tl.load(
            row + 5 * num_pairs, mask=inside & (rejected == seq), other=0.0
        )  # fmt: skip
    coefficient = tl.sum(slopes, 0) * (tl.load(grad_ptr) / tl.load(stats_ptr + 1))
    begin, end = _segment(boundaries_ptr, stride_boundaries, seq, num_tokens)
    for start in range(begin, end, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        values = tl.full([BLOCK_T], 0.0, tl.float32) + coefficient
        tl.store(out_ptr + token, values, mask=token < end)


_arrived: dict[tuple[torch.device, int], Tensor] = {}


def _counter(device: torch.device) -> Tensor:
    """An int32 that is 0 between launches: the program that is last sets it back.

    One per stream, for launches on two streams may overlap. A captured graph, which may be replayed
    on any stream, gets its own, cleared by the graph.
    """
    stream = 0
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(1, dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    if (device, stream) not in _arrived:
        _arrived[device, stream] = torch.zeros(1, dtype=torch.int32, device=device)
    return _arrived[device, stream]


def _tiles(num_tokens: int, num_seqs: int) -> tuple[int, int, int]:
    return _TILES[num_tokens > 1024 * num_seqs]


def _launch_forward(logps, boundaries, pairs, ref, labels, weights, settings):
    """-> loss [], table [6, P], sums [S], counts [S], stats [2]: accuracy, what was divided by."""
    num_tokens, num_seqs, num_pairs = logps.shape[0], boundaries.shape[0] - 1, pairs.shape[0]
    loss, sums = logps.new_empty(()), logps.new_empty(num_seqs)
    table, stats = logps.new_empty(6, num_pairs), logps.new_empty(2)
    counts = boundaries.new_empty(num_seqs)
    if num_seqs == 0:
        return loss.zero_(), table, sums, counts, stats.zero_()
    block_t, block_p, num_warps = _tiles(num_tokens, num_seqs)
    # An absent tensor's place is taken by one that is there: the kernel does not look at it.
    ref_in, labels_in, weights_in = (logps if x is None else x for x in (ref, labels, weights))
    _forward_kernel[(num_seqs,)](
        logps, boundaries, pairs, ref_in, labels_in, weights_in,
        sums, counts, table, loss, stats, _counter(logps.device),
        *settings.scalars,
        num_tokens, num_pairs,
        logps.stride(0), boundaries.stride(0), *pairs.stride(),
        ref_in.stride(0), labels_in.stride(0), weights_in.stride(0),
        **settings.switches,
        REFERENCE_FREE=ref is None, HAS_LABELS=labels is not None, HAS_WEIGHTS=weights is not None,
        BLOCK_T=block_t, BLOCK_P=block_p, num_warps=num_warps,
        # A fused multiply-add would make the margin of equal rewards a rounding error, not 0.
        enable_fp_fusion=False,
    )  # fmt: skip
    return loss, table, sums, counts, stats


def _launch_backward(grad, boundaries, pairs, table, stats, num_tokens):
    """-> [T], the gradient of logps."""
    num_seqs = boundaries.shape[0] - 1
    out = table.new_empty(num_tokens)
    if num_seqs == 0:
        return out
    block_t, block_p, num_warps = _tiles(num_tokens, num_seqs)
    _backward_kernel[(num_seqs,)](
        grad, boundaries, pairs, table, stats, out,
        num_tokens, pairs.shape[0],
        boundaries.stride(0), *pairs.stride(),
        # Looking through the pairs takes fewer registers than computing them.
        BLOCK_T=block_t, BLOCK_P=4 * block_p, num_warps=num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return out


class _TokenLoss(torch.autograd.Function):
    """logps [T] -> what `_launch_forward` returns; only the loss has a gradient."""

    @staticmethod
    def forward(ctx, logps, boundaries, pairs, ref, labels, weights, settings):
        out = _launch_forward(logps, boundaries, pairs, ref, labels, weights, settings)
        ctx.mark_non_differentiable(*out[1:])
        ctx.set_materialize_grads(False)  # zeros for the others would be launches
        ctx.num_tokens = logps.shape[0]
        ctx.save_for_backward(boundaries, pairs, out[1], out[4])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        return _launch_backward(grad, *ctx.saved_tensors, ctx.num_tokens), *(None,) * 6


class _SegmentSums(torch.autograd.Function):
    """logps [T], counts [S] -> [S], in fp64, rounded once; unlike PyTorch's it keeps no tokens."""

    @staticmethod
    def forward(ctx, logps, counts):
        ctx.save_for_backward(counts)
        ctx.num_tokens = len(logps)
        sums = torch.segment_reduce(logps.double(), "sum", lengths=counts, unsafe=True)
        return sums.to(logps.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (counts,) = ctx.saved_tensors
        return torch.repeat_interleave(grad, counts, output_size=ctx.num_tokens), None


class _PairLoss(torch.autograd.Function):
    """difference [P], label [P] -> losses [P]. Backward is one product with a slope made here."""

    @staticmethod
    def forward(ctx, difference, label, settings):
        m = settings.scale * difference
        better, better_slope = _branches(m, settings)
        worse, worse_slope = _branches(-m, settings)
        ctx.slope = settings.scale * (label * better_slope - (1 - label) * worse_slope)
        return label * better + (1 - label) * worse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.slope, None, None


@jit.on_its_device
def dpo_loss_tokens(
    logps: Tensor,
    boundaries: Tensor,
    pairs: Tensor,
    ref: Tensor | None,
    loss: str = "sigmoid",
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    length_normalized: bool = False,
    gamma: float = 0.0,
    nll_weight: float = 0.0,
    denominator: float | None = None,
) -> DpoOutput:
    """Loss, rewards, margins, sums and counts from T packed response tokens of S sequences.

    logps [T] fp32 or fp64, nats: response tokens only, every one counts. boundaries [S + 1] and
    pairs [P, 2] int64 or int32: sequence s holds the tokens boundaries[s] up to boundaries[s + 1],
    from 0 to T; a pair names its chosen and its rejected sequence, and a sequence may be in any
    number of pairs. ref [S], the reference's sums; None for simpo. labels, weights, length
    normalisation, gamma, nll_weight and denominator as in `dpo_loss`. Any strides.

    The loss is differentiable once, for logps; nothing else in the result has a gradient. On a GPU
    fp32 is one launch forward, one backward, no wait, and the same bits every time. The sums are
    taken in fp64 and rounded once. Extra memory: 5 S + 6 P numbers, and the gradient.

    An empty sequence: sum 0, count 0, mean 0. A sequence paired with itself: ln 2 under sigmoid and
    no gradient. No pairs: loss and accuracy 0, zero gradients. A NaN reaches the pairs of its
    sequence, their gradients, and the mean.

    Raises ValueError as `dpo_loss` does, on boundaries that do not rise from 0 to T, and on a pair
    outside 0..S-1. Values on a GPU are not looked at: there such a pair's loss is NaN, and a token
    outside all sequences has an undefined gradient.
    """
    given = (label_smoothing, gamma, nll_weight, length_normalized, denominator)
    settings = settings_of(loss, beta, *given)
    check_tokens(logps, boundaries, pairs, ref, labels, weights, settings)
    ref = None if ref is None else ref.detach()
    if not (jit.runs_triton(logps) and logps.dtype == torch.float32):
        return _tokens_in_torch(logps, boundaries, pairs, ref, labels, weights, settings)
    launch = _TokenLoss.apply if wants_graph(logps) else _launch_forward
    mean, table, sums, counts, stats = launch(
        logps, boundaries, pairs, ref, labels, weights, settings
    )
    losses, chosen, rejected, margins, *_ = table.unbind()
    return DpoOutput(mean, losses, (chosen, rejected), margins, stats[0], sums, counts)


def dpo_loss(
    policy: Pair,
    ref: Pair | None,
    loss: str = "sigmoid",
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    lengths: Pair | None = None,
    length_normalized: bool | None = None,
    gamma: float = 0.0,
    nll_weight: float = 0.0,
    denominator: float | None = None,
) -> DpoOutput:
    """Loss, rewards and margins of P pairs.

    policy and ref: (chosen, rejected), each [P] fp32 or fp64, nats summed over response tokens; ref
    is None for simpo, which has none. labels, weights [P] of the same dtype: the probability that
    chosen is better (default 1), the pair's share in the mean (default 1). lengths: (chosen,
    rejected), [P] each, response tokens; they make the loss length-normalised, unless
    `length_normalized` is False. simpo always is, and gamma is its target margin. nll_weight: of
    the term -chosen / length of chosen; where it is given `length_normalized` must be said.
    denominator: what the weighted sum of the losses is divided by, instead of the sum of the
    weights; a part of a batch gives the whole batch's, and the parts' losses add up.

    The reference gets no gradient. No pairs, or no weight: loss and accuracy 0. Does not wait for a
    GPU; there labels and weights are not checked by value.

    Raises ValueError naming the argument: a loss that is not in `LOSSES`, beta or denominator not
    above 0, label smoothing outside [0, 0.5), a gamma or nll_weight below 0, gamma without simpo,
    ref with it, lengths missing where they are needed, wrong shapes or devices, dtypes (half
    precision is too coarse for sums of log-probs), a DTensor, a label outside [0, 1], a negative
    weight.
    """
    normalized = lengths is not None if length_normalized is None else length_normalized
    given = (label_smoothing, gamma, nll_weight, normalized, denominator)
    settings = settings_of(loss, beta, *given)
    if loss == "simpo" and length_normalized is False:
        raise ValueError("length_normalized: False, wanted None or True: simpo always is")
    if nll_weight and loss != "simpo" and lengths is not None and length_normalized is None:
        raise ValueError("length_normalized: None, wanted True or False beside nll_weight")
    check_pairs(policy, ref, labels, weights, lengths, settings)
    ref = None if ref is None else (ref[0].detach(), ref[1].detach())
    return _pairs_in_torch(policy, ref, labels, weights, lengths, settings)


def _tokens_in_torch(logps, boundaries, pairs, ref, labels, weights, settings) -> DpoOutput:
    counts, index = boundaries.diff(), pairs.long()
    sums = _SegmentSums.apply(logps, counts)
    policy, lengths = sums[index].unbind(1), counts[index].unbind(1)
    refs = None if ref is None else ref[index].unbind(1)
    out = _pairs_in_torch(policy, refs, labels, weights, lengths, settings)
    return replace(out, losses=out.losses.detach(), sums=sums.detach(), counts=counts)


def _pairs_in_torch(policy, ref, labels, weights, lengths, settings) -> DpoOutput:
    ratios = policy if ref is None else (policy[0] - ref[0], policy[1] - ref[1])
    lengths = None if lengths is None else [length.clamp(min=1) for length in lengths]
    scores = ratios
    if settings.normalized:
        scores = (ratios[0] / lengths[0], ratios[1] / lengths[1])
    difference = scores[0] - scores[1]
    label = torch.ones_like(difference) if labels is None else labels
    factor, offset = settings.label_map
    losses = _PairLoss.apply(difference, factor * label + offset, settings)
    if settings.nll_weight:
        losses = losses - settings.nll_weight * (policy[0] / lengths[0])
    read = scores if settings.loss == "simpo" else ratios
    rewards = (settings.beta * read[0].detach(), settings.beta * read[1].detach())
    margins = rewards[0] - rewards[1]
    accuracy = _mean((margins > 0).to(losses), None, None)
    return DpoOutput(
        _mean(losses, weights, settings.denominator), losses, rewards, margins, accuracy
    )


def _branches(m: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """f(m) and f'(m) of the loss."""
    if settings.kind == "sigmoid":
        x = m - settings.gamma
        return -F.logsigmoid(x), -torch.sigmoid(-x)
    if settings.kind == "hinge":
        return F.relu(1 - m), -(m < 1).to(m)
    gap = m - 1 / (2 * settings.beta)
    return gap.square(), 2 * gap


def _mean(values: Tensor, weights: Tensor | None, denominator: float | None) -> Tensor:
    total = values.sum() if weights is None else (weights * values).sum()
    if denominator is not None:
        return total / denominator
    if weights is None:
        return total / max(values.numel(), 1)
    weight = weights.sum()
    return total / torch.where(weight > 0, weight, 1)
