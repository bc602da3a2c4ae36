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
    logp_N = linear_logprob(
        hidden_TD.index_select(0, micro_batch.rows),
        model.head,
        micro_batch.targets,
        ignore_index=None,
    )
    assert isinstance(logp_N, Tensor)  # nothing else was asked for
    return logp_N


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
