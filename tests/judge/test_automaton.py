"""The automaton reads every byte string as the regular expression reads its decoded text."""

import codecs
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srlm_fast.judge.alphabet import Alphabet, code_points
from srlm_fast.judge.automaton import KEEP, compile_automaton
from srlm_fast.judge.pattern_nodes import FIRST_VALUE, OUT_OF_RANGE
from srlm_fast.judge.score import parse_pattern
from srlm_fast.judge.utf8 import Decoder
from srlm_fast.kernels.judge_score import ScoreStatus

PATTERNS = [
    (None, 0, 5),
    (None, 1, 10),
    (None, 0, 100),
    (r"Rating:", 1, 9),
    (r"Points?:|Grade:", 1, 9),
    (r"Score: (\d+)", 0, 5),
    (r"\[\[(\d+)\]\]", 1, 10),
    (r"<score>(\d+)</score>", 0, 5),
    (r"(?i)score.*?(\d)", 0, 5),
    (r"Score: (\d)\b", 0, 5),
    (r"Score: (\d+)/10", 1, 10),
    (r"(?m)^Score: (\d)$", 0, 5),
    (r"(?:Score|分数)[:：]\s*(\d)", 0, 5),
    (r"Score: (\d+) points?", 0, 5),
    (r"(?m)Score: \[(\d)\]$", 0, 5),
    *((rf"Score: (\d){behind}", 0, 5) for behind in (".", r"\S", r"\W", " ?.", " *S?")),
    *((rf"Score: (\d){behind}", 0, 5) for behind in (".*", r"[^\n]*", r"\D*", r"\s*\w*")),
    (r"(?im)^(?:final )?score\s*[:=]\s*(\d)\s*$", 0, 5),
    (r"(?<![a-z])Score\W{1,3}(\d)", 0, 5),
    (r"\bScore\b:? ?(\d)\.", 0, 5),
]
PIECES = [
    *("Score", "score", ":", " ", "\n", "*", "_", "`", "/", ".", ",", "-", "e", "x", " out of "),
    *("out", "of", "[[", "]]", "<score>", "</score>", "points", "point", "Rating:", "Points:"),
    *("Grade:", "分数", "：", "=", "final ", "100", "/10", "/5", "/1", "a", "é", "分", "４", "🙂"),
    *("Score: ", "S", "Sco", "−", "–", "\u00a0", "+", "0x", "\t", "½", "／", "⁄"),
    *map(str, range(11)),
]
WHOLE = [
    "Score: 4",
    "[[10]]",
    "<score>3</score>",
    "Score: 4 points",
    "Score: 7/10",
    "Rating: **2**",
]
texts = st.lists(st.sampled_from(PIECES), max_size=10).map("".join)
phrases = st.tuples(texts, st.sampled_from(["", *WHOLE]), texts).map("".join)


def spoilt(data: bytes, draw: st.DataObject) -> bytes:
    """Some bytes of a text changed, taken out, or its end cut off."""
    data = bytearray(data)
    for _ in range(draw.draw(st.integers(0, 3))):
        if data:
            at = draw.draw(st.integers(0, len(data) - 1))
            data[at : at + 1] = draw.draw(st.binary(max_size=1))
    return bytes(data[: len(data) - draw.draw(st.integers(0, 2))])


def by_automaton(automaton, data: bytes, finished: bool, low: int) -> tuple[float, ScoreStatus]:
    outcome, is_open = automaton.read(data, finished)
    if is_open or (outcome == KEEP and not finished):
        return math.nan, ScoreStatus.TRUNCATED
    if outcome == KEEP:
        return math.nan, ScoreStatus.MISSING
    if outcome == OUT_OF_RANGE:
        return math.nan, ScoreStatus.OUT_OF_RANGE
    return float(outcome - FIRST_VALUE + low), ScoreStatus.OK


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@settings(max_examples=60, deadline=None)
@given(text=phrases, finished=st.booleans(), draw=st.data())
def test_reads_bytes_as_the_specification_reads_text(pattern, text, finished, draw):
    data = spoilt(text.encode(), draw)
    decoded = codecs.getincrementaldecoder("utf-8")("replace").decode(data, finished)
    want = parse_pattern(*pattern).read(decoded, finished)
    got = by_automaton(compile_automaton(*pattern), data, finished, pattern[1])
    assert got[1] is want[1] and (got[0] == want[0] or math.isnan(want[0])), (decoded, want, got)


def test_counted_repeats_are_no_recursion():
    automaton = compile_automaton(r"S{1,300}:")
    assert by_automaton(automaton, b"x" + b"S" * 300 + b": 4", True, 0)[0] == 4
    with pytest.raises(ValueError, match=r"pattern: more than \d+ states"):
        compile_automaton(r"(?s)a.{12}Score:")


@pytest.mark.parametrize(
    ("text", "greedy", "lazy"),
    [("Score: 4, for 2 flaws", 2, 4), ("Score: 4\n2", 4, 4), ("Score 42", None, None)],
)
def test_greedy_and_lazy_loops_keep_their_meaning(text, greedy, lazy):
    for pattern, want in ((r"Score.*(\d)", greedy), (r"Score.*?(\d)", lazy)):
        score, status = by_automaton(compile_automaton(pattern), text.encode(), True, 0)
        assert (None if math.isnan(score) else score) == want, (pattern, status)


