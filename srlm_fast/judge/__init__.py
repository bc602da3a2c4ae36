"""The judge: what it is asked, how its score is read, and the pairs that come of it."""

from srlm_fast.judge.pairs import PairSet, collect_scores, make_pairs, mean_score
from srlm_fast.judge.rewards import (
    JudgedReward,
    RandomReward,
    Reward,
    ScorerReward,
    score_candidates,
)
from srlm_fast.judge.rubric import DEFAULT_RUBRIC, Rubric
from srlm_fast.judge.score import (
    DEFAULT_PATTERN,
    ScoreStatus,
    ScoreTable,
    compile_pattern,
    parse_score,
)
from srlm_fast.judge.score_place import ScorePlace

__all__ = [
    "DEFAULT_PATTERN",
    "DEFAULT_RUBRIC",
    "JudgedReward",
    "PairSet",
    "RandomReward",
    "Reward",
    "Rubric",
    "ScorePlace",
    "ScoreStatus",
    "ScoreTable",
    "ScorerReward",
    "collect_scores",
    "compile_pattern",
    "make_pairs",
    "mean_score",
    "parse_score",
    "score_candidates",
]
