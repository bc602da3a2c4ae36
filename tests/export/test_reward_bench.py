"""RewardBench's files: results by hand, and the same judgements as `srlm_fast.judge` has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from srlm_fast import judge_command
from srlm_fast.export import reward_bench
from srlm_fast.export.made import note
from srlm_fast.judge import DEFAULT_RUBRIC
from srlm_fast.judge_command import main as judge
from srlm_fast.loop.alone import Judged, default_rubric
from srlm_fast.records import InputError
from srlm_fast.tiny import seeds
from srlm_fast.tiny.rubric import RUBRIC

LIMITS = ["--judge", "direct", "--seed", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path, names = tmp_path_factory.mktemp("data") / "rb.jsonl", ["math-prm", "hep-js", "mine"]
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": row["responses"][row["scores"].index(max(row["scores"]))],
            "rejected": row["responses"][row["scores"].index(min(row["scores"]))],
            "subset": names[i % 3],
            "id": 100 + i,
        }
        for i, row in enumerate(seeds.eft_eval()[:6])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_results_by_hand():
    given = [(4.0, 2.0), (1.0, 2.0), (3.0, 3.0), (None, 2.0), (4.0, None)]
    assert [reward_bench.result(*pair) for pair in given] == [1.0, 0.0, 0.5, 0.5, 0.5]
    names = ["hep-js", "hep-js", "math-prm", "", ""]
    rows = [
        {"prompt": "q", "responses": ["a", "b"], "judged": list(pair), "subset": name}
        for pair, name in zip(given, names, strict=True)
    ]
    made = reward_bench.pair_rows(rows, "vwxyz")
    assert reward_bench.accuracies(made) == {"all": 0.5, "hep-js": 0.5, "math-prm": 0.5}
    assert made[0]["text_chosen"][1] == {"role": "assistant", "content": "a"}
    figures = ("sections_length_only", "judge", "judge_samples", "rubric", "seed")
    extra = reward_bench.extra(made, dict.fromkeys(figures, 0))
    assert extra["ties"] == 1 and extra["unread"] == 2
    assert extra["pairs"] == {"all": 2, "hep-js": 2, "math-prm": 1}
    assert extra["sections"] == {"Reasoning": 0.5, "Average": 0.5}


def by_hand(config, rows, path, display) -> Judged:
    """Scores of each subset: right, wrong, a tie."""
    scores = [[4.0, 2.0], [1.0, 3.0], [2.0, 2.0]]
    judged = [{**row, "judged": scores[i % 3]} for i, row in enumerate(rows)]
    return Judged(judged, RUBRIC, 1, {"ok": 2 * len(rows)}, 0, {})


def test_the_files_have_the_figures_of_the_judge(
    made, data, tmp_path, export, capsys, monkeypatch, complaint
):
    out, figures = tmp_path / "out.json", tmp_path / "figures.json"
    monkeypatch.setattr(judge_command, "measure", by_hand)
    (tmp_path / "out-scores.json").write_text("of a command that was killed")
    command = ("reward-bench", made, "--data", data, "--out", out, *LIMITS)
    assert "out-scores.json: is there" in complaint(*command)
    note(reward_bench.COMMAND, reward_bench.COMMAND.read([str(word) for word in command[1:]]))
    export(*command)
    shown = capsys.readouterr().out
    export(*command)
    assert capsys.readouterr().out == f"{out}: is there already, made by the same command\n"
    assert "made with --judge direct, found sampled" in complaint(*command, "--judge", "sampled")
    assert "length only" in shown and "pairwise accuracy, mine" in shown
    assert (
        judge(["--model", str(made / "m2"), "--data", str(data), "--out", str(figures), *LIMITS])
        == 0
    )
    want, found = json.loads(figures.read_text()), json.loads(out.read_text())
    assert (found["math-prm"], found["hep-js"], found["mine"]) == (1.0, 0.0, 0.5)
    for name in ("hep-js", "math-prm", "mine"):
        assert found[name] == want["subsets"][name]["pairwise_accuracy"]
    assert found["sections"] == want["sections"]
    assert found["sections_length_only"] == want["sections_length_only"]
    assert (found["model"], found["model_type"]) == ("tiny-run-m2", "Generative RM")
    assert found["judge"]["rubric"]["version"] == "tiny-1"
    table = json.loads((tmp_path / "out-scores.json").read_text())
    assert table["id"] == [100 + i for i in range(6)] and len(table["results"]) == 6
    for chosen, rejected, result in zip(
        table["scores_chosen"], table["scores_rejected"], table["results"], strict=True
    ):
        assert result == reward_bench.result(chosen, rejected)


def test_some_of_the_rows_keep_their_ids(made, data, tmp_path, export):
    out = tmp_path / "out.json"
    export("reward-bench", made, "--data", data, "--out", out, "--limit", 2, *LIMITS)
    table = json.loads((tmp_path / "out-scores.json").read_text())
    rows = {json.loads(line)["id"]: json.loads(line) for line in data.read_text().splitlines()}
    assert len(table["id"]) == 2
    for at, name in enumerate(table["id"]):
        assert table["text_chosen"][at][1]["content"] == rows[name]["chosen"]
        assert table["subset"][at] == rows[name]["subset"]


def test_a_run_judges_by_its_own_rubric(made, tmp_path):
    assert default_rubric(str(made / "m1" / "model")) == RUBRIC == default_rubric("tiny")
    assert default_rubric(str(tmp_path)) == DEFAULT_RUBRIC
    rubric = tmp_path / "own.jinja"
    rubric.write_text("{% set version = 'own' %}{{ prompt }}\n{{ response }}\nScore:")
    from srlm_fast.config import fingerprint

    inputs = {"rubric_file": fingerprint("--rubric", str(rubric))}
    run = {"model": "some", "rubric_file": str(rubric), "inputs": inputs}
    folder = tmp_path / "run" / "m2" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"run": run}))
    assert default_rubric(str(folder)).version == "own"
    rubric.write_text(rubric.read_text() + " ")
    with pytest.raises(InputError, match="own.jinja, which is gone or has changed since"):
        default_rubric(str(folder))


def test_mistakes(made, data, tmp_path, complaint):
    out = tmp_path / "out.json"
    ranked = tmp_path / "ranked.jsonl"
    ranked.write_text(json.dumps(seeds.eft_eval()[0]) + "\n")
    said = complaint("reward-bench", made, "--data", ranked, "--out", out)
    assert "line 1: field 'chosen' is missing" in said
    (tmp_path / "out-scores.json").write_text("")
    assert "out-scores.json: is there" in complaint(
        "reward-bench", made, "--data", data, "--out", out
    )
    assert "--data: not given" in complaint("reward-bench", made, "--out", tmp_path / "b.json")
    said = complaint("reward-bench", made, "--data", data, "--out", tmp_path / "b", "--rows", data)
    assert "is the file of --data too" in said
    assert not out.exists()
