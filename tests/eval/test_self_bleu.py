"""Self-BLEU: hand-worked, against a plain twin and against NLTK."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from srlm_fast.eval.self_bleu import bleu_of_each, self_bleu


def plain_bleu(text: list[str], others: list[list[str]]) -> float:
    """By the formula, reference by reference."""

    def runs(of: list[str], n: int) -> Counter[tuple[str, ...]]:
        return Counter(tuple(of[i : i + n]) for i in range(len(of) - n + 1))

    if not set(text) & {word for other in others for word in other}:
        return 0.0
    logs = []
    for n in range(1, min(4, len(text)) + 1):
        own, total = runs(text, n), len(text) - n + 1
        matched = sum(min(c, max(runs(other, n)[g] for other in others)) for g, c in own.items())
        logs.append(math.log((matched or 0.1) / total))
    nearest = min((abs(len(o) - len(text)), len(o)) for o in others)[1]
    return math.exp(sum(logs) / len(logs)) * math.exp(min(0.0, 1 - nearest / len(text)))


def drawn(seed: int, num: int, shortest: int) -> list[list[str]]:
    rng = random.Random(seed)
    letters = "abcdef" if seed % 2 else "abcdefghijklmnopqrstuvw"
    return [rng.choices(letters, k=rng.randint(shortest, 12)) for _ in range(num)]


def apart(texts: list[list[str]], i: int) -> list[list[str]]:
    return texts[:i] + texts[i + 1 :]


HAND_WORKED = {
    # 4/5 words, 3/4 pairs, 2/3 triples, 1/2 quadruples; nobody has the third text's words.
    "shared": (["a b c d e", "a b c d f", "x y"], [0.2**0.25, 0.2**0.25, 0.0]),
    "equal, and too short for four": (["a b", "a b"], [1.0, 1.0]),
    # Pairs and triples of the first have no match: 0.1 in its place. The second is too short: 1/3.
    "smoothed": (["a b c", "a"], [(1 / 3 * 0.1 / 2 * 0.1 / 1) ** (1 / 3), math.exp(1 - 3)]),
    # Counted as often as one other text has it: twice, not three times.
    "clipped": (
        ["a a a", "a a", "a b"],
        [(2 / 3 * 1 / 2 * 0.1) ** (1 / 3), 1.0, (0.5 * 0.1) ** 0.5],
    ),
    # 2 and 6 are as near to 4: the smaller one, so no penalty. To 2 and to 6 nearest is 4.
    "nearest": (
        ["a b c d", "a b", "a b c d e f"],
        [1.0, math.exp(1 - 4 / 2), (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25],
    ),
    "empty": (["", "", "a"], [0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("texts, wanted", HAND_WORKED.values(), ids=HAND_WORKED)
def test_hand_worked(texts, wanted):
    assert bleu_of_each(texts) == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(6))
def test_against_the_plain_twin(seed):
    texts = drawn(seed, 12, 1)
    wanted = [plain_bleu(text, apart(texts, i)) for i, text in enumerate(texts)]
    joined = [" ".join(text) for text in texts]
    assert bleu_of_each(joined) == pytest.approx(wanted, abs=1e-12)
    assert self_bleu(joined) == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_against_nltk(seed):
    """NLTK counts a run that a short text cannot have as one without a match: no short ones."""
    texts, smoothing = drawn(seed, 15, 4), SmoothingFunction().method1
    wanted = [
        sentence_bleu(apart(texts, i), text, smoothing_function=smoothing)
        for i, text in enumerate(texts)
    ]
    assert bleu_of_each([" ".join(text) for text in texts]) == pytest.approx(wanted, abs=1e-12)


def test_one_text_is_like_nothing():
    assert self_bleu([]) is None and self_bleu(["a b c"]) is None
