"""`--eft` with ranked answers: the IFT-only model judges, what agrees is taught, and a run broken
off anywhere ends the same.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from srlm_fast import config as configs
from srlm_fast import records
from srlm_fast.loop import StoppedError, material, run, state
from srlm_fast.records import read_jsonl
from srlm_fast.tiny import seeds
from srlm_fast.tiny.rubric import RUBRIC
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import Silent, results, same, small_config

NUM_RANKED, NUM_HELD_OUT = 40, 4


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def tiny_rubric():
    """The given model is a tiny one: it can judge by the rubric that it was taught alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "DEFAULT_RUBRIC", RUBRIC)
        yield


@pytest.fixture(scope="module")
def given(two_rounds, tmp_path_factory) -> dict[str, str]:
    """A model that can judge, IFT rows, and ranked answers, as a user would bring them."""
    folder = tmp_path_factory.mktemp("given")
    return {
        "model": str(two_rounds / "m1" / "model"),
        "ift_file": write(folder / "ift.jsonl", seeds.ift(5, 24)),
        "eft_file": write(folder / "ranked.jsonl", seeds.eft_eval()[:NUM_RANKED]),
    }


def users_config(out: Path, given: dict[str, Any], **changes: Any) -> configs.Config:
    small = {"iterations": 0, "sft.learning_rate": 1e-4, "sft.epochs": 1, "num_eft": None}
    return dataclasses.replace(small_config(out, **small, **changes), **given)


@pytest.fixture(scope="module")
def finished(given, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("eft") / "run"
    run(users_config(out, given), Silent())
    return out


def figures(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())["models"][0]["eft"]


def test_every_row_agrees_and_every_step_is_counted(finished):
    found, rows = figures(finished), read_jsonl(finished / "m1" / "eft.jsonl")
    judgements = read_jsonl(finished / "m1" / "eft_judgements.jsonl")
    assert found["prompts"] == NUM_RANKED - NUM_HELD_OUT
    assert found["answers"] == 4 * found["prompts"]
    assert found["judgements"] == len(judgements) == 2 * found["answers"]
    assert found["unread"] == sum(row["score"] is None for row in judgements)
    assert sum(found["statuses"].values()) == found["judgements"]
    assert found["agreeing"] + sum(found["dropped"].values()) == found["prompts"]
    assert found["kept"] == len(rows) == found["agreed"] - found["flattened"] > 0
    people = {
        (row["prompt"], text): score
        for row in seeds.eft_eval()
        for text, score in zip(row["responses"], row["scores"], strict=True)
    }
    for row in rows:
        for other in (other for other in rows if other["prompt"] == row["prompt"]):
            if people[row["prompt"], row["response"]] > people[other["prompt"], other["response"]]:
                assert row["score"] > other["score"]
    written = {(r["prompt_id"], r["candidate"], r["sample"]): r["text"] for r in judgements}
    for row in rows:
        key = (row["prompt_id"], row["candidate"], row["sample"])
        assert row["judgement"] == written[key].strip()


def test_the_rows_are_taught_and_the_held_out_tenth_is_not(finished):
    taught = read_jsonl(finished / "m1" / "sft.jsonl")
    rows = read_jsonl(finished / "m1" / "eft.jsonl")
    assert [r["response"] for r in taught if r["kind"] == "eft"] == [r["judgement"] for r in rows]
    assert {r["kind"] for r in read_jsonl(finished / "m1" / "ift" / "sft.jsonl")} == {"ift"}
    judged = {r["prompt_id"] for r in read_jsonl(finished / "m1" / "judge_evaluation.jsonl")}
    assert len(judged) == NUM_HELD_OUT


def test_built_and_measured_prompts_are_apart(given, tmp_path):
    """Also where a prompt stands twice, in other letters."""
    rows = [json.loads(line) for line in Path(given["eft_file"]).read_text().splitlines()]
    doubled = rows + [row | {"prompt": row["prompt"].upper()} for row in rows]
    path = write(tmp_path / "doubled.jsonl", doubled)
    found = material.gather(users_config(tmp_path, given | {"eft_file": path}))
    built, measured = (
        {row["prompt"].casefold() for row in part} for part in (found.ranked, found.eft_eval)
    )
    assert not built & measured
    assert len(measured) == NUM_HELD_OUT and len(found.eft_eval) == 2 * NUM_HELD_OUT
    assert len(built) == NUM_RANKED - NUM_HELD_OUT


def test_m1_starts_from_the_given_weights(finished, given, tmp_path):
    """The same rows given with their judgements make the same M1: the IFT-only model is gone."""
    rows = read_jsonl(finished / "m1" / "eft.jsonl")
    fields = ("prompt", "response", "judgement", "score")
    eft = write(tmp_path / "eft.jsonl", [{name: row[name] for name in fields} for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(material, "_split_eft", lambda rows, seed: (rows, []))
        run(users_config(tmp_path / "run", given | {"eft_file": eft}), Silent())
    weights = [
        (out / "m1" / "model" / "model.safetensors").read_bytes()
        for out in (finished, tmp_path / "run")
    ]
    assert weights[0] == weights[1]


def test_broken_at_every_stage_boundary(finished, given, tmp_path, monkeypatch):
    out, tries = tmp_path / "run", 0
    while True:
        with monkeypatch.context() as patch:
            break_at(patch, state.RunState, "finish", 1)
            try:
                run(users_config(out, given), Silent())
                break
            except Killed:
                tries += 1
    assert tries == 5  # IFT-only model, judgements, rows, M1, its measurement
    check_same(finished, out)


def test_broken_inside_stages(finished, given, tmp_path, monkeypatch):
    out = tmp_path / "run"
    for count in (5, 30, 60):
        with monkeypatch.context() as patch:
            break_at(patch, records.RowWriter, "write", count)
            with pytest.raises(Killed):
                run(users_config(out, given), Silent())
    with pytest.raises(KeyboardInterrupt):  # in the middle of M1's training
        run(users_config(out, given), Silent(), lambda: trained(out))
    assert (out / "m1" / "checkpoint.pt").exists()
    screen = Silent()
    run(users_config(out, given), screen)
    assert f"going on in {out}" in screen.notes
    check_same(finished, out)


def trained(out: Path) -> bool:
    return any(row["stage"] == "m1/train" for row in read_jsonl(out / "metrics.jsonl"))


def check_same(finished: Path, out: Path) -> None:
    same(results(finished), results(out))
    for name in ("eft.jsonl", "eft_judgements.jsonl"):
        left, right = (sorted((f / "m1" / name).read_text().split("\n")) for f in (finished, out))
        assert left == right
    assert figures(finished) == figures(out)


def test_without_ift_the_given_model_judges(given, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"prompt": row["prompt"]} for row in seeds.ift(6, 20)])
    changed = {**given, "ift_file": None, "prompts_file": prompts}
    screen = Silent()
    run(users_config(tmp_path / "run", changed), screen)
    assert any("the given model itself judges" in note for note in screen.notes)
    assert not (tmp_path / "run" / "m1" / "ift").exists()
    assert {r["kind"] for r in read_jsonl(tmp_path / "run" / "m1" / "sft.jsonl")} == {"eft"}


def test_a_model_that_cannot_judge_stops_with_the_reason(given, tmp_path):
    changed = given | {"model": "tiny"}
    with pytest.raises(StoppedError, match="agrees with people's order .*unread.*missing"):
        run(users_config(tmp_path / "run", changed), Silent())
    assert read_jsonl(tmp_path / "run" / "m1" / "eft_judgements.jsonl")
