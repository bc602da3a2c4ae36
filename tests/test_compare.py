"""`python -m srlm_fast.compare`: every kind of judge on small folders, answers of the run itself,
going on, one model in memory, and one line for every mistake.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srlm_fast import run_folder
from srlm_fast.compare import main, make_parser, read_options
from srlm_fast.compare.terms import terms_of
from srlm_fast.config import from_json
from srlm_fast.judge import pairwise
from srlm_fast.loop import contest, run
from srlm_fast.loop.state import weights_hash
from srlm_fast.model import load_model, with_score_head
from srlm_fast.model.load import find_folder
from srlm_fast.records import Prompt, RowWriter, read_jsonl
from srlm_fast.run_models import resolve_model
from tests.commands import complaint_of
from tests.loop.worlds import Silent, small_config

ROOT = Path(run_folder.__file__).parent.parent
FEW = ["--limit", "4", "--samples", "2"]
SHORT = ["--judge-samples", "1", "--judge-max-tokens", "30"]
SMALLER = {
    "num_ift": 8,
    "num_eft": 24,
    "sft.epochs": 1,
    "evaluation.num_judged": 0,
    "evaluation.num_prompts": 8,
    "evaluation.samples": 3,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A tiny run with its M1, and the package's M0 as an M2 that was not measured."""
    out = tmp_path_factory.mktemp("made") / "run"
    out.mkdir()
    config = small_config(out, iterations=0, **SMALLER)
    run_folder.write_config(out, config.to_json(), {})
    run(config, Silent())
    shutil.copytree(find_folder("tiny"), out / "m2" / "model")
    return out


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("reward") / "model"
    with_score_head(load_model("tiny"), 5).save(path)
    return str(path)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are loaded, in order, none while another is held."""
    names: list[str] = []
    held: list[weakref.ref] = []

    def load(name: str, *rest: Any) -> Any:
        assert all(each() is None for each in held)
        names.append("/".join(Path(name).parts[-2:]))
        made = load_model(name, *rest)
        held.append(weakref.ref(made))
        return made

    monkeypatch.setattr(contest, "load_model", load)
    return names


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model has never compared: the choices hold little of its probability."""
    monkeypatch.setattr(pairwise, "MIN_MASS", 0.0)


@pytest.fixture
def complaint(capsys) -> Callable[..., str]:
    return complaint_of(main, capsys)


def compared(made: Path, out: Path, *options: str) -> dict[str, Any]:
    assert main([str(made / "m2"), str(made / "m1"), "--out", str(out), *options]) == 0
    return json.loads((out / "comparison.json").read_text())


def test_models_of_a_run_by_its_own_program(made, tmp_path, loads, capsys):
    found = compared(made, tmp_path / "out", "--limit", "6")
    assert loads == ["m2/model"]  # M1 has answered already
    own = {(r["prompt_id"], r["index"]): r for r in read_jsonl(made / "m1" / "evaluation.jsonl")}
    rows = read_jsonl(tmp_path / "out" / "answers_b.jsonl")
    assert len(rows) == 6 * 3 and all(own[r["prompt_id"], r["index"]] == r for r in rows)
    figures = found["figures"]
    assert figures["n"] == 6 * 9 and figures["prompts"] == 6
    scores = [read_jsonl(tmp_path / "out" / f"judgements_{side}.jsonl") for side in "ab"]
    wins = sum(
        a["score"] > b["score"]
        for a in scores[0]
        for b in scores[1]
        if a["prompt_id"] == b["prompt_id"]
    )
    assert figures["win"] == wins
    assert found["borrowed"] == {"a": 0, "b": 6} and found["judge"]["kind"] == "gold"
    assert found["b"]["weights"] == weights_hash(made / "m1" / "model") != found["a"]["weights"]
    assert found["sampling"]["n"] == 3 and found["seed"] == 0 and found["versions"]["torch"]
    screen = capsys.readouterr().out
    assert "M2 against M1 on 6 prompts, 3 answers each, all against all" in screen
    assert "length controlled" in screen and "the program of the tiny world" in screen


