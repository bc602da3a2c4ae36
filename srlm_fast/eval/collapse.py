"""What a model's answers have become: figures that move when a model feeds on its own output."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from srlm_fast.eval.ngrams import ngrams
from srlm_fast.eval.self_bleu import self_bleu
from srlm_fast.records import Candidate

OPENING = 20  # tokens
SELF_BLEU_TEXTS = 256
QUANTILES = {"length_p5": 0.05, "length_p50": 0.5, "length_p95": 0.95}


def collapse_figures(candidates: Iterable[Candidate]) -> dict[str, Any]:
    """Figures over answers already sampled; None where there is nothing to measure.

    distinct_1, distinct_2, distinct_3: different words, or runs of two or three neighbouring words,
    over all of them (arXiv 1510.03055); `ngrams` says what a word is. They fall with the amount of
    text: compare equal numbers of answers.
    self_bleu: of the first answers to at most 256 prompts, spread evenly over all of them, so that
    sets of the same prompts can be compared; likeness of answers to different prompts, while
    unique looks at one prompt's: different answers to the same prompt over all answers.
    repeated_openings: share of the answers whose first 20 tokens also open an answer to another
    prompt; a shorter answer is its own opening.
    end_of_text: share of the answers that ended by themselves. length_mean, length_p5, length_p50,
    length_p95: characters, mean and quantiles; tokens_mean: tokens. entropy: mean of -log p over
    the sampled tokens, in nats per token at temperature 1, which estimates the entropy of the
    output where that was sampled as it is. n: answers.
    """
    rows = list(candidates)
    num_tokens = sum(len(row.token_ids) for row in rows)
    lengths = [len(row.text) for row in rows]
    return {
        **distinct_shares([row.text for row in rows]),
        "self_bleu": self_bleu([row.text for row in one_of_each_prompt(rows)]),
        "unique": _share(len({(row.prompt_id, row.text) for row in rows}), len(rows)),
        "repeated_openings": repeated_openings(rows),
        "end_of_text": _share(sum(row.finish_reason == "stop" for row in rows), len(rows)),
        "length_mean": _share(sum(lengths), len(rows)),
        **{name: _quantile(lengths, share) for name, share in QUANTILES.items()},
        "tokens_mean": _share(num_tokens, len(rows)),
        "entropy": _share(-sum(row.logprob for row in rows), num_tokens),
        "n": len(rows),
    }


def distinct_shares(texts: Sequence[str]) -> dict[str, float | None]:
    return {
        f"distinct_{n}": _share(found.num_different, len(found.keys))
        for n, found in enumerate(ngrams(texts, 3), 1)
    }


def one_of_each_prompt(rows: Sequence[Candidate], most: int = SELF_BLEU_TEXTS) -> list[Candidate]:
    """The first answer to each prompt, of `most` prompts spread evenly where there are more."""
    firsts = list({row.prompt_id: row for row in reversed(rows)}.values())[::-1]
    if len(firsts) <= most:
        return firsts
    return [firsts[i * len(firsts) // most] for i in range(most)]


def repeated_openings(rows: Sequence[Candidate]) -> float | None:
    openings = [row.token_ids[:OPENING] for row in rows]
    prompts: dict[Hashable, set[str]] = defaultdict(set)
    for row, opening in zip(rows, openings, strict=True):
        prompts[opening].add(row.prompt_id)
    return _share(sum(len(prompts[opening]) > 1 for opening in openings), len(rows))


def _quantile(values: Sequence[int], share: float) -> float | None:
    return float(np.quantile(values, share)) if values else None


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
