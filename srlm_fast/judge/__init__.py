"""The judge: what it is asked, how its score is read, and the pairs that come of it."""

from srlm_fast.judge.best import best_rows, rank
from srlm_fast.judge.constitution import (
    DEFAULT_PRINCIPLES,
    Principle,
    RevisedReward,
    critique_text,
    revision_text,
)
from srlm_fast.judge.duels import (
    MATCHES,
    Duel,
    by_comparison,
    by_score,
    cross_pairs,
    matched,
)
from srlm_fast.judge.eft import EftCounts, EftSet, Ranked, build_eft
from srlm_fast.judge.pairs import PairConfig, PairSet, collect_scores, make_pairs, mean_score
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
from srlm_fast.judge.rubric_file import read_rubric
from srlm_fast.judge.score import DEFAULT_PATTERN, parse_score
from srlm_fast.judge.score_place import ScorePlace
from srlm_fast.judge.score_table import compile_pattern
from srlm_fast.kernels.judge_score import ScoreStatus, ScoreTable

__all__ = [
    "CHOICES",
    "DEFAULT_PAIR_PROMPT",
    "DEFAULT_PATTERN",
    "DEFAULT_PRINCIPLES",
    "DEFAULT_RUBRIC",
    "MATCHES",
    "Choice",
    "Comparison",
    "Duel",
    "EftCounts",
    "EftSet",
    "JudgedReward",
    "PairConfig",
    "PairKey",
    "PairPrompt",
    "PairSet",
    "PairwiseReward",
    "Principle",
    "RandomReward",
    "Ranked",
    "RevisedReward",
    "Reward",
    "Rubric",
    "ScorePlace",
    "ScoreStatus",
    "ScoreTable",
    "ScorerReward",
    "best_rows",
    "build_eft",
    "by_comparison",
    "by_score",
    "collect_scores",
    "compare",
    "compile_pattern",
    "critique_text",
    "cross_pairs",
    "make_pairs",
    "matched",
    "mean_score",
    "parse_score",
    "rank",
    "read_rubric",
    "revision_text",
    "score_candidates",
    "text_pairs",
    "with_labels",
]
