"""Direct preference optimization (arXiv 2305.18290) against the round's own starting weights.

The reference is the policy before its first step: its log-probs are computed once, by the same code
on the same micro-batches as the first epoch's, and kept as two numbers per pair. No second model.

Pairs of one prompt that meet in a micro-batch are one tree: the prompt runs once, so does a
response that is in several of them (prefix sharing, arXiv 2410.20305). That changes the loss and
its gradient by the rounding of sums in another order. Under dropout it also changes the noise: a
shared prompt has one mask for all its responses, where each would have had its own.
`share_prompts=False` runs every response behind a prompt of its own.

Real rows, answers that people wrote, may be learnt from in the same steps. The loss of a step with
P pairs and R real rows is a mean over all of them, whatever its micro-batches and ranks:

    (sum_p w_p l_p + a sum_r v_r m_r) / (sum_p w_p + sum_r v_r),   m_r = -(1 / n_r) sum_i log p_ri

with l_p the pair's loss, m_r the mean NLL of the row's n_r response tokens (as the NLL of a chosen
response is, `nll_weight`), w and v the weights of pairs and rows, a = `real_weight`.
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

from srlm_fast.kernels import dpo_loss_tokens
from srlm_fast.model import Model

from .config import DpoConfig
from .logps import item_logps, response_sums, token_logps
from .packing import (
    Ints,
    MicroBatch,
    batch_items,
    check_lengths,
    item_tokens,
    make_segments,
    micro_batches,
    num_batches,
)
from .ranks import Ranks
from .report import StepReport, TrainReport
from .sft import SftRow
from .step import StepResult
from .trainer import run_training

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class TokenPair:
    """A prompt with a better and a worse response, their end tokens included.

    label: probability that chosen is the better one; weight: the pair's share in the loss.
    Raises ValueError when a part is empty, or label or weight is out of range.
    """

    prompt_ids: Sequence[int]
    chosen_ids: Sequence[int]
    rejected_ids: Sequence[int]
    weight: float = 1.0
    label: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            if len(getattr(self, name)) == 0:
                raise ValueError(f"{name}: empty, wanted at least one token")
        if not (self.weight >= 0 and math.isfinite(self.weight)):
            raise ValueError(f"weight: {self.weight}, wanted a number of 0 or more")
        if not 0 <= self.label <= 1:
            raise ValueError(f"label: {self.label}, wanted 0..1")


def pair_logps(
    model: Model,
    pairs: Sequence[TokenPair],
    *,
    micro_batch_tokens: int = 16384,
    share_prompts: bool = True,
    mesh: DeviceMesh | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of chosen and rejected: [P] each, fp32 nats, on the CPU, summed over the response.

    share_prompts: as in training; it changes the last digits alone. mesh: as in `train_sft`; every
    rank gets all of them. Without gradient and without dropout. No pairs: two empty tensors. Raises
    ValueError on a token id outside the vocabulary.
    """
    if len(pairs) == 0:
        return torch.zeros(0), torch.zeros(0)
    config = DpoConfig(
        micro_batch_tokens=micro_batch_tokens,
        share_prompts=share_prompts,
        batch_pairs=len(pairs),
    )
    task = DpoTask(model, pairs, config, None)
    with torch.no_grad():
        logps = task.reference(model, [np.arange(len(pairs))], Ranks(model, mesh))
    return _columns(logps)


