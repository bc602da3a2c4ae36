"""The judge: what it is asked, how its score is read, and the pairs that come of it."""

from srlm_fast.judge.best import best_rows, rank
from srlm_fast.judge.constitution import (
    DEFAULT_PRINCIPLES,
    Principle,
    RevisedReward,
    critique_text,
    revision_text,
)
from srlm_fast.judge.pairs import PairSet, collect_scores, make_pairs, mean_score
from srlm_fast.judge.rewards import (
    JudgedReward,
    RandomReward,
    Reward,
    ScorerReward,
    score_candidates,
)
from srlm_fast.judge.rubric import DEFAULT_RUBRIC, Rubric, defuse
from srlm_fast.judge.score import (
    DEFAULT_PATTERN,
    ScoreStatus,
    ScoreTable,
    compile_pattern,
    parse_score,
)

__all__ = [
    "DEFAULT_PATTERN",
    "DEFAULT_PRINCIPLES",
    "DEFAULT_RUBRIC",
    "JudgedReward",
    "PairSet",
    "Principle",
    "RandomReward",
    "RevisedReward",
    "Reward",
    "Rubric",
    "ScoreStatus",
    "ScoreTable",
    "ScorerReward",
    "best_rows",
    "collect_scores",
    "compile_pattern",
    "critique_text",
    "defuse",
    "make_pairs",
    "mean_score",
    "parse_score",
    "rank",
    "revision_text",
    "score_candidates",
]
