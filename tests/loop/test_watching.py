"""The watch in a run: a round that collapses is warned of, and ends the run where it should."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from srlm_fast import run as command
from srlm_fast.config import differences
from srlm_fast.loop import StoppedError, run
from srlm_fast.loop.own_score import own_score
from srlm_fast.loop.summary import round_rows
from srlm_fast.loop.teaching import last_logratios
from srlm_fast.records import Candidate, Judgement, Prompt, read_jsonl
from srlm_fast.run_folder import write_config
from srlm_fast.train import TrainReport
from tests.loop.worlds import Silent, share_first_model, small_config, small_run

# DPO that breaks a model of this size within its 16 steps.
COLLAPSING = {"dpo.learning_rate": 2e-3, "dpo.epochs": 4}
STOPPING = COLLAPSING | {"stop_on_collapse": True}


@pytest.fixture(scope="module")
def sound(two_rounds, tmp_path_factory):
    """A sound run of one round, whose M1 the others start from."""
    out = tmp_path_factory.mktemp("watching") / "sound"
    share_first_model(two_rounds, out)
    screen = Silent()
    return out, run(small_config(out, iterations=1), screen), screen


@pytest.fixture(scope="module")
def stopped(sound, tmp_path_factory):
    """A run that collapses and stops: folder, what it said, screen."""
    out, screen = tmp_path_factory.mktemp("watching") / "stopped", Silent()
    share_first_model(sound[0], out)
    with pytest.raises(StoppedError) as found:
        run(small_config(out, **STOPPING), screen)
    return out, str(found.value), screen


def summary_of(out):
    return json.loads((out / "summary.json").read_text("utf-8"))


def watch_row(out):
    """What `metrics.jsonl` says of the watch behind the first round."""
    rows = [row for row in read_jsonl(out / "metrics.jsonl") if row["stage"] == "m2/watch"]
    (row,) = [row for row in rows if "warnings" in row]
    return row


def test_a_sound_run_raises_none(sound):
    out, summary, screen = sound
    (made,) = summary["rounds"]
    assert made["warnings"] == [] and not any("warning" in note for note in screen.notes)
    assert watch_row(out)["warnings"] == []


def test_figures_of_the_watch_stand_in_the_summary(sound):
    out, summary, _ = sound
    for model in summary["models"]:
        assert model["human_text"]["n"] == 24
        assert 1 < model["human_text"]["perplexity"] < model["human_text"]["perplexity_p95"]
        assert 0 < model["collapse"]["self_bleu"] < 1 and model["collapse"]["n"] == 96
    (made,) = summary["rounds"]
    low, high = made["score_interval"]
    judged = read_jsonl(out / "m2" / "judgements.jsonl")
    groups: dict = {}
    for row in judged:
        if row["score"] is not None:
            groups.setdefault((row["prompt_id"], row["candidate"]), []).append(row["score"])
    means = [sum(scores) / len(scores) for scores in groups.values()]
    assert made["score_mean"] == pytest.approx(sum(means) / len(means))
    assert low < made["score_mean"] < high and made["score_change"] is None


def test_each_model_judges_its_own_held_out_answers(sound):
    out, summary, _ = sound
    for model in summary["models"]:
        folder = out / model["name"].lower()
        judged = read_jsonl(folder / "own_judged.jsonl")
        assert {row["candidate"] for row in judged} == {0}
        asked = {row["prompt_id"] for row in read_jsonl(folder / "evaluation.jsonl")}
        scores = {key: [] for key in asked}
        for row in judged:
            if row["score"] is not None:
                scores[row["prompt_id"]].append(row["score"])
        assert len(judged) == 2 * len(asked) == 48
        means = [sum(found) / len(found) for found in scores.values() if found]
        (low, high), found = model["own_score"]["interval"], model["own_score"]
        assert found["score"] == pytest.approx(sum(means) / len(means))
        assert low < found["score"] < high and found["n"] == len(means)


def test_a_bounded_sample_of_own_answers_is_judged_again_where_rows_are_lost(
    sound, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    share_first_model(sound[0], out)
    state = json.loads((out / "state.json").read_text("utf-8"))
    del state["stages"]["m1/measure"]
    (out / "state.json").write_text(json.dumps(state), "utf-8")
    file = out / "m1" / "own_judged.jsonl"
    whole = file.read_text("utf-8").splitlines()
    file.write_text("\n".join(whole[:5]) + "\n", "utf-8")
    monkeypatch.setattr("srlm_fast.loop.own_score.OWN_ANSWERS", 12)
    (model,) = small_run(out, iterations=0)["models"]
    found = file.read_text("utf-8").splitlines()
    assert found[:4] == whole[:4] and set(found) < set(whole)
    assert len({row["prompt_id"] for row in read_jsonl(file)}) < 24
    assert 0 < model["own_score"]["n"] <= 12


def test_log_ratios_are_those_of_the_last_steps(sound):
    out, summary, _ = sound
    steps = [r for r in read_jsonl(out / "metrics.jsonl") if r["stage"] == "m2/train"]
    last = [r for r in steps if "step" in r][-1]  # a tenth of so few steps, and a whole batch
    assert last["num_pairs"] == 4
    found = summary["rounds"][0]["logratios"]
    assert found["chosen"] == pytest.approx(last["chosen_logratio"])
    assert found["rejected"] == pytest.approx(last["rejected_logratio"])
    assert found["margin"] == pytest.approx(found["chosen"] - found["rejected"])


def test_log_ratios_hand_worked():
    def of(chosen, best=None):
        rejected = [-x for x in chosen]
        sizes = [16] * (len(chosen) - 1) + [4]  # pairs of each step
        report = TrainReport(
            chosen_logratios=chosen,
            rejected_logratios=rejected,
            num_pairs=sizes,
            best_step=best,
        )
        found = last_logratios(report)
        return found and found["chosen"]

    assert of([float(i) for i in range(20)]) == (18 * 16 + 19 * 4) / 20
    assert of([1.0, 2.0, 3.0]) == (2 * 16 + 3 * 4) / 20  # four pairs alone would be few
    assert of([1.0, 2.0, 3.0], best=2) == 2.0  # the weights kept are those behind two steps
    nan = float("nan")
    assert of([1.0] * 18 + [nan, 5.0]) == 5.0
    assert of([nan]) is None


def test_the_change_of_the_score_is_against_the_round_before(monkeypatch):
    scores = iter([3.0, None, 2.0, 2.5])
    monkeypatch.setattr(
        "srlm_fast.loop.summary._round", lambda state, folder: {"score_mean": next(scores)}
    )
    rows = round_rows(None, range(5))
    assert [row["score_change"] for row in rows] == [None, None, None, 0.5]


def test_a_collapsing_run_is_warned_of_and_stops(stopped):
    out, said, screen = stopped
    assert said.startswith("M2: stopped on signs of collapse (rejected_logratio: mean log-ratio of")
    summary = summary_of(out)
    assert [model["name"] for model in summary["models"]] == ["M1", "M2"]
    assert summary["finished"] is False and summary["stopped"]["reason"] == said
    (made,) = summary["rounds"]
    by_name = {row["name"]: row for row in made["warnings"]}
    assert by_name["rejected_logratio"]["figure"] == made["logratios"]["rejected"] < -3
    notes = [f"M2: warning {name}: {row['text']}" for name, row in by_name.items()]
    assert [note for note in screen.notes if "warning" in note] == notes
    assert watch_row(out)["warnings"] == made["warnings"]
    # The tail of human text has grown, and all rows of the round are there.
    tails = [model["human_text"]["perplexity_p95"] for model in summary["models"]]
    assert tails[1] > 1.2 * tails[0]
    assert len(read_jsonl(out / "m2" / "pairs.jsonl")) == made["pairs"]


def test_the_same_command_says_the_same_at_once(stopped, monkeypatch):
    out, said, _ = stopped
    before, screen = (out / "metrics.jsonl").read_bytes(), Silent()
    monkeypatch.setattr("srlm_fast.loop.loop.load_model", None)  # nothing is loaded
    with pytest.raises(StoppedError) as found:
        run(small_config(out, **STOPPING), screen)
    assert str(found.value) == said and not screen.stages
    assert (out / "metrics.jsonl").read_bytes() == before
    assert summary_of(out)["stopped"]["reason"] == said


@pytest.mark.parametrize("written", [False, True], ids=["before", "behind"])
def test_killed_around_the_warning_it_is_neither_lost_nor_doubled(stopped, tmp_path, written):
    """written: whether the line of metrics.jsonl was there; the stage was not marked yet."""
    out, said, _ = stopped
    shutil.copytree(out, tmp_path / "run")
    state = json.loads((tmp_path / "run" / "state.json").read_text("utf-8"))
    del state["stages"]["m2/watch"]
    (tmp_path / "run" / "state.json").write_text(json.dumps(state), "utf-8")
    (tmp_path / "run" / "summary.json").unlink()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if written or '"warnings"' not in line]
    assert len(lines) - len(kept) == (0 if written else 1)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(kept), "utf-8")
    with pytest.raises(StoppedError) as found:
        run(small_config(tmp_path / "run", **STOPPING), Silent())
    assert str(found.value) == said
    assert summary_of(tmp_path / "run")["rounds"] == summary_of(out)["rounds"]
    assert watch_row(tmp_path / "run")["warnings"] == watch_row(out)["warnings"] != []


def test_the_command_ends_with_3_and_goes_on_without_the_option(stopped, capsys):
    out, said, _ = stopped
    config = small_config(out, **STOPPING)
    write_config(out, config.to_json(), {})
    assert command.end_of(lambda: command.train(config, out, None)) == 3
    written = capsys.readouterr().err
    assert written == f"srlm_fast: {said}; all rows are kept in {out}\n"
    assert "stopped on signs of collapse" in (out / "report.html").read_text("utf-8")
    assert not differences(config, small_config(out, **COLLAPSING))
    summary = small_run(out, **COLLAPSING)
    assert summary["finished"] and [made["name"] for made in summary["rounds"]] == ["M2", "M3"]


def test_best_of_n_on_its_own_output_alone_loses_its_entropy(sound, tmp_path):
    share_first_model(sound[0], tmp_path / "run")
    changes = {"reward": "best-of-n", "sft.epochs": 6, "iterations": 1}
    (made,) = small_run(tmp_path / "run", **changes)["rounds"]
    assert [row["name"] for row in made["warnings"]] == ["entropy_fall"]
    assert made["warnings"][0]["figure"] > 0.2 and made["logratios"] is None


def test_a_model_that_has_judged_its_answers_is_not_asked_again():
    """M1 is the judge of all models where no program scores, and then reads its own first."""
    prompts = [Prompt(f"p{i}", "Say", "file") for i in range(4)]
    answered = SimpleNamespace(
        reader="M1's",
        candidates={
            p.prompt_id: [Candidate(p.prompt_id, k, "x", (1,), 0.0, "stop") for k in (0, 1)]
            for p in prompts[:3]  # the last one was too long
        },
        judgements={
            (f"p{i}", k): [Judgement(f"p{i}", k, 0, "", score, "OK")]
            for i, k, score in ((0, 0, 2.0), (0, 1, 5.0), (1, 0, 4.0), (2, 0, None))
        },
    )
    material = SimpleNamespace(held_out=prompts)
    for reward, n in (("self", 2), ("constitution", 2), ("random", 0), ("gold", 0)):
        asked = SimpleNamespace(config=SimpleNamespace(reward=reward), material=material)
        found = own_score(asked, None, answered)
        assert (found and (found["score"], found["n"])) == ((3.0, n) if n else None)
