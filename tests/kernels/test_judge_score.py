"""extract_scores: both Triton kernels, the native walk and the PyTorch one against the text."""

from __future__ import annotations

import math
import random
from functools import cache

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from srlm_fast.judge import ScoreStatus, compile_pattern
from srlm_fast.kernels import jit, judge_score
from srlm_fast.kernels.judge_score import (
    CHUNKED_FROM,
    extract_scores,
    extract_scores_reference,
    walk_reference,
)
from tests.judge.test_score import GOLDEN
from tests.judge.tokenizers_for_tests import byte_level, sentencepiece, wordpiece
from tests.kernels.guard import guarded

MAKERS = {make.__name__: make for make in (byte_level, sentencepiece, wordpiece)}


@cache
def table_of(name: str, pattern: str | None = None, high: int = 5):
    return compile_pattern(MAKERS[name](), pattern, 0, high)


def wanted(ids, lengths, table, finished):
    rows = [row[:n] for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
    read = extract_scores_reference(rows, finished.tolist(), table)
    scores = torch.tensor([score for score, _ in read], dtype=torch.float32)
    return scores, torch.tensor([int(code) for _, code in read], dtype=torch.int32)


def same(found, want):
    scores, status = (each.cpu() for each in found)
    equal = torch.equal(status, want[1])
    return equal and torch.equal(scores.nan_to_num(-1), want[0].nan_to_num(-1))


def random_rows(table, seed: int, num_rows: int, width: int):
    """Ids of any kind, some beyond the vocabulary, sewn together with labels and numbers."""
    draw = random.Random(seed)
    pieces = {data: i for i, data in enumerate(table.token_bytes) if data}
    likely = [i for data, i in pieces.items() if set(data) <= set(b"Score: 0123456789/*\n.")]
    rows = []
    for _ in range(num_rows):
        kinds = [draw.choice(likely) for _ in range(width)]
        rows.append(
            [i if draw.random() < 0.8 else draw.randint(-1, len(pieces) + 3) for i in kinds]
        )
        if draw.random() < 0.7 and width > 12:
            at = draw.randint(0, width - 9)
            spelled = [pieces.get(bytes([b])) for b in b"Score: 4"]
            if None not in spelled:
                rows[-1][at : at + 8] = spelled
    ids = torch.tensor(rows, dtype=torch.int64).reshape(num_rows, width)
    lengths = torch.tensor([draw.randint(0, width) for _ in range(num_rows)], dtype=torch.int64)
    return ids, lengths, torch.tensor([draw.random() < 0.5 for _ in range(num_rows)])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (40, 70)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_random_ids_on_a_cpu(name, shape, seed):
    table = table_of(name)
    ids, lengths, finished = random_rows(table, seed, *shape)
    want = wanted(ids, lengths, table, finished)
    assert same(walk_reference(ids, lengths, table, finished), want)
    with guarded():
        assert same(extract_scores(ids, lengths, table, finished), want)
        assert same(extract_scores(ids.int(), lengths.int(), table, finished), want)


@pytest.mark.parametrize("chunked", [False, True], ids=["walk", "chunks"])
@pytest.mark.parametrize("name", MAKERS)
def test_random_ids_on_a_device(kernel_device, name, chunked, monkeypatch):
    monkeypatch.setattr(judge_score, "CHUNKED_FROM", 0 if chunked else 10**9)
    table = table_of(name)
    for seed, shape in enumerate([(1, 1), (3, 40), (6, 70)]):
        ids, lengths, finished = random_rows(table, seed, *shape)
        want = wanted(ids, lengths, table, finished)
        arguments = (ids.to(kernel_device), lengths.to(kernel_device), table)
        with guarded():
            assert same(extract_scores(*arguments, finished.to(kernel_device)), want)


@pytest.mark.parametrize("chunked", [False, True], ids=["walk", "chunks"])
def test_golden_texts_on_a_device(kernel_device, chunked, monkeypatch):
    """Those that are read unlike their neighbours; all of them on a GPU."""
    monkeypatch.setattr(judge_score, "CHUNKED_FROM", 0 if chunked else 10**9)
    cases = GOLDEN if kernel_device == "cuda" else GOLDEN[::24]
    table, tokenizer = table_of("byte_level"), byte_level()
    rows = [tokenizer.encode(case["text"], add_special_tokens=False).ids for case in cases]
    ids = torch.full((len(rows), max(map(len, rows))), 7)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    finished = torch.tensor([case["finished"] for case in cases])
    scores, status = extract_scores(
        ids.to(kernel_device), lengths.to(kernel_device), table, finished.to(kernel_device)
    )
    for case, score, code in zip(cases, scores.tolist(), status.tolist(), strict=True):
        assert ScoreStatus(code).name == case["status"], case
        assert math.isnan(score) if case["score"] is None else score == case["score"], case


def test_chunks_that_start_from_a_wrong_guess(kernel_device, monkeypatch):
    """White space behind the label keeps the states apart over all chunks, so that the truth has to
    travel through every one of them.
    """
    monkeypatch.setattr(judge_score, "CHUNKED_FROM", 0)
    table = table_of("byte_level")
    pieces = {data: i for i, data in enumerate(table.token_bytes) if data}
    label = [pieces[bytes([b])] for b in b"Score:"]
    row = [*label, *[pieces[b" "]] * 57, pieces[b"3"]]
    other = [pieces[b"a"], *row[1:]]
    ids = torch.tensor([row, other], device=kernel_device)
    lengths = torch.full((2,), 64, device=kernel_device)
    scores, status = extract_scores(ids, lengths, table)
    assert scores[0].item() == 3
    assert status.tolist() == [ScoreStatus.OK, ScoreStatus.MISSING]


def test_strides_and_no_rows(kernel_device, monkeypatch):
    table = table_of("byte_level")
    ids, lengths, finished = random_rows(table, 9, 4, 20)
    want = wanted(ids, lengths, table, finished)
    wide = torch.stack([ids, ids + 1], dim=-1).to(kernel_device)
    arguments = (lengths.to(kernel_device), table, finished.to(kernel_device))
    assert same(extract_scores(wide[..., 0], *arguments), want)
    assert same(extract_scores(wide[..., 0].T.contiguous().T, *arguments), want)
    rows = torch.full((4, 33), 7, device=kernel_device)
    rows[:, 5:25] = ids.to(kernel_device)
    for chunked_from in (0, 10**9):
        monkeypatch.setattr(judge_score, "CHUNKED_FROM", chunked_from)
        assert same(extract_scores(rows[:, 5:25], *arguments), want)
    empty = torch.zeros(0, 5, dtype=torch.int64, device=kernel_device)
    scores, status = extract_scores(empty, empty[:, 0], table)
    assert scores.shape == status.shape == (0,) and scores.dtype == torch.float32
    narrow = torch.zeros(2, 0, dtype=torch.int64, device=kernel_device)
    assert extract_scores(narrow, torch.zeros_like(narrow.sum(1)), table)[1].tolist() == [1, 1]


def test_a_wide_range_and_something_behind_the_number(kernel_device):
    for pattern, high in ((None, 100), (r"\[\[(\d+)\]\]", 10)):
        table, tokenizer = table_of("byte_level", pattern, high), byte_level()
        texts = ["Score: 87", "Score: 100/100", "[[10]]", "[[11]]", "[[7]", "Score: 101"]
        rows = [tokenizer.encode(text).ids for text in texts]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row)
        lengths, finished = torch.tensor([len(row) for row in rows]), torch.ones(6).bool()
        want = wanted(ids, lengths, table, finished)
        assert same(extract_scores(ids.to(kernel_device), lengths.to(kernel_device), table), want)


