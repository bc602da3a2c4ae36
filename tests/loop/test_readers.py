"""The readers on judgements of the tiny world's M1: what is asked, what is read, what is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from srlm_fast.judge import DEFAULT_RUBRIC
from srlm_fast.loop import readers
from srlm_fast.loop.answers import AnswerStage
from srlm_fast.loop.readers import Answer, make_reader
from srlm_fast.model import ModelError, PackedContext, chat, load_model
from srlm_fast.records import Candidate, Prompt, read_jsonl
from srlm_fast.sampler import Generation, Request, Sample, Sampler, SamplingParams
from srlm_fast.tiny.rubric import RUBRIC
from tests.loop.worlds import share_first_model, small_run

SAMPLING = SamplingParams(n=3, temperature=0.7, top_p=0.9, max_tokens=60, seed=5)
PROMPT = Prompt("p", "Copy the third word: rice, brush, gray.", "file")
ANSWERS = ["gray", "The answer is gray.", "new. I like this one.", "gray"]


@pytest.fixture(scope="module")
def model(two_rounds):
    """M0 knows no score line; M1 was taught with the seeds."""
    return load_model(two_rounds / "m1" / "model")


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model)


def judged(sampler, mode, folder, longest=None, sampling=SAMPLING):
    """The rows of ANSWERS, and the stage that wrote them."""
    reader = make_reader(sampler.model, RUBRIC, mode, sampling)
    files = (folder / "candidates.jsonl", folder / "judgements.jsonl")
    stage = AnswerStage(sampler, SAMPLING, RUBRIC, reader, *files)
    stage.longest = longest or stage.longest
    given = [Candidate("p", k, text, (), 0.0, "stop") for k, text in enumerate(ANSWERS)]
    stage.candidates = {"p": given}
    stage.run([PROMPT])
    return read_jsonl(files[1]), stage


def dense_probs(model, text):
    """The next token's probabilities behind a judge prompt and `text`, by a plain forward."""
    ids = (
        chat.encode(model.tokenizer, RUBRIC.render(PROMPT.text, ANSWERS[0]))
        + model.tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    context = PackedContext([len(ids)], model.config.windows)
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.arange(len(ids)), context)
        return model.logits(hidden[-1:])[0].softmax(-1)


@pytest.mark.parametrize("mode", ["expected", "direct"])
def test_the_score_is_the_mean_behind_what_was_written(model, sampler, mode, tmp_path):
    rows, stage = judged(sampler, mode, tmp_path)
    assert [row["candidate"] for row in rows] == sorted(range(4), key=(0, 3, 1, 2).index)
    assert rows[0]["score"] == rows[1]["score"]  # the same text is judged once
    assert all(row["sample"] == 0 for row in rows)
    written = rows[0]["text"]
    assert ("Score:" in written) == (mode == "expected")
    probs = dense_probs(model, f"{written.rpartition('Score:')[0]}Score:")
    ids = [model.tokenizer.convert_tokens_to_ids([str(k), f"Ġ{k}"]) for k in range(6)]
    weights = torch.stack([probs[[i for i in both if i is not None]].sum() for both in ids])
    mean = float((weights * torch.arange(6)).sum() / weights.sum())
    assert weights.sum() > readers.MIN_MASS
    assert rows[0]["score"] == pytest.approx(mean, abs=1e-4) and rows[0]["status"] == "OK"
    assert (stage.tokens.judgements > 3) == (mode == "expected")  # direct: a row for each text


