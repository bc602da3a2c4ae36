"""The rows of a round, joined by prompt: what is counted, drawn and browsed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from srlm_fast.damage import way_out
from srlm_fast.records import InputError, iter_jsonl

PAIR, OPEN, UNKNOWN = "pair", "not_decided", "no_pair"


@dataclass
class Answer:
    """A candidate. scores: None where one could not be read; judgements: (score, status, text).
    role: "chosen", "rejected", "taught" (by SFT), or "".
    """

    index: int
    text: str
    finish: str
    role: str = ""
    scores: list[float | None] = field(default_factory=list)
    judgements: list[tuple[float | None, str, str]] = field(default_factory=list)

    @property
    def read(self) -> list[float]:
        return [score for score in self.scores if score is not None and math.isfinite(score)]

    @property
    def mean(self) -> float | None:
        return fmean(self.read) if self.read else None


@dataclass
class Example:
    """A prompt with all that became of it.

    outcome: PAIR, why there is none, OPEN before the pairs are made, UNKNOWN where reasons were not
    kept. margin: score of the chosen one less that of the rejected one. comparisons: (first,
    second, P(first is better), status); critiques: (principle, text).
    """

    prompt_id: str
    text: str
    source: str
    turns: list[tuple[str, str]]
    answers: list[Answer]
    outcome: str = OPEN
    margin: float | None = None
    comparisons: list[tuple[int, int, float | None, str]] = field(default_factory=list)
    critiques: list[tuple[int, str]] = field(default_factory=list)

    @property
    def means(self) -> list[float]:
        return [mean for answer in self.answers if (mean := answer.mean) is not None]


def read_round(folder: Path) -> list[Example]:
    """One Example for each prompt of `prompts.jsonl` that has candidates, in its order. Raises
    InputError naming the file with a row that lacks something.
    """
    answers = read_answers(folder)
    found = [
        Example(key, row["text"], row.get("source", ""), turns(row), answers[key])
        for row in rows_of(folder / "prompts.jsonl", "prompt_id", "text")
        if (key := row["prompt_id"]) in answers
    ]
    add_comparisons(folder, found)
    chains = {
        row["prompt_id"]: row for row in rows_of(folder / "revisions.jsonl", "prompt_id", "reason")
    }
    pairs = {
        row["prompt_id"]: row
        for row in rows_of(folder / "pairs.jsonl", "prompt_id", "chosen_index", "rejected_index")
    }
    add_taught(folder, found)
    for example in found:
        add_chain(example, chains.get(example.prompt_id))
        add_pair(example, pairs.get(example.prompt_id))
    add_reasons(folder, found)
    return found


def rows_of(path: Path, *keys: str) -> Iterator[dict[str, Any]]:
    """The rows of a file of a round that may not be there. Raises InputError for one that is no row
    or lacks a key.
    """
    try:
        for number, row in enumerate(iter_jsonl(path), 1):
            missing = [key for key in keys if key not in row]
            if missing:
                raise InputError(
                    f"{path} row {number}: found no {missing[0]!r}, wanted what a run has"
                )
            yield row
    except InputError as error:
        raise InputError(f"{error}; {way_out(path.parent)}") from None


def turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, content) of what was said before the prompt."""
    return [(each["role"], each["content"]) for each in row.get("turns") or ()]


def read_answers(folder: Path) -> dict[str, list[Answer]]:
    """The candidates of each prompt by index, with their judgements by sample."""
    answers: dict[str, list[Answer]] = defaultdict(list)
    by_key: dict[tuple[str, int], Answer] = {}
    for row in rows_of(folder / "candidates.jsonl", "prompt_id", "index", "text"):
        made = Answer(row["index"], row["text"], row.get("finish_reason", ""))
        answers[row["prompt_id"]].append(made)
        by_key[row["prompt_id"], row["index"]] = made
    judged = rows_of(folder / "judgements.jsonl", "prompt_id", "candidate", "score")
    for row in sorted(judged, key=lambda row: row.get("sample", 0)):
        answer = by_key.get((row["prompt_id"], row["candidate"]))
        if answer is not None:
            answer.scores.append(row["score"])
            given = (row["score"], row.get("status", ""), row.get("text", ""))
            answer.judgements.append(given)
    for group in answers.values():
        group.sort(key=lambda answer: answer.index)
    return dict(answers)


def add_comparisons(folder: Path, examples: Sequence[Example]) -> None:
    """`--reward pairwise`: an answer's scores are its probabilities of being the better one."""
    by_id = {example.prompt_id: example for example in examples}
    for row in rows_of(folder / "comparisons.jsonl", "prompt_id", "first", "second", "score"):
        example = by_id.get(row["prompt_id"])
        if example is not None:
            made = (row["first"], row["second"], row["score"], row.get("status", ""))
            example.comparisons.append(made)
    for example in examples:
        answers = {answer.index: answer for answer in example.answers}
        for first, second, score, _ in example.comparisons:
            if first in answers and second in answers:
                answers[first].scores.append(score)
                answers[second].scores.append(None if score is None else 1 - score)


def add_chain(example: Example, chain: Mapping[str, Any] | None) -> None:
    """`--reward constitution`: what was criticised between the answers."""
    for made in (chain or {}).get("critiques") or ():
        example.critiques.append((made.get("principle", 0), made.get("critique", "")))


def add_taught(folder: Path, examples: Sequence[Example]) -> None:
    """`--reward best-of-n`: which answer was taught."""
    taught = {
        row["prompt_id"]: row["index"]
        for row in rows_of(folder / "sft.jsonl")
        if "prompt_id" in row and "index" in row
    }
    for example in examples:
        for answer in example.answers:
            if taught.get(example.prompt_id) == answer.index:
                answer.role = "taught"


def add_pair(example: Example, pair: Mapping[str, Any] | None) -> None:
    if pair is None:
        return
    example.outcome = PAIR
    roles = {pair["chosen_index"]: "chosen", pair["rejected_index"]: "rejected"}
    for answer in example.answers:
        answer.role = roles.get(answer.index, answer.role)
    chosen, rejected = pair.get("score_chosen"), pair.get("score_rejected")
    if chosen is not None and rejected is not None:
        example.margin = chosen - rejected
    if not example.means:  # a reward that keeps no rows of its own leaves its scores in the pair
        for answer, scores in zip(example.answers, pair.get("scores") or (), strict=False):
            answer.scores = list(scores)


def add_reasons(folder: Path, examples: Sequence[Example]) -> None:
    """Why the prompts that gave no pair gave none, once that is decided; runs of before do not have
    it.
    """
    path = folder / "dropped.jsonl"
    reasons = {row["prompt_id"]: row["reason"] for row in rows_of(path, "prompt_id", "reason")}
    told = OPEN if path.exists() or not (folder / "pairs.jsonl").exists() else UNKNOWN
    for example in examples:
        if example.outcome != PAIR:
            example.outcome = reasons.get(example.prompt_id, told)
