"""One step of sampling: logits -> token and its raw log-probability at temperature 1.

For logits z [V] with seen tokens S, forbidden tokens B (banned, or outside the row's mask) and
parameters of the row:
    z'_i = z_i / penalty if z_i > 0 else z_i * penalty   for i in S;    z'_i = -inf for i in B
    p    = softmax(z' / temperature);  rank tokens by p, equal ones by id
    keep the first top_k; among them the first that reach top_p of their mass (the one that
        crosses stays); among them those with p_i >= min_p * max p
    u = noise_uniform(key, position)
    token = the first i, in order of id, whose cumulative kept mass exceeds u * total
    logprob = z_token - logsumexp(z)
Sums are in double. `sample_reference` is this text; `sample` picks the native kernel
(csrc/sampling.cpp) on a CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.native import available, native
from ..kernels.sample_tokens import kept_tokens
from .noise import noise_uniform


def sample(logits: Tensor, plan: Any, masks: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """logits [U, V], plan: the scheduler's plan of this step -> token_ids [N] int32, logprobs [N]
    fp32 in nats.

    masks [M, ceil(V / 32)] int32: bit i of word w says whether token 32 w + i may be drawn;
    plan.mask_rows [N] names the row of masks, -1 for none. A row without a finite largest logit
    (NaN weights), or in which nothing may be drawn, has the log-probability NaN.
    """
    logits = logits.detach().float().contiguous()
    masks = _checked_masks(logits, plan, masks)
    if logits.device.type != "cpu" or not available():
        return sample_reference(logits, plan, masks)
    return native().sample(
        logits.data_ptr(),
        logits.shape[1],
        plan.sample_rows,
        plan.temperature,
        plan.top_k,
        plan.top_p,
        plan.min_p,
        plan.repetition_penalty,
        plan.noise_keys,
        plan.sample_positions,
        plan.history,
        plan.history_starts,
        plan.banned,
        plan.banned_starts,
        0 if masks is None else masks.data_ptr(),
        plan.mask_rows,
        plan.forced,
    )


def _checked_masks(logits: Tensor, plan: Any, masks: Tensor | None) -> Tensor | None:
    words, rows = -(-logits.shape[1] // 32), plan.mask_rows
    count = 0 if masks is None else len(masks)
    if masks is not None and (masks.dtype != torch.int32 or masks.shape != (count, words)):
        raise ValueError(
            f"masks: {masks.dtype} {list(masks.shape)}, wanted int32 [M, {words}] for a vocabulary "
            f"of {logits.shape[1]}"
        )
    if len(rows) and rows.max() >= count:
        raise ValueError(f"mask_rows: {rows.max()}, wanted rows of the {count} masks, or -1")
    return None if masks is None else masks.to(logits.device).contiguous()


def sample_reference(
    logits: Tensor, plan: Any, masks: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The specification, one row at a time."""
    count = len(plan.sample_rows)
    tokens, logprobs = np.zeros(count, np.int32), np.zeros(count, np.float32)
    for n in range(count):
        row = logits[int(plan.sample_rows[n])].double()
        if row.isnan().any() or not row.max().isfinite():
            logprobs[n] = np.nan
            continue
        scores = _penalised(row, plan, n)
        if masks is not None and plan.mask_rows[n] >= 0:
            scores[~_allowed(masks[int(plan.mask_rows[n])], len(row))] = -torch.inf
        if not scores.max().isfinite():
            logprobs[n] = np.nan
            continue
        forced = int(plan.forced[n])
        token = _draw(scores, plan, n) if forced < 0 else forced
        tokens[n] = token
        logprobs[n] = float(row[token] - row.logsumexp(0))
    return tokens, logprobs


def _penalised(row: Tensor, plan: Any, n: int) -> Tensor:
    row = row.clone()
    seen = np.unique(plan.history[plan.history_starts[n] : plan.history_starts[n + 1]])
    index = torch.as_tensor(seen, dtype=torch.int64, device=row.device)
    penalty = float(plan.repetition_penalty[n])
    row[index] = torch.where(row[index] > 0, row[index] / penalty, row[index] * penalty)
    banned = plan.banned[plan.banned_starts[n] : plan.banned_starts[n + 1]]
    row[torch.as_tensor(banned, dtype=torch.int64, device=row.device)] = -torch.inf
    return row


def _allowed(words: Tensor, vocab_size: int) -> Tensor:
    """words [ceil(V / 32)] int32 -> bool [V]."""
    bits = torch.arange(32, device=words.device)
    return (words[:, None].long() >> bits & 1).bool().flatten()[:vocab_size]


def _draw(row: Tensor, plan: Any, n: int) -> int:
    temperature = float(plan.temperature[n])
    if temperature == 0:
        return int(row.argmax())
    weights = ((row - row.max()) / temperature).exp()
    kept = weights * kept_tokens(
        weights, int(plan.top_k[n]), float(plan.top_p[n]), float(plan.min_p[n])
    )
    cumulative = kept.cumsum(0)
    uniform = noise_uniform(int(plan.noise_keys[n]), int(plan.sample_positions[n]))
    beyond = (cumulative > uniform * cumulative[-1]).nonzero()
    return int(beyond[0]) if len(beyond) else int(kept.nonzero()[-1])
