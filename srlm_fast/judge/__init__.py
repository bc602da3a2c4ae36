"""The judge: what it is asked, how its score is read, and the pairs that come of it."""

from srlm_fast.judge.pairs import PairSet, collect_scores, make_pairs, mean_score
from srlm_fast.judge.pairwise import (
    CHOICES,
    DEFAULT_PAIR_PROMPT,
    Choice,
    Comparison,
    PairKey,
    PairPrompt,
    PairwiseReward,
    compare,
    text_pairs,
    with_labels,
)
from srlm_fast.judge.rewards import (
    JudgedReward,
    RandomReward,
    Reward,
    ScorerReward,
    score_candidates,
)
from srlm_fast.judge.rubric import DEFAULT_RUBRIC, Rubric
from srlm_fast.judge.score import DEFAULT_PATTERN, parse_score
from srlm_fast.judge.score_place import ScorePlace
from srlm_fast.judge.score_table import compile_pattern
from srlm_fast.kernels.judge_score import ScoreStatus, ScoreTable

__all__ = [
    "CHOICES",
    "DEFAULT_PAIR_PROMPT",
    "DEFAULT_PATTERN",
    "DEFAULT_RUBRIC",
    "Choice",
    "Comparison",
    "JudgedReward",
    "PairKey",
    "PairPrompt",
    "PairSet",
    "PairwiseReward",
    "RandomReward",
    "Reward",
    "Rubric",
    "ScorePlace",
    "ScoreStatus",
    "ScoreTable",
    "ScorerReward",
    "collect_scores",
    "compare",
    "compile_pattern",
    "make_pairs",
    "mean_score",
    "parse_score",
    "score_candidates",
    "text_pairs",
    "with_labels",
]
