"""The distribution over the scores at the place where one is written, from the head rows they need.

    l = hidden @ head^T             hidden [B, D], head [V, D]
    a_s = log sum_{v in ids(s)} e^(l_v)                   the ids that spell score s at that place
    p_s = e^(a_s) / sum_s e^(a_s)
    expected = sum_s p_s s          (arXiv 2503.03064, eq. 1)
    variance = sum_s p_s (s - expected)^2                 entropy = -sum_s p_s log p_s, nats
    mass = sum_s e^(a_s) / sum_v e^(l_v)                  of the whole vocabulary

S scores, K ids of them all: 6 to 18 of V rows. All results fp32; products of half precision are
exact and summed in fp32. Without the mass 2 B D K FLOPs and B D + K D elements read. The mass needs
the log-sum-exp of every logit, 2 B D V FLOPs: on a GPU from `linear_logprob`, whose softmax stands
in the matmul's epilogue; on a CPU by VOCAB_CHUNK columns in fp32, because `linear_logprob` rounds
logits to bf16 there, which at a logit of 20 is 6 % of a mass (in fp32 the two take the same time).

Triton: one launch. A program takes ROWS rows of hidden and the head rows of all ids, S groups of
GROUP columns, and reduces in registers. Its tile does not know how many rows there are, so a row's
bits do not depend on its company.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import jit
from .contracts import check_tensor
from .jit import tl, triton
from .linear_logprob import linear_logprob

ScoreIds = Mapping[int, Iterable[int]] | Sequence[Iterable[int]]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Columns of the log-sum-exp at a time on a CPU: [B, 8192] fp32 logits instead of [B, V].
VOCAB_CHUNK = 8192
# The least tile of a tensor core, and the deepest step that leaves registers for four in flight.
ROWS, DEPTH = 16, 64
# Ids times padding that a program holds; more (a range of hundreds of scores) run in PyTorch.
MAX_COLUMNS = 256


@dataclass(frozen=True)
class ScoreDistribution:
    """values [S]: the scores. probs [B, S], renormalised over them; expected, variance and entropy
    (nats) [B] of these. mass [B] in 0..1: how much of the whole vocabulary's probability the scores
    hold; None where it was not asked for. All fp32, on hidden's device.
    """

    values: Tensor
    probs: Tensor
    expected: Tensor
    variance: Tensor
    entropy: Tensor
    mass: Tensor | None


def score_distribution_reference(
    hidden: Tensor, head: Tensor, score_ids: Mapping[int, Sequence[int]]
) -> ScoreDistribution:
    """The same from all logits [B, V], in fp32, fp64 for fp64."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    log_q = torch.log_softmax(hidden.to(wide) @ head.to(wide).T, dim=-1)  # of the whole vocabulary
    groups = [log_q[:, list(ids)].logsumexp(-1) for ids in score_ids.values()]
    log_mass = torch.stack(groups, dim=-1)  # [B, S]
    p = torch.softmax(log_mass, dim=-1)
    values = torch.tensor(list(score_ids), dtype=wide, device=hidden.device)
    expected = (p * values).sum(-1)
    variance = (p * (values - expected[:, None]).square()).sum(-1)
    mass = log_mass.logsumexp(-1).exp()
    return ScoreDistribution(values, p, expected, variance, torch.special.entr(p).sum(-1), mass)


