"""ROUGE-L: hand-worked, against the textbook table, and the native function against its twin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_fast.data import RougePool, rouge_l_max, words
from srlm_fast.data.rouge import lcs_length
from srlm_fast.kernels import native

sequences = st.lists(st.integers(-1, 4), max_size=90)


def table_lcs(one, two):
    """The textbook dynamic programme."""
    lengths = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            longest = max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else longest
    return lengths[-1][-1]


def flat(pool):
    offsets = np.cumsum([0, *map(len, pool)], dtype=np.int64)
    return np.array([word for text in pool for word in text], dtype=np.int32), offsets


@settings(max_examples=150, deadline=None)
@given(sequences, sequences)
def test_lcs_against_the_table(one, two):
    assert lcs_length(one, two) == table_lcs(one, two)


@settings(max_examples=100, deadline=None)
@given(sequences, st.lists(sequences, max_size=6))
def test_best_of_the_pool(candidate, pool):
    def f_measure(text):
        total = len(candidate) + len(text)
        return 2 * table_lcs(candidate, text) / total if total else 0.0

    got = rouge_l_max(np.array(candidate, dtype=np.int32), *flat(pool))
    assert got == pytest.approx(max(map(f_measure, pool), default=0.0), abs=1e-12)


@pytest.mark.skipif(not native.available(), reason="the extension is not built")
@settings(max_examples=100, deadline=None)
@given(sequences, st.lists(sequences, max_size=6))
def test_native_equals_its_twin(candidate, pool):
    arguments = (np.array(candidate, dtype=np.int32), *flat(pool))
    assert native.native().rouge_l_max(*arguments) == pytest.approx(
        rouge_l_max(*arguments), abs=1e-12
    )


def test_hand_worked():
    # They share, in order: the, cat, on, mat.
    pool = RougePool(["the cat sat on the mat"])
    assert pool.best("The cat was on a mat!") == pytest.approx(8 / 12)
    assert pool.best("mat on sat cat the") == pytest.approx(2 * 2 / 11)  # on, the
    assert pool.best("THE CAT -- sat on; the mat.") == 1.0
    assert pool.best("nothing alike") == 0.0


def test_unknown_words_do_not_match_each_other():
    pool = RougePool(["alpha beta"])
    assert pool.best("gamma delta") == 0.0
    pool.add("gamma delta")
    assert pool.best("gamma epsilon") == 0.5


def test_empty_texts_and_pools():
    assert RougePool().best("a b") == 0.0
    pool = RougePool(["", "?!", "a b"])
    assert len(pool) == 3
    assert pool.best("") == 0.0
    assert pool.best("...") == 0.0
    assert pool.best("a b") == 1.0


def test_pool_grows():
    pool = RougePool(f"text number {i} has the word w{i}" for i in range(1500))
    assert len(pool) == 1500
    assert pool.best("text number 1499 has the word w1499") == 1.0
    assert pool.best("text number 0 has the word w0") == 1.0
    assert 0 < pool.best("text number x") < 1


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Hello, World! 2x", ["hello", "world", "2x"]),
        ("snake_case it's", ["snake", "case", "it", "s"]),
        ("Café Ünïcode", ["café", "ünïcode"]),
        ("什么是雨", ["什", "么", "是", "雨"]),
        ("雨rain雨", ["雨", "rain", "雨"]),
        ("дождь идёт", ["дождь", "идёт"]),
        ("🌧️ !?", []),
        ("", []),
    ],
)
def test_words(text, want):
    assert words(text) == want


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_words_of_ascii_text_are_those_of_the_rouge_package(text):
    """Its tokenizer without stemming: lower case, all but a-z and 0-9 to spaces, split."""
    lowered = "".join(
        c if c in "abcdefghijklmnopqrstuvwxyz0123456789" else " " for c in text.lower()
    )
    assert words(text) == lowered.split()
