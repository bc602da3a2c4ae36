"""The whole loop on the tiny world, small: what it writes, what it counts, what it never does."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from srlm_fast.loop import StoppedError, run
from srlm_fast.records import read_jsonl
from srlm_fast.report import write_report
from srlm_fast.run_folder import write_config
from tests.loop.worlds import (
    Silent,
    results,
    same,
    share_first_model,
    small_config,
    small_run,
)


@pytest.fixture(scope="module")
def finished(two_rounds):
    return two_rounds, json.loads((two_rounds / "summary.json").read_text())


def test_the_run_folder_holds_what_the_contract_names(finished):
    out, summary = finished
    for name in ("state.json", "metrics.jsonl", "summary.json", "m1/sft.jsonl"):
        assert (out / name).is_file(), name
    for model in ("m2", "m3"):
        for rows in ("prompts", "candidates", "judgements", "pairs"):
            assert read_jsonl(out / model / f"{rows}.jsonl"), (model, rows)
    assert [model["name"] for model in summary["models"]] == ["M1", "M2", "M3"]
    assert [made["name"] for made in summary["rounds"]] == ["M2", "M3"]


def test_summary_counts_are_those_of_the_rows(finished):
    out, summary = finished
    for made in summary["rounds"]:
        folder = out / made["name"].lower()
        judgements = read_jsonl(folder / "judgements.jsonl")
        assert made["prompts"] == len(read_jsonl(folder / "prompts.jsonl")) == 20
        assert made["candidates"] == len(read_jsonl(folder / "candidates.jsonl")) == 80
        assert made["judgements"] == len(judgements) == 160
        assert made["unparsed"] == sum(row["score"] is None for row in judgements)
        assert made["pairs"] == len(read_jsonl(folder / "pairs.jsonl"))
        assert made["pairs"] + sum(made["dropped"].values()) == 20
        reasons = Counter(row["reason"] for row in read_jsonl(folder / "dropped.jsonl"))
        assert reasons == Counter({k: n for k, n in made["dropped"].items() if n})
        assert set(made["seconds"]) == {"prompts", "sample", "judge", "train"}
    for model in summary["models"]:
        low, high = model["eval"]["interval"]
        assert 0 <= low <= model["eval"]["score"] <= high <= 5
        assert model["eval"]["n"] == 24
        assert 0 <= model["judge"]["pairwise_accuracy"] <= 1
    for model in summary["models"][1:]:
        for other in ("against_previous", "against_first"):
            found = model[other]
            assert found["n"] == found["win"] + found["tie"] + found["loss"] == 24 * 16


def test_pairs_are_best_against_worst_with_reference_log_probs(finished):
    out, _ = finished
    for model in ("m2", "m3"):
        for row in read_jsonl(out / model / "pairs.jsonl"):
            assert row["score_chosen"] > row["score_rejected"]
            means = [
                sum(valid) / len(valid)
                for scores in row["scores"]
                if (valid := [s for s in scores if s is not None])
            ]
            assert row["score_chosen"] == pytest.approx(max(means))
            assert row["score_rejected"] == pytest.approx(min(means))
            assert row["chosen"][1]["content"] == row["all_responses"][row["chosen_index"]]
            assert all(math.isfinite(v) and v < 0 for v in row["ref_logps"].values())
            assert {"round", "model_hash", "seed", "sampling", "messages"} <= row.keys()


def test_reference_log_probs_are_the_samplers_own(finished):
    """The round's start sampled the answers, so teacher forcing gives back the sampled
    log-probs.
    """
    out, _ = finished
    sampled = {
        (row["prompt_id"], row["index"]): row["logprob"]
        for row in read_jsonl(out / "m2" / "candidates.jsonl")
    }
    pairs = read_jsonl(out / "m2" / "pairs.jsonl")
    for row in pairs:
        for side in ("chosen", "rejected"):
            wanted = sampled[row["prompt_id"], row[f"{side}_index"]]
            assert row["ref_logps"][side] == pytest.approx(wanted, abs=2e-3)


def test_dpo_starts_at_ln_2(finished):
    out, _ = finished
    steps = [r for r in read_jsonl(out / "metrics.jsonl") if r.get("step") == 0]
    dpo = {row["stage"]: row["loss"] for row in steps if row["stage"] != "m1/train"}
    assert set(dpo) == {"m2/train", "m3/train"}
    for loss in dpo.values():
        assert loss == pytest.approx(math.log(2), abs=1e-4)


def test_held_out_prompts_are_in_no_training_row(finished):
    from srlm_fast.tiny import seeds

    out, _ = finished
    held_out = set(seeds.heldout(24))
    trained = {row["prompt"] for row in read_jsonl(out / "m1" / "sft.jsonl")}
    for model in ("m2", "m3"):
        trained |= {row["text"] for row in read_jsonl(out / model / "prompts.jsonl")}
    assert not held_out & trained


def test_models_load_in_transformers(finished):
    out, _ = finished
    for model in ("m1", "m2", "m3"):
        AutoModelForCausalLM.from_pretrained(out / model / "model")
        tokenizer = AutoTokenizer.from_pretrained(out / model / "model")
        assert tokenizer.chat_template


def test_pair_rows_load_in_trl(finished, tmp_path):
    from datasets import Dataset
    from trl.data_utils import is_conversational, maybe_apply_chat_template

    out, _ = finished
    rows = read_jsonl(out / "m2" / "pairs.jsonl")
    wanted = [{"chosen": r["chosen"], "rejected": r["rejected"]} for r in rows]
    tokenizer = AutoTokenizer.from_pretrained(out / "m2" / "model")
    assert is_conversational(Dataset.from_list(wanted)[0])
    text = maybe_apply_chat_template(wanted[0], tokenizer)
    assert rows[0]["chosen"][1]["content"] in text["chosen"]


def test_same_seed_same_run_other_seed_another(finished, tmp_path):
    out, _ = finished
    summary = small_run(tmp_path / "again", iterations=1)
    assert json.loads((tmp_path / "again" / "summary.json").read_text()) == summary
    again, wanted = results(tmp_path / "again"), results(out)
    models = again.pop("models")
    assert models == wanted["models"][:2] and "m2/weights" in again
    same(again, {name: wanted[name] for name in again})
    few = {"sft.epochs": 1, "evaluation.num_prompts": 1, "evaluation.num_judged": 0}
    small_run(tmp_path / "other", seed=1, iterations=0, **few)
    left = (out / "m1" / "sft.jsonl").read_text()
    assert left != (tmp_path / "other" / "m1" / "sft.jsonl").read_text()


@pytest.mark.parametrize("reward", ["random", "gold", "frozen"])
def test_rewards(reward, finished, tmp_path):
    out, _ = finished
    share_first_model(out, tmp_path / "run")
    summary = small_run(tmp_path / "run", reward=reward)
    assert len(summary["models"]) == 3
    judged = read_jsonl(tmp_path / "run" / "m3" / "judgements.jsonl")
    assert bool(judged) == (reward == "frozen")


def test_expected_judge(finished, tmp_path):
    share_first_model(finished[0], tmp_path / "run")
    summary = small_run(tmp_path / "run", **{"judge.mode": "expected", "iterations": 1})
    rows = read_jsonl(tmp_path / "run" / "m2" / "judgements.jsonl")
    scores = [row["score"] for row in rows if row["score"] is not None]
    assert len(rows) == 80
    assert len(scores) > 40
    assert all(0 <= score <= 5 for score in scores)
    assert len({round(score, 6) for score in scores}) > 6
    assert summary["rounds"][0]["pairs"] > 0


def test_unread_judgements_are_counted_by_why(finished):
    out, summary = finished
    for made in summary["rounds"]:
        rows = read_jsonl(out / made["name"].lower() / "judgements.jsonl")
        assert made["statuses"] == Counter(row["status"].lower() for row in rows)
        assert sum(made["statuses"].values()) == made["judgements"]
        unread = sum(n for status, n in made["statuses"].items() if status != "ok")
        assert unread == made["unparsed"]


def test_no_pairs_stops_with_the_reason(finished, tmp_path):
    share_first_model(finished[0], tmp_path / "run")
    config = small_config(tmp_path / "run", **{"judge.sampling.max_tokens": 1})
    with pytest.raises(StoppedError, match="no pair to learn from.*not judged"):
        run(config, Silent())
    assert read_jsonl(tmp_path / "run" / "m2" / "candidates.jsonl")
    # What there is stands in the summary and in the report, and why there is no more.
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [model["name"] for model in summary["models"]] == ["M1"] and not summary["rounds"]
    assert summary["finished"] is False and "no pair to learn from" in summary["stopped"]["reason"]
    assert summary["stopped"]["dropped"]["not_judged"] == 20
    assert set(summary["stopped"]["judgements"]) == {"truncated"}
    write_config(tmp_path / "run", config.to_json(), {})
    page = write_report(tmp_path / "run").read_text()
    assert "The run stopped by itself" in page and "no model has been measured" not in page
