"""EFT from ranked answers: agreement and the flattened histogram, by hand and by brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest

from srlm_fast.judge import Ranked, build_eft
from srlm_fast.judge.eft import flatten, histogram
from srlm_fast.records import Judgement, Prompt


def ranked(people: list[float], name: str = "p") -> Ranked:
    return Ranked(Prompt(name, f"Q {name}", "seed"), [f"a{k}" for k in range(len(people))], people)


def judged(*samples: list[float | None], name: str = "p") -> list[Judgement]:
    """samples: of each answer the scores of its judgements, None for one that was not read."""
    return [
        Judgement(name, k, s, f"So {score}.\n", score, "OK" if score is not None else "MISSING")
        for k, scores in enumerate(samples)
        for s, score in enumerate(scores)
    ]


def kept(people: list[float], *samples: list[float | None]) -> list[tuple[int, int]] | str:
    """(candidate, sample) of the kept judgements, or why there are none."""
    made = build_eft([ranked(people)], judged(*samples))
    if made.counts.agreeing:
        assert made.counts.flattened == made.counts.agreed - len(made.rows)
        return [(row["candidate"], row["sample"]) for row in made.rows]
    return next(reason for reason, count in made.counts.dropped.items() if count)


def test_an_order_that_agrees_is_kept_whole():
    assert kept([3, 1, 2], [5], [0], [4]) == [(0, 0), (1, 0), (2, 0)]


def test_a_tie_of_the_judge_does_not_agree():
    assert kept([2, 1], [4], [4]) == "disagreeing"
    assert kept([2, 1], [3], [4]) == "disagreeing"
    assert kept([3, 2, 1], [5], [4], [4]) == "disagreeing"


def test_answers_that_people_score_alike_are_free():
    assert kept([2, 2, 1], [5], [3], [0]) == [(0, 0), (1, 0), (2, 0)]
    assert kept([2, 2, 1], [5], [5], [0]) != "disagreeing"
    assert kept([2, 2, 1], [5], [0], [0]) == "disagreeing"


def test_of_several_samples_those_nearest_to_the_means_are_kept():
    # Means 11/3 and 1: of the choices that agree, 4 over 1 lies nearest.
    assert kept([2, 1], [5, 2, 4], [1, 0, 2]) == [(0, 2), (1, 0)]
    # Only 3 over 2 would agree, but the means do not.
    assert kept([2, 1], [0, 3, 1], [4, 5, 2]) == "disagreeing"
    # Means 5/3 and 1: 1 over 0 lies nearer than 3 over 0 or 3 over 2.
    assert kept([2, 1], [1, 1, 3], [0, 2]) == [(0, 0), (1, 0)]
    # Equally near: the lowest sample.
    assert kept([2, 1], [4, 4], [1, 1]) == [(0, 0), (1, 0)]


def test_what_is_not_read_takes_no_part():
    assert kept([3, 2, 1], [5], [None], [0]) == [(0, 0), (2, 0)]
    assert kept([2, 1], [5], [None, None]) == "unread"
    assert kept([2, 2, 1], [5], [3], [None]) == "unread"
    assert kept([2, 1]) == "unread"
    assert kept([2, 2], [5], [3]) == "unranked"


def test_against_every_choice():
    draw = random.Random(3)
    outcomes = Counter()
    for _ in range(400):
        people = [draw.randint(1, 3) for _ in range(draw.randint(2, 4))]
        samples = [draw.choices([None, 0, 1, 2, 3, 4, 5], k=draw.randint(1, 3)) for _ in people]
        read = [(k, [s for s in given if s is not None]) for k, given in enumerate(samples)]
        read = [(k, given) for k, given in read if given]
        costs = []
        for choice in itertools.product(*[given for _, given in read]):
            pairs = list(zip([people[k] for k, _ in read], choice, strict=True))
            if all(c > d for (a, c), (b, d) in itertools.permutations(pairs, 2) if a > b):
                means = [sum(given) / len(given) for _, given in read]
                costs.append(sum(abs(s - m) for s, m in zip(choice, means, strict=True)))
        made = build_eft([ranked(people)], judged(*samples))
        ordered = len({people[k] for k, _ in read}) > 1
        outcomes[bool(made.counts.agreeing), ordered] += 1
        means = [(people[k], sum(given) / len(given)) for k, given in read]
        rising = all(c > d for (a, c), (b, d) in itertools.permutations(means, 2) if a > b)
        assert made.counts.agreeing == (ordered and rising and bool(costs))
        if made.counts.agreeing and not made.counts.flattened:
            mean = {k: sum(given) / len(given) for k, given in read}
            cost = math.fsum(abs(row["score"] - mean[row["candidate"]]) for row in made.rows)
            assert cost == pytest.approx(min(costs))
    assert min(outcomes[True, True], outcomes[False, True], outcomes[False, False]) > 20


def test_the_most_common_score_comes_down_to_the_second():
    rows = [{"score": s, "n": n} for n, s in enumerate([4, 4, 4, 4, 4, 2, 2, 0])]
    left = flatten(rows, random.Random(0))
    assert histogram(left) == {"0": 1, "2": 2, "4": 2}
    assert [row["n"] for row in left] == sorted(row["n"] for row in left)
    assert flatten(rows, random.Random(0)) == left
    assert {tuple(r["n"] for r in flatten(rows, random.Random(s))) for s in range(9)} != {
        tuple(r["n"] for r in left)
    }


def test_nothing_to_flatten():
    for scores in ([4, 4, 2, 2, 1], [3, 3, 3], []):
        rows = [{"score": s} for s in scores]
        assert flatten(rows, random.Random(0)) == rows


def test_every_step_is_counted():
    items = [ranked([2, 1], f"p{i}") for i in range(6)] + [ranked([1, 1], "u"), ranked([2, 1], "n")]
    rows = [j for i in range(5) for j in judged([4], [i % 2], name=f"p{i}")]
    rows += judged([1, None], [3, 3], name="p5") + judged([None], [2], name="n")
    rows += judged([5], [5], name="u")
    made = build_eft(items, rows, seed=1)
    counts = made.figures()
    assert counts["prompts"] == 8 and counts["answers"] == 16 and counts["judgements"] == 18
    assert counts["unread"] == 2
    assert counts["dropped"] == {"unranked": 1, "unread": 1, "disagreeing": 1}
    assert counts["agreeing"] + sum(counts["dropped"].values()) == counts["prompts"]
    assert counts["before"] == {"0": 3, "1": 2, "4": 5} and counts["agreed"] == 10
    assert counts["after"] == {"0": 3, "1": 2, "4": 3} and counts["flattened"] == 2
    assert counts["kept"] == len(made.rows) == 8 and counts["over_limit"] == 0
    few = build_eft(items, rows, seed=1, limit=5)
    assert few.counts.kept == len(few.rows) == 5 and few.counts.over_limit == 3
    assert all(row in made.rows for row in few.rows)
    assert made.rows[0] == {
        "prompt": "Q p0",
        "response": "a0",
        "judgement": "So 4.",
        "score": 4,
        "prompt_id": "p0",
        "candidate": 0,
        "sample": 0,
    }


def test_the_order_of_the_judgements_does_not_matter():
    items = [ranked([2, 1, 3], f"p{i}") for i in range(8)]
    draw = random.Random(5)
    rows = [
        j
        for i in range(8)
        for j in judged(*[draw.choices(range(6), k=3) for _ in range(3)], name=f"p{i}")
    ]
    assert build_eft(items, draw.sample(rows, len(rows))) == build_eft(items, rows)
