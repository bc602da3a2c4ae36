"""Log-probs of responses under a model, by segment of a packed stream."""

from __future__ import annotations

import torch
from torch import Tensor

from srlm_fast.kernels import linear_logprob
from srlm_fast.model import Model, PackedContext

from .packing import MicroBatch


def token_logps(model: Model, micro_batch: MicroBatch) -> Tensor:
    """[N] fp32 nats (fp64 for an fp64 model), of each segment's response tokens in turn.

    Only rows that predict a response token reach the head.
    """
    context = PackedContext(micro_batch.lengths, model.config.windows, model.device)
    hidden_TD = model(micro_batch.token_ids, context.positions, context)
    rows_ND = hidden_TD.index_select(0, micro_batch.rows)
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
    logp_N = token_logps(model, micro_batch)
    sums_S = torch.segment_reduce(
        logp_N.double(), "sum", lengths=micro_batch.response_lengths, unsafe=True
    )
    return sums_S.to(logp_N.dtype)
