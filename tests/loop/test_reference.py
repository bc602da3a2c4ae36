"""Whose log-probs a round's DPO is measured against, which pairs are held out of it, and both again
after a break or an edit.
"""

from __future__ import annotations

import json
import math

import pytest

from srlm_fast import load_model
from srlm_fast.loop import run, state, teaching
from srlm_fast.loop.answers import load_candidates
from srlm_fast.loop.held_out import held_out_prompts
from srlm_fast.loop.token_rows import token_pair
from srlm_fast.loop.weights import WeightsOf
from srlm_fast.records import read_jsonl, write_jsonl
from srlm_fast.train import pair_logps
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import Silent, results, same, share_first_model, small_config

FAST = {
    "reward": "random",
    "num_prompts": 16,
    "num_eft": 48,
    "sft.epochs": 1,
    "evaluation.num_prompts": 2,
    "evaluation.num_judged": 2,
    "dpo.learning_rate": 1e-3,
}
SFT_AND_HELD_OUT = FAST | {
    "reference": "sft",
    "held_out_pairs": 0.25,
    "dpo.epochs": 2,
    "dpo.evaluate_every": 2,
    "dpo.patience": 2,
    "dpo.checkpoint_seconds": 0.0,
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "run"
    screen = Silent()
    return out, run(small_config(out, **SFT_AND_HELD_OUT), screen), screen


def metrics(out, stage):
    rows = read_jsonl(out / "metrics.jsonl")
    return [row for row in rows if row["stage"] == stage and "memory" not in row]


def logps_under(out, model, made):
    """Log-probs of the pairs that made a model, under another one."""
    model = load_model(out / model / "model", device="cpu", dtype="float32")
    candidates = load_candidates(out / made / "candidates.jsonl", 4)
    pairs = [token_pair(model, row, candidates) for row in read_jsonl(out / made / "pairs.jsonl")]
    return [value.tolist() for value in pair_logps(model, pairs)]


def test_the_first_model_is_the_reference_of_every_round(unbroken):
    out, _, screen = unbroken
    rows = {made: read_jsonl(out / made / "pairs.jsonl") for made in ("m2", "m3")}
    for made in rows:
        found = [[row["ref_logps"][side] for row in rows[made]] for side in ("chosen", "rejected")]
        assert found == logps_under(out, "m1", made)
    assert found != logps_under(out, "m2", "m3")
    # Where the reference is not the start any more, no loss is ln 2 at first.
    first = {made: metrics(out, f"{made}/train")[0]["loss"] for made in rows}
    assert first["m2"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(first["m3"] - math.log(2)) > 1e-3
    assert rows["m3"][0]["model_hash"] == state.weights_hash(out / "m2" / "model")
    keys = [row["ref_key"] for made in rows for row in rows[made]]
    assert len(set(keys)) == len(keys) and not any("computed again" in n for n in screen.notes)


def test_log_ratios_are_told_from_the_start_of_the_round(unbroken):
    out, summary, _ = unbroken
    for made in summary["rounds"]:
        first, found = metrics(out, f"{made['name'].lower()}/train")[0], made["logratios"]
        for side in ("chosen", "rejected"):
            assert found[f"{side}_start"] == pytest.approx(first[f"{side}_logratio"])
            assert (abs(found[f"{side}_start"]) < 1e-3) == (made["name"] == "M2")


def test_held_out_pairs_are_evaluated_and_choose_the_weights(unbroken):
    out, summary, _ = unbroken
    for made in summary["rounds"]:
        *steps, stage = metrics(out, f"{made['name'].lower()}/train")
        losses = {
            row["step"] + 1: row["held_out_loss"]
            for row in steps
            if row["held_out_loss"] is not None
        }
        assert losses and all(step % 2 == 0 or step == steps[-1]["num_steps"] for step in losses)
        assert made["best_step"] == min(losses, key=losses.get) == stage["best_step"]
        assert made["held_out_pairs"] == max(1, round(0.25 * made["pairs"]))
        learnt = made["pairs"] - made["held_out_pairs"]
        assert steps[0]["num_steps"] == 2 * -(-learnt // 4)
    assert not list(out.glob("m*/checkpoint*"))


def test_broken_off_in_its_trainings_it_ends_the_same(unbroken, tmp_path, monkeypatch):
    """While the reference's weights are in place, and between a round's pairs and its training."""
    out = tmp_path / "run"
    share_first_model(unbroken[0], out)
    with monkeypatch.context() as patch:
        break_at(patch, WeightsOf, "__enter__", 1)
        with pytest.raises(Killed):
            run(small_config(out, **SFT_AND_HELD_OUT), Silent())
    with monkeypatch.context() as patch:
        break_at(patch, state.RunState, "measure", 4)
        with pytest.raises(Killed):
            run(small_config(out, **SFT_AND_HELD_OUT), Silent())
    run(small_config(out, **SFT_AND_HELD_OUT), Silent())
    same(results(unbroken[0]), results(out))


def test_an_edited_pair_gets_its_reference_anew(unbroken, tmp_path, monkeypatch):
    """A row turned around after its log-probs were taken, and one from before there were keys."""
    out, screen = tmp_path / "run", Silent()
    share_first_model(unbroken[0], out)
    config = small_config(out, **FAST, iterations=1)
    with monkeypatch.context() as patch:
        break_at(patch, state.RunState, "finish", 3)  # prompts, answers, pairs
        with pytest.raises(Killed):
            run(config, Silent())
    path = out / "m2" / "pairs.jsonl"
    rows = read_jsonl(path)
    before = json.dumps(rows[2:])
    first = rows[0]
    first["chosen_index"], first["rejected_index"] = first["rejected_index"], first["chosen_index"]
    wanted = first["ref_logps"]["rejected"], first["ref_logps"]["chosen"]
    del rows[1]["ref_key"]
    write_jsonl(path, rows)
    run(config, screen)
    (note,) = [note for note in screen.notes if "computed again" in note]
    assert f"{path}: 2 of {len(rows)} reference log-probs" in note
    after = read_jsonl(path)
    ours = after[0]["ref_logps"]["chosen"], after[0]["ref_logps"]["rejected"]
    assert ours == pytest.approx(wanted, abs=1e-4)
    assert after[1]["ref_key"] and json.dumps(after[2:]) == before
    assert metrics(out, "m2/train")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_held_out_prompts():
    prompts = [f"p{i % 10}" for i in range(25)]
    found = held_out_prompts(prompts, 0.3, 5)
    assert len(found) == 3 and found < set(prompts)
    assert held_out_prompts(list(reversed(prompts)), 0.3, 5) == found
    assert any(held_out_prompts(prompts, 0.3, seed) != found for seed in range(3))
    assert held_out_prompts(prompts, 0.0, 5) == set() == held_out_prompts(["p"] * 4, 0.5, 5)
    assert (
        len(held_out_prompts(["a", "b"], 0.9, 5)) == 1 == len(held_out_prompts(["a", "b"], 0.1, 5))
    )


def test_one_prompt_is_not_held_out(tmp_path, unbroken, monkeypatch):
    """A round whose pairs all come from one prompt trains on them, and says so."""
    out, screen = tmp_path / "run", Silent()
    share_first_model(unbroken[0], out)
    monkeypatch.setattr(teaching, "held_out_prompts", lambda *_: set())
    summary = run(small_config(out, **SFT_AND_HELD_OUT, iterations=1), screen)
    assert "M2: one prompt gave pairs, so that none is held out" in screen.notes
    assert "best_step" not in summary["rounds"][0]
