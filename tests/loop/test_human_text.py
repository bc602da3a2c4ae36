"""Human text: where it comes from, that nothing learns from it, and its perplexities."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from srlm_fast.config import from_options
from srlm_fast.loop import run
from srlm_fast.loop.human_text import histogram, human_text_figures, spread
from srlm_fast.loop.material import gather
from srlm_fast.model import PackedContext, load_model
from srlm_fast.records import InputError, write_jsonl
from srlm_fast.run import read_options
from srlm_fast.tiny import gold, seeds
from tests.loop.worlds import Silent, small_config


def ift_rows(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(count)]


def ranked_rows(count: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"Ranked {i}?", "responses": ["worse", f"best {i}", "bad"], "scores": [2, 5, 1]}
        for i in range(count)
    ]


def material(tmp_path, *argv: str, **files: list[dict]):
    """What a run on the user's files has, with a model that is not looked at."""
    (tmp_path / "model").mkdir(exist_ok=True)
    for name, rows in files.items():
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        argv = (*argv, f"--{name.replace('_', '-')}", str(tmp_path / f"{name}.jsonl"))
    return gather(from_options(read_options(["--model", str(tmp_path / "model"), *argv])))


def prompts_of(rows) -> set[str]:
    return {row["prompt"] for row in rows}


def test_the_tiny_worlds_people_answer_well_what_is_held_out(tmp_path):
    found = gather(small_config(tmp_path))
    assert len(found.human_text) == 24
    assert prompts_of(found.human_text) <= set(seeds.heldout(24))
    assert all(gold.score(r["prompt"], r["response"]).score == 5 for r in found.human_text)
    assert len(found.ift) == 24  # as many as without


def test_what_is_held_out_anyhow_is_human_text(tmp_path):
    """Prompts held out for the score come from the seed, and ranked answers for the judge."""
    found = material(tmp_path, ift=ift_rows(30), eft=ranked_rows(20))
    assert prompts_of(found.human_text) == (
        {p.text for p in found.held_out} | prompts_of(found.eft_eval)
    )
    assert len(found.ift) == 27 and not prompts_of(found.ift) & prompts_of(found.human_text)
    best = [r for r in found.human_text if r["prompt"].startswith("Ranked")]
    assert len(best) == 2 and all(r["response"].startswith("best") for r in best)
    assert not found.remarks


def test_a_share_is_put_apart_where_nothing_else_is_held_out(tmp_path):
    asked = [{"prompt": f"Task {i}"} for i in range(20)]
    found = material(tmp_path, ift=ift_rows(60), prompts=asked)
    assert len(found.human_text) == 3 and len(found.ift) == 57
    assert not prompts_of(found.ift) & prompts_of(found.human_text)
    assert found.remarks == [
        "3 of the 60 rows of --ift are put apart as human text, whose perplexity is watched "
        "(--human-text FILE gives other text)"
    ]


def test_given_text_is_taken_and_never_learnt_from(tmp_path):
    rows = ift_rows(30)
    given = [{"prompt": " question 29? ", "response": "Another."}, *ift_rows(40)[35:]]
    found = material(tmp_path, ift=rows, human_text=given, prompts=[{"prompt": "Task"}] * 2)
    assert found.human_text == given
    assert prompts_of(found.ift) == prompts_of(rows[:29])
    with pytest.raises(InputError, match="--ift .*every prompt in it is held out"):
        material(tmp_path, ift=rows, human_text=rows, prompts=[{"prompt": "Task"}] * 2)


def test_a_mistake_in_the_file_is_told(tmp_path, capsys):
    from srlm_fast.run import main

    write_jsonl(tmp_path / "text.jsonl", [{"prompt": "Only asked"}])
    argv = ["--human-text", str(tmp_path / "text.jsonl"), "--out", str(tmp_path / "run")]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("srlm_fast: ") and said.count("\n") == 1
    assert "text.jsonl" in said and "response" in said


def test_rows_are_bounded_and_spread():
    assert spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert spread(list(range(3)), 4) == [0, 1, 2] and spread([]) == []


def test_histogram_hand_worked():
    found = dict(map(tuple, histogram([1.0, 1.2, 1.5, 2.0, 2.0, 20000.0, 1e9, 0.99])))
    counts = {edge: count for edge, count in found.items() if count}
    assert counts == {1.0: 3, 2**0.5: 1, 2.0: 2, 2.0**14: 2}
    assert len(found) == 29 and list(found) == sorted(found)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", "cpu")


