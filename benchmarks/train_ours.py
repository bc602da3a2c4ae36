"""A step of ours, by the public functions."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.train_clock import StepClock
from benchmarks.train_work import BETA, LEARNING_RATE, TrainWork
from srlm_fast.model import load_model
from srlm_fast.train import (
    DpoConfig,
    SftConfig,
    SftRow,
    TokenPair,
    pair_logps,
    train_dpo,
    train_sft,
)

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def run_ours(work: TrainWork, folder: str, options: dict[str, Any], clock: StepClock) -> None:
    """A process's whole work: `work.steps` + 1 steps. options: of DpoConfig or SftConfig."""
    model = load_model(folder, work.device, DTYPES[work.dtype])
    rows = work.ids(model.config.vocab_size)
    shared = {"epochs": work.steps + 1, "learning_rate": LEARNING_RATE} | options
    if work.kind == "sft":
        config = SftConfig(batch_rows=work.rows, **shared)
        clock.begin()
        train_sft(
            model, [SftRow(*row) for row in rows], config, on_step=lambda s: clock.tick(s.loss)
        )
        return
    pairs = [TokenPair(*row) for row in rows]
    reference = pair_logps(model, pairs)
    dpo = DpoConfig(batch_pairs=work.rows, beta=BETA, **shared)
    clock.begin()
    train_dpo(model, pairs, dpo, reference, on_step=lambda step: clock.tick(step.loss))
