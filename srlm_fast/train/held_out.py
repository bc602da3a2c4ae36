"""Evaluations on held-out data, and the best of the weights that were evaluated.

The weights with the lowest loss so far are kept beside the checkpoint, on disk, never as a second
copy on the device; a training without a checkpoint keeps them in the host's memory.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from srlm_fast.model import Model

from .checkpoint import Checkpoint, CheckpointError, remove_checkpoint, trained_weights
from .config import TrainConfig
from .optimizer import local
from .ranks import Ranks
from .report import Evaluation
from .step import StepResult

if TYPE_CHECKING:
    from .trainer import Task


def evaluate(model: Model, task: Task, step: int, ranks: Ranks) -> Evaluation:
    """Mean loss and accuracy over all items of `task`, without gradient and without dropout; the
    same on all ranks.
    """
    was_training, parts, total = model.training, [], 0.0
    model.eval()
    with torch.no_grad():
        for start in range(0, task.num_items, task.batch_size):
            items = np.arange(start, min(start + task.batch_size, task.num_items))
            total += task.normalizer(items)
            for micro_batch in ranks.micro_batches(items, task.lengths[items], task.micro_batches):
                loss, sums = task.objective(model, micro_batch)
                seen = torch.cat([loss[None], sums.to(loss)])
                parts.append(seen * (not micro_batch.idle))
    model.train(was_training)
    ranks.reshard()
    loss_sum, *others = ranks.sum(torch.stack(parts).double().sum(0)).tolist()
    result = StepResult(loss_sum / (total or 1.0), others, 0.0, True, 0)
    accuracy = task.metrics(result, np.arange(task.num_items)).get("accuracy")
    return Evaluation(step, result.loss, accuracy)


class BestWeights:
    """Evaluates every `config.evaluate_every` steps and behind the last one.

    evaluations: those made so far, which this adds to; a resumed training brings its own.
    """

    def __init__(
        self,
        model: Model,
        task: Task | None,
        config: TrainConfig,
        ranks: Ranks,
        evaluations: list[Evaluation],
        checkpoint: Path | None,
        fingerprint: str,
    ) -> None:
        if task is not None and not config.evaluate_every:
            raise ValueError("evaluate_every: 0 with held-out data, wanted 1 or more")
        if task is None and config.evaluate_every:
            raise ValueError(f"evaluate_every: {config.evaluate_every}, wanted held-out data too")
        self.model, self.task, self.config = model, task, config
        self.evaluations, self.ranks = evaluations, ranks
        self.path = None if checkpoint is None else best_path(checkpoint)
        self.file = None if self.path is None else Checkpoint(self.path, fingerprint, ranks)
        self._kept: dict[str, Tensor] = {}  # where there is no file

    @property
    def best(self) -> Evaluation | None:
        """That of the lowest loss, the earliest of equals."""
        finite = [found for found in self.evaluations if math.isfinite(found.loss)]
        return min(finite, key=lambda found: found.loss, default=None)

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        if not self.config.patience or not self.evaluations:
            return False
        best = self.best
        since = 0 if best is None else self.evaluations.index(best) + 1
        return len(self.evaluations) - since >= self.config.patience

    def after(self, step: int, num_steps: int) -> Evaluation | None:
        """The evaluation that is due behind `step` steps of `num_steps`, if one is."""
        if self.task is None or (step % self.config.evaluate_every and step < num_steps):
            return None
        found = evaluate(self.model, self.task, step, self.ranks)
        self.evaluations.append(found)
        if found is self.best:
            self._keep(step)
        return found

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights into the model. Raises CheckpointError when they are lost."""
        best = self.best
        if best is None or best == self.evaluations[-1]:
            return
        if self.file is None:
            for name, weight in trained_weights(self.model):
                local(weight).copy_(self._kept[name])
        elif (self.file.load(self.model, None) or {}).get("step") != best.step:
            raise CheckpointError(
                f"checkpoint: {self.path}: wanted the weights of step {best.step}"
            )
        self.model.touch()

    def discard(self) -> None:
        self._kept = {}
        if self.path is not None and self.ranks.is_first:
            remove_checkpoint(self.path)

    def _keep(self, step: int) -> None:
        if self.file is None:
            trained = trained_weights(self.model)
            self._kept = {name: local(weight).cpu().clone() for name, weight in trained}
        else:
            self.file.save({"step": step}, self.model, None)


def best_path(checkpoint: Path) -> Path:
    """Where the best weights lie while a training with this checkpoint runs."""
    return checkpoint.with_name(f"{checkpoint.stem}.best{checkpoint.suffix}")
