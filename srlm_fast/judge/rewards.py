"""Where the scores of the candidates come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from srlm_fast.judge.pairs import CandidateKey, collect_scores
from srlm_fast.records import Candidate, Judgement, Prompt


class Reward(Protocol):
    """Gives a candidate its scores, one per judge sample, None where one could not be read."""

    def scores(self, prompt: Prompt, candidate: Candidate) -> list[float | None]: ...


class JudgedReward:
    """The scores that a judge wrote, be it the live model or a frozen one. Unjudged candidates have
    none."""

    def __init__(self, judgements: Iterable[Judgement]) -> None:
        self._scores = collect_scores(judgements)

    def scores(self, prompt: Prompt, candidate: Candidate) -> list[float | None]:
        return list(self._scores.get((prompt.prompt_id, candidate.index), ()))


@dataclass(frozen=True)
class RandomReward:
    """A control: integers drawn evenly from low..high that know nothing of the answer.

    Keyed by the seed and the two texts, so the same answer has the same scores in any order and
    after a restart.
    """

    seed: int = 0
    samples: int = 3
    low: int = 0
    high: int = 5

    def scores(self, prompt: Prompt, candidate: Candidate) -> list[float | None]:
        return [self._draw(prompt.text, candidate.text, n) for n in range(self.samples)]

    def _draw(self, question: str, answer: str, sample: int) -> float:
        # Lengths in front, so that no text can pass for another split of the same bytes.
        parts = [
            str(part).encode(errors="surrogatepass")
            for part in (self.seed, sample, question, answer)
        ]
        message = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        digest = hashlib.sha256(message).digest()
        return float(self.low + int.from_bytes(digest, "little") % (self.high - self.low + 1))


@dataclass(frozen=True)
class ScorerReward:
    """A program that scores an answer: (prompt text, response text) -> score."""

    scorer: Callable[[str, str], float]

    def scores(self, prompt: Prompt, candidate: Candidate) -> list[float | None]:
        return [float(self.scorer(prompt.text, candidate.text))]


def score_candidates(
    reward: Reward, prompts: Iterable[Prompt], candidates: Iterable[Candidate]
) -> Mapping[CandidateKey, list[float | None]]:
    """The scores of all candidates, as `make_pairs` takes them."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return {(c.prompt_id, c.index): reward.scores(by_id[c.prompt_id], c) for c in candidates}
