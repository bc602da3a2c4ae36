"""Supervised fine-tuning on responses: mean negative log-prob of response tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srlm_fast.model import Model

from .config import SftConfig
from .logps import item_logps, sequence_logps
from .packing import Ints, MicroBatch, check_lengths, item_tokens, make_segments, micro_batches
from .ranks import Ranks
from .report import StepReport, TrainReport
from .step import StepResult
from .trainer import run_training

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


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


def row_logps(
    model: Model,
    rows: Sequence[SftRow],
    *,
    micro_batch_tokens: int = 16384,
    mesh: DeviceMesh | None = None,
) -> Tensor:
    """Log-probs of the rows' responses: [R], fp32 nats, on the CPU, summed over their tokens.

    mesh: as in `train_sft`; every rank gets all of them. Without gradient and without dropout. No
    rows: an empty tensor. Raises ValueError on a token id outside the vocabulary.
    """
    if len(rows) == 0:
        return torch.zeros(0)
    task = SftTask(model, rows, SftConfig(micro_batch_tokens=micro_batch_tokens))
    with torch.no_grad():
        return item_logps(model, task, [np.arange(len(rows))], Ranks(model, mesh), per_item=1)[:, 0]


def train_sft(
    model: Model,
    rows: Sequence[SftRow],
    config: SftConfig | None = None,
    *,
    held_out: Sequence[SftRow] = (),
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] | None = None,
    mesh: DeviceMesh | None = None,
) -> TrainReport:
    """Train `model` in place on the response tokens of `rows`.

    The loss of a step is -sum(weight * log-prob) / sum(weight) over the response tokens of its
    batch. Rows of one prompt that meet in a micro-batch share it (`config.share_prompts`), under
    dropout with one mask for all of them. The order of the rows is a function of (seed, epoch)
    only; results are the same bit for bit for the same number of threads. A step whose loss or
    gradient is not finite is skipped and counted.

    held_out: rows that are evaluated and not learnt from, every `config.evaluate_every` steps and
        behind the last one. The model is left with the weights of the lowest held-out loss, and
        the training ends when `config.patience` evaluations in a row brought no lower one. Until
        then these weights lie beside the checkpoint, without one in the host's memory.
    on_step: called after each optimizer step.
    checkpoint: a file. The whole state is saved there every `config.checkpoint_seconds`, when
        stopped and at the end; a call that finds it goes on from there and ends with the same
        weights, bit for bit, as an unbroken one. Remove it once the model is stored: any call with
        the same rows, settings, seed and shapes takes it up, whatever the model's weights.
    stop: asked before each step; when true, saves and raises TrainingInterrupted.
    mesh: of `dist.device_mesh`, where many ranks train one model, whole on each of them, split by
        `dist.tensor_parallel`, sharded by `dist.shard`, or both. All ranks call it with the same
        rows. Losses and gradients are those of one process up to rounding, reports are of all
        ranks, and all stop where `stop` is true on one. The checkpoint is then a file and a folder,
        on a disk that all ranks see, which any number of ranks reads, split any way, as does a
        process without a mesh (`remove_checkpoint` removes both).

    Raises ValueError on no rows, a token id outside the vocabulary or `held_out` without
    `evaluate_every` (and the other way round), CheckpointError on a
    checkpoint that is not this training's.
    """
    config = config or SftConfig()
    task = SftTask(model, rows, config)
    kept = SftTask(model, held_out, config) if held_out else None
    return run_training(model, task, config, seed, on_step, checkpoint, stop, mesh, kept)


class SftTask:
    """One item is one row is one segment."""

    num_mixed = 0

    def __init__(self, model: Model, rows: Sequence[SftRow], config: SftConfig) -> None:
        if len(rows) == 0:
            raise ValueError("rows: empty, wanted at least one")
        if not isinstance(config, SftConfig):
            raise ValueError(f"config: {type(config).__name__}, wanted SftConfig")
        self.config, self.device = config, model.device
        self.num_items, self.batch_size = len(rows), config.batch_rows
        self.segments = make_segments(
            (row.prompt_ids for row in rows),
            (row.response_ids for row in rows),
            model.config.vocab_size,
            config.share_prompts,
        )
        check_lengths(self.segments, model.config.max_position_embeddings)
        self.lengths = item_tokens(self.segments, 1)
        self.weights = np.array([row.weight for row in rows], dtype=np.float64)

    def begin(
        self, model: Model, saved: dict[str, Tensor] | None, ranks: Ranks
    ) -> dict[str, Tensor]:
        return {}

    def micro_batches(self, items: Ints) -> list[MicroBatch]:
        budget = self.config.micro_batch_tokens
        return micro_batches(self.segments, items, 1, budget, self.device)

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
