"""The operations, one file each: formula, eager reference, kernels, launcher, contract.

linear_logprob is the head and has files of its own below it: `logprob_route` (how a call is cut),
`head_blocks` (matmuls), `logit_rows` (what happens to logits between them), `head_softmax` (both
in one kernel), `pages` (memory given back early). Attention over a paged KV cache: `kv_pages` (how
keys and values get there), `rope_kv` (with all that comes before, in one launch), `attention_work`
(what a step has to do), `paged_attention`. Attention of packed segments: `segment_attention`, on a
GPU with `tree_attention`. `jit` holds Triton, `native` the C++ extension; `vector_maths` makes
PyTorch's own ready for threads.
"""

from . import vector_maths  # noqa: F401  first: nothing is computed before
from .attention_work import Capacity, DecodeConfig, PagedWork
from .dpo_loss import (
    DpoOutput,
    dpo_loss,
    dpo_loss_reference,
    dpo_loss_tokens,
    dpo_loss_tokens_reference,
)
from .expected_scores import (
    ScoreDistribution,
    expected_scores,
    expected_scores_reference,
    score_distribution,
    score_distribution_reference,
)
from .judge_score import (
    ScoreStatus,
    ScoreTable,
    extract_scores,
    extract_scores_reference,
)
from .kv_pages import write_kv, write_kv_reference
from .linear_logprob import (
    LogprobOutput,
    linear_logprob,
    linear_logprob_reference,
    linear_logprob_route,
)
from .logprob_route import Route
from .paged_attention import paged_attention, paged_attention_reference
from .quantise_rows import quantise_rows, quantise_rows_reference
from .rms_norm import (
    rms_norm,
    rms_norm_reference,
    rms_norm_residual,
    rms_norm_residual_reference,
)
from .rope import rope, rope_qk, rope_qkv, rope_reference
from .rope_kv import rope_write_kv, rope_write_kv_reference
from .sample_tokens import SamplingWorkspace, sample_tokens, sample_tokens_reference
from .segment_attention import Segments, segment_attention, segment_attention_reference
from .swiglu import swiglu, swiglu_reference

__all__ = [
    "Capacity",
    "DecodeConfig",
    "DpoOutput",
    "LogprobOutput",
    "PagedWork",
    "Route",
    "SamplingWorkspace",
    "ScoreDistribution",
    "ScoreStatus",
    "ScoreTable",
    "Segments",
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
    "paged_attention",
    "paged_attention_reference",
    "quantise_rows",
    "quantise_rows_reference",
    "rms_norm",
    "rms_norm_reference",
    "rms_norm_residual",
    "rms_norm_residual_reference",
    "rope",
    "rope_qk",
    "rope_qkv",
    "rope_reference",
    "rope_write_kv",
    "rope_write_kv_reference",
    "sample_tokens",
    "sample_tokens_reference",
    "score_distribution",
    "score_distribution_reference",
    "segment_attention",
    "segment_attention_reference",
    "swiglu",
    "swiglu_reference",
    "write_kv",
    "write_kv_reference",
]
