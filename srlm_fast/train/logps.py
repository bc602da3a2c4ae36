"""Log-probs of responses under a model, from a packed stream.

Shape letters as in `packing`: R distinct responses of N tokens, S segments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from srlm_fast.kernels import linear_logprob
from srlm_fast.model import Model, PackedContext

from .packing import Ints, MicroBatch
from .ranks import Ranks

if TYPE_CHECKING:
    from .trainer import Task


def token_logps(model: Model, micro_batch: MicroBatch) -> Tensor:
    """[N] fp32 nats (fp64 for an fp64 model), of each distinct response's tokens in turn.

    Only rows that predict a response token reach the head.
    """
    context = PackedContext(
        micro_batch.lengths, model.config.windows, model.device, micro_batch.parents
    )
    hidden_TD = model(micro_batch.token_ids, context.positions, context)
    # A shared prompt's last row is taken by every response. Behind an embedding such gradients are
    # added up in a fixed order on a GPU, behind index_select by atomics.
    rows_ND = F.embedding(micro_batch.rows, hidden_TD)
    if model.parallel is not None:
        return model.parallel.logprobs(rows_ND, model.head, micro_batch.targets, _with_lse)
    logp_N = linear_logprob(rows_ND, model.head, micro_batch.targets, ignore_index=None)
    assert isinstance(logp_N, Tensor)  # nothing else was asked for
    return logp_N


def _with_lse(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    found = linear_logprob(hidden_ND, head_VD, targets_N, ignore_index=None, return_lse=True)
    assert not isinstance(found, Tensor) and found.lse is not None
    return found.logprobs, found.lse


def sequence_logps(model: Model, micro_batch: MicroBatch) -> Tensor:
    """[S] fp32 nats (fp64 for an fp64 model), summed over each segment's response tokens.

    The sum is taken in fp64: a thousand fp32 terms would lose digits that a margin of two such sums
    still needs. `dpo_loss_tokens` sums the same way.
    """
    sums_R = response_sums(token_logps(model, micro_batch), micro_batch)
    return sums_R.index_select(0, micro_batch.sequences)


def response_sums(logp_N: Tensor, micro_batch: MicroBatch) -> Tensor:
    """[R] in the dtype of `logp_N` [N], each distinct response's tokens summed in fp64."""
    sums_R = torch.segment_reduce(
        logp_N.double(), "sum", lengths=micro_batch.response_lengths, unsafe=True
    )
    return sums_R.to(logp_N.dtype)


def item_logps(
    model: Model, task: Task, batches: Iterable[Ints], ranks: Ranks, per_item: int
) -> Tensor:
    """[items of the task, per_item] on the CPU, without dropout; the same on all ranks. What is in
    none of the batches has 0. Batches of training give its micro-batches.
    """
    ranks.reshard()
    before = (model.training, model.checkpointing)
    model.eval()
    model.checkpointing = task.config.activation_checkpointing
    logps = torch.zeros(len(task.lengths), per_item, dtype=_sum_dtype(model))
    for items in batches:
        for micro_batch in ranks.micro_batches(items, task.lengths[items], task.micro_batches):
            sums = sequence_logps(model, micro_batch).detach().view(-1, per_item)
            if not micro_batch.idle:
                logps[torch.from_numpy(micro_batch.items)] = sums.cpu()
    model.train(before[0])
    model.checkpointing = before[1]
    ranks.reshard()
    return ranks.sum(logps.to(model.device)).cpu()


def _sum_dtype(model: Model) -> torch.dtype:
    return torch.float64 if model.dtype == torch.float64 else torch.float32
