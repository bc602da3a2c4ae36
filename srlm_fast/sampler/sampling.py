"""One step of sampling: logits -> token and its raw log-probability at temperature 1.

For logits z [V] with seen tokens S, forbidden tokens B and parameters of the row:
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
from .noise import noise_uniform


def sample(logits: Tensor, plan: Any, masks: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
    """logits [U, V], plan: the scheduler's plan of this step -> token_ids [N] int32, logprobs [N]
    fp32 in nats.

    A row without a finite largest logit (NaN weights) has the log-probability NaN.
    """
    logits = logits.detach().float().contiguous()
    if logits.device.type != "cpu" or not available() or (plan.forced >= 0).any():
        return sample_reference(logits, plan)
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
    )


def sample_reference(logits: Tensor, plan: Any) -> tuple[np.ndarray, np.ndarray]:
    """The specification, one row at a time."""
    count = len(plan.sample_rows)
    tokens, logprobs = np.zeros(count, np.int32), np.zeros(count, np.float32)
    for n in range(count):
        row = logits[int(plan.sample_rows[n])].double()
        if row.isnan().any() or not row.max().isfinite():
            logprobs[n] = np.nan
            continue
        token = int(plan.forced[n])
        token = _draw(_penalised(row, plan, n), plan, n) if token < 0 else token
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


def _draw(row: Tensor, plan: Any, n: int) -> int:
    temperature = float(plan.temperature[n])
    if temperature == 0:
        return int(row.argmax())
    weights = ((row - row.max()) / temperature).exp()
    kept = weights * _keep(weights, int(plan.top_k[n]), float(plan.top_p[n]), float(plan.min_p[n]))
    cumulative = kept.cumsum(0)
    uniform = noise_uniform(int(plan.noise_keys[n]), int(plan.sample_positions[n]))
    beyond = (cumulative > uniform * cumulative[-1]).nonzero()
    return int(beyond[0]) if len(beyond) else int(kept.nonzero()[-1])


def _keep(weights: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """weights [V], largest 1 -> bool [V]."""
    ranked, order = weights.sort(descending=True, stable=True)
    if 0 < top_k < len(weights):
        ranked[top_k:] = 0
    before = ranked.cumsum(0) - ranked
    keep = (ranked > 0) & (ranked >= min_p)
    if top_p < 1:
        keep &= before < top_p * ranked.sum()
    return torch.zeros_like(keep).scatter(0, order, keep)
