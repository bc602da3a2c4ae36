"""Figures: the judge against people, intervals, and what a model's answers have become."""

from srlm_fast.eval.alarms import Alarm, alarms
from srlm_fast.eval.collapse import collapse_figures
from srlm_fast.eval.interval import mean_interval
from srlm_fast.eval.judge_table import JudgeRow, judge_table
from srlm_fast.eval.reward_bench import section_scores
from srlm_fast.eval.win_rate import win_rate

__all__ = [
    "Alarm",
    "JudgeRow",
    "alarms",
    "collapse_figures",
    "judge_table",
    "mean_interval",
    "section_scores",
    "win_rate",
]
