"""ROUGE: hand-worked, against the textbook table and the ROUGE package, and the native index
against its twin.
"""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_fast.data import RougePool, rouge, word_pairs, words
from srlm_fast.data.rouge import PlainIndex, bag_overlap, lcs_length
from srlm_fast.kernels import native

sequences = st.lists(st.integers(0, 5), max_size=90)
queries = st.lists(st.integers(-1, 5), max_size=90)
limits = st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0])


def table_lcs(one, two):
    """The textbook dynamic programme."""
    lengths = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            longest = max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if a == b else longest
    return lengths[-1][-1]


def flat(texts):
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return np.array([word for text in texts for word in text], dtype=np.int32), offsets


def index_of(kind, pool):
    index = kind()
    for text in pool:
        index.add(np.array(text, dtype=np.int32))
    return index


@settings(max_examples=150, deadline=None)
@given(sequences, queries)
def test_lcs_against_the_table(one, two):
    assert lcs_length(one, two) == table_lcs(one, two)


@settings(max_examples=60, deadline=None)
@given(st.lists(queries, max_size=3), st.lists(sequences, max_size=6), limits)
def test_the_plain_index_takes_the_best_of_the_pool(texts, pool, least):
    def f_measure(one, two):
        total = len(one) + len(two)
        return 2 * table_lcs(one, two) / total if total else 0.0

    got = index_of(PlainIndex, pool).best(*flat(texts), least, True)
    best = [max((f_measure(text, other) for other in pool), default=0.0) for text in texts]
    assert got.tolist() == [f if f >= least else 0.0 for f in best]


@pytest.mark.skipif(not native.available(), reason="the extension is not built")
@settings(max_examples=200, deadline=None)
@given(st.lists(queries, max_size=4), st.lists(sequences, max_size=12), limits, st.booleans())
def test_native_equals_its_twin(texts, pool, least, in_order):
    found = [
        index_of(kind, pool).best(*flat(texts), least, in_order)
        for kind in (PlainIndex, native.native().TextIndex)
    ]
    assert found[0].tolist() == found[1].tolist()


def zipf_texts(count, seed):
    """Texts of 5 to 60 words as common as in a language, some of them changed copies."""
    draw = random.Random(seed)
    weights = [1 / rank for rank in range(1, 401)]
    texts = []
    for _ in range(count):
        row = draw.choices(range(400), weights, k=draw.randint(5, 60))
        if texts and draw.random() < 0.5:
            row = [w if draw.random() < 0.75 else 0 for w in draw.choice(texts)]
        texts.append(row)
    return texts


@pytest.mark.skipif(not native.available(), reason="the extension is not built")
@pytest.mark.parametrize("in_order", [True, False])
def test_pruning_loses_nothing_on_texts_like_prompts(in_order):
    texts = zipf_texts(360, 1)
    pool, new = texts[:300], texts[300:]
    plain, fast = (index_of(kind, pool) for kind in (PlainIndex, native.native().TextIndex))
    best = plain.best(*flat(new), 0.0, in_order)
    assert 5 < (best >= 0.7).sum() < 55
    for least in (0.0, 0.4, 0.7, 0.95):
        got = fast.best(*flat(new), least, in_order)
        assert got.tolist() == np.where(best >= least, best, 0.0).tolist()


@pytest.mark.skipif(not native.available(), reason="the extension is not built")
def test_what_the_native_index_refuses():
    index, none = native.native().TextIndex(), np.empty(0, dtype=np.int32)
    with pytest.raises(ValueError, match="ids"):
        index.add(np.array([0, -1], dtype=np.int32))
    for starts in ([0, 2], [1, 0], [-1, 0]):
        with pytest.raises(ValueError, match="starts"):
            index.best(none, np.array(starts, dtype=np.int64), 0.0, True)
    assert len(index) == 0


def ascii_prompts():
    """Hand-written prompts, and Zipf ones spelled with punctuation and case."""
    marks = [" ", ", ", ". ", " - ", "\n", ' "', "_"]
    draw = random.Random(3)
    rows = [
        "".join(f"{'Word' if w % 3 else 'w'}{w}{draw.choice(marks)}" for w in row)
        for row in zipf_texts(15, 2)
    ]
    return [
        "Write a short poem about the sea.",
        "Write a short story about the sea, in 3 sentences!",
        "What's the capital of France? Answer in one word.",
        "What is the capital of Spain?  answer in ONE word",
        "Explain how rain forms in two sentences.",
        "In two sentences, explain how rain forms.",
        "Translate to C++: for i in range(10): print(i)",
        *rows,
    ]


def test_the_f_measures_are_those_of_the_rouge_package():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL", "rouge2"])
    texts = ascii_prompts()
    for text in texts:
        pool, pairs = RougePool([text]), RougePool([text], word_pairs, in_order=False)
        for other in texts[::3]:
            theirs = scorer.score(text, other)
            assert pool.best(other) == pytest.approx(theirs["rougeL"].fmeasure, abs=1e-9)
            if not set(text + other) & set("0123456789"):  # we write numbers alike
                assert pairs.best(other) == pytest.approx(theirs["rouge2"].fmeasure, abs=1e-9)


@pytest.mark.parametrize("plain", [False, True])
def test_a_limit_only_hides_what_is_below_it(plain, monkeypatch):
    if plain:
        monkeypatch.setattr(rouge, "_fastest", lambda: PlainIndex)
    pool = RougePool(["the cat sat on the mat", "a dog ran", ""])
    assert pool.best_each(["the cat sat", "a cat", "..."], 0.6).tolist() == [6 / 9, 0.0, 0.0]
    assert pool.best("a dog ran", 1.0) == 1.0
    assert pool.best_each([]).tolist() == []


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Count to 1,000 now", ["count to", "to 1000", "1000 now"]),
        ("5km or 5 KM", ["5 km", "km or", "or 5", "5 km"]),
        ("In 1,2 and 10,000,000", ["in 1", "1 2", "2 and", "and 10000000"]),
        ("Why?", ["why"]),
        ("", []),
    ],
)
def test_word_pairs(text, want):
    assert word_pairs(text) == want


def test_pairs_see_moved_clauses_but_not_exchanged_words():
    known = ["In two sentences, explain how rain forms.", "Translate from English to French"]
    pairs = RougePool(known, word_pairs, in_order=False)
    assert pairs.best("Explain how rain forms in two sentences") == pytest.approx(10 / 12)
    assert RougePool(known).best("Explain how rain forms in two sentences") < 0.6
    assert pairs.best("Translate from French to English") == pytest.approx(2 / 8)
    assert bag_overlap([1, 1, 2], [1, 2, 2]) == 2


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
