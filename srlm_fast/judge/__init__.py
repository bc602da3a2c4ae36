"""The judge: what it is asked, how its score is read, and the pairs that come of it."""

from srlm_fast.judge.eft import EftCounts, EftSet, Ranked, build_eft
from srlm_fast.judge.pairs import PairConfig, PairSet, collect_scores, make_pairs, mean_score
from srlm_fast.judge.rewards import (
    JudgedReward,
    RandomReward,
    Reward,
    ScorerReward,
    score_candidates,
)
from srlm_fast.judge.rubric import DEFAULT_RUBRIC, Rubric
from srlm_fast.judge.rubric_file import read_rubric
from srlm_fast.judge.score import (
    DEFAULT_PATTERN,
    ScoreStatus,
    ScoreTable,
    compile_pattern,
    parse_score,
)

__all__ = [
    "DEFAULT_PATTERN",
    "DEFAULT_RUBRIC",
    "EftCounts",
    "EftSet",
    "JudgedReward",
    "PairConfig",
    "PairSet",
    "RandomReward",
    "Ranked",
    "Reward",
    "Rubric",
    "ScoreStatus",
    "ScoreTable",
    "ScorerReward",
    "build_eft",
    "collect_scores",
    "compile_pattern",
    "make_pairs",
    "mean_score",
    "parse_score",
    "read_rubric",
    "score_candidates",
]
