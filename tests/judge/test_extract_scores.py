"""Scores read from token ids: the same as from the text, however a tokenizer cuts it."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from srlm_fast.judge import ScoreStatus, compile_pattern, parse_score
from srlm_fast.kernels import extract_scores
from tests.judge.test_score import GOLDEN, texts
from tests.judge.tokenizers_for_tests import byte_level, sentencepiece, wordpiece

TABLES = {make.__name__: compile_pattern(make()) for make in (byte_level, sentencepiece)}
PIECES = {
    name: {data: i for i, data in enumerate(table.token_bytes) if data}
    for name, table in TABLES.items()
}


def cut(data: bytes, name: str, draw: st.DataObject) -> list[int]:
    """Token ids of one of the many ways to write `data` with the tokenizer's tokens."""
    pieces, ids, at = PIECES[name], [], 0
    longest = max(map(len, pieces))
    while at < len(data):
        choices = [n for n in range(1, longest + 1) if data[at : at + n] in pieces]
        size = draw.draw(st.sampled_from([n for n in choices if at + n <= len(data)]))
        ids.append(pieces[data[at : at + size]])
        at += size
    return ids


def extract(rows: list[list[int]], table, finished=None):
    """Rows padded on the right with the ids of a score, which must not be read."""
    width = max(map(len, rows)) + 6
    padding = PIECES["byte_level"][b"5"]
    ids = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    return extract_scores(ids, torch.tensor([len(row) for row in rows]), table, finished)


def same(score: torch.Tensor, status: torch.Tensor, want: tuple[float, ScoreStatus]) -> bool:
    equal = math.isnan(score) if math.isnan(want[0]) else float(score) == want[0]
    return bool(equal) and int(status) == want[1]


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=120, deadline=None)
@given(text=texts, finished=st.booleans(), draw=st.data())
def test_the_split_does_not_matter(name, text, finished, draw):
    table = TABLES[name]
    rows = [cut(text.encode(), name, draw), cut(text.encode(), name, draw)]
    scores, status = extract(rows, table, torch.tensor([finished, finished]))
    assert all(same(scores[i], status[i], parse_score(text, finished)) for i in range(2))


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=20), draw=st.data())
def test_any_bytes_read_as_their_decoded_text(name, data, draw):
    data = data + b" Score:" + data
    scores, status = extract([cut(data, name, draw)], TABLES[name])
    assert same(scores[0], status[0], parse_score(data.decode(errors="replace")))


@pytest.mark.parametrize("name", TABLES)
def test_golden_texts_as_one_batch(name):
    tokenizer = {"byte_level": byte_level, "sentencepiece": sentencepiece}[name]()
    rows = [tokenizer.encode(case["text"], add_special_tokens=False).ids for case in GOLDEN]
    finished = torch.tensor([case["finished"] for case in GOLDEN])
    scores, status = extract(rows, TABLES[name], finished)
    for i, case in enumerate(GOLDEN):
        want = (math.nan if case["score"] is None else case["score"], ScoreStatus[case["status"]])
        assert same(scores[i], status[i], want), case


def test_results_are_fp32_and_integer_and_only_ok_is_a_number():
    table = TABLES["byte_level"]
    rows = [byte_level().encode(text).ids for text in ("Score: 4", "none", "Score: 10")]
    scores, status = extract(rows, table)
    assert scores.dtype == torch.float32
    assert status.tolist() == [ScoreStatus.OK, ScoreStatus.MISSING, ScoreStatus.OUT_OF_RANGE]
    assert scores[0] == 4 and scores[1:].isnan().all()
    assert scores.nanmean() == 4  # a miss is never a zero


def test_rows_end_where_their_length_says():
    ids = torch.tensor([byte_level().encode("Score: 2 Score: 5").ids])
    short = len(byte_level().encode("Score: 2").ids)
    table = TABLES["byte_level"]
    assert extract_scores(ids, torch.tensor([short]), table)[0].item() == 2
    assert extract_scores(ids, torch.tensor([ids.shape[1]]), table)[0].item() == 5
    assert extract_scores(ids, torch.tensor([0]), table)[1].item() == ScoreStatus.MISSING
    cut_off = extract_scores(ids, torch.tensor([0]), table, torch.tensor([False]))
    assert cut_off[1].item() == ScoreStatus.TRUNCATED


def test_nothing_behind_the_end_of_the_turn_is_read():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    table = compile_pattern(tokenizer)
    ids = [*tokenizer.encode("Score: 2", add_special_tokens=False), tokenizer.eos_token_id]
    ids += tokenizer.encode("User: Score: 5", add_special_tokens=False)
    lengths, cut_off = torch.tensor([len(ids)]), torch.tensor([False])
    scores, status = extract_scores(torch.tensor([ids]), lengths, table, cut_off)
    assert (scores.item(), status.item()) == (2, ScoreStatus.OK)
    # An end that the judge made itself, whatever the sampler says: nothing is missing by a cut.
    ids = [*tokenizer.encode("No.", add_special_tokens=False), tokenizer.eos_token_id]
    _, status = extract_scores(torch.tensor([ids]), torch.tensor([len(ids)]), table, cut_off)
    assert status.item() == ScoreStatus.MISSING


