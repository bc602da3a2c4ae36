"""A reward model from pairs of conversations: the Bradley-Terry loss (arXiv 2203.02155, eq. 1).

    d = r(chosen) - r(rejected) - margin,    loss = -label log s(d) - (1 - label) log s(-d)

with s the logistic function. label is the probability that chosen is the better one, 1 unless
said; margin asks for a distance that the pair's scores should keep (arXiv 2307.09288, eq. 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from srlm_fast.model import Model, reward_scores
from srlm_fast.model.reward_model import packed_scores

from .config import RewardConfig
from .packing import Ints, MicroBatch, check_lengths, item_tokens, make_segments, micro_batches
from .ranks import Ranks
from .report import StepReport, TrainReport
from .step import StepResult
from .trainer import run_training

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class RewardPair:
    """Token ids of two whole conversations, the first with the better answer.

    weight: the pair's share in the loss. Raises ValueError when one is empty, or a number is out of
    range.
    """

    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    weight: float = 1.0
    label: float = 1.0
    margin: float = 0.0

    def __post_init__(self) -> None:
        for name in ("chosen_ids", "rejected_ids"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"{name}: empty, wanted at least one token")
        for name in ("weight", "margin"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}: {value}, wanted a number of 0 or more")
        if not 0 <= self.label <= 1:
            raise ValueError(f"label: {self.label}, wanted 0..1")


def train_reward_model(
    model: Model,
    pairs: Sequence[RewardPair],
    config: RewardConfig | None = None,
    *,
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] | None = None,
    mesh: DeviceMesh | None = None,
) -> TrainReport:
    """Train `model`, a decoder with one label (`with_score_head`, `load_reward_model`), in place.

    The loss of a step is the mean over its pairs, weighted by `weight`. The report's margins are
    means of r(chosen) - r(rejected). The other arguments, the guarantees and the errors are those
    of `train_sft`; ValueError also for a model that has no score head of one label.
    """
    task = RewardTask(model, pairs, config or RewardConfig())
    return run_training(model, task, task.config, seed, on_step, checkpoint, stop, mesh)


def pair_accuracy(model: Model, pairs: Sequence[RewardPair]) -> dict[str, float | int | None]:
    """accuracy: share of pairs whose chosen conversation scores higher, a tie counting half; ties:
    share of those that score the same; n: pairs. No pairs: None, None and 0.
    """
    rows = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
    chosen, rejected = reward_scores(model, rows).view(-1, 2).unbind(1)
    right, ties = int((chosen > rejected).sum()), int((chosen == rejected).sum())
    n = len(pairs)
    if not n:
        return {"accuracy": None, "ties": None, "n": 0}
    return {"accuracy": (right + ties / 2) / n, "ties": ties / n, "n": n}


class RewardTask:
    """One item is one pair is two segments: chosen, then rejected.

    What both conversations begin with is their prompt, and run once (`config.share_prompts`). Each
    segment has one target behind the conversation: the row that would predict it, the last one, is
    the row that is scored, and the target itself is never read.
    """

    num_mixed = 0

    def __init__(self, model: Model, pairs: Sequence[RewardPair], config: RewardConfig) -> None:
        if len(pairs) == 0:
            raise ValueError("pairs: empty, wanted at least one")
        if model.config.num_labels != 1:
            raise ValueError(f"model: {model.config.num_labels} labels, wanted one, the reward")
        self.config, self.device = config, model.device
        self.num_items, self.batch_size = len(pairs), config.batch_pairs
        rows = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
        common = [n for pair in pairs for n in [_common(pair.chosen_ids, pair.rejected_ids)] * 2]
        self.segments = make_segments(
            (ids[:n] for ids, n in zip(rows, common, strict=True)),
            ([*ids[n:], 0] for ids, n in zip(rows, common, strict=True)),
            model.config.vocab_size,
            config.share_prompts,
        )
        check_lengths(self.segments, model.config.max_position_embeddings)
        self.lengths = item_tokens(self.segments, 2)
        self.weights, self.labels, self.pair_margins = (
            np.array([getattr(pair, name) for pair in pairs], dtype=np.float64)
            for name in ("weight", "label", "margin")
        )

    def begin(
        self, model: Model, saved: dict[str, Tensor] | None, ranks: Ranks
    ) -> dict[str, Tensor]:
        return {}

    def micro_batches(self, items: Ints) -> list[MicroBatch]:
        budget = self.config.micro_batch_tokens
        return micro_batches(self.segments, items, 2, budget, self.device)

    def normalizer(self, items: Ints) -> float:
        return float(self.weights[items].sum())

    def objective(self, model: Model, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        last_rows = micro_batch.rows[micro_batch.response_lengths.cumsum(0) - 1]
        scores_R = packed_scores(
            model, micro_batch.token_ids, micro_batch.lengths, last_rows, micro_batch.parents
        )
        chosen, rejected = micro_batch.sequences.view(-1, 2).unbind(1)
        gaps = scores_R[chosen] - scores_R[rejected]
        weights, labels, margins = (
            torch.from_numpy(values[micro_batch.items]).to(gaps)
            for values in (self.weights, self.labels, self.pair_margins)
        )
        losses = F.binary_cross_entropy_with_logits(gaps - margins, labels, reduction="none")
        seen = torch.stack([gaps.sum(), (gaps > 0).sum()])
        return (weights * losses).sum(), seen.detach()

    def metrics(self, result: StepResult, items: Ints) -> dict[str, float]:
        names = ("margin", "accuracy")
        return {name: total / len(items) for name, total in zip(names, result.sums, strict=True)}

    def fingerprint(self) -> list[bytes]:
        parts = (self.segments.tokens, self.segments.prompt_lengths, self.segments.response_lengths)
        shares = (self.weights, self.labels, self.pair_margins)
        return [part.tobytes() for part in (*parts, *shares)]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Tokens that both begin with; 1 where even the first differs: a prompt is never empty."""
    differ = (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return max(1, next(differ, min(len(left), len(right))))
