"""The one train step, shared by SFT and DPO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from srlm_fast.model import Model

from .optimizer import Optimizer
from .packing import MicroBatch
from .ranks import Ranks

# (model, micro-batch) -> (loss summed over its items, not averaged; sums [K] to report)
Objective = Callable[[Model, MicroBatch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    loss: float  # sum over items / normalizer
    sums: list[float]  # [K] of the objective, over all micro-batches
    grad_norm: float  # before clipping
    applied: bool  # False: something was not finite, the step was skipped
    num_tokens: int  # fed to the model


def train_step(
    model: Model,
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    normalizer: float,
    optimizer: Optimizer,
    rate: float,
    ranks: Ranks | None = None,
) -> StepResult:
    """Accumulate over this rank's micro-batches, sum over ranks, clip, check, step.

    `normalizer` is counted over the whole batch before the first pass, so that the loss and its
    gradient are the same however the batch is cut. 0 (no weight at all) gives loss 0. All ranks get
    the same result, and take or skip the step together.
    """
    ranks = ranks or Ranks(model, None)
    seen = []  # per micro-batch: its part of the loss, then the objective's sums
    with optimizer.summing(len(micro_batches) > 1 or ranks.num_data > 1):
        for micro_batch in micro_batches:
            loss, sums = objective(model, micro_batch)
            loss, sums = (x * (not micro_batch.idle) for x in (loss, sums))
            loss = loss / (normalizer or 1.0)
            (loss * ranks.scale).backward()
            optimizer.accumulate()
            seen.append(torch.cat([loss.detach()[None], sums.to(loss)]))
    gradients = optimizer.gradients()
    ranks.sum_gradients(gradients)
    norm = optimizer.clip(ranks.norm(optimizer.params, gradients))
    num_tokens = sum(batch.token_ids.numel() for batch in micro_batches if not batch.idle)
    counted = torch.tensor([num_tokens], dtype=torch.float64, device=norm.device)
    totals = ranks.sum(torch.cat([counted, torch.stack(seen).sum(0).double()]))
    # The step's only wait for the device.
    norm_value, tokens, loss_value, *sum_values = torch.cat([norm[None].double(), totals]).tolist()
    applied = math.isfinite(loss_value) and math.isfinite(norm_value)
    if applied:
        optimizer.step(rate)
    optimizer.zero()
    return StepResult(loss_value, sum_values, norm_value, applied, int(tokens))