@pytest.mark.parametrize("behind", [".", r"\S", r"[^\n]", ".*"])
def test_what_stands_behind_never_eats_a_digit_of_the_number(behind):
    for text in ("Score: 10\n", "Score: 45!", "Score: 4½ "):
        automaton = compile_automaton(rf"Score: (\d){behind}")
        assert by_automaton(automaton, text.encode(), True, 0)[1] is not ScoreStatus.OK, text


def test_a_label_behind_a_number_is_read_though_the_pattern_runs_over_it():
    automaton = compile_automaton(r"Score: (\d).*")
    assert by_automaton(automaton, b"Score: 4 Score: 2", True, 0)[0] == 2


def test_a_number_that_goes_on_takes_back_what_seemed_to_match():
    for text, want in [
        ("Score: 4.", 4),
        ("Score: 4.x", 4),
        ("Score: 4.0x", None),
        ("Score: 4e", None),
    ]:
        score, _ = by_automaton(compile_automaton(r"Score: (\d)\b"), text.encode(), True, 0)
        assert (None if math.isnan(score) else score) == want, text


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(?:a|b)\1(\d)", "pattern"),
        (r"(S)core: (\d)", "2 groups"),
        (r"(?:Score: (\d)|Rating)", "inside another"),
        (r"Score: (\d)|Rating: 3", "beside its group"),
        (r"Score: (\d)$", "outside (?m)"),
        (r"(?<=ab)Score: (\d)", "look-around"),
        (r"Score: (\d)(?=ab)", "look-around"),
        (r"(?>Score): (\d)", "atomic"),
        (r"\p{L}+: (\d)", "cannot be compiled"),
        (r"(\d).*]", "second number"),
        (r"(?:[ab]{5000}){5}(\d)", "steps"),
    ],
)
def test_what_no_automaton_of_this_kind_can_do_is_refused(pattern, why):
    with pytest.raises(ValueError) as error:
        compile_automaton(pattern)
    assert str(error.value).startswith("pattern: ") and why in str(error.value)
    assert "\n" not in str(error.value)


@cache
def letters() -> Decoder:
    """Classes by the lowest 7 bits, so that most characters differ from their neighbours."""
    return Decoder(np.arange(0x110000) % 128)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=12), st.text(max_size=6).map(str.encode)), st.data())
def test_utf8_is_decoded_as_python_decodes_it(data, draw):
    data = spoilt(data, draw)
    decoder, node, found = letters(), Decoder.IDLE, []
    for byte in data:
        symbols, node = decoder.steps(node)[decoder.column_of[byte]]
        found += symbols
    found += [decoder.replacement] if node != Decoder.IDLE else []
    assert found == [ord(char) % 128 for char in data.decode(errors="replace")]


NO_CHARACTERS = [
    *(b"\xed\xa0\x80", b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xf4\x90\x80\x80", b"\xf4\x8f\xbf\xbf"),
    *(b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xc0\x80", b"\xf0\x8f\xbf\xbf", b"\xf5\x80"),
    b"\xf1\x80\xe2\x80A",
]


@pytest.mark.parametrize("data", NO_CHARACTERS, ids=bytes.hex)
def test_surrogates_overlong_forms_and_what_lies_beyond_are_no_characters(data):
    decoder, node, found = letters(), Decoder.IDLE, []
    for byte in data:
        symbols, node = decoder.steps(node)[decoder.column_of[byte]]
        found += symbols
    found += [decoder.replacement] if node != Decoder.IDLE else []
    assert found == [ord(char) % 128 for char in data.decode(errors="replace")]


def test_a_match_that_the_next_character_could_break_is_not_certain():
    for text, cut in [("Score: [4]", None), ("Score: [4]\n", 4), ("Score: [4", None)]:
        pattern = (r"(?m)Score: \[(\d)\]$", 0, 5)
        want = parse_pattern(*pattern).read(text, False)
        got = by_automaton(compile_automaton(*pattern), text.encode(), False, 0)
        assert got[1] is want[1] and (None if math.isnan(got[0]) else got[0]) == cut, text


def test_every_character_is_decoded():
    decoder = letters()
    for start in range(0, 0x110000, 0x555):
        points = [p for p in range(start, min(start + 2, 0x110000)) if not 0xD800 <= p < 0xE000]
        for point in points:
            node = Decoder.IDLE
            for byte in chr(point).encode():
                symbols, node = decoder.steps(node)[decoder.column_of[byte]]
            assert (symbols, node) == ([point % 128], Decoder.IDLE)


def test_characters_of_a_class_are_in_the_same_sets():
    sets = [code_points(char) for char in (r"\d", "[0-5]", r"\w", "[^a]")]
    alphabet = Alphabet(sets)
    assert alphabet.size == 6  # [0-5], other digits, a, other letters, the rest, surrogates
    for held, column in zip(sets, alphabet.members.T, strict=True):
        assert np.array_equal(column[alphabet.class_of], held)


def test_states_are_few_and_none_is_like_another():
    automaton = compile_automaton()
    rows = np.hstack([automaton.next, automaton.outcome, automaton.end.T, automaton.open[:, None]])
    assert len(np.unique(rows, axis=0)) == len(rows) < 200
