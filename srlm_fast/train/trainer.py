"""The course of a training: epochs, schedule, checkpoints, stop. A task says what is learned."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from srlm_fast.model import Model

from .checkpoint import Checkpoint, fingerprint_of
from .config import TrainConfig
from .held_out import BestWeights
from .optimizer import Optimizer, learning_rate
from .packing import Ints, MicroBatch, batch_items, num_batches
from .ranks import Ranks
from .report import StepReport, TrainReport, peak_bytes
from .step import StepResult, train_step

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class TrainingInterrupted(KeyboardInterrupt):
    """`stop` said so. The checkpoint, if any, is written; the model is between two steps."""


class Task(Protocol):
    """What SFT and DPO each say about their data and their loss."""

    num_items: int
    num_mixed: int  # items behind them, mixed into the steps (`packing.batch_items`)
    batch_size: int  # of the former
    lengths: Ints  # tokens that each item feeds when it is alone

    @property
    def config(self) -> TrainConfig: ...

    def begin(
        self, model: Model, saved: dict[str, Tensor] | None, ranks: Ranks
    ) -> dict[str, Tensor]:
        """Get ready, from what an earlier `begin` returned if resuming. Returns what to save."""
        ...

    def micro_batches(self, items: Ints) -> list[MicroBatch]: ...

    def normalizer(self, items: Ints) -> float: ...

    def objective(self, model: Model, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]: ...

    def metrics(self, result: StepResult, items: Ints) -> dict[str, Any]:
        """The fields of StepReport that are the task's own."""
        ...

    def fingerprint(self) -> list[bytes]: ...


def run_training(
    model: Model,
    task: Task,
    config: TrainConfig,
    seed: int,
    on_step: Callable[[StepReport], None] | None,
    checkpoint: Path | None,
    stop: Callable[[], bool] | None,
    mesh: DeviceMesh | None = None,
    held_out: Task | None = None,
) -> TrainReport:
    """Train `model` in place; see `train_sft` for the arguments that it shares with `train_dpo`."""
    num_steps = config.epochs * num_batches(task.num_items, task.batch_size)
    ranks = Ranks(model, mesh)
    ranks.reshard()
    checkpoint = None if checkpoint is None else Path(checkpoint)
    optimizer, report = Optimizer(model, config, seed), TrainReport()
    fingerprint, kept = _fingerprint(model, task, config, seed, held_out), None
    if checkpoint is not None:
        kept = Checkpoint(checkpoint, fingerprint, ranks)
    saved = None if kept is None else kept.load(model, optimizer)
    if saved is not None:
        report.take_up(saved["report"])
    best = BestWeights(model, held_out, config, ranks, report.evaluations, checkpoint, fingerprint)
    tasks = {"task": task} | ({} if held_out is None else {"held_out": held_out})
    begun = {
        name: each.begin(model, None if saved is None else saved[name], ranks)
        for name, each in tasks.items()
    }

    def save(step: int, finished: bool = False) -> None:
        if kept is not None:
            state = {"step": step, "report": report.to_row(), "finished": finished}
            kept.save(state | begun, model, optimizer)

    start = 0 if saved is None else saved["step"]
    saved_at = time.monotonic()
    with _train_mode(model, config):
        for step in range(start, num_steps):
            if best.exhausted:
                break
            if ranks.any(stop is not None and stop()):
                save(step)
                raise TrainingInterrupted(f"stopped before step {step} of {num_steps}")
            with _noise(model.draws_noise, seed, step, ranks.data_rank):
                done = _one_step(model, task, config, optimizer, seed, step, num_steps, ranks)
            if found := best.after(step + 1, num_steps):
                done = dataclasses.replace(
                    done, held_out_loss=found.loss, held_out_accuracy=found.accuracy
                )
            report.add(done)
            is_best = found is not None and found is best.best
            report.peak_bytes = max(report.peak_bytes, peak_bytes(model.device))
            if on_step is not None:
                on_step(done)
            is_due = time.monotonic() - saved_at >= config.checkpoint_seconds
            # The best weights do not get ahead of the training that is to find them again.
            if is_best or (kept is not None and ranks.any(ranks.is_first and is_due)):
                save(step + 1)
                saved_at = time.monotonic()
    if saved is None or not saved["finished"]:
        best.restore()
        report.best_step = None if best.best is None else best.best.step
        save(num_steps, finished=True)
    best.discard()
    return report


def _one_step(
    model: Model,
    task: Task,
    config: TrainConfig,
    optimizer: Optimizer,
    seed: int,
    step: int,
    num_steps: int,
    ranks: Ranks,
) -> StepReport:
    began = time.perf_counter()
    items = batch_items(task.num_items, task.batch_size, seed, step, task.num_mixed)
    batches = ranks.micro_batches(items, task.lengths[items], task.micro_batches)
    rate = learning_rate(config, step, num_steps)
    normalizer = task.normalizer(items)
    result = train_step(model, batches, task.objective, normalizer, optimizer, rate, ranks)
    return StepReport(
        step=step,
        num_steps=num_steps,
        epoch=step // num_batches(task.num_items, task.batch_size),
        loss=result.loss,
        learning_rate=rate,
        grad_norm=result.grad_norm,
        seconds=time.perf_counter() - began,
        num_tokens=result.num_tokens,
        skipped=not result.applied,
        **task.metrics(result, items),
    )


def _fingerprint(
    model: Model, task: Task, config: TrainConfig, seed: int, held_out: Task | None
) -> str:
    shapes = [
        f"{name} {list(p.shape)} {p.dtype} {p.requires_grad}"
        for name, p in model.named_parameters()
    ]
    # How often to save changes nothing; how to cut a batch changes the order of sums: last bits.
    settings = {**vars(config), "checkpoint_seconds": None}
    data = [*task.fingerprint(), *(held_out.fingerprint() if held_out else [])]
    return fingerprint_of(type(task).__name__, str(settings), str(seed), *shapes, *data)


@contextmanager
def _train_mode(model: Model, config: TrainConfig) -> Iterator[None]:
    """Gradients and dropout on; afterwards, however it ends, as before and the weights touched."""
    before = (model.training, model.dropout_p, model.checkpointing)
    model.train()
    model.dropout_p, model.checkpointing = config.dropout, config.activation_checkpointing
    try:
        with torch.enable_grad():
            yield
    finally:
        model.train(before[0])
        model.dropout_p, model.checkpointing = before[1:]
        model.zero_grad(set_to_none=True)
        model.touch()


@contextmanager
def _noise(drawn: bool, seed: int, step: int, data_rank: int) -> Iterator[None]:
    """Dropout's random numbers depend on (seed, step) alone, so a resumed step draws the same ones;
    data ranks, which have other rows, draw others.

    The caller's generators are put back as they were.
    """
    if not drawn:
        yield
        return
    keys = [seed % 2**64, step, *([data_rank] if data_rank else [])]
    with torch.random.fork_rng():
        (state,) = np.random.SeedSequence(keys).generate_state(1, np.uint64)
        torch.manual_seed(int(state) >> 1)
        yield
