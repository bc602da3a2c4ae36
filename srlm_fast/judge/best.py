"""Best of n: the one answer to a prompt that is scored highest."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srlm_fast.judge.pairs import CandidateKey, Samples, mean_score, valid_scores
from srlm_fast.records import Candidate, Prompt


def rank(samples: Sequence[Samples]) -> list[int]:
    """Indices of the answers with a score that could be read, the best first: by mean, then by the
    lowest variance of the judge (unknown for a single score, so last), then by index.
    """

    def order(index: int) -> tuple[float, float, int]:
        valid = valid_scores(samples[index])
        spread = statistics.pvariance(valid) if len(valid) > 1 else math.inf
        return -math.fsum(valid) / len(valid), spread, index

    return sorted((i for i, scores in enumerate(samples) if valid_scores(scores)), key=order)


def best_rows(
    prompts: Sequence[Prompt],
    candidates: Iterable[Candidate],
    scores: Mapping[CandidateKey, Samples],
    min_valid: int = 1,
) -> list[dict[str, Any]]:
    """For each prompt its best answer, in the order of the prompts: prompt_id, prompt, response,
    index (of the candidate), score, and turns where there are some before the prompt. An answer
    with fewer than `min_valid` scores that could be read takes no part; a prompt of such answers
    alone has no row.
    """
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.prompt_id].append(candidate)
    rows = []
    for prompt in prompts:
        group = sorted(groups[prompt.prompt_id], key=lambda c: c.index)
        given = [scores.get((c.prompt_id, c.index), ()) for c in group]
        samples = [each if len(valid_scores(each)) >= min_valid else () for each in given]
        for i in rank(samples)[:1]:
            found = {"response": group[i].text, "index": group[i].index}
            asked = {"prompt_id": prompt.prompt_id, "prompt": prompt.text}
            turns = {"turns": list(prompt.turns)} if prompt.turns else {}
            rows.append(asked | turns | found | {"score": mean_score(samples[i])})
    return rows