def expected_scores_reference(
    hidden: Tensor, head: Tensor, score_ids: Mapping[int, Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """hidden [B, D], head [V, D] -> (expected [B], mass [B]); keeps all logits [B, V]."""
    found = score_distribution_reference(hidden.float(), head.float(), score_ids)
    assert found.mass is not None
    return found.expected, found.mass


@triton.jit
def _scores_kernel(
    hidden_ptr, head_ptr, ids_ptr, values_ptr, lse_ptr,
    probs_ptr, expected_ptr, variance_ptr, entropy_ptr, mass_ptr,
    num_rows, depth, num_scores, hidden_stride, hidden_step, head_stride, head_step,
    HAS_MASS: tl.constexpr, SCORES: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """ids [SCORES * GROUP], -1 where a group has no more; 3.4e38 is the largest fp32."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < num_rows
    ids = tl.load(ids_ptr + tl.arange(0, SCORES * GROUP))
    depths = tl.arange(0, DEPTH)
    # Rows beyond the end and columns without an id are computed on row 0 and masked below.
    a_ptr = hidden_ptr + tl.where(live, rows, 0)[:, None] * hidden_stride
    b_ptr = head_ptr + tl.maximum(ids, 0)[:, None] * head_stride
    logits = tl.zeros((ROWS, SCORES * GROUP), tl.float32)
    for start in range(0, depth, DEPTH):
        at = (start + depths)[None, :].to(tl.int64)
        a = tl.load(a_ptr + at * hidden_step, mask=at < depth, other=0.0)
        b = tl.load(b_ptr + at * head_step, mask=at < depth, other=0.0)
        logits = tl.dot(a, b.T, logits, input_precision=PRECISION)

    logits = tl.where((ids >= 0)[None, :], logits, float("-inf"))
    of_score = tl.reshape(logits, (ROWS, SCORES, GROUP))
    top = tl.maximum(tl.max(of_score, axis=2), -3.4028234663852886e38)
    a_s = top + tl.log(tl.sum(tl.exp(of_score - top[:, :, None]), axis=2))
    best = tl.max(a_s, axis=1)
    gap = a_s - best[:, None]
    weight = tl.exp(gap)
    total = tl.sum(weight, axis=1)
    p = weight / total[:, None]
    log_total = tl.log(total)

    score = tl.arange(0, SCORES)
    inside = score < num_scores
    values = tl.load(values_ptr + score, mask=inside, other=0.0)
    expected = tl.sum(p * values[None, :], axis=1)
    spread = values[None, :] - expected[:, None]
    surprise = tl.where(p > 0, p * (log_total[:, None] - gap), 0.0)
    tl.store(
        probs_ptr + rows[:, None] * num_scores + score[None, :],
        p,
        mask=live[:, None] & inside[None, :],
    )
    tl.store(expected_ptr + rows, expected, mask=live)
    tl.store(variance_ptr + rows, tl.sum(p * spread * spread, axis=1), mask=live)
    tl.store(entropy_ptr + rows, tl.sum(surprise, axis=1), mask=live)
    if HAS_MASS:
        lse = tl.load(lse_ptr + rows, mask=live, other=0.0)
        # The two sums round differently, so a mass of one may come out a few ulps above it.
        tl.store(mass_ptr + rows, tl.minimum(tl.exp(best + log_total - lse), 1.0), mask=live)


class _Groups(NamedTuple):
    """values [S] fp32. ids [S, G] int64, padded with -1; on a GPU S and G are powers of 2."""

    values: Tensor
    ids: Tensor


@lru_cache(maxsize=64)
def _groups(
    ids: tuple[tuple[int, tuple[int, ...]], ...], device: torch.device, padded: bool
) -> _Groups:
    """On the device, kept: the same scores are read thousands of times."""
    size, width = len(ids), max(len(group) for _, group in ids)
    if padded:
        size, width = jit.power_of_2(size), jit.power_of_2(width)
        width = max(width, ROWS // size)  # at least 16 columns
    table = [[*group, *[-1] * (width - len(group))] for _, group in ids]
    table += [[-1] * width] * (size - len(ids))
    with torch.inference_mode(False):
        values = torch.tensor([float(score) for score, _ in ids], device=device)
        return _Groups(values, torch.tensor(table, dtype=torch.int64, device=device))


def _launch(hidden: Tensor, head: Tensor, groups: _Groups, with_mass: bool) -> ScoreDistribution:
    (num_rows, depth), (values, ids) = hidden.shape, groups
    new = {"dtype": torch.float32, "device": hidden.device}
    probs, rest = torch.empty((num_rows, len(values)), **new), torch.empty((4, num_rows), **new)
    lse = _log_sum_exp(hidden, head) if with_mass else rest
    _scores_kernel[(jit.cdiv(num_rows, ROWS),)](
        hidden, head, ids, values, lse, probs, *rest,
        num_rows, depth, len(values), *hidden.stride(), *head.stride(),
        HAS_MASS=with_mass, SCORES=ids.shape[0], GROUP=ids.shape[1], ROWS=ROWS, DEPTH=DEPTH,
        PRECISION="ieee", num_warps=4, num_stages=4,
    )  # fmt: skip
    return ScoreDistribution(values, probs, *rest[:3], rest[3] if with_mass else None)


def _in_torch(hidden: Tensor, head: Tensor, groups: _Groups, with_mass: bool) -> ScoreDistribution:
    gathered = head[groups.ids.clamp(min=0).flatten()].float()  # [S * G, D]
    logits = (hidden.float() @ gathered.T).view(-1, *groups.ids.shape)
    return _of_logits(logits, groups, _log_sum_exp(hidden, head) if with_mass else None)


def _of_logits(logits: Tensor, groups: _Groups, lse: Tensor | None) -> ScoreDistribution:
    """logits [B, S, G] fp32. lse [B] fp32: of all logits of a row, None where no mass is wanted."""
    values, ids = groups
    a = logits.masked_fill(ids < 0, -torch.inf).logsumexp(-1)
    log_p = a.log_softmax(-1)
    p = log_p.exp()
    expected = (p * values).sum(-1)
    variance = (p * (values - expected[:, None]).square()).sum(-1)
    entropy = -torch.where(p > 0, p * log_p, 0.0).sum(-1)
    mass = None if lse is None else (a.logsumexp(-1) - lse).exp().clamp(max=1.0)
    return ScoreDistribution(values, p, expected, variance, entropy, mass)


def _log_sum_exp(hidden: Tensor, head: Tensor) -> Tensor:
    """Of all logits of a row, [B] fp32."""
    if jit.runs_triton(hidden):
        targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
        found = linear_logprob(hidden, head, targets, ignore_index=None, return_lse=True)
        return found.lse.float()
    total, wide = hidden.new_full((len(hidden),), -torch.inf, dtype=torch.float32), hidden.float()
    for rows in head.split(VOCAB_CHUNK):
        total = torch.logaddexp(total, torch.logsumexp(wide @ rows.float().T, dim=-1))
    return total


@jit.on_its_device
@torch.no_grad()
def score_distribution(
    hidden: Tensor, head: Tensor, score_ids: ScoreIds, mass: bool = True
) -> ScoreDistribution:
    """The model's distribution over the scores at the position where one is written.

    hidden [B, D]: final hidden rows at that position, strided as they like. head [V, D], of the
    same dtype and device. score_ids: for each score its token ids, as a mapping {score: ids} or a
    sequence whose index is the score; on the host, so that a GPU is not waited for. mass False: the
    other rows of the head are not read. Not differentiable. B = 0 gives empty results. Raises
    ValueError naming the argument that breaks the contract.
    """
    ids = _check(hidden, head, score_ids)
    size, width = len(ids), max(len(group) for _, group in ids)
    columns = jit.power_of_2(size) * jit.power_of_2(width)
    fits = columns <= MAX_COLUMNS and hidden.dtype != torch.float64
    runs = jit.runs_triton(hidden) and fits and len(hidden) > 0
    groups = _groups(ids, hidden.device, runs)
    return (_launch if runs else _in_torch)(hidden.detach(), head.detach(), groups, mass)


@torch.no_grad()
def distribution_of_logits(logits: Tensor, score_ids: ScoreIds) -> ScoreDistribution:
    """`score_distribution` from the logits themselves, [B, V], where no rank has the whole head."""
    ids = _ids(score_ids, logits.shape[1])
    groups, wide = _groups(ids, logits.device, False), logits.float()
    return _of_logits(wide[:, groups.ids.clamp(min=0)], groups, wide.logsumexp(-1))


def expected_scores(hidden: Tensor, head: Tensor, score_ids: ScoreIds) -> tuple[Tensor, Tensor]:
    """(expected [B], mass [B]) of `score_distribution`, fp32."""
    found = score_distribution(hidden, head, score_ids)
    assert found.mass is not None
    return found.expected, found.mass


def _check(
    hidden: Tensor, head: Tensor, score_ids: ScoreIds
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    check_tensor("hidden", hidden, ["B", "D"], DTYPES)
    check_tensor("head", head, ["V", hidden.shape[1]], (hidden.dtype,), hidden.device)
    return _ids(score_ids, head.shape[0])


def _ids(score_ids: ScoreIds, vocabulary: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    pairs = score_ids.items() if isinstance(score_ids, Mapping) else enumerate(score_ids)
    ids = tuple((int(score), _as_ids(score, group)) for score, group in pairs)
    flat = [i for _, group in ids for i in group]
    if not ids or len(set(flat)) != len(flat):
        raise ValueError("score_ids: no score, or one token id under two scores")
    if not all(0 <= i < vocabulary for i in flat):
        raise ValueError(f"score_ids: ids {min(flat)} to {max(flat)}, wanted 0 to {vocabulary - 1}")
    return ids


def _as_ids(score: int, group: Iterable[int] | int) -> tuple[int, ...]:
    """The distinct ids of one score; a single id may stand without a set around it."""
    many = group.reshape(-1).tolist() if isinstance(group, Tensor) else group
    ids = tuple(sorted({int(i) for i in ([many] if isinstance(many, int) else many)}))
    if not ids:
        raise ValueError(f"score_ids: no token id for the score {score}, wanted at least one")
    return ids