def train_dpo(
    model: Model,
    pairs: Sequence[TokenPair],
    config: DpoConfig | None = None,
    ref_logps: tuple[Tensor, Tensor] | None = None,
    *,
    real: Sequence[SftRow] = (),
    held_out: Sequence[TokenPair] = (),
    held_out_ref_logps: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
    on_step: Callable[[StepReport], None] | None = None,
    checkpoint: Path | None = None,
    stop: Callable[[], bool] | None = None,
    mesh: DeviceMesh | None = None,
) -> TrainReport:
    """Train `model` in place so that it prefers chosen over rejected more than the reference does.

    ref_logps: (chosen, rejected), [P] each, as `pair_logps` gives them; without them the reference
    is the model as it is now, and the first step's loss is ln 2 (sigmoid loss, no dropout). The
    loss of simpo has no reference: there it only is what the reported log-ratios are relative to.
    The loss of a step is the mean over its pairs, weighted by `weight`. real: rows whose mean NLL
    joins that mean; each epoch has all of them in an order of its own, spread over its steps in
    proportion to their pairs. held_out: pairs that are evaluated and not learnt from, with a
    reference of their own; their loss knows no real rows. The other arguments, the guarantees and
    the errors are those of `train_sft`; ref_logps of wrong shape raise ValueError.
    """
    config = config or DpoConfig()
    task = DpoTask(model, pairs, config, ref_logps, seed, real)
    if held_out_ref_logps is not None and len(held_out_ref_logps[0]) and not held_out:
        raise ValueError("held_out_ref_logps: given without held_out, wanted both")
    kept = DpoTask(model, held_out, config, held_out_ref_logps, seed) if held_out else None
    return run_training(model, task, config, seed, on_step, checkpoint, stop, mesh, kept)


