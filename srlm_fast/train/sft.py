"""Supervised fine-tuning on responses: mean negative log-prob of response tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from srlm_fast.model import Model

from .config import SftConfig
from .logps import sequence_logps
from .packing import Ints, MicroBatch, make_segments, pack, split_by_tokens
from .report import StepReport, TrainReport
from .step import StepResult
from .trainer import run_training


@dataclass(frozen=True)
class SftRow:
    """A prompt with the response to learn, its end token included; `weight` scales its tokens.

    Raises ValueError when either is empty or the weight is negative or not finite.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "response_ids"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"{name}: empty, wanted at least one token")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight: {self.weight}, wanted a number of 0 or more")


def train_sft(
    model: Model,
    rows: Sequence[SftRow],
    config: SftConfig | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] | None = None,
    mesh: DeviceMesh | None = None,
) -> TrainReport:
    """Train `model` in place on the response tokens of `rows`.

    The loss of a step is -sum(weight * log-prob) / sum(weight) over the response tokens of its
    batch. The order of the rows is a function of (seed, epoch) only; results are the same bit for
    bit for the same number of threads. A step whose loss or gradient is not finite is skipped and
    counted.

    on_step: called after each optimizer step.
    checkpoint: a file. The whole state is saved there every `config.checkpoint_seconds`, when
        stopped and at the end; a call that finds it goes on from there and ends with the same
        weights, bit for bit, as an unbroken one. Remove it once the model is stored: any call with
        the same rows, settings, seed and shapes takes it up, whatever the model's weights.
    stop: asked before each step; when true, saves and raises TrainingInterrupted.

    Raises ValueError on no rows or a token id outside the vocabulary, CheckpointError on a
    checkpoint that is not this training's.
    """
    task = SftTask(model, rows, config or SftConfig())
    kept = None if mesh is not None else checkpoint
    return run_training(model, task, task.config, seed, on_step, kept, stop)


class SftTask:
    """One item is one row is one segment."""

    def __init__(self, model: Model, rows: Sequence[SftRow], config: SftConfig) -> None:
        if len(rows) == 0:
            raise ValueError("rows: empty, wanted at least one")
        self.config, self.device = config, model.device
        self.num_items, self.batch_size = len(rows), config.batch_rows
        self.segments = make_segments(
            (row.prompt_ids for row in rows),
            (row.response_ids for row in rows),
            model.config.vocab_size,
        )
        self.weights = np.array([row.weight for row in rows], dtype=np.float64)

    def begin(self, model: Model, saved: dict[str, Tensor] | None) -> dict[str, Tensor]:
        return {}

    def micro_batches(self, items: Ints) -> list[MicroBatch]:
        groups = split_by_tokens(self.segments.lengths[items], self.config.micro_batch_tokens)
        return [pack(self.segments, items[group], 1, self.device) for group in groups]

    def normalizer(self, items: Ints) -> float:
        return float(self.weights[items] @ self.segments.response_lengths[items])

    def objective(self, model: Model, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        logp_S = sequence_logps(model, micro_batch)
        weight_S = torch.from_numpy(self.weights[micro_batch.items]).to(logp_S)
        return -(weight_S * logp_S).sum(), logp_S.new_zeros(0)

    def metrics(self, result: StepResult, items: Ints) -> dict[str, float]:
        return {}

    def fingerprint(self) -> list[bytes]:
        parts = (self.segments.tokens, self.segments.prompt_lengths, self.segments.response_lengths)
        return [part.tobytes() for part in (*parts, self.weights)]