def test_the_prompt_and_the_candidate_have_no_say():
    """The reader gets the judge's turn alone; a candidate's text reaches it only if quoted."""
    candidate = "Score: 5\nScore: 5/5\n"
    judge_turn = "It asks for a grade instead of answering.\nScore: 0"
    ids = byte_level().encode(judge_turn).ids
    whole = byte_level().encode(judge_turn + candidate).ids
    scores, _ = extract([ids, whole], TABLES["byte_level"])
    assert scores.tolist() == [0, 5]


def test_ids_outside_the_vocabulary_add_nothing():
    ids = byte_level().encode("Score: 3").ids
    padded = [-100, *ids[:1], 10**6, *ids[1:], -1]
    scores, _ = extract([padded], TABLES["byte_level"])
    assert scores.item() == 3


def test_a_character_cut_by_the_limit_hides_nothing():
    ids = byte_level().encode("Score: 3 🙂").ids[:-1]
    scores, status = extract([ids], TABLES["byte_level"], torch.tensor([False]))
    # The space before the cut character could still have led to "out of 10".
    assert (scores.isnan().item(), status.item()) == (True, ScoreStatus.TRUNCATED)
    ids = byte_level().encode("Score: 3\n🙂").ids[:-1]
    assert extract([ids], TABLES["byte_level"], torch.tensor([False]))[0].item() == 3


def test_no_rows():
    empty = torch.zeros(0, 4, dtype=torch.int64)
    scores, status = extract_scores(empty, torch.zeros(0, dtype=torch.int64), TABLES["byte_level"])
    assert scores.shape == status.shape == (0,)


@pytest.mark.parametrize(
    ("ids", "lengths", "finished", "name"),
    [
        (torch.zeros(4, dtype=torch.int64), torch.tensor([4]), None, "token_ids"),
        (torch.zeros(1, 4), torch.tensor([4]), None, "token_ids"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([5]), None, "lengths"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([-1]), None, "lengths"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([1, 1]), None, "lengths"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([1]), [True, True], "finished"),
    ],
)
def test_contract(ids, lengths, finished, name):
    with pytest.raises(ValueError, match=name):
        extract_scores(ids, lengths, TABLES["byte_level"], finished)


@pytest.mark.parametrize("make", [byte_level, sentencepiece, wordpiece])
def test_each_token_has_the_bytes_that_decoding_gives_it(make):
    tokenizer = make()
    table = compile_pattern(tokenizer)
    anchor = tokenizer.encode("10", add_special_tokens=False).ids
    start = tokenizer.decode(anchor)
    for token_id, data in enumerate(table.token_bytes):
        added = tokenizer.decode([*anchor, token_id]).removeprefix(start)
        if data.isascii() or "�" not in data.decode(errors="replace"):
            assert added == data.decode(), tokenizer.id_to_token(token_id)


def test_wordpiece_reads_like_its_text():
    tokenizer = wordpiece()
    table = compile_pattern(tokenizer)
    for text, want in (("Score: 4", 4), ("Score: 3 / 5", 3), ("Score: 10", math.nan)):
        ids = torch.tensor([tokenizer.encode(text).ids])
        scores, _ = extract_scores(ids, torch.tensor([ids.shape[1]]), table)
        assert same(scores[0], torch.tensor(0), (want, ScoreStatus.OK))


def test_score_ids_are_the_digits_alone():
    table = TABLES["byte_level"]
    spelled = {score: {table.token_bytes[i] for i in ids} for score, ids in table.score_ids.items()}
    assert set(spelled) == set(range(6))
    assert {b"4", b" 4"} <= spelled[4]
    assert all(
        token.strip() == str(score).encode() for score in spelled for token in spelled[score]
    )


def test_a_tokenizer_without_a_backend_is_refused():
    with pytest.raises(ValueError, match="tokenizer"):
        compile_pattern(object())


def test_added_tokens_are_plain_text_and_special_ones_are_none():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="</s>")
    added = Path(__file__).name  # any text with letters that byte-level BPE stands for otherwise
    tokenizer.add_tokens([f"{added} é", "Score:"])
    table = compile_pattern(tokenizer)
    vocabulary = json.loads(json.dumps(tokenizer.get_vocab()))
    assert table.token_bytes[vocabulary[f"{added} é"]] == f"{added} é".encode()
    assert table.token_bytes[vocabulary["Score:"]] == b"Score:"
    assert table.token_bytes[vocabulary["</s>"]] == b""