def test_what_the_run_sampled_is_what_would_be_sampled(made, tmp_path, monkeypatch):
    compared(made, tmp_path / "borrowed", *FEW)
    monkeypatch.setattr(contest, "borrowed", lambda *_: {})
    found = compared(made, tmp_path / "sampled", *FEW)
    assert found["borrowed"] == {"a": 0, "b": 0}
    rows = [
        sorted((tmp_path / name / "answers_b.jsonl").read_text().splitlines())
        for name in ("borrowed", "sampled")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 8


@pytest.mark.parametrize(
    "options", [["--seed", "3"], ["--temperature", "0.5"], ["--samples", "4"]], ids=" ".join
)
def test_other_settings_borrow_nothing(made, options):
    arguments = read_options(["A", "B", "--out", "none", *options])
    models = {side: resolve_model(str(made / name)) for side, name in (("a", "m2"), ("b", "m1"))}
    terms = terms_of(arguments, models)
    assert contest.borrowed(terms, "b") == {} and len(terms.prompts) == 8
    arguments = read_options(["A", "B", "--out", "none", "--samples", "2"])
    assert len(contest.borrowed(terms_of(arguments, models), "b")) == 8


def test_both_orders(made, tmp_path, loads, open_gate, capsys):
    found = compared(made, tmp_path / "out", "--judge-kind", "pairwise", *FEW)
    assert loads == ["m2/model", "m1/model"]  # by default M1 judges, and has answered already
    rows = read_jsonl(tmp_path / "out" / "comparisons.jsonl")
    answers = [
        {
            (r["prompt_id"], r["index"]): r["text"]
            for r in read_jsonl(tmp_path / "out" / f"answers_{side}.jsonl")
        }
        for side in "ab"
    ]
    texts = [
        (answers[0][p, i], answers[1][q, j]) for p, i in answers[0] for q, j in answers[1] if p == q
    ]
    assert len(rows) == sum(a != b for a, b in texts)
    figures = found["figures"]
    assert figures["identical"] == sum(a == b for a, b in texts)
    won = [(r["forward"] > 0.5) + (r["backward"] > 0.5) for r in rows]
    assert figures["win"] == won.count(2) and figures["loss"] == won.count(0)
    assert figures["tie"] == won.count(1) + figures["identical"]
    assert figures["position"]["disagree"]["share"] == pytest.approx(won.count(1) / len(rows))
    assert found["judge"]["asked_with"]["version"] == "pairwise-1"
    screen = capsys.readouterr().out
    assert "the two orders disagree" in screen and "the answer shown first" in screen
    rows = [line.split() for line in screen.splitlines() if line.startswith(("M2 wins", "ties  "))]
    assert len(rows) == 2 and all(row[-4:-1][1] == "to" for row in rows)
    assert "M1's own opinion, no person's. It is B itself" in found["judge_is"]
    assert found["judge_is"] in screen


def test_what_the_judge_does_not_choose_is_unread(made, tmp_path):
    found = compared(made, tmp_path / "out", "--judge-kind", "pairwise", *FEW)
    rows = read_jsonl(tmp_path / "out" / "comparisons.jsonl")
    assert found["figures"]["unread"] == {"missing": len(rows)} and found["figures"]["win"] == 0
    assert found["figures"]["n"] == found["figures"]["identical"] == found["figures"]["tie"]


@pytest.mark.parametrize("kind", ["sampled", "expected", "direct"])
def test_the_rubric_of_the_tiny_run(made, tmp_path, kind, loads):
    """A judges: it answers last and stays."""
    short = SHORT if kind != "direct" else []
    found = compared(made, tmp_path / kind, "--judge", "A", "--judge-kind", kind, *FEW, *short)
    assert loads == ["m2/model"]
    assert found["judge"]["asked_with"]["version"] == "tiny-1" and found["judge"]["is"] == ["a"]
    figures, rows = found["figures"], read_jsonl(tmp_path / kind / "judgements_a.jsonl")
    assert len(rows) == 8 and {row["prompt_id"] for row in rows} <= {
        row["prompt_id"] for row in read_jsonl(tmp_path / kind / "answers_b.jsonl")
    }
    assert figures["n"] + sum(figures["unread"].values()) == 4 * 4
    assert figures["position"] is None and "It is A itself" in found["judge_is"]


def test_a_model_that_judges_is_loaded_once(made, tmp_path, loads):
    """No answers of the run: A is the judge, so that it answers behind B and stays."""
    options = ["--judge-kind", "direct", "--seed", "5", "--limit", "1", "--samples", "1"]
    options += ["--max-tokens", "8"]
    compared(made, tmp_path / "a", *options, "--judge", "A")
    assert loads == ["m1/model", "m2/model"]
    loads.clear()
    compared(made, tmp_path / "third", *options, "--judge", "tiny")
    assert loads == ["m2/model", "m1/model", "tiny"]
    loads.clear()
    compared(made, tmp_path / "third", *options, "--judge", "tiny")
    assert loads == []


def test_a_reward_model(made, tmp_path, reward_folder, capsys):
    found = compared(
        made, tmp_path / "out", "--judge-kind", "model", "--judge", reward_folder, *FEW
    )
    rows = [read_jsonl(tmp_path / "out" / f"judgements_{side}.jsonl") for side in "ab"]
    assert found["figures"]["win"] == sum(
        a["score"] - b["score"] > 1e-9
        for a in rows[0]
        for b in rows[1]
        if a["prompt_id"] == b["prompt_id"]
    )
    assert "reward model" in found["judge_is"]
    # Another slack is another reading of the same rows.
    wide = ["--tie-within", "1000", "--match", "same"]
    again = compared(
        made, tmp_path / "out", "--judge-kind", "model", "--judge", reward_folder, *FEW, *wide
    )
    assert (again["figures"]["tie"], again["figures"]["n"]) == (8, 8)
    assert "the k-th against the k-th" in capsys.readouterr().out


def test_any_models_on_a_file_of_prompts(made, tmp_path, capsys):
    """The default rubric, settings of no run, and prompts of which one is too long."""
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Name a fruit."}, {"prompt": "Add 2 and 3."}, {"prompt": "x " * 1500}]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "copy"
    shutil.copytree(made / "m1" / "model", folder)
    out = tmp_path / "out"
    command = [str(folder), "--out", str(out), "tiny", "--prompts", str(prompts), *SHORT]
    command += ["--judge-kind", "sampled", "--max-tokens", "16", "--judge", str(made / "m1")]
    assert main(command) == 0
    found = json.loads((out / "comparison.json").read_text())
    assert found["too_long"]["a"] == found["too_long"]["b"] == found["unanswered"] == 1
    assert found["samples"] == 1 and found["sampling"]["temperature"] == 0.7
    assert found["a"]["run"] is None and found["judge"]["run"] == str(made)
    assert "prompts without answers of both, too long: 1" in capsys.readouterr().out


def test_broken_off_it_goes_on(made, tmp_path, monkeypatch, open_gate):
    options = ["--judge-kind", "pairwise", "--judge", "B", *FEW]
    original, calls = RowWriter.write, [0]

    def write(self, *written):
        original(self, *written)
        calls[0] += 1
        if calls[0] in (2, 7):
            raise SystemError("killed")

    command = [str(made / "m2"), str(made / "m1"), "--out", str(tmp_path / "out"), *options]
    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "write", write)
        for kept in ("answers_a", "comparisons"):
            with pytest.raises(SystemError):
                main(command)
            assert read_jsonl(tmp_path / "out" / f"{kept}.jsonl")
    with open(tmp_path / "out" / "comparisons.jsonl", "a") as file:
        file.write('{"prompt_id": "torn')
    found = compared(made, tmp_path / "out", *options)
    whole = compared(made, tmp_path / "whole", *options)
    assert found == whole
    for name in ("answers_a", "answers_b", "comparisons"):
        left, right = (
            sorted((tmp_path / out / f"{name}.jsonl").read_text().splitlines())
            for out in ("out", "whole")
        )
        assert left == right


