"""Log-probs of responses under a model, from a packed stream.

Shape letters as in `packing`: R distinct responses of N tokens, S segments.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from srlm_fast.kernels import linear_logprob
from srlm_fast.model import Model, PackedContext

from .packing import MicroBatch


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
