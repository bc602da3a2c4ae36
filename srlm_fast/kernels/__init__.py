"""The operations, one file each: formula, eager reference, fast form, contract."""

from .dpo_loss import DpoOutput, dpo_loss, dpo_loss_reference
from .judge_score import (
    ScoreStatus,
    ScoreTable,
    expected_scores,
    expected_scores_reference,
    extract_scores,
    extract_scores_reference,
)
from .linear_logprob import linear_logprob, linear_logprob_reference
from .rms_norm import rms_norm, rms_norm_reference
from .rope import rope, rope_reference
from .swiglu import swiglu, swiglu_reference

__all__ = [
    "DpoOutput",
    "ScoreStatus",
    "ScoreTable",
    "dpo_loss",
    "dpo_loss_reference",
    "expected_scores",
    "expected_scores_reference",
    "extract_scores",
    "extract_scores_reference",
    "linear_logprob",
    "linear_logprob_reference",
    "rms_norm",
    "rms_norm_reference",
    "rope",
    "rope_reference",
    "swiglu",
    "swiglu_reference",
]
