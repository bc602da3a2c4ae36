"""Reports can be written as JSON, whatever a step gave."""

from __future__ import annotations

import json
import math

from srlm_fast.train import StepReport, TrainReport


def step(**changes):
    fields = {
        "step": 0,
        "num_steps": 2,
        "epoch": 0,
        "loss": 0.5,
        "learning_rate": 1e-3,
        "grad_norm": 1.0,
        "seconds": 0.1,
        "num_tokens": 7,
        "skipped": False,
    }
    return StepReport(**(fields | changes))


def test_numbers_that_json_does_not_know_become_null():
    row = step(loss=math.nan, grad_norm=math.inf, skipped=True).to_row()
    assert json.loads(json.dumps(row, allow_nan=False))["loss"] is None
    assert row["grad_norm"] is None and row["skipped"] is True and row["learning_rate"] == 1e-3


def test_a_report_gathers_its_steps():
    report = TrainReport()
    report.add(step())
    report.add(step(loss=0.4, skipped=True, margin=0.2, accuracy=1.0, chosen_logratio=0.1))
    assert report.losses == [0.5, 0.4] and report.margins == [0.2] and report.accuracies == [1.0]
    assert report.skipped_steps == 1 and report.num_tokens == [7, 7]
    assert report.rejected_logratios == []
