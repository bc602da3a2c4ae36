"""Self-BLEU: how much a set's texts are like each other (Zhu et al. 2018, arXiv 1802.01886).

BLEU-4 of each text with all others as references (Papineni et al. 2002), averaged. 1: all are the
same; near 0: they share no phrases. It rises with the size of the set: compare sets of equal size.

    BLEU = exp(mean over n of log p_n) * exp(min(0, 1 - r / c))

p_n: of the text's runs of n words the share that some other text has, each counted as often as that
other text has it at most. c: the text's number of words, r: the nearest to it of another text, the
smaller of two. Smoothing: a p_n of 0 counts as 0.1 / (runs of n words), method 1 of Chen & Cherry
2014. A text of fewer than four words is measured with the n that it has; one that shares no word
with another, or has none, has BLEU 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from srlm_fast.eval.ngrams import Ints, NGrams, ngrams

ORDERS = 4
SMOOTHED = 0.1  # in place of no match

Floats = NDArray[np.float64]


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean, 0 to 1; None for fewer than two texts. Takes time and memory in proportion to the
    number of words, however many texts there are.
    """
    return float(bleu_of_each(texts).mean()) if len(texts) > 1 else None


def bleu_of_each(texts: Sequence[str]) -> Floats:
    """BLEU of each of at least two texts against all others: [N]."""
    count = len(texts)
    logs, orders, lengths, shares_a_word = np.zeros(count), np.zeros(count), None, None
    for found in ngrams(texts, ORDERS):
        matched, total = _matches(found, count)
        if lengths is None:
            lengths, shares_a_word = total, matched > 0
        has = total > 0
        logs[has] += np.log(np.maximum(matched, SMOOTHED)[has] / total[has])
        orders += has
    assert lengths is not None and shares_a_word is not None
    means = np.exp(logs / np.maximum(orders, 1)) * _brevity(lengths)
    return np.where(shares_a_word, means, 0.0)


def _matches(found: NGrams, num_texts: int) -> tuple[Ints, Ints]:
    """(runs of each text that another one has, all of its runs): int64 [N] each."""
    size = max(found.num_different, 1)
    places, counts = np.unique(found.owners * size + found.keys, return_counts=True)
    owners, keys = places // size, places % size
    matched = np.minimum(counts, _most_elsewhere(keys, counts))
    sums = [np.bincount(owners, values, num_texts) for values in (matched, counts)]
    return sums[0].astype(np.int64), sums[1].astype(np.int64)


def _most_elsewhere(keys: Ints, counts: Ints) -> Ints:
    """For each (text, key) the most that another text has of the key, 0 where none has it: the
    largest count of the key, or the second largest for the text that has the largest.
    """
    order = np.lexsort((-counts, keys))
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    several = np.diff(np.append(first, len(keys))) > 1
    most = np.repeat(counts[first], np.diff(np.append(first, len(keys))))
    most[first] = 0
    most[first[several]] = counts[first[several] + 1]
    found = np.empty_like(most)
    found[order] = most
    return found


def _brevity(lengths: Ints) -> Floats:
    """The penalty of each text for being shorter than the nearest other one: [N]."""
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order].astype(np.float64)
    below = np.concatenate([[-np.inf], ranked[:-1]])
    above = np.concatenate([ranked[1:], [np.inf]])
    nearest = np.where(ranked - below <= above - ranked, below, above)
    found = np.empty(len(ranked))
    found[order] = np.exp(np.minimum(0.0, 1.0 - nearest / np.maximum(ranked, 1.0)))
    return found