def naive_nats(model, row) -> tuple[float, int]:
    """-log p of an answer and its end token, all logits written out; and how many tokens."""
    asked = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
    )
    ask, answer = (
        model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (asked, row["response"])
    )
    ids = [*ask, *answer, model.tokenizer.eos_token_id]
    context = PackedContext([len(ids)], model.config.windows)
    with torch.no_grad():
        logp = (model(torch.tensor(ids), context.positions, context) @ model.head.T).log_softmax(-1)
    return -sum(float(logp[i - 1, ids[i]]) for i in range(len(ask), len(ids))), len(answer) + 1


def test_against_a_naive_loop(tiny):
    rows = seeds.human_text(12)
    nats, tokens = zip(*(naive_nats(tiny, row) for row in rows), strict=True)
    each = sorted(math.exp(n / t) for n, t in zip(nats, tokens, strict=True))
    found = human_text_figures(tiny, rows, 64)
    assert (found["n"], found["tokens"]) == (12, sum(tokens))
    assert found["perplexity"] == pytest.approx(math.exp(sum(nats) / sum(tokens)), rel=1e-4)
    # Of 12 values, sorted, the 95th percentile lies 0.45 behind the eleventh.
    assert found["perplexity_p95"] == pytest.approx(
        each[10] + 0.45 * (each[11] - each[10]), rel=1e-4
    )
    assert sum(count for _, count in found["histogram"]) == 12


def test_rows_are_told_as_they_are_done_and_can_be_stopped(tiny, monkeypatch):
    long, done = {"prompt": "Say", "response": "word " * 4000}, []
    rows = [long, *seeds.human_text(12)]
    whole = human_text_figures(tiny, rows, 64)
    monkeypatch.setattr("srlm_fast.loop.human_text.ROWS_AT_A_TIME", 5)
    found = human_text_figures(tiny, rows, 64, done.append)
    assert done == [6, 11, 13]
    assert found["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
    assert found["histogram"] == whole["histogram"] and found["tokens"] == whole["tokens"]

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        human_text_figures(tiny, rows, 64, stop)


def test_the_run_shows_it_and_stops_in_it(tmp_path):
    """At the first group behind the start of the stage."""
    screen = Silent()

    def asked() -> bool:
        return screen.stages[-1:] == ["M1 human text"]

    with pytest.raises(KeyboardInterrupt):
        run(small_config(tmp_path / "run", num_eft=24, **{"sft.epochs": 1}), screen, asked)
    assert screen.stages[-1] == "M1 human text"


def test_the_tail_shows_what_the_model_does_not_expect(tiny):
    rows = seeds.human_text(24)
    odd = [row | {"response": "Zq xv jj. Zq!"} for row in rows[:3]]
    plain, mixed = (human_text_figures(tiny, r, 2048) for r in (rows, [*odd, *rows[3:]]))
    assert mixed["perplexity_p95"] > 5 * plain["perplexity_p95"]


def test_nothing_that_fits_is_none(tiny):
    assert human_text_figures(tiny, [], 64) is None
    long = {"prompt": "Say", "response": "word " * 4000}
    assert human_text_figures(tiny, [long], 64) is None
    assert human_text_figures(tiny, [long, *seeds.human_text(2)], 64)["n"] == 2


def test_a_broken_model_has_figures_in_json(tiny):
    broken = load_model("tiny", "cpu")
    with torch.no_grad():
        broken.head.fill_(math.nan)
    found = human_text_figures(broken, seeds.human_text(3), 64)
    assert found["perplexity"] is None and found["perplexity_p95"] is None
    assert found["histogram"][-1] == [2.0**14, 3]
    json.dumps(found, allow_nan=False)


def test_turns_of_ranked_answers_come_along(tmp_path):
    from srlm_fast.loop.human_text import split_human_text

    turns = [{"role": "system", "content": "Be short."}]
    row = {"prompt": "Hm?", "responses": ["a", "b"], "scores": [1, 2], "turns": turns}
    base = gather(small_config(tmp_path))
    found = split_human_text(dataclasses.replace(base, eft_eval=[row]), [], [], 0)
    assert found.human_text == [{"prompt": "Hm?", "response": "b", "turns": turns}]
