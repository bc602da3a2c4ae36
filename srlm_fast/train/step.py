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

# (model, micro-batch) -> (loss summed over its items, not averaged; sums [K] to report)
Objective = Callable[[Model, MicroBatch], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StepResult:
    loss: float  # sum over items / normalizer
    sums: list[float]  # [K] of the objective, over all micro-batches
    grad_norm: float  # before clipping
    applied: bool  # False: something was not finite, the step was skipped


def train_step(
    model: Model,
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    normalizer: float,
    optimizer: Optimizer,
    rate: float,
) -> StepResult:
    """Accumulate over micro-batches, clip, check, step.

    `normalizer` is counted over the whole batch before the first pass, so that the loss and its
    gradient are the same however the batch is cut. 0 (no weight at all) gives loss 0.
    """
    seen = []  # per micro-batch: its part of the loss, then the objective's sums
    with optimizer.summing(len(micro_batches)):
        for micro_batch in micro_batches:
            loss, sums = objective(model, micro_batch)
            loss = loss / (normalizer or 1.0)
            loss.backward()
            optimizer.accumulate()
            seen.append(torch.cat([loss.detach()[None], sums.to(loss)]))
    norm = optimizer.clip()
    # The step's only wait for the device.
    totals = torch.stack(seen).sum(0)
    norm_value, loss_value, *sum_values = torch.cat([norm[None], totals.to(norm)]).tolist()
    applied = math.isfinite(loss_value) and math.isfinite(norm_value)
    if applied:
        optimizer.step(rate)
    optimizer.zero()
    return StepResult(loss_value, sum_values, norm_value, applied)
