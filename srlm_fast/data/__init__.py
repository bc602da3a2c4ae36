"""Rows that go in: seeds, the user's prompts, and prompts that the model makes up."""

from srlm_fast.data.preferences import PreferenceRow, read_preferences
from srlm_fast.data.principles import PrincipleRow, read_principles
from srlm_fast.data.prompts import read_prompts
from srlm_fast.data.ranked import RankedRow, read_ranked
from srlm_fast.data.rouge import RougePool, word_pairs, words
from srlm_fast.data.seeds import (
    EftEvalRow,
    EftRow,
    IftRow,
    read_eft,
    read_eft_eval,
    read_eft_or_ranked,
    read_ift,
)
from srlm_fast.data.selfmade import MadePrompts, Progress, PromptConfig, make_prompts, same_text

__all__ = [
    "EftEvalRow",
    "EftRow",
    "IftRow",
    "MadePrompts",
    "PreferenceRow",
    "PrincipleRow",
    "Progress",
    "PromptConfig",
    "RankedRow",
    "RougePool",
    "make_prompts",
    "read_eft",
    "read_eft_eval",
    "read_eft_or_ranked",
    "read_ift",
    "read_preferences",
    "read_principles",
    "read_prompts",
    "read_ranked",
    "same_text",
    "word_pairs",
    "words",
]
