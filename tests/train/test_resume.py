"""A training that was stopped or killed and taken up again ends as an unbroken one, bit for bit."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from srlm_fast.train import (
    CheckpointError,
    DpoConfig,
    SftConfig,
    TrainingInterrupted,
    train_dpo,
    train_sft,
)
from srlm_fast.train import checkpoint as checkpoint_file
from tests.train.helpers import assert_same_weights, make_pairs, make_rows, small_model

SETTINGS = {"learning_rate": 1e-2, "epochs": 2, "warmup_steps": 3}


def start(kind, model, dropout=0.0, **keep):
    if kind == "sft":
        config = SftConfig(**SETTINGS, dropout=dropout, batch_rows=6)
        return train_sft(model, make_rows(20), config, seed=5, **keep)
    config = DpoConfig(**SETTINGS, dropout=dropout, batch_pairs=6, checkpoint_seconds=0.0)
    return train_dpo(model, make_pairs(20), config, seed=5, **keep)


def after(num_steps):
    """A `stop` that lets so many steps pass."""
    calls = iter(range(num_steps))
    return lambda: next(calls, None) is None


def same_report(left, right):
    """All but what a clock or the machine measures."""
    drop = {"seconds": None, "peak_bytes": None}
    return dataclasses.asdict(left) | drop == dataclasses.asdict(right) | drop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_stopped_and_resumed_is_unbroken(kind, dropout, dtype, tmp_path):
    whole = small_model(dtype=dtype)
    wanted = start(kind, whole, dropout)
    assert len(wanted.losses) == 8

    path = tmp_path / "train.ckpt"
    for num_steps in (0, 3, 2):
        with pytest.raises(TrainingInterrupted):
            # A fresh process loads the round's starting weights, not those of the interrupted one.
            start(kind, small_model(dtype=dtype), dropout, checkpoint=path, stop=after(num_steps))
    model, seen = small_model(dtype=dtype), []
    report = start(kind, model, dropout, checkpoint=path, on_step=seen.append)
    assert [step.step for step in seen] == [5, 6, 7]
    assert_same_weights(model, whole)
    assert same_report(report, wanted)
    assert len(report.seconds) == 8


def test_the_interrupted_model_itself_can_go_on(tmp_path):
    whole, model = small_model(), small_model()
    start("dpo", whole)
    with pytest.raises(KeyboardInterrupt):
        start("dpo", model, checkpoint=tmp_path / "c", stop=after(4))
    assert not model.training
    start("dpo", model, checkpoint=tmp_path / "c")
    assert_same_weights(model, whole)


def test_a_finished_checkpoint_gives_the_result_without_a_step(tmp_path):
    whole, model = small_model(), small_model()
    wanted = start("sft", whole, checkpoint=tmp_path / "c")
    seen = []
    report = start("sft", model, checkpoint=tmp_path / "c", on_step=seen.append)
    assert seen == [] and same_report(report, wanted)
    assert_same_weights(model, whole)


def test_killed_between_two_saves(tmp_path, monkeypatch):
    """The process dies while the fourth checkpoint is half written: the third one counts."""
    whole, calls = small_model(), []
    start("dpo", whole)

    def dies(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise SystemExit("killed")
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(checkpoint_file.os, "replace", dies)
    with pytest.raises(SystemExit):
        start("dpo", small_model(), checkpoint=tmp_path / "c")
    model, seen = small_model(), []
    start("dpo", model, checkpoint=tmp_path / "c", on_step=seen.append)
    assert seen[0].step == 3
    assert_same_weights(model, whole)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_stopped_without_a_checkpoint_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingInterrupted, match="before step 2 of 8"):
        start("sft", small_model(), stop=after(2))
    assert list(tmp_path.iterdir()) == []


def test_another_trainings_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c"
    start("sft", small_model(), checkpoint=path)
    others = {
        "kind": lambda: start("dpo", small_model(), checkpoint=path),
        "settings": lambda: start("sft", small_model(), dropout=0.1, checkpoint=path),
        "sharing": lambda: train_sft(
            small_model(),
            make_rows(20),
            SftConfig(**SETTINGS, batch_rows=6, share_prompts=False),
            seed=5,
            checkpoint=path,
        ),
        "shape": lambda: start("sft", small_model(intermediate_size=32), checkpoint=path),
        "seed": lambda: train_sft(
            small_model(), make_rows(20), SftConfig(**SETTINGS, batch_rows=6), checkpoint=path
        ),
        "rows": lambda: train_sft(
            small_model(),
            make_rows(20, seed=9),
            SftConfig(**SETTINGS, batch_rows=6),
            seed=5,
            checkpoint=path,
        ),
    }
    for run in others.values():
        with pytest.raises(CheckpointError, match="of another training"):
            run()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 torn"):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(CheckpointError, match="wanted one written by this trainer"):
            start("sft", small_model(), checkpoint=tmp_path / "c")