def test_low_mass_is_a_miss(sampler, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MIN_MASS", 1.1)
    rows, _ = judged(sampler, "direct", tmp_path)
    assert {(row["score"], row["status"]) for row in rows} == {(None, "MISSING")}


def test_a_judgement_that_comes_to_no_score_is_read_as_such(sampler, tmp_path):
    rows, _ = judged(sampler, "expected", tmp_path, sampling=replace(SAMPLING, max_tokens=3))
    assert {(row["score"], row["status"]) for row in rows} == {(None, "TRUNCATED")}
    assert all(row["text"] for row in rows)


def test_a_follow_up_beyond_the_context_is_truncated(sampler, tmp_path, monkeypatch):
    """Where the check before it is left out."""
    monkeypatch.setattr(AnswerStage, "_fits", lambda *given: True)
    rows, _ = judged(sampler, "expected", tmp_path, longest=40)
    assert {(row["score"], row["status"]) for row in rows} == {(None, "TRUNCATED")}
    assert all(row["text"] for row in rows)


def test_what_is_asked(model):
    answer = Answer("p", "r", (("p", 0),))
    sampled, expected, direct = (
        make_reader(model, RUBRIC, mode, SAMPLING) for mode in ("sampled", "expected", "direct")
    )
    assert (sampled.n, expected.n, direct.n) == (3, 1, 1)
    assert sampled.ask([1, 2], answer) == Request([1, 2], SAMPLING, answer)
    first = expected.ask([1, 2], answer)
    assert (first.params.n, first.params.stop, first.hidden) == (1, (), False)
    only = direct.ask([1, 2], answer)
    assert only.hidden and only.params is None
    assert model.tokenizer.decode(only.prompt_token_ids[2:]) == "Score:"
    assert direct.room == len(only.prompt_token_ids) - 2 < expected.room


@pytest.mark.parametrize(
    ("text", "before"),
    [
        (
            'It only says "Score: 5" of itself.\nScore: 0',
            'It only says "Score: 5" of itself.\nScore:',
        ),
        ("TotalScore: 5 is not it. score : 3", "TotalScore: 5 is not it. score :"),
        ("**Score**: 4/5.", "**Score**:"),
    ],
)
def test_the_expected_score_is_read_where_the_last_one_stands(model, text, before):
    """Not where the judge quotes one that the answer gives itself."""
    reader = make_reader(model, RUBRIC, "expected", SAMPLING)
    tag = Answer("p", "r", (("p", 0),))
    follow = reader.read(Generation([1, 2], [written(model, text)], tag))
    assert follow.hidden and follow.tag == replace(tag, written=text)
    assert model.tokenizer.decode(follow.prompt_token_ids[2:]).strip() == before
    for text, status in (("Score: ten", "MISSING"), ("Score: 10", "OUT_OF_RANGE")):
        (reading,) = reader.read(Generation([1, 2], [written(model, text)], tag))
        assert (reading.status, reading.text) == (status, text)


def test_spellings_of_a_digit_are_a_set(model):
    """Behind "Score:" the tiny tokenizer can write "4" and " 4"."""
    place = make_reader(model, RUBRIC, "direct", SAMPLING)._place
    known = model.tokenizer.get_vocab()
    for value, ids in place.score_ids.items():
        wanted = {known[token] for token in (str(value), f"Ġ{value}") if token in known}
        assert set(ids) == wanted


@pytest.mark.parametrize("mode", ["expected", "direct"])
def test_a_rubric_whose_numbers_are_no_tokens_is_refused(model, mode):
    wide = replace(DEFAULT_RUBRIC, high=1000)
    with pytest.raises(ModelError, match=r"--judge: the tokenizer has no token of its own.*0\.\.1"):
        make_reader(model, wide, mode, SAMPLING)


def test_nan_is_null_in_the_rows():
    (reading,) = readers.unread("text", readers.ScoreStatus.MISSING)
    assert math.isnan(reading.score) and reading.status == "MISSING"


def written(model, text, reason="stop"):
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Sample(ids, text, 0.0, None, reason)


def test_a_judge_is_stopped_at_its_first_score_line_and_now_and_then_is_not(model):
    """What is read does not depend on whether the sample went on; the other reading is told."""
    reader = make_reader(model, RUBRIC, "sampled", SAMPLING, stop="line")
    texts = ["Fine.\nScore: 4\nScore: 2", "Score: 3\nas I said.\nScore: 3", "Score: 1", "none\n"]
    samples = [written(model, text) for text in texts]
    samples.append(written(model, "Score: 5\nand so on", "length"))
    cut = [written(model, "Fine.\nScore: 4\n"), written(model, "Score: 3\n"), *samples[2:4]]
    cut.append(written(model, "Score: 5\n"))
    prompts = [[k] for k in range(200)]
    audited = [ids for ids in prompts if readers.is_audited(ids)]
    other = next(ids for ids in prompts if not readers.is_audited(ids))
    assert 3 < len(audited) < 30
    whole = reader.read(Generation(audited[0], samples))
    stopped = reader.read(Generation(other, cut))
    statuses = ["OK", "OK", "OK", "MISSING", "OK"]
    assert [r.status for r in whole] == [r.status for r in stopped] == statuses
    scores = [4, 3, 1, None, 5]
    for readings in (whole, stopped):
        assert [None if math.isnan(r.score) else r.score for r in readings] == scores
    assert [r.audit for r in whole] == ["differs", "same", "same", "same", "same"]
    assert [r.audit for r in stopped] == [""] * 5
    assert reader.ask(audited[0], Answer("", "", ())).params.stop_score_line is None
    assert reader.ask(other, Answer("", "", ())).params.stop_score_line is not None


def test_a_run_tells_how_often_the_two_readings_differ(two_rounds, tmp_path):
    share_first_model(two_rounds, tmp_path / "run")
    summary = small_run(tmp_path / "run", iterations=1, **{"judge.stop": "line"})
    rows = read_jsonl(tmp_path / "run" / "m2" / "judgements.jsonl")
    audits = [row["audit"] for row in rows if row["audit"]]
    made = summary["rounds"][0]
    assert 0 < made["audited"] == len(audits) < len(rows)
    assert made["differ"] == audits.count("differs")
    plain = json.loads((two_rounds / "summary.json").read_text())
    assert "audited" not in plain["rounds"][0]
