"""The models of a run against each other, from rows that are there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from srlm_fast.loop.head_to_head import HeadToHead
from srlm_fast.loop.state import ModelFolder
from srlm_fast.records import Candidate, Judgement, Prompt, write_jsonl

PROMPTS = [Prompt(str(i), f"question {i}", "file") for i in range(3)]
# Of each model the scores of its two answers to each prompt; None could not be read.
SCORES: dict[int, list[tuple[float | None, float | None]]] = {
    1: [(2, 2), (3, 4), (1, 1)],
    2: [(2, 3), (4, 4), (1, None)],
    3: [(0, 0), (0, 0), (0, 0)],
}


def a_run(out: Path, scorer: Any = None) -> Any:
    """As much of a `Run` as is read."""
    folders = [ModelFolder(out, number) for number in SCORES]
    for folder in folders:
        rows = SCORES[folder.number]
        write_jsonl(
            folder.evaluation,
            [
                Candidate(str(i), k, f"M{folder.number} {i} {k}" + "!" * k, (), 0.0, "stop")
                for i in range(3)
                for k in range(2)
            ],
        )
        write_jsonl(
            folder.evaluation_judged,
            [
                Judgement(str(i), k, 0, "", score, "OK" if score is not None else "MISSING")
                for i, scores in enumerate(rows)
                for k, score in enumerate(scores)
            ],
        )
    material = SimpleNamespace(held_out=PROMPTS, score_bits=scorer)
    config = SimpleNamespace(evaluation=SimpleNamespace(samples=2))
    return SimpleNamespace(folders=folders, material=material, config=config)


def summary(*names: str) -> dict[str, Any]:
    return {"models": [{"name": name} for name in names]}


def test_by_the_judgements_of_m1(tmp_path: Path):
    found = summary("M1", "M2", "M3")
    HeadToHead(a_run(tmp_path)).add(found)
    first, second, third = found["models"]
    assert first["against_previous"] is None and first["against_first"] is None
    # prompt 0: 2, 3 against 2, 2; prompt 1: 4, 4 against 3, 4; prompt 2: 1 against 1, 1
    own = second["against_previous"]
    assert (own["win"], own["tie"], own["loss"]) == (2 + 2, 2 + 2 + 2, 0)
    assert (own["n"], own["prompts"], own["win_rate"]) == (10, 3, 0.7)
    low, high = own["interval"]
    assert low < 0.7 < high
    assert own["intervals"].keys() == {"win", "tie", "loss"}
    low, high = own["intervals"]["win"]
    assert 0 <= low < 0.4 < high <= 1
    low, high = own["length_controlled"]["interval"]
    assert low < 0.7 < high
    assert second["against_first"] == own
    assert third["against_previous"]["win_rate"] == third["against_first"]["win_rate"] == 0
    assert third["against_previous"]["n"] == 10 and third["against_first"]["n"] == 12


def test_by_a_program_of_a_stopped_run(tmp_path: Path):
    """The program likes exclamation marks; of a run that stopped only some models are told."""
    found = summary("M1", "M2")
    HeadToHead(a_run(tmp_path, lambda _, text: (float(text.count("!")), {}))).add(found)
    own = found["models"][1]["against_first"]
    assert (own["win"], own["tie"], own["loss"]) == (3, 6, 3)
    HeadToHead(a_run(tmp_path)).add(nothing := summary())
    assert nothing == {"models": []}


def test_without_rows_there_are_no_figures(tmp_path: Path):
    run = a_run(tmp_path)
    run.folders[0].evaluation.unlink()
    HeadToHead(run).add(found := summary("M1", "M2"))
    assert found["models"][1]["against_first"]["win_rate"] is None
