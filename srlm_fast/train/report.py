"""What a training tells: per step while it runs, and as a whole when it is done."""

from __future__ import annotations

import dataclasses
import math
import resource
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Evaluation:
    """Of the weights behind `step` optimizer steps, on held-out data. accuracy: of pairs."""

    step: int
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. `margin` and those below it are means over the step's pairs for DPO and
    None for SFT; a reward model has the first two of them. real_nll: mean NLL per response token
    of its real rows, where it has some. The last two are of held-out data, where an evaluation was
    due behind the step."""

    step: int  # from 0
    num_steps: int
    epoch: int  # from 0
    loss: float
    learning_rate: float
    grad_norm: float  # before clipping
    seconds: float
    num_tokens: int  # fed to the model
    skipped: bool  # loss or gradient was not finite: weights and moments were left alone
    margin: float | None = None
    accuracy: float | None = None
    chosen_logratio: float | None = None
    rejected_logratio: float | None = None
    num_pairs: int | None = None  # of the batch; the last one of an epoch may have fewer
    real_nll: float | None = None
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None

    def to_row(self) -> dict[str, Any]:
        """For JSON, which has no NaN and no infinity: they become None."""
        row = dataclasses.asdict(self)
        return {key: None if _is_bad(value) else value for key, value in row.items()}


@dataclass
class TrainReport:
    """Lists hold one value per step, those of a resumed training from its very first step on."""

    losses: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)  # none for SFT, like the four below it
    accuracies: list[float] = field(default_factory=list)
    chosen_logratios: list[float] = field(default_factory=list)
    rejected_logratios: list[float] = field(default_factory=list)
    num_pairs: list[int] = field(default_factory=list)
    real_nlls: list[float] = field(default_factory=list)  # of the steps that have real rows
    learning_rates: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)  # on held-out data
    best_step: int | None = None  # steps behind which the weights are those left in the model
    skipped_steps: int = 0
    peak_bytes: int = 0  # of the device's allocator; on a CPU the process's largest resident size

    def add(self, step: StepReport) -> None:
        self.losses.append(step.loss)
        self.learning_rates.append(step.learning_rate)
        self.grad_norms.append(step.grad_norm)
        self.num_tokens.append(step.num_tokens)
        self.seconds.append(step.seconds)
        self.skipped_steps += step.skipped
        pairs: tuple[tuple[list[Any], float | None], ...] = (
            (self.margins, step.margin),
            (self.accuracies, step.accuracy),
            (self.chosen_logratios, step.chosen_logratio),
            (self.rejected_logratios, step.rejected_logratio),
            (self.num_pairs, step.num_pairs),
            (self.real_nlls, step.real_nll),
        )
        for values, value in pairs:
            if value is not None:
                values.append(value)

    def to_row(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def take_up(self, row: dict[str, Any]) -> None:
        """Go on from what `to_row` gave."""
        vars(self).update(row)
        self.evaluations = [Evaluation(**found) for found in row["evaluations"]]


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far: of the device's allocator, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _is_bad(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