class DpoTask:
    """One item is one pair is two segments: chosen, then rejected. Behind the pairs a real row is
    an item too, its segments being one and the same.
    """

    def __init__(
        self,
        model: Model,
        pairs: Sequence[TokenPair],
        config: DpoConfig,
        ref_logps: tuple[Tensor, Tensor] | None,
        seed: int = 0,
        real: Sequence[SftRow] = (),
    ) -> None:
        if len(pairs) == 0:
            raise ValueError("pairs: empty, wanted at least one")
        if not isinstance(config, DpoConfig):
            raise ValueError(f"config: {type(config).__name__}, wanted DpoConfig")
        self.config, self.seed, self.device = config, seed, model.device
        self.num_items, self.batch_size = len(pairs), config.batch_pairs
        self.num_mixed = len(real)
        items: list[TokenPair | SftRow] = [*pairs, *real]
        responses = [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)]
        responses += [row.response_ids for row in real for _ in range(2)]
        self.segments = make_segments(
            (item.prompt_ids for item in items for _ in range(2)),
            responses,
            model.config.vocab_size,
            config.share_prompts,
        ).twins(2 * len(pairs))
        check_lengths(self.segments, model.config.max_position_embeddings)
        self.lengths = item_tokens(self.segments, 2)
        self.weights = np.array([item.weight for item in items], dtype=np.float64)
        self.labels = np.array([pair.label for pair in pairs], dtype=np.float64)
        self.ref_logps = None if ref_logps is None else _stack(ref_logps, len(pairs), len(real))
        if self.ref_logps is not None:
            # Equal responses are one where their references are one.
            self.segments = self.segments.apart(self.ref_logps.view(-1).tolist())

    def begin(
        self, model: Model, saved: dict[str, Tensor] | None, ranks: Ranks
    ) -> dict[str, Tensor]:
        if saved is not None:
            self.ref_logps = saved["ref_logps"]
        elif self.ref_logps is None:
            steps = range(num_batches(self.num_items, self.batch_size))
            counts = (self.num_items, self.batch_size, self.seed)
            epoch = [batch_items(*counts, step, self.num_mixed) for step in steps]
            # With gradients on the model takes the very operations that training takes: step 0 is
            # ln 2 to the last bit. Without, faster native ones may differ in the last place.
            with torch.enable_grad():
                self.ref_logps = self.reference(model, epoch, ranks)
        return {"ref_logps": self.ref_logps}

    def reference(self, model: Model, batches: list[Ints], ranks: Ranks) -> Tensor:
        """[items, 2] on the CPU, without dropout. Batches of training give its micro-batches."""
        return item_logps(model, self, batches, ranks, per_item=2)

    def micro_batches(self, items: Ints) -> list[MicroBatch]:
        budget = self.config.micro_batch_tokens
        return micro_batches(self.segments, items, 2, budget, self.device)

    def normalizer(self, items: Ints) -> float:
        return float(self.weights[items].sum())

    def objective(self, model: Model, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        logp_N = token_logps(model, micro_batch)
        if not self.num_mixed:
            return self.preference(logp_N, micro_batch, None)
        is_pair = micro_batch.items < self.num_items
        own, real = (torch.from_numpy(np.flatnonzero(x)) for x in (is_pair, ~is_pair))
        loss, seen = self.preference(logp_N, micro_batch, own)
        nll = self.mean_nll(logp_N, micro_batch, real)
        weights = torch.from_numpy(self.weights[micro_batch.items])[real].to(nll)
        loss = loss + self.config.real_weight * (weights * nll).sum()
        return loss, torch.cat([seen, nll.detach().sum()[None]])

    def mean_nll(self, logp_N: Tensor, micro_batch: MicroBatch, which: Tensor) -> Tensor:
        """Of those of the micro-batch's items that are real rows: nats per response token."""
        means_R = response_sums(logp_N, micro_batch) / micro_batch.response_lengths
        sequences = micro_batch.sequences.view(-1, 2)[which.to(logp_N.device), 0]
        return -means_R.index_select(0, sequences)

    def preference(
        self, logp_N: Tensor, micro_batch: MicroBatch, which: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and figures of those of the micro-batch's items that are pairs; None: all are."""
        assert self.ref_logps is not None
        items, pairs = micro_batch.items, micro_batch.sequences.view(-1, 2)
        if which is not None:
            items, pairs = items[which.numpy()], pairs[which.to(pairs.device)]
        ref_R = self.ref_logps.view(-1)[torch.from_numpy(micro_batch.responses)].to(logp_N)
        labels, weights = (
            torch.from_numpy(values[items]).to(logp_N) for values in (self.labels, self.weights)
        )
        out = dpo_loss_tokens(
            logp_N,
            F.pad(micro_batch.response_lengths.cumsum(0), (1, 0)),
            pairs,
            None if self.config.loss == "simpo" else ref_R,
            self.config.loss,
            self.config.beta,
            label_smoothing=self.config.label_smoothing,
            labels=labels,
            weights=weights,
            length_normalized=self.config.length_normalized,
            gamma=self.config.gamma,
            nll_weight=self.config.nll_weight,
            denominator=1.0,  # the step divides by the weights of the whole batch
        )
        assert out.sums is not None
        ratios = (out.sums - ref_R)[pairs].sum(0)
        seen = torch.stack([out.margins.sum(), (out.margins > 0).sum(), *ratios])
        return out.loss, seen

    def metrics(self, result: StepResult, items: Ints) -> dict[str, float]:
        names = ("margin", "accuracy", "chosen_logratio", "rejected_logratio")
        num_pairs = int((items < self.num_items).sum())
        num_real = len(items) - num_pairs
        found = {name: x / num_pairs for name, x in zip(names, result.sums, strict=False)}
        found["num_pairs"] = num_pairs
        return found | ({"real_nll": result.sums[-1] / num_real} if num_real else {})

    def fingerprint(self) -> list[bytes]:
        segments = self.segments
        parts = (segments.tokens, segments.prompt_lengths, segments.response_lengths)
        shared = (segments.prompts, segments.sequences)
        return [part.tobytes() for part in (*parts, *shared, self.weights, self.labels)]


def _stack(ref_logps: tuple[Tensor, Tensor], num_pairs: int, num_real: int) -> Tensor:
    """[items, 2] on the CPU; real rows have no reference."""
    for index, logps in enumerate(ref_logps):
        if tuple(logps.shape) != (num_pairs,):
            raise ValueError(f"ref_logps[{index}]: {list(logps.shape)}, wanted [{num_pairs}]")
        if not bool(logps.isfinite().all()):
            raise ValueError(f"ref_logps[{index}]: values that are not finite, wanted log-probs")
    pairs_P2 = torch.stack([logps.detach().cpu() for logps in ref_logps], dim=1)
    return F.pad(pairs_P2, (0, 0, 0, num_real))


def _columns(values_P2: Tensor) -> tuple[Tensor, Tensor]:
    """(chosen, rejected)."""
    return values_P2[:, 0], values_P2[:, 1]