def test_interrupted(made, tmp_path, monkeypatch, capsys):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contest, "show_judging", interrupt)
    assert main([str(made / "m2"), str(made / "m1"), "--out", str(tmp_path / "out")]) == 130
    said = capsys.readouterr().err
    assert "interrupted; everything finished is kept in" in said and said.count("\n") == 1


def test_another_comparison_is_refused(made, tmp_path, complaint):
    out = tmp_path / "out"
    compared(made, out, *FEW)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    models = [str(made / "m2"), str(made / "m1"), "--out", str(out)]
    said = complaint(*models, *FEW, "--seed", "4")
    assert "holds a comparison made with --seed 0, found 4; wanted the same options" in said
    assert "with A " in complaint(models[1], models[0], *models[2:], *FEW)
    assert "--samples 2, found 1" in complaint(*models, *FEW, "--samples", "1")
    assert "--limit 4, found" in complaint(*models, "--samples", "2")
    assert "--limit 4, found 5" in complaint(*models, "--samples", "2", "--limit", "5")
    file = tmp_path / "p.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": p.text}) + "\n" for p in held_out(made)[::-1][:6])
    )
    assert "--prompts of other content" in complaint(*models, *FEW, "--prompts", file)
    assert "--judge-kind gold" in complaint(*models, *FEW, "--judge", "B", *SHORT)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert "files that are not of a comparison" in complaint(
        str(made / "m2"), str(made / "m1"), "--out", str(made)
    )


