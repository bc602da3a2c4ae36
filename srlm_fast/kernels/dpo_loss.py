"""Preference losses on pairs of summed log-probabilities.

P pairs; c, r the policy's log-probs of the chosen and the rejected response, c0, r0 the reference's
(nats, each summed over response tokens, fp32 or fp64). With the difference of log-ratios
d = (c - c0) - (r - r0) and the scaled m = beta d:

    sigmoid  f(m) = -log sigmoid(m)        DPO, arXiv 2305.18290 eq. 7
    robust   ((1 - e) f(m) - e f(-m)) / (1 - 2e), f of sigmoid: unbiased when labels are
             flipped with probability e = label_smoothing; rDPO, arXiv 2403.00409
    hinge    f(m) = max(0, 1 - m)          SLiC, arXiv 2305.10425, on log-ratios: arXiv 2309.06657
    ipo      f(d) = (d - 1 / (2 beta))^2   IPO, arXiv 2310.12036 eq. 17

A soft label l in [0, 1], the probability that chosen is the better one, makes it
l f(m) + (1 - l) f(-m) (conservative DPO for sigmoid). Label smoothing e is the label
l' = l (1 - 2e) + e; "robust" is the inverse map, l' = (l - e) / (1 - 2e), so that every loss is one
f and one label. Equal log-ratios give exactly ln 2 under sigmoid. +-1e4 is finite everywhere.

With `lengths` each log-ratio is first divided by its response's number of tokens: the form of IPO
that its authors use, and length-normalised DPO for sigmoid. Rewards stay beta times the sums.

    dloss/dc = -dloss/dr = dloss/dd        (each divided by its length, where given)
    dloss/dd = s (l' f'(m) - (1 - l') f'(-m)),  s = beta, but 1 for ipo
    f'(m) = -sigmoid(-m)  |  -1 where m < 1, else 0  |  2 (d - 1 / (2 beta))
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .contracts import check_tensor

LOSSES = ("sigmoid", "robust", "hinge", "ipo")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DpoOutput:
    """`loss` and `losses` are differentiable; the rest is for reading."""

    loss: Tensor  # scalar: mean of losses, weighted by `weights`
    losses: Tensor  # [P], unweighted
    rewards: Pair  # beta * (log-prob - reference's) of chosen and rejected, [P] each
    margins: Tensor  # [P], reward of chosen - reward of rejected
    accuracy: Tensor  # scalar: share of pairs whose margin is above 0


def dpo_loss_reference(
    policy: Pair,
    ref: Pair,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    labels: Tensor | None = None,
    lengths: Pair | None = None,
) -> Tensor:
    """The losses [P] as the papers write them, in eager PyTorch."""
    ratios = [p - q.detach() for p, q in zip(policy, ref, strict=True)]
    if lengths is not None:
        ratios = [ratio / length for ratio, length in zip(ratios, lengths, strict=True)]
    d = ratios[0] - ratios[1]
    label = torch.ones_like(d) if labels is None else labels
    e = label_smoothing
    if loss == "robust":
        better = (-(1 - e) * F.logsigmoid(beta * d) + e * F.logsigmoid(-beta * d)) / (1 - 2 * e)
        worse = (-(1 - e) * F.logsigmoid(-beta * d) + e * F.logsigmoid(beta * d)) / (1 - 2 * e)
        return label * better + (1 - label) * worse
    if loss == "sigmoid":
        better, worse = -F.logsigmoid(beta * d), -F.logsigmoid(-beta * d)
    elif loss == "hinge":
        better, worse = F.relu(1 - beta * d), F.relu(1 + beta * d)
    else:
        better, worse = (d - 1 / (2 * beta)) ** 2, (d + 1 / (2 * beta)) ** 2
    label = label * (1 - e) + (1 - label) * e
    return label * better + (1 - label) * worse


def dpo_loss(
    policy: Pair,
    ref: Pair,
    loss: str = "sigmoid",
    beta: float = 0.1,
    *,
    label_smoothing: float = 0.0,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    lengths: Pair | None = None,
) -> DpoOutput:
    """Loss, rewards and margins of P pairs.

    policy and ref: (chosen, rejected), each [P] fp32 or fp64, nats summed over response tokens.
    labels, weights [P] of the same dtype: the probability that chosen is better (default 1), the
    pair's share in the mean (default 1). lengths: (chosen, rejected), [P] each, response tokens.
    The reference gets no gradient. No pairs, or no weight: loss and accuracy 0. Does not wait for a
    GPU; there labels and weights are not checked by value.

    Raises ValueError naming the argument: a loss that is not in `LOSSES`, beta not above 0, label
    smoothing outside [0, 0.5), wrong shapes or devices, dtypes (half precision is too coarse for
    sums of log-probs), a DTensor, a label outside [0, 1], a negative weight.
    """
    _check(policy, ref, loss, beta, label_smoothing, labels, weights, lengths)
    ratios = (policy[0] - ref[0].detach(), policy[1] - ref[1].detach())
    chosen, rejected = ratios
    if lengths is not None:
        chosen, rejected = chosen / lengths[0], rejected / lengths[1]
    difference = chosen - rejected
    label = torch.ones_like(difference) if labels is None else labels
    e = label_smoothing
    label = (label - e) / (1 - 2 * e) if loss == "robust" else label * (1 - 2 * e) + e
    losses = _PairLoss.apply(difference, label, "sigmoid" if loss == "robust" else loss, beta)
    rewards = (beta * ratios[0].detach(), beta * ratios[1].detach())
    margins = rewards[0] - rewards[1]
    return DpoOutput(
        _mean(losses, weights), losses, rewards, margins, _mean((margins > 0).to(losses), None)
    )


class _PairLoss(torch.autograd.Function):
    """difference [P], label [P] -> losses [P]. Backward is one product with a slope made here."""

    @staticmethod
    def forward(ctx, difference, label, loss, beta):
        scale = 1.0 if loss == "ipo" else beta
        m = scale * difference
        better, better_slope = _branch(m, loss, beta)
        worse, worse_slope = _branch(-m, loss, beta)
        ctx.slope = scale * (label * better_slope - (1 - label) * worse_slope)
        return label * better + (1 - label) * worse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * ctx.slope, None, None, None


def _branch(m: Tensor, loss: str, beta: float) -> tuple[Tensor, Tensor]:
    """f(m) and f'(m) of the loss."""
    if loss == "sigmoid":
        return -F.logsigmoid(m), -torch.sigmoid(-m)
    if loss == "hinge":
        return F.relu(1 - m), -(m < 1).to(m)
    gap = m - 1 / (2 * beta)
    return gap.square(), 2 * gap


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return values.sum() / max(values.numel(), 1)
    total = weights.sum()
    return (weights * values).sum() / torch.where(total > 0, total, 1)


def _check(policy, ref, loss, beta, label_smoothing, labels, weights, lengths) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss: {loss!r}, wanted one of {', '.join(LOSSES)}")
    if not 0 < beta < float("inf"):
        raise ValueError(f"beta: {beta}, wanted a number above 0")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing: {label_smoothing}, wanted 0 <= e < 0.5")
    first = policy[0]
    check_tensor("policy[0]", first, ("P",), (torch.float32, torch.float64))
    like = (tuple(first.shape), (first.dtype,), first.device)
    check_tensor("policy[1]", policy[1], *like)
    for index in (0, 1):
        check_tensor(f"ref[{index}]", ref[index], *like)
        if lengths is not None:
            counts = (torch.int64, torch.int32, first.dtype)
            check_tensor(f"lengths[{index}]", lengths[index], like[0], counts, first.device)
    for name, value, high in (("labels", labels, 1.0), ("weights", weights, float("inf"))):
        if value is None:
            continue
        check_tensor(name, value, *like)
        outside = ~((value >= 0) & (value <= high))
        if value.device.type == "cpu" and bool(outside.any()):
            raise ValueError(f"{name}: {float(value[outside][0])}, wanted each in 0..{high:g}")
