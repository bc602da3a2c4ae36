"""What a run says of files that somebody has harmed, and how it goes on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from srlm_fast import damage, report_command, run_folder
from srlm_fast.loop.state import RunState
from srlm_fast.provenance import told_apart
from srlm_fast.records import InputError, write_jsonl


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run that has made M1 and M2, with three pairs of two candidates each."""
    run = tmp_path / "run"
    run_folder.write_config(run_with_models(run), {"model": "tiny"}, {})
    state = RunState(run)
    state.finish("m1/train", {"rows": 3, "too_long": 1})
    state.finish("m2/answers", {"candidates": 6, "judgements": 0})
    state.finish("m2/pairs", {"pairs": 3})
    state.finish("m2/train", {})
    state.close()
    write_jsonl(run / "m1" / "sft.jsonl", [{}] * 4)
    rows = [{"prompt_id": "p", "index": i, "text": "x"} for i in range(6)]
    write_jsonl(run / "m2" / "candidates.jsonl", rows)
    pair = {"prompt_id": "p", "chosen_index": 0, "rejected_index": 1}
    write_jsonl(run / "m2" / "pairs.jsonl", [pair] * 3)
    return run


def run_with_models(run: Path) -> Path:
    for name in ("m1", "m2"):
        (run / name / "model").mkdir(parents=True)
        (run / name / "model" / "config.json").write_text("{}")
    return run


def test_a_whole_run_has_nothing_to_say(made: Path):
    before = (made / "state.json").read_bytes()
    assert damage.check_going_on(made) == [] == damage.bad_metrics(made)
    assert (made / "state.json").read_bytes() == before


def test_files_with_fewer_rows_are_named(made: Path):
    (made / "m2" / "candidates.jsonl").unlink()
    with (made / "m2" / "pairs.jsonl").open("r+b") as file:
        file.truncate(len(file.read()) - 1)
    (made / "m1" / "sft.jsonl").write_text("{}\n")
    out = f"restore it, or remove {made}/m2 and the models behind it: the run's own command then"
    first, *others = damage.check_going_on(made)
    assert first.startswith(f"{made}/m1/sft.jsonl: found 1 rows, wanted the 4 of its stage")
    assert [said.partition("; ")[0] for said in others] == [
        f"{made}/m2/candidates.jsonl: found 0 rows, wanted the 6 of its stage",
        f"{made}/m2/pairs.jsonl: found 2 rows, wanted the 3 of its stage",
    ]
    assert all(out in said for said in others)


def test_what_is_compared_instead_of_judged_is_counted(made: Path):
    state = json.loads((made / "state.json").read_text())
    state["stages"]["m2/answers"]["judgements"] = 2
    (made / "state.json").write_text(json.dumps(state))
    write_jsonl(made / "m2" / "comparisons.jsonl", [{}])
    assert [(lost.file.name, lost.found) for lost in damage.lost_rows(made)] == [
        ("comparisons.jsonl", 1)
    ]


def test_a_removed_round_is_made_again(made: Path):
    shutil.rmtree(made / "m2")
    assert damage.check_going_on(made) == []
    left = damage.read_state(made)
    assert list(left["stages"]) == ["m1/train"] and left["data"] == {}
    shutil.rmtree(made / "m1")
    assert damage.check_going_on(made) == [] and damage.read_state(made)["stages"] == {}


def test_a_later_round_does_not_outlive_the_one_it_came_from(made: Path):
    shutil.rmtree(made / "m1")
    with pytest.raises(InputError, match=r"m1: is gone, and m2/ was made from it; .* remove m2/"):
        damage.check_going_on(made)


def test_the_last_model_is_missed(made: Path):
    shutil.rmtree(made / "m1" / "model")  # nothing needs it any more
    assert damage.check_going_on(made) == []
    shutil.rmtree(made / "m2" / "model")
    with pytest.raises(InputError, match=r"m2/model: is gone, wanted the last .* remove .*/m2 and"):
        damage.check_going_on(made)


@pytest.mark.parametrize(
    "content", ['{"stages": {', "[]", '{"stages": [1]}', '{"stages": {"a":1}}']
)
def test_a_torn_state_says_what_helps(made: Path, content: str):
    (made / "state.json").write_text(content)
    for read in (damage.check_going_on, RunState):
        with pytest.raises(InputError, match=r"state.json: found no .*; restore it, or remove it"):
            read(made)


def test_a_bad_line_of_figures_stops_no_page(made: Path, capsys: pytest.CaptureFixture[str]):
    with (made / "metrics.jsonl").open("a") as file:
        file.write('nonsense\n{"loss": 1}\n{"stage": "torn')
    (made / "m2" / "pairs.jsonl").write_text("")
    assert report_command.main([str(made)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert re.match(r"srlm_fast: .*m2/pairs.jsonl: found 0 rows, wanted the 3", said[0])
    assert [line.partition(": found")[0][-6:] for line in said[1:]] == ["line 5", "line 6"]
    with pytest.raises(InputError, match=r"line 5: found no row of a stage; .* remove the line"):
        RunState(made)


def test_a_run_without_its_config_is_one_all_the_same(made: Path, tmp_path: Path):
    for harm in (lambda path: path.write_text("{"), Path.unlink):
        harm(made / "config.json")
        with pytest.raises(InputError, match=r"found a run whose config.json is missing or cannot"):
            run_folder.check_out(made)
        assert "config.json of this run" in damage.not_a_run(made)
    assert damage.not_a_run(tmp_path) == "a folder that is no run"


def test_options_are_told_apart_once_and_by_their_names():
    digests = ("--ift (the file's content)", "a" * 64, "b" * 64)
    different = [
        ("num_ift", 256, 0),
        digests,
        ("--micro-batch-tokens", 1, 2),
        ("--micro-batch-tokens", 1, 2),
        ("--best", False, True),
        ("--limit", None, 5),
    ]
    assert told_apart(different) == (
        "with --ift of other content; --micro-batch-tokens 1, found 2; --best no, found yes; "
        "1 more differ"
    )
    assert told_apart([digests, ("--ift", "a", "b")]) == "with --ift a, found b"
    assert told_apart([("num_ift", 256, 0)]) == "with num_ift 256, found 0"
