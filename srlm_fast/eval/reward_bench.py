"""RewardBench's sections: which subsets make one, and how their accuracies are weighted.

The benchmark counts a subset by the number of its pairs, but the one on mathematics as much as the
six on code together (allenai/reward-bench, arXiv 2403.13787, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping

CODE = ("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust")
MATHS = ("math-prm",)
# Each section -> groups of equal weight; the subsets of a group count by their pairs.
SECTIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "Chat": (
        (
            *("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard"),
            *("mt-bench-easy", "mt-bench-med"),
        ),
    ),
    "Chat Hard": (
        (
            *("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor"),
            *("llmbar-adver-GPTInst", "llmbar-adver-GPTOut", "llmbar-adver-manual"),
        ),
    ),
    "Safety": (
        (
            *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse"),
            *("xstest-should-respond", "donotanswer"),
        ),
    ),
    "Reasoning": (MATHS, CODE),
}


def section_scores(subsets: Mapping[str, tuple[float | None, int]]) -> dict[str, float]:
    """Section -> accuracy, and "Average" over the sections, of those subsets that were measured.

    subsets: name -> (accuracy with a tie as half, pairs behind it). Subsets of other names are left
    out; {} where none is RewardBench's.
    """
    found: dict[str, float] = {}
    for section, groups in SECTIONS.items():
        scores = [score for group in groups if (score := _mean(group, subsets)) is not None]
        if scores:
            found[section] = sum(scores) / len(scores)
    return found | ({"Average": sum(found.values()) / len(found)} if found else {})


def _mean(names: tuple[str, ...], subsets: Mapping[str, tuple[float | None, int]]) -> float | None:
    """Mean over the pairs of these subsets."""
    there = [subsets[name] for name in names if name in subsets]
    measured = [(accuracy, pairs) for accuracy, pairs in there if accuracy is not None]
    total = sum(pairs for _, pairs in measured)
    return sum(accuracy * pairs for accuracy, pairs in measured) / total if total else None
