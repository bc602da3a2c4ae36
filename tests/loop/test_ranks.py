"""A run on several ranks: the rows of one process, nothing lost, and no rank left waiting."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from srlm_fast.judge import pairwise
from srlm_fast.model import load_model, with_score_head
from srlm_fast.records import read_jsonl
from srlm_fast.run_folder import Lock, write_config
from tests.dist.processes import Ranks
from tests.loop import rank_cases as cases
from tests.loop.worlds import forget_own_score, share_first_model, small_config, small_run

SHORT = {"iterations": 1, "num_prompts": 8, "evaluation.num_prompts": 6, "evaluation.num_judged": 2}
SAMPLED = ("prompts", "candidates", "judgements")


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """M1 alone."""
    out = tmp_path_factory.mktemp("ranks") / "first"
    small_run(out, **SHORT | {"iterations": 0})
    return out


@pytest.fixture(scope="module")
def alone(first, tmp_path_factory) -> Path:
    """M2 by one process."""
    out = tmp_path_factory.mktemp("ranks") / "alone"
    share_first_model(first, out)
    small_run(out, **SHORT)
    return out


def rows(path: Path) -> list[str]:
    return sorted(path.read_text("utf-8").splitlines())


def same_round(ours: Path, theirs: Path) -> None:
    """The same rows; reference log-probs, weights and scores up to rounding."""
    for name in SAMPLED:
        assert rows(ours / f"m2/{name}.jsonl") == rows(theirs / f"m2/{name}.jsonl"), name
    pairs = [read_jsonl(out / "m2" / "pairs.jsonl") for out in (ours, theirs)]
    for one, other in zip(*pairs, strict=True):
        left, right = one.pop("ref_logps"), other.pop("ref_logps")
        assert left == pytest.approx(right, abs=1e-3)
        assert one == other
    weights = [load_file(out / "m2" / "model" / "model.safetensors") for out in (ours, theirs)]
    for name in weights[0]:
        assert (weights[0][name] - weights[1][name]).abs().max() < 1e-4, name
    assert not list(ours.glob("m*/*.[0-9].jsonl"))


def test_two_data_ranks_give_the_rows_of_one_process(two_ranks, first, alone, tmp_path):
    share_first_model(first, tmp_path / "run")
    found = two_ranks(cases.whole_run, str(tmp_path / "run"), 1, SHORT)
    same_round(tmp_path / "run", alone)
    # Rows stand in the order of their prompts, whoever sampled them.
    order = [row["prompt_id"] for row in read_jsonl(tmp_path / "run" / "m2" / "prompts.jsonl")]
    candidates = read_jsonl(tmp_path / "run" / "m2" / "candidates.jsonl")
    assert [row["prompt_id"] for row in candidates] == [i for i in order for _ in range(4)]
    # Tokens are counted over both, and one of them writes what both know.
    ours, theirs = (
        json.loads((out / "summary.json").read_text()) for out in (tmp_path / "run", alone)
    )
    tokens = [
        json.loads((out / "state.json").read_text())["stages"]["m2/answers"]["tokens"]
        for out in (tmp_path / "run", alone)
    ]
    assert tokens[0] == tokens[1]
    assert ours["rounds"][0]["statuses"] == theirs["rounds"][0]["statuses"]
    assert found[0]["summary"] == ours
    for one, other in zip(ours["models"], theirs["models"], strict=True):
        assert one["own_score"]["n"] == other["own_score"]["n"] > 0
        for name in ("perplexity", "perplexity_p95"):
            assert one["human_text"][name] == pytest.approx(other["human_text"][name], rel=1e-3)
    stages = [
        row["stage"]
        for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")
        if "seconds" in row and "step" not in row
    ]
    assert len(stages) == len(set(stages))


@pytest.mark.parametrize("reward, file", [("pairwise", "own_compared"), ("model", "own_judged")])
def test_an_own_score_broken_off_is_finished_by_one_process_or_two(
    two_ranks, alone, tmp_path, monkeypatch, reward, file
):
    """The rows are there once, the torn one too; on two ranks they are equal up to rounding."""
    monkeypatch.setattr(pairwise, "MIN_MASS", 0.0)
    out, path, changes = tmp_path / "run", tmp_path / f"run/m2/{file}.jsonl", {"reward": reward}
    if reward == "model":
        changes["reward_model"] = str(tmp_path / "reward")
        with_score_head(load_model("tiny"), 5).save(tmp_path / "reward")
    shutil.copytree(alone, out)
    path.unlink(missing_ok=True)
    found = []
    for measure in (small_own_score, small_own_score, partial(two_ranks, cases.own_score)):
        forget_own_score(out, path.name)
        figures = measure(str(out), SHORT | changes)
        found.append((figures, sorted(read_jsonl(path), key=lambda row: list(row.values())[:3])))
    assert found[0] == found[1] and found[0][0]["n"] == 6 and len(found[0][1]) >= 2
    both, rows = found[2]
    assert sum(written for _, written in both) <= len(rows)  # none of them by both
    for figures, _ in both:
        for name in ("score", "change"):
            assert figures[name] == pytest.approx(found[0][0][name], abs=1e-5)
    for one, other in zip(found[0][1], rows, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert [*one.values()][:3] == [*other.values()][:3]


def small_own_score(out: str, changes: dict[str, Any]) -> dict[str, Any]:
    return small_run(Path(out), **changes)["models"][1]["own_score"]


def test_a_collapse_stops_both_ranks(two_ranks, first, alone, tmp_path):
    """With the figures of one process, and by the same warning."""
    out, changes = tmp_path / "run", SHORT | {"dpo.learning_rate": 2e-3, "dpo.epochs": 6}
    share_first_model(first, out)
    write_config(out, small_config(out, **changes).to_json(), {})
    found = two_ranks(cases.trained, str(out), changes | {"stop_on_collapse": True})
    assert [status for status, _ in found] == [3, 3]
    (told,) = [said for _, said in found if said]
    assert told.startswith("srlm_fast: M2: stopped on signs of collapse (")
    summary = json.loads((out / "summary.json").read_text())
    assert not summary["finished"] and summary["rounds"][0]["warnings"]
    again = two_ranks(cases.trained, str(out), changes | {"stop_on_collapse": True})
    assert sorted(again) == sorted(found)


def test_a_stop_of_one_rank_stops_both_and_one_process_goes_on(two_ranks, first, alone, tmp_path):
    out = tmp_path / "run"
    share_first_model(first, out)
    args = (str(out), 1, 1, 4, SHORT)  # data rank 1, after four rows of its own
    assert two_ranks(cases.stopped_by_one, *args) == ["stopped", "stopped"]
    parts = [read_jsonl(out / "m2" / name) for name in ("candidates.jsonl", "candidates.1.jsonl")]
    assert 0 < sum(map(len, parts)) and not (out / "m2" / "pairs.jsonl").exists()
    small_run(out, **SHORT)
    same_round(out, alone)
    kept = (out / "m2" / "candidates.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in kept[: len(parts[0])]] == parts[0]  # not sampled again


def test_two_ranks_go_on_from_what_four_have_left(two_ranks, first, alone, tmp_path):
    out = tmp_path / "run"
    share_first_model(first, out)
    (out / "m2").mkdir()
    shutil.copy(alone / "m2" / "prompts.jsonl", out / "m2")
    for name in ("candidates", "judgements"):
        lines = (alone / "m2" / f"{name}.jsonl").read_text("utf-8").splitlines(keepends=True)
        for part in range(4):  # of the last one a line is torn
            path = out / "m2" / (f"{name}.{part}.jsonl" if part else f"{name}.jsonl")
            path.write_text(
                "".join(lines[part : len(lines) // 2 : 4]) + '{"prompt_id"' * (part == 3)
            )
    two_ranks(cases.whole_run, str(out), 1, SHORT)
    same_round(out, alone)


def test_two_tensor_ranks_run_to_the_end(two_ranks, first, tmp_path):
    out = tmp_path / "run"
    share_first_model(first, out)
    changes = SHORT | {"num_prompts": 5, "evaluation.num_prompts": 2, "evaluation.num_judged": 1}
    changes["prompt_model"] = str(first / "m1" / "model")  # split as the run's own
    args = (str(out), 2, 1, 8, changes)
    assert two_ranks(cases.stopped_by_one, *args) == ["stopped", "stopped"]
    found = two_ranks(cases.whole_run, str(out), 2, changes)
    assert found[0]["summary"]["rounds"][0]["candidates"] == 20
    assert len(read_jsonl(out / "m2" / "candidates.jsonl")) == 20
    small_run(out, **changes)  # finished; one process reads what two have written


def test_weights_sharded_over_two_ranks_are_gathered_to_sample(two_ranks, first, alone, tmp_path):
    out = tmp_path / "run"
    share_first_model(first, out)
    changes = SHORT | {"prompt_model": str(first / "m1" / "model")}  # sharded as the run's own
    found = two_ranks(cases.whole_run, str(out), 1, changes, True)
    same_round(out, alone)
    memory = found[0]["summary"]["memory"]
    assert memory["weights_moved"] == 0 and memory["weight_copies"] == 1
    rows = [row for row in read_jsonl(out / "metrics.jsonl") if "memory" in row]
    held = {row["phase"].split()[0]: row["memory"]["weights_bytes"] for row in rows}
    assert held["training"] < 0.6 * held["sampling"]


MISTAKES = {
    "a divisor": (["--tensor-parallel", "3"], "--tensor-parallel: found 3, wanted a divisor of"),
    "each its own device": (["--device", "cuda:1"], "--device: found cuda:1 with 2 ranks"),
    "a file": (["--prompts", "none.jsonl"], "--prompts"),
    "what a file holds": (["--ift", "no json"], "line 1: not JSON"),
}


@pytest.mark.parametrize("argv, said", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told_once(two_ranks, tmp_path, argv, said):
    if argv[0] == "--ift":
        (tmp_path / "rows.jsonl").write_text(f"{argv[1]}\n")
        argv = ["--ift", str(tmp_path / "rows.jsonl")]
    argv = [*argv, "--out", str(tmp_path / "run")]
    (one, first_said), (other, second_said) = two_ranks(cases.command_line, argv)
    assert one == other == 2
    told = first_said + second_said
    assert told.startswith("srlm_fast: ") and told.count("\n") == 1 and said in told


def test_a_folder_in_use_is_told_once(two_ranks, tmp_path):
    with Lock(tmp_path / "run"):
        found = two_ranks(cases.command_line, ["--out", str(tmp_path / "run")])
    assert [status for status, _ in found] == [2, 2]
    assert "is writing this run" in found[0][1] and not found[1][1]


def test_an_error_of_one_rank_ends_both(two_ranks, first, tmp_path):
    for number, (case, status, said) in enumerate(
        [(cases.full_disk, 2, "no space left on the disk"), (cases.faulty, 1, "broken on purpose")]
    ):
        out = tmp_path / str(number)
        share_first_model(first, out)
        write_config(out, small_config(out, **SHORT).to_json(), {})
        quiet, loud = two_ranks(case, str(out), 1, SHORT)
        assert quiet[0] == loud[0] == status
        assert said in loud[1] and not quiet[1]


def test_without_torchrun_there_is_nothing_to_split(capsys):
    from srlm_fast.run import main

    assert main(["--tensor-parallel", "2"]) == 2
    assert "wanted a divisor of the 1 ranks of this start (torchrun" in capsys.readouterr().err
