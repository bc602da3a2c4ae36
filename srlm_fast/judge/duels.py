"""Answers of a model A against answers of a model B to the same prompts, and who won.

A judge that compares is asked in both orders, and wins only if both name the same answer: a
disagreement is a tie. A judge that scores answers one by one knows no order; scores no further
apart than a slack are a tie. What could not be read is neither a win nor a tie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from srlm_fast.judge.pairs import CandidateKey, Samples, mean_score
from srlm_fast.judge.pairwise import Comparison, PairKey
from srlm_fast.records import Candidate

MATCHES = ("all", "same")
SLACK = 1e-9  # means are sums of floats
Groups = Mapping[str, Sequence[Candidate]]  # prompt_id -> answers of one model
Match = tuple[Candidate, Candidate]  # an answer of A, an answer of B


@dataclass(frozen=True)
class Duel:
    """An answer of A against one of B. first, second: their indices. outcome: 1 where A's is the
    better one, 0 where B's is, 0.5 for a tie, None where nothing could be read (`status` says why).
    lengths: characters of both. orders: what a judge that compares said with A's shown first and
    with B's shown first: 1 for A, -1 for B, 0 for neither. identical: the same text, a tie.
    """

    prompt_id: str
    first: int
    second: int
    outcome: float | None
    lengths: tuple[int, int]
    status: str = "OK"
    orders: tuple[int, int] | None = None
    identical: bool = False


def matched(ours: Groups, theirs: Groups, match: str = "all") -> list[Match]:
    """The answers that meet: all of A's with all of B's to a prompt ("all"), or those of the same
    index ("same"). A prompt that one of the models did not answer is left out.
    """
    both = [(group, theirs[key]) for key, group in ours.items() if theirs.get(key)]
    return [
        (one, other)
        for group, others in both
        for one in group
        for other in others
        if match == "all" or one.index == other.index
    ]


def cross_pairs(matches: Iterable[Match]) -> dict[tuple[str, str], list[PairKey]]:
    """What a judge is to compare of one prompt: the different texts, A's first, each with all the
    pairs of answers that gave them. Identical texts are not compared.
    """
    found: dict[tuple[str, str], list[PairKey]] = {}
    for one, other in matches:
        if one.text != other.text:
            keys = found.setdefault((one.text, other.text), [])
            keys.append((one.prompt_id, one.index, other.index))
    return found


def by_comparison(
    matches: Iterable[Match], comparisons: Mapping[PairKey, Comparison]
) -> list[Duel]:
    """Duels by rows in which A's answer is the first one; a match without a row was too long."""
    return [
        _made(
            match, *_compared(comparisons.get((match[0].prompt_id, match[0].index, match[1].index)))
        )
        for match in matches
    ]


def _compared(row: Comparison | None) -> tuple[float | None, str, tuple[int, int] | None]:
    """(outcome, status, orders) of a row."""
    if row is None:
        return None, "TOO_LONG", None
    if row.score is None:
        return None, row.status, None
    orders = (_sign(row.forward - 0.5), _sign(row.backward - 0.5))
    return (1 + orders[0]) / 2 if orders[0] == orders[1] else 0.5, "OK", orders


def by_score(
    matches: Iterable[Match],
    ours: Mapping[CandidateKey, Samples],
    theirs: Mapping[CandidateKey, Samples],
    slack: float = SLACK,
) -> list[Duel]:
    """Duels by the mean scores of both answers. An answer without a row was too long."""
    return [
        _made((one, other), *_scored(_samples(ours, one), _samples(theirs, other), slack))
        for one, other in matches
    ]


def _samples(scores: Mapping[CandidateKey, Samples], answer: Candidate) -> Samples | None:
    return scores.get((answer.prompt_id, answer.index))


def _scored(ours: Samples | None, theirs: Samples | None, slack: float) -> tuple[float | None, str]:
    """(outcome, status) of two answers' scores."""
    if ours is None or theirs is None:
        return None, "TOO_LONG"
    one, other = mean_score(ours), mean_score(theirs)
    if one is None or other is None:
        return None, "NO_SCORE"
    return 0.5 if abs(one - other) <= max(slack, SLACK) else float(one > other), "OK"


def _made(
    match: Match, outcome: float | None, status: str, orders: tuple[int, int] | None = None
) -> Duel:
    one, other = match
    key, lengths = (one.prompt_id, one.index, other.index), (len(one.text), len(other.text))
    if one.text == other.text:
        return Duel(*key, 0.5, lengths, identical=True)
    return Duel(*key, outcome, lengths, status, orders)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