def test_a_held_out_set_that_has_changed_is_refused(made, tmp_path, complaint):
    out, prompts = tmp_path / "run", tmp_path / "held_out.jsonl"
    shutil.copytree(made, out)
    prompts.write_text('{"prompt": "Name a fruit."}\n')
    config = json.loads((out / "config.json").read_text())
    config["run"] |= {"eval_prompts_file": str(prompts), "inputs": {"eval_prompts_file": "other"}}
    (out / "config.json").write_text(json.dumps(config))
    assert from_json(config["run"]).eval_prompts_file
    said = complaint(str(out / "m2"), str(out / "m1"), "--out", str(tmp_path / "c"))
    assert "--eval-prompts of the run) has changed since" in said


def held_out(made: Path) -> list[Prompt]:
    models = {side: resolve_model(str(made / name)) for side, name in (("a", "m2"), ("b", "m1"))}
    return list(terms_of(read_options(["A", "B", "--out", "none"]), models).prompts)


def test_one_answer_each_is_matched_in_one_way(made, tmp_path, complaint):
    models = [str(made / "m2"), str(made / "m1"), "--out", str(tmp_path / "out")]
    said = complaint(*models, "--match", "same", "--samples", "1")
    assert "--match: found 'same' with one answer of each model, wanted --samples 2" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "required: A, B"),
        (["tiny"], "required: B"),
        (["tiny", "tiny"], "--out: not given"),
        (["tiny", "tiny", "tiny", "--out", "x"], "found 'tiny', wanted two models, then options"),
        (["tiny", "nowhere", "--out", "x", "--prompts", "p"], "nowhere: no such folder"),
        (["tiny", "owner/no", "--out", "x"], "--prompts: not given, wanted a file of prompts"),
        (["tiny", "tiny", "--out", "x", "--prompts", "none"], "none: no such file"),
        (["tiny", "tiny", "--out", "x", "--judge-kind", "loud"], "--judge-kind: found 'loud'"),
        (["tiny", "tiny", "--out", "x", "--judge-kind", "model"], "--judge: not given, wanted"),
        (["tiny", "tiny", "--out", "x", "--judge-kind", "gold", "--judge", "A"], "a program"),
        (["tiny", "tiny", "--out", "x", "--samples", "0"], "--samples: found 0"),
        (["tiny", "tiny", "--out", "x", "--max-tokens", "5000"], "--max-tokens: found 5000"),
        (["tiny", "tiny", "--out", "x", "--judge-samples", "2"], "found with --judge-kind gold"),
        (["tiny", "tiny", "--out", "x", "--rubric", "none"], "/none: No such file"),
        (["tiny", "tiny", "--out", "x", "--match", "some"], "--match: found 'some'"),
        (["tiny", "tiny", "--out", "x"], "B: found tiny, which is A too, wanted two models"),
        (["tiny", "tiny", "--out", "x", "--prompts", "p"], "with --judge-kind sampled or pairwise"),
        (["tiny", "tiny", "--out", "p"], "--out p: found a file, wanted a folder"),
        (["tiny", "tiny", "--out", "x", "--prompts", "p"], "--judge-kind gold: found the prompt"),
        (
            ["tiny", "tiny", "--out", "x", "--judge-kind", "pairwise", "--tie-within", "1"],
            "--tie-within: found with --judge-kind pairwise",
        ),
        (
            ["tiny", "tiny", "--out", "x", "--judge-kind", "direct", "--judge-stop", "line"],
            "--judge-stop: found 'line' with --judge-kind direct",
        ),
        (
            ["tiny", "tiny", "--out", "x", "--judge-kind", "model", "--judge", "tiny"],
            "wanted a ...ForSequenceClassification",
        ),
    ],
)
def test_mistakes_are_one_line(complaint, argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_text('{"prompt": "Tell me a story."}\n')
    assert said in complaint(*argv)
    assert not (tmp_path / "x").exists()


def test_help_and_parser_need_no_torch():
    code = "import sys, srlm_fast.compare as c; c.make_parser(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python -m srlm_fast.compare" in make_parser().format_help()
