"""What the loop thinks of a model's own held-out answers, by the kind of reward."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from srlm_fast.eval import mean_interval
from srlm_fast.judge import pairwise
from srlm_fast.loop import own_score as module
from srlm_fast.loop.own_score import OWN_SCORES, both_scores
from srlm_fast.loop.watching import Watching
from srlm_fast.model import load_model, with_score_head
from srlm_fast.options import REWARDS
from srlm_fast.records import Judgement, read_jsonl
from tests.loop.worlds import small_run

FEW = {
    "num_ift": 8,
    "num_eft": 8,
    "num_prompts": 6,
    "iterations": 1,
    "candidates.n": 2,
    "candidates.max_tokens": 12,
    "evaluation.num_prompts": 6,
    "evaluation.num_judged": 1,
    "judge.sampling.max_tokens": 8,
}


def measured_again(out, **changes):
    """The figures of M2 from the rows that are there: nothing is asked twice."""
    state = json.loads((out / "state.json").read_text("utf-8"))
    del state["stages"]["m2/measure"]
    (out / "state.json").write_text(json.dumps(state), "utf-8")
    return small_run(out, **FEW | changes)["models"][1]["own_score"]


def test_pairwise_is_the_preference_over_the_model_before(tmp_path, monkeypatch):
    """The tiny model cannot compare: whatever mass its choices have is taken."""
    monkeypatch.setattr(pairwise, "MIN_MASS", 0.0)
    out, changes = tmp_path / "run", {"reward": "pairwise", "dpo.learning_rate": 2e-3}
    first, second = small_run(out, **FEW | changes)["models"]
    assert first["own_score"] is None and not (out / "m1" / "own_compared.jsonl").exists()
    texts = [
        {row["prompt_id"]: row["text"] for row in read_jsonl(out / name / "evaluation.jsonl")[::-1]}
        for name in ("m1", "m2")
    ]
    rows = {row["prompt_id"]: row["score"] for row in read_jsonl(out / "m2" / "own_compared.jsonl")}
    assert rows.keys() == {key for key in texts[1] if texts[0][key] != texts[1][key]} != set()
    values = [rows.get(key, 0.5) for key in texts[1]]
    mean, low, high = mean_interval(values)
    found = second["own_score"]
    assert (found["score"], found["n"]) == (pytest.approx(mean), len(values))
    assert found["interval"] == [pytest.approx(low), pytest.approx(high)]
    assert found["change"] == pytest.approx(mean - 0.5) and found["against"] == "M1"
    assert measured_again(out, **changes) == found


def test_a_reward_model_scores_the_answers_of_both_models(tmp_path):
    with_score_head(load_model("tiny"), 5).save(tmp_path / "reward")
    out, changes = tmp_path / "run", {"reward": "model", "reward_model": str(tmp_path / "reward")}
    first, second = small_run(out, **FEW | changes)["models"]
    assert first["own_score"] is None
    rows = read_jsonl(out / "m2" / "own_judged.jsonl")
    scores = {(row["prompt_id"], row["candidate"]): row["score"] for row in rows}
    own = [score for (_, k), score in scores.items() if k == 1]
    changed = [score - scores[key, 0] for (key, k), score in scores.items() if k == 1]
    found = second["own_score"]
    assert found["n"] == len(own) == 6
    assert found["score"] == pytest.approx(sum(own) / 6)
    assert found["change"] == pytest.approx(sum(changed) / 6)
    assert measured_again(out, **changes) == found


def test_only_prompts_with_both_scores_count():
    rows = [Judgement(key, k, 0, "", s, "OK") for key, k, s in SCORES]
    assert both_scores(rows) == [(1.0, 2.0)]


SCORES = [
    ("a", 0, 1.0),
    ("a", 1, 2.0),
    ("b", 0, None),
    ("b", 1, 3.0),
    ("c", 0, 1.0),
    ("c", 1, None),
]


def test_a_constitution_has_the_rubrics_own_score(monkeypatch):
    """The live model that revises grades too, and is the judge of the judge table."""
    assert OWN_SCORES["constitution"] is OWN_SCORES["self"] is module.by_rubric
    assert REWARDS and set(REWARDS) - set(OWN_SCORES) == {"random", "gold"}


def run_of(reward, known=(), program=None, iterations=2):
    config = SimpleNamespace(reward=reward, iterations=iterations)
    material = SimpleNamespace(score_bits=program, eft_eval=list(known))
    return SimpleNamespace(config=config, material=material)


def test_a_run_says_once_that_the_warning_cannot_come_up():
    (said,) = Watching(run_of("random", program=len)).notes
    assert said == "no warning self_praise: --reward random has no own score"
    (said,) = Watching(run_of("self")).notes
    assert "there are no answers of known order (--eft, --eft-eval)" in said
    assert not Watching(run_of("pairwise", known=[{}])).notes
    assert not Watching(run_of("model", program=len)).notes
    assert not Watching(run_of("random", iterations=0)).notes
