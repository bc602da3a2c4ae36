"""Lines of metrics.jsonl in TensorBoard and Weights & Biases, once each however often a run is
broken off.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from srlm_fast.loop import run
from srlm_fast.loop.state import RunState
from srlm_fast.loop.tracking import TensorBoard, WeightsAndBiases, numbers, open_trackers, place
from srlm_fast.records import InputError, read_jsonl
from srlm_fast.run import main
from tests.loop.worlds import Silent, small_config

LINES = [
    {"stage": "load", "phase": "loaded", "memory": {"weights_bytes": 4}},
    {"stage": "m1/train", "step": 0, "loss": 0.5},
    {"stage": "m1/train", "step": 1, "loss": 0.25},
    {"stage": "m1/measure", "seconds": 2.0, "eval": {"score": 3.5, "judged_by": "M1", "n": 4}},
    {"stage": "m2/measure", "seconds": 3.0, "eval": {"score": 4.5, "interval": [4, 5], "n": 4}},
]


def test_a_line_has_a_place_and_numbers():
    assert [place(line) for line in LINES] == [
        ("memory/load/loaded", 0),
        ("m1/train", 0),
        ("m1/train", 1),
        ("measure", 1),
        ("measure", 2),
    ]
    assert dict(numbers(LINES[3])) == {"seconds": 2.0, "eval/score": 3.5, "eval/n": 4}
    assert dict(numbers(LINES[1])) == {"loss": 0.5}


def scalars(folder):
    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def written(folder, lines, names):
    state = RunState(folder)
    state.trackers = open_trackers(names, folder, {"seed": 0}, state.measured())
    for line in lines:
        state.measure(line)
    state.close()


def test_tensorboard_has_every_line_once_over_two_processes(tmp_path):
    written(tmp_path, LINES[:3], ())  # an earlier process that told nobody
    written(tmp_path, LINES[:4], ("tensorboard",))
    written(tmp_path, LINES, ("tensorboard",))
    found = scalars(tmp_path)
    assert found["m1/train/loss"] == [(0, 0.5), (1, 0.25)]
    assert found["measure/eval/score"] == [(1, 3.5), (2, 4.5)]
    assert found["memory/load/loaded/weights_bytes"] == [(0, 4.0)]


def test_weights_and_biases_goes_on_under_the_same_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    written(tmp_path, LINES[:2], ("wandb",))
    written(tmp_path, LINES, ("wandb",))
    own = json.loads((tmp_path / "wandb.json").read_text("utf-8"))["id"]
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert runs
    assert all(path.name.endswith(own) for path in runs)


def test_weights_and_biases_is_not_told_twice(tmp_path, monkeypatch):
    told = []
    run = SimpleNamespace(
        starting_step=2,
        define_metric=lambda *names, **axis: None,
        log=lambda figures, step: told.append((step, figures)),
        finish=lambda: None,
    )
    monkeypatch.setattr("wandb.init", lambda **given: run)
    tracker = WeightsAndBiases(tmp_path, {})
    for number, line in enumerate(LINES):
        tracker.log(number, line)
    assert [step for step, _ in told] == [2, 3, 4]
    assert told[0][1] == {"m1/train/loss": 0.25, "m1/train/step": 1}
    assert told[1][1]["measure/step"] == 1


def test_without_an_account_it_says_what_to_do(tmp_path, monkeypatch):
    import wandb

    def refuse(**given):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr("wandb.init", refuse)
    with pytest.raises(InputError, match="--log: wandb cannot begin .*WANDB_MODE=offline"):
        open_trackers(["wandb"], tmp_path, {}, [])


BROKEN_OFF = {"M1 SFT", "M1 held-out", "M2 prompts", "M2 DPO"}


def test_a_run_broken_off_in_each_kind_of_stage_is_told_whole_and_once(tmp_path):
    """One that trains, samples, makes prompts: each is interrupted at its first safe point."""
    few = {"num_ift": 8, "num_eft": 8, "evaluation.num_prompts": 2, "evaluation.num_judged": 1}
    few |= {"num_prompts": 4, "candidates.n": 2, "reward": "random", "iterations": 1}
    config, left = small_config(tmp_path, log=("tensorboard",), **few), BROKEN_OFF
    while True:
        screen = Silent()
        try:
            run(config, screen, stop=lambda shown=screen.stages, left=left: {*shown} & left)
            break
        except KeyboardInterrupt:
            left = left - {*screen.stages}
    assert not left
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    found = scalars(tmp_path)
    for stage in ("m1/train", "m2/train"):
        steps = [(r["step"], r["loss"]) for r in lines if r["stage"] == stage and "step" in r]
        assert [step for step, _ in steps] == list(range(len(steps)))
        assert [step for step, _ in found[f"{stage}/loss"]] == [step for step, _ in steps]
        assert dict(found[f"{stage}/loss"]) == pytest.approx(dict(steps))
    assert [step for step, _ in found["measure/eval/score"]] == [1, 2]
    doubled = {tag for tag, values in found.items() if len(dict(values)) < len(values)}
    assert not doubled


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "--log: found 'tensorbord', wanted tensorboard or wandb, or both"),
        ("", "--log: found '', wanted tensorboard or wandb"),
    ],
)
def test_unknown_names_are_refused(given, said, capsys):
    assert main(["--log", given]) == 2
    assert said in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--log", "wandb"]) == 2
    assert "'wandb', which is not installed, wanted it (pip install wandb)" in (
        capsys.readouterr().err
    )


def test_event_files_are_made_anew(tmp_path):
    for _ in range(2):
        board = TensorBoard(tmp_path)
        board.log(0, LINES[1])
        board.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
