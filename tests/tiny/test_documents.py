"""Pretraining documents: what they teach, and what they must not give away."""

import random
import re

import pytest

from srlm_fast.tiny import documents
from srlm_fast.tiny.documents import END, Mixture
from srlm_fast.tiny.world import is_held_out, parse

MIXTURE = Mixture(question=0.3, review=0.4, tasks=0.1, compare=0.1, copy=0.1)


def texts(count=400, seed=1):
    docs = documents.documents(random.Random(seed), MIXTURE, count)
    return ["".join(text for text, _ in doc) for doc in docs]


def instructions(text):
    found = re.findall(r"(?:User|Q|Task(?: \d+)?|\d+\.|-):? (.+)", text)
    return [line for line in found if parse(line)]


def test_documents_depend_on_the_seed_alone():
    assert texts(50) == texts(50)
    assert texts(50) != texts(50, seed=2)


def test_every_document_ends_and_has_something_to_learn():
    for doc in documents.documents(random.Random(1), MIXTURE, 200):
        assert doc[-1][0] == END
        assert sum(weight for _, weight in doc[:-1]) > 0
        assert all(text for text, _ in doc)


def test_no_held_out_instruction_occurs():
    found = [line for text in texts(1000) for line in instructions(text)]
    assert len(found) > 1000
    assert not any(is_held_out(line) for line in found)


def test_the_judge_format_is_left_to_the_evaluation_seed():
    assert not any("Score" in text for text in texts(1000))
    assert any("Rating: " in text for text in texts(100))


@pytest.mark.parametrize("same, verdict", [(True, "Right"), (False, "Wrong")])
def test_comparisons_are_true(same, verdict):
    rng, seen = random.Random(2), 0
    for _ in range(300):
        text = "".join(text for text, _ in documents.compare(rng, MIXTURE))
        first, second, found = re.fullmatch(
            rf"It should be (.+)\. It says (.+)\. (\w+){re.escape(END)}", text
        ).groups()
        assert (first == second) == (found == "Right")
        seen += found == verdict
    assert seen > 30


def test_a_mixture_of_one_kind_gives_that_kind():
    only = Mixture(question=0, review=0, tasks=0, compare=0, copy=1)
    for doc in documents.documents(random.Random(3), only, 50):
        first, second = re.fullmatch(r"Words: (.+)\. Again: (.+)\.", doc[0][0] + doc[1][0]).groups()
        assert first == second