def test_a_table_is_copied_to_a_device_once():
    table = table_of("byte_level")
    first, again = (table.tensors(torch.device("cpu")) for _ in range(2))
    assert all(a is b for a, b in zip(first, again, strict=True))


def test_without_the_extension_pytorch_walks(monkeypatch):
    table = table_of("byte_level")
    ids, lengths, finished = random_rows(table, 3, 6, 30)
    monkeypatch.setattr(judge_score, "available", lambda: False)
    monkeypatch.setattr(judge_score, "native", None)
    want = wanted(ids, lengths, table, finished)
    assert same(extract_scores(ids, lengths, table, finished), want)


def test_the_kernels_numbers_are_the_tables():
    """The kernels write them as literals."""
    assert (judge_score.OPEN, judge_score.OVER) == (0x1000, 0x2000)
    assert (judge_score.STATE_MASK, judge_score.OUTCOME_MASK) == (0xFFFF, 0xFFF)
    assert [int(s) for s in ScoreStatus] == [0, 1, 2, 3] and judge_score.FIRST_VALUE == 2
    assert CHUNKED_FROM > 0 and jit.HAS_TRITON in (True, False)


def test_the_first_line_with_a_number():
    table, tokenizer = table_of("byte_level"), byte_level()
    for text, kept in [
        ("fine\nScore: 4\nmore Score: 2\n", "fine\nScore: 4\n"),
        ("Score: 4 Score: 2\nScore: 1\n", "Score: 4 Score: 2\n"),
        ("Score: none\nScore: 3 of all\nx", "Score: none\nScore: 3 of all\n"),
        ("Score: 45\nScore: 3\n", "Score: 45\n"),
        ("Score: 4", "Score: 4"),
        ("no score\nat all\n", "no score\nat all\n"),
    ]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids[: table.first_line(ids)]) == kept


def test_a_line_may_end_in_the_token_of_its_number():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    tokenizer.add_tokens([" 4\n", "\n 4"])
    table = compile_pattern(tokenizer)
    for text, kept in [("Score: 4\nx\n", "Score: 4\n"), ("Score:\n 4 x\ny", "Score:\n 4 x\n")]:
        ids = tokenizer(text)["input_ids"]
        assert {" 4\n", "\n 4"} & {tokenizer.decode([i]) for i in ids}
        assert tokenizer.decode(ids[: table.first_line(ids)]) == kept
