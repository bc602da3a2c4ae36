"""The operations, one file each: formula, eager reference, kernels, launcher, contract.

linear_logprob is the head and has files of its own below it: `logprob_route` (how a call is cut),
`head_blocks` (matmuls), `logit_rows` (what happens to logits between them), `head_softmax` (both
in one kernel), `pages` (memory given back early). `jit` holds Triton, `native` the C++ extension.
"""

from .dpo_loss import (
    DpoOutput,
    dpo_loss,
    dpo_loss_reference,
    dpo_loss_tokens,
    dpo_loss_tokens_reference,
)
from .judge_score import (
    ScoreStatus,
    ScoreTable,
    expected_scores,
    expected_scores_reference,
    extract_scores,
    extract_scores_reference,
)
from .linear_logprob import (
    LogprobOutput,
    linear_logprob,
    linear_logprob_reference,
    linear_logprob_route,
)
from .logprob_route import Route
from .rms_norm import (
    rms_norm,
    rms_norm_reference,
    rms_norm_residual,
    rms_norm_residual_reference,
)
from .rope import rope, rope_qk, rope_reference
from .sample_tokens import SamplingWorkspace, sample_tokens, sample_tokens_reference
from .swiglu import swiglu, swiglu_reference

__all__ = [
    "DpoOutput",
    "LogprobOutput",
    "Route",
    "SamplingWorkspace",
    "ScoreStatus",
    "ScoreTable",
    "dpo_loss",
    "dpo_loss_reference",
    "dpo_loss_tokens",
    "dpo_loss_tokens_reference",
    "expected_scores",
    "expected_scores_reference",
    "extract_scores",
    "extract_scores_reference",
    "linear_logprob",
    "linear_logprob_reference",
    "linear_logprob_route",
    "rms_norm",
    "rms_norm_reference",
    "rms_norm_residual",
    "rms_norm_residual_reference",
    "rope",
    "rope_qk",
    "rope_reference",
    "sample_tokens",
    "sample_tokens_reference",
    "swiglu",
    "swiglu_reference",
]
