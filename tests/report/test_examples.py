"""What is browsed: every row with its texts, the right reasons, and a stated rule where there are
too many.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from srlm_fast.records import read_jsonl
from srlm_fast.report.examples import pack, pack_rounds, select, weight
from srlm_fast.report.page import render
from srlm_fast.report.rows import Example, read_round
from tests.report.folders import write_jsonl
from tests.report.unpacked import browsed, unpack


def test_every_row_is_there_with_scores_and_roles(make_run):
    folder = make_run(40)
    rows = browsed(render(folder))["M3"]
    pairs = {row["prompt_id"]: row for row in read_jsonl(folder / "m3" / "pairs.jsonl")}
    judged = read_jsonl(folder / "m3" / "judgements.jsonl")
    assert [row["id"] for row in rows] == [f"p{number}" for number in range(40)]
    assert 0 < len(pairs) < 40
    for row in rows:
        pair = pairs.get(row["id"])
        roles = {a["role"]: a["text"] for a in row["answers"] if a["role"]}
        sides = {} if pair is None else {s: pair[s][1]["content"] for s in ("chosen", "rejected")}
        assert roles == sides and (row["outcome"] == "pair") == (pair is not None)
    shown = [j for row in rows for answer in row["answers"] for j in answer["judgements"]]
    assert shown == [(j["score"], j["status"], j["text"]) for j in judged]
    assert rows[1]["turns"] == [("user", "Hello, you.")] and rows[1]["source"] == "file"


REASONS = {"p0": "margin", "p1": "tie"}  # the scores alone tell neither


@pytest.fixture
def dropped(make_run) -> Path:
    """A round whose first two prompts gave no pair."""
    folder = make_run(6) / "m3"
    pairs = [row for row in read_jsonl(folder / "pairs.jsonl") if row["prompt_id"] not in REASONS]
    write_jsonl(folder / "pairs.jsonl", pairs)
    rows = [{"prompt_id": key, "reason": why} for key, why in REASONS.items()]
    write_jsonl(folder / "dropped.jsonl", rows)
    return folder


def outcomes(folder: Path) -> list[str]:
    return [example.outcome for example in read_round(folder)]


def test_reasons_are_those_that_the_round_wrote_down(dropped):
    assert outcomes(dropped) == ["margin", "tie", *["pair"] * 4]


def test_a_round_whose_reasons_were_not_kept_gives_none(dropped):
    (dropped / "dropped.jsonl").unlink()
    assert outcomes(dropped) == ["no_pair"] * 2 + ["pair"] * 4


def test_pairs_that_are_not_written_yet_are_not_decided(dropped):
    write_jsonl(dropped / "pairs.jsonl", read_jsonl(dropped / "pairs.jsonl")[:1])
    assert outcomes(dropped) == ["margin", "tie", "pair", *["not_decided"] * 3]


def test_pairwise_shows_comparisons_and_their_means(make_run):
    row = browsed(render(make_run(3, reward="pairwise")))["M2"][0]
    p = {(first, second): score for first, second, score, _ in row["comparisons"]}
    assert len(p) == 6
    assert row["answers"][3]["mean"] == pytest.approx(
        1 - (p[0, 3] + p[1, 3] + p[2, 3]) / 3, abs=1e-4
    )


def test_constitution_shows_the_critique(make_run):
    row = browsed(render(make_run(3, reward="constitution")))["M2"][0]
    assert row["critiques"] == [(2, "Too vague by half.")]
    assert [answer["role"] for answer in row["answers"]] == ["rejected", "chosen"]


def test_best_of_n_shows_what_was_taught_where_there_is_no_pair(make_run):
    folder = make_run(12, reward="best-of-n")
    (folder / "m2" / "pairs.jsonl").write_text("")
    rows = browsed(render(folder))["M2"]
    taught = {row["prompt_id"]: row["index"] for row in read_jsonl(folder / "m2" / "sft.jsonl")}
    assert taught
    for row in rows:
        roles = [i for i, answer in enumerate(row["answers"]) if answer["role"] == "taught"]
        assert roles == ([taught[row["id"]]] if row["id"] in taught else [])


def test_random_keeps_scores_of_pairs_alone(make_run):
    page = render(make_run(30, reward="random"))
    rows = browsed(page)["M2"]
    assert {row["outcome"] for row in rows} == {"pair", "tie"}
    for row in rows:
        scored = any(answer["mean"] is not None for answer in row["answers"])
        assert scored == (row["outcome"] == "pair")
    assert "Of prompts that gave a pair alone" in page


def many(count: int) -> list[Example]:
    rng = random.Random(1)
    text = [rng.randbytes(150).hex() for _ in range(count)]
    found = []
    for i in range(count):
        outcome, margin = ("tie", None) if i % 10 == 3 else ("pair", float(i * 7919 % count))
        found.append(Example(f"p{i}", text[i], "file", [], [], outcome, margin))
    return found


def test_a_large_round_is_thinned_by_the_stated_rule():
    examples = many(1000)
    kept = select(examples, 0.2)
    assert 150 <= len(kept) <= 200
    assert sum(map(weight, kept)) <= 0.2 * sum(map(weight, examples))
    assert [e.prompt_id for e in kept] == sorted(
        (e.prompt_id for e in kept), key=lambda p: int(p[1:])
    )
    margins = sorted(e.margin for e in examples if e.margin is not None)
    there = {e.margin for e in kept}
    assert {*margins[:15], *margins[-15:]} <= there
    assert sum(e.outcome == "tie" for e in kept) >= 5
    quarters = [
        sum(250 * q <= int(e.prompt_id[1:]) < 250 * (q + 1) for e in kept) for q in range(4)
    ]
    assert min(quarters) > len(kept) / 8


def test_rounds_share_the_room_and_a_small_one_leaves_its_rest():
    small, large = many(20), many(600)
    whole = len(pack(small))
    packed = pack_rounds([("M2", large), ("M3", small)], 5 * whole)
    assert [(p.name, p.total) for p in packed] == [("M2", 600), ("M3", 20)]
    assert packed[1].kept == 20 and 60 < packed[0].kept < 90
    assert sum(len(p.data) for p in packed) <= 5 * whole
    assert len(unpack(packed[0].data)) == packed[0].kept


def test_a_thinned_page_says_so(make_run, monkeypatch):
    from srlm_fast.report import examples, page

    monkeypatch.setattr(page, "pack_rounds", lambda rounds: examples.pack_rounds(rounds, 6000))
    text = render(make_run(200))
    assert "of its 200 prompts here" in text and "spread evenly" in text


def test_texts_stand_once_and_very_long_ones_are_cut_and_say_so(make_run):
    folder = make_run(1)
    path = folder / "m2" / "candidates.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_jsonl(path, [row | {"text": "x" * 10**6} for row in rows])
    page = render(folder)
    assert len(page) < 200_000
    assert browsed(page)["M2"][0]["answers"][0]["text"].endswith("x […900,000 more characters]")


def test_rows_of_a_folder_without_any_are_none(tmp_path: Path):
    assert read_round(tmp_path) == []
