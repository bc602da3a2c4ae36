"""`python -m srlm_fast.judge`: the figures of a run's own measurement, RewardBench files, going on,
and one line for every mistake.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from srlm_fast import judge_command
from srlm_fast.judge_command import main
from srlm_fast.loop import alone
from srlm_fast.records import InputError, RowWriter, read_jsonl
from srlm_fast.tiny import seeds
from tests.commands import complaint_of

ROOT = Path(judge_command.__file__).parent.parent
LIMITS = ["--judge-samples", "2", "--judge-max-tokens", "40"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def made(two_rounds) -> Path:
    """The folder of a tiny run that made M1."""
    return two_rounds


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture
def ranked(tmp_path) -> str:
    return write(tmp_path / "ranked.jsonl", seeds.eft_eval()[:8])


@pytest.fixture
def complaint(capsys) -> Callable[..., str]:
    return complaint_of(main, capsys)


def test_the_figures_are_those_of_the_run_itself(made, ranked, tmp_path, capsys):
    out, rows = tmp_path / "figures.json", tmp_path / "rows.jsonl"
    command = ["--model", str(made / "m1" / "model"), "--data", ranked, *LIMITS]
    assert main([*command, "--out", str(out), "--rows", str(rows)]) == 0
    found = json.loads(out.read_text())
    of_run = json.loads((made / "summary.json").read_text())["models"][0]["judge"]
    assert {name: found[name] for name in of_run} == of_run
    assert found["rubric"]["version"] == "tiny-1"
    assert sorted(rows.read_text().splitlines()) == sorted(
        (made / "m1" / "judge_evaluation.jsonl").read_text().splitlines()
    )
    screen = capsys.readouterr().out
    assert "length only" in screen and "Kendall tau-b" in screen
    assert f"judgements: {len(read_jsonl(rows))}, without a score:" in screen


def test_broken_off_it_goes_on(made, ranked, tmp_path, monkeypatch):
    rows, whole = tmp_path / "rows.jsonl", tmp_path / "whole.jsonl"
    command = ["--model", str(made / "m1" / "model"), "--data", ranked, *LIMITS]
    original, calls = RowWriter.write, [0]

    def write(self, *written):
        original(self, *written)
        calls[0] += 1
        if calls[0] == 5:
            raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RowWriter, "write", write)
        with pytest.raises(SystemError):
            main([*command, "--rows", str(rows)])
    kept = rows.read_text()
    assert 0 < len(kept.splitlines()) < 32 * 2
    assert main([*command, "--rows", str(rows)]) == 0
    assert rows.read_text().startswith(kept)
    assert main([*command, "--rows", str(whole)]) == 0
    assert sorted(rows.read_text().splitlines()) == sorted(whole.read_text().splitlines())


def test_rows_of_another_measurement_are_refused(made, ranked, tmp_path, complaint):
    rows = tmp_path / "rows.jsonl"
    command = ["--model", str(made / "m1" / "model"), "--data", ranked, "--rows", str(rows)]
    assert main([*command, *LIMITS, "--limit", "2"]) == 0
    before = rows.read_bytes()
    said = complaint(*command, *LIMITS, "--limit", "2", "--seed", "4")
    assert f"--rows {rows}" in said and "--seed 0, found 4" in said
    write(Path(ranked), seeds.eft_eval()[2:8])
    assert "--data of other content" in complaint(*command, *LIMITS, "--limit", "2")
    assert rows.read_bytes() == before


def test_reward_bench(made, tmp_path, capsys):
    names = ["math-prm", "hep-js", "hep-js", "donotanswer", "mine"]
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["responses"][row["scores"].index(max(row["scores"]))],
            "rejected": row["responses"][row["scores"].index(min(row["scores"]))],
            "subset": names[i % 5],
            "id": i,
        }
        for i, row in enumerate(seeds.eft_eval()[:15])
    ]
    out = tmp_path / "figures.json"
    command = ["--model", str(made / "m1" / "model"), "--data", write(tmp_path / "rb", rows)]
    assert main([*command, *LIMITS, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["subsets"]) == set(names)
    pairs = {name: made["n"]["pairwise_accuracy"] for name, made in found["subsets"].items()}
    assert pairs["hep-js"] == 6 and sum(pairs.values()) == found["n"]["pairwise_accuracy"] == 15
    accuracy = {name: made["pairwise_accuracy"] for name, made in found["subsets"].items()}
    assert found["sections"]["Reasoning"] == (accuracy["math-prm"] + accuracy["hep-js"]) / 2
    assert set(found["sections"]) == {"Safety", "Reasoning", "Average"}
    assert found["sections_length_only"].keys() == found["sections"].keys()
    screen = capsys.readouterr().out
    assert "pairwise accuracy, mine" in screen and "Average" in screen


def test_data_of_other_forms_and_bad_lines(tmp_path, capsys, complaint, monkeypatch):
    """Labelled completions are put together by their prompt, pairs are pairs."""
    measured: list[Any] = []

    def measure(config, rows, path, display):
        measured.append(rows)
        raise InputError("enough")

    monkeypatch.setattr(judge_command, "measure", measure)
    rows = [
        {"prompt": "q", "completion": text, "label": text == "good"}
        for text in ("good", "bad", "worse")
    ]
    data = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "q", "completion": "x"}])
    said = complaint("--data", data)
    assert f"{data} line 4: field 'label' is missing" in said
    assert "enough" in complaint("--data", data, "--skip-bad")
    known = {"prompt": "q", "responses": ["good", "bad", "worse"], "scores": [1.0, 0.0, 0.0]}
    assert measured == [[known | {"subset": ""}]]
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "q"}])
    assert "line 1: found prompts, wanted answers whose order is known" in complaint(
        "--data", prompts
    )


def test_limit_draws_by_the_seed():
    rows = [{"subset": str(i // 10)} for i in range(100)]
    drawn = judge_command.drawn(rows, 20, 3)
    assert drawn == judge_command.drawn(rows, 20, 3) != judge_command.drawn(rows, 20, 4)
    assert len(drawn) == 20 and len({row["subset"] for row in drawn}) > 4
    assert judge_command.drawn(rows, 100, 3) is rows


def test_a_rubric_of_ones_own_with_its_range(made, ranked, tmp_path, capsys):
    """A range up to 3: nothing above it is a score, and 3 is the top that is counted."""
    rubric = tmp_path / "own.jinja"
    rubric.write_text(
        "{% set high = 3 %}{% set version = 'short' %}Score the answer from 0 to 3: is it right?\n"
        "Task: {{ prompt }}\nAnswer:\n{{ response }}"
    )
    out, rows = tmp_path / "figures.json", tmp_path / "rows.jsonl"
    command = ["--model", str(made / "m1" / "model"), "--data", ranked, "--rubric", str(rubric)]
    assert main([*command, *LIMITS, "--out", str(out), "--rows", str(rows)]) == 0
    found = json.loads(out.read_text())
    assert found["rubric"]["version"] == "short"
    scores: dict[Any, list[float]] = {}
    for row in read_jsonl(rows):
        if row["score"] is not None:
            scores.setdefault((row["prompt_id"], row["candidate"]), []).append(row["score"])
    assert max(map(max, scores.values())) <= 3
    assert found["n"]["five_best"] == sum(min(given) == 3 for given in scores.values()) > 0
    rubric.write_text(rubric.read_text() + " ")
    assert main([*command, *LIMITS, "--rows", str(rows)]) == 2
    assert "--rubric of other content" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--data: not given"),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--dta", "x"], "--dta: no such option; did you mean --data?"),
        (["x.jsonl"], "found 'x.jsonl', wanted options only"),
        (["--data", "x", "--limit", "0"], "--limit: found 0, wanted a whole number"),
        (["--data", "x", "--prompts", "y"], "--prompts: no such option"),
        (["--data", "x", "--out", "no/such/folder/x.json"], "--out no/such/folder/x.json: its"),
        (["--data", "x", "--rows", "."], "--rows .: found a folder"),
        (["--data", "x", "--out", "x"], "--out x: is the file of --data too"),
        (["--data", "x", "--rows", "y", "--out", "./y"], "--out ./y: is the file of --rows too"),
        (["--data", "x", "--rows", "/proc/x"], "--rows /proc/x: No such file or directory, wanted"),
        (["--data", "x", "--rows", "/dev/full"], "--rows /dev/full: found a device"),
        (["--data", "x", "--out", "mine.json"], "--out mine.json: found a file that is no figures"),
        (["--data", "x", "--skip-bad", "maybe"], "--skip-bad: found 'maybe', wanted yes or no"),
        (["--data", "x", "--judge", "loud"], "--judge: found 'loud'"),
        (["--data", "x", "--rubric", "none.jinja"], "--rubric"),
    ],
)
def test_mistakes_are_one_line(complaint, argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.json"
    mine.write_text('{"model": "mine"}')
    assert said in complaint(*argv)
    assert mine.read_text() == '{"model": "mine"}'


def test_mistakes_in_what_is_named(complaint, ranked, tmp_path):
    assert "nowhere: no such folder" in complaint("--model", "nowhere", "--data", ranked)
    said = complaint("--model", "tiny", "--data", ranked, "--judge-max-tokens", "5000")
    assert "--judge-max-tokens: found 5000, wanted less than the 1024" in said
    broken = tmp_path / "broken.jinja"
    broken.write_text("{{ prompt }}\n{{ respnse }}")
    said = complaint("--model", "tiny", "--data", ranked, "--rubric", str(broken))
    assert f"--rubric {broken} line 2: respnse is not known" in said
    assert not list(tmp_path.glob("*.settings.json"))


def test_interrupted(made, ranked, monkeypatch, capsys):
    monkeypatch.setattr(alone, "show_judging", interrupt)
    assert main(["--model", str(made / "m1" / "model"), "--data", ranked]) == 130
    assert "interrupted" in capsys.readouterr().err


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_door_is_the_judge_package():
    done = subprocess.run(
        [sys.executable, "-m", "srlm_fast.judge", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "python -m srlm_fast.judge" in done.stdout and "--rows FILE" in done.stdout
