"""Held-out data: what is evaluated, which weights are left, when a training ends, and resuming."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from srlm_fast.train import (
    CheckpointError,
    DpoConfig,
    RewardConfig,
    RewardPair,
    SftConfig,
    TrainingInterrupted,
    pair_logps,
    train_dpo,
    train_reward_model,
    train_sft,
)
from srlm_fast.train.held_out import best_path
from tests.train.helpers import assert_same_weights, make_pairs, make_rows, small_model
from tests.train.test_resume import after, same_report

PAIRS = [dataclasses.replace(pair, label=1.0) for pair in make_pairs(12)]
# Right only three times out of four: the best margin is ln 3, what goes beyond is overconfidence.
HELD_OUT = [dataclasses.replace(pair, label=0.75) for pair in PAIRS]
OVERFIT = DpoConfig(
    learning_rate=1e-2, schedule="constant", epochs=8, batch_pairs=4, evaluate_every=2
)


def overfit(model, patience=0, **keep):
    config = dataclasses.replace(OVERFIT, patience=patience)
    return train_dpo(model, PAIRS, config, held_out=HELD_OUT, seed=1, **keep)


def test_evaluations_are_the_mean_loss_and_accuracy_of_held_out_pairs():
    model, seen = small_model(), []
    ref = pair_logps(model, HELD_OUT)
    config = dataclasses.replace(OVERFIT, epochs=1, evaluate_every=3, dropout=0.2)
    report = train_dpo(model, PAIRS, config, held_out=HELD_OUT, on_step=seen.append)
    (found,) = report.evaluations
    now = pair_logps(model, HELD_OUT)
    margins = 0.1 * ((now[0] - ref[0]) - (now[1] - ref[1]))
    labels, weights = (torch.tensor([getattr(p, n) for p in HELD_OUT]) for n in ("label", "weight"))
    losses = -labels * margins.sigmoid().log() - (1 - labels) * (-margins).sigmoid().log()
    assert found.step == report.best_step == 3
    assert found.loss == pytest.approx(((weights * losses).sum() / weights.sum()).item(), rel=1e-5)
    assert found.accuracy == pytest.approx((margins > 0).float().mean().item())
    assert [step.held_out_loss for step in seen] == [None, None, found.loss]
    assert seen[-1].held_out_accuracy == found.accuracy


def test_a_training_that_overfits_ends_with_its_best_weights(tmp_path):
    """And with the very same ones whether they were kept in memory or on disk."""
    model, stepwise = small_model(), {}
    report = overfit(model)
    losses = [found.loss for found in report.evaluations]
    best = losses.index(min(losses))
    assert [found.step for found in report.evaluations] == list(range(2, 25, 2))
    assert 0 < best < len(losses) - 1 and losses[-1] > losses[best] + 0.01
    assert report.best_step == report.evaluations[best].step

    def note(step):
        stepwise[step.step + 1] = plain.head.detach().clone()

    plain, on_disk = small_model(), small_model()
    train_dpo(plain, PAIRS, dataclasses.replace(OVERFIT, evaluate_every=0), seed=1, on_step=note)
    assert torch.equal(model.head, stepwise[report.best_step])
    assert not torch.equal(model.head, plain.head)
    assert same_report(overfit(on_disk, checkpoint=tmp_path / "c.pt"), report)
    assert_same_weights(on_disk, model)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_patience_ends_it_early():
    whole, model = small_model(), small_model()
    longest, report = overfit(whole), overfit(model, patience=2)
    steps = [found.step for found in report.evaluations]
    assert steps[-1] == report.best_step + 4 < 24 and len(report.losses) == steps[-1]
    assert report.evaluations == longest.evaluations[: len(steps)]
    assert longest.best_step == report.best_step
    assert_same_weights(model, whole)


def test_stopped_anywhere_and_resumed_is_unbroken(tmp_path):
    whole = small_model()
    wanted = overfit(whole, patience=3)
    for num_steps in range(0, len(wanted.losses) + 1, 5):
        path = tmp_path / f"{num_steps}.pt"
        with pytest.raises(TrainingInterrupted):
            overfit(small_model(), 3, checkpoint=path, stop=after(min(num_steps, 9)))
        model = small_model()
        assert same_report(overfit(model, 3, checkpoint=path), wanted)
        assert_same_weights(model, whole)
        again = small_model()  # finished: nothing is left to do
        assert same_report(overfit(again, 3, checkpoint=path), wanted)
        assert_same_weights(again, whole)
    assert not list(tmp_path.glob("*best*"))


def test_lost_best_weights_are_told(tmp_path):
    path, steps = tmp_path / "c.pt", []
    best = overfit(small_model()).best_step
    with pytest.raises(TrainingInterrupted):
        overfit(
            small_model(), checkpoint=path, stop=lambda: len(steps) > best, on_step=steps.append
        )
    assert best_path(path) == tmp_path / "c.best.pt"
    best_path(path).unlink()
    with pytest.raises(CheckpointError, match=f"c.best.pt: wanted the weights of step {best}"):
        overfit(small_model(), checkpoint=path)


def test_sft_on_held_out_rows():
    model = small_model()
    config = SftConfig(learning_rate=1e-2, epochs=6, batch_rows=4, evaluate_every=1, patience=4)
    report = train_sft(model, make_rows(8), config, held_out=make_rows(6, seed=8))
    losses = [found.loss for found in report.evaluations]
    assert report.best_step == 1 + losses.index(min(losses))
    assert all(found.accuracy is None and math.isfinite(found.loss) for found in report.evaluations)


def test_held_out_data_is_another_training(tmp_path):
    overfit(small_model(), checkpoint=tmp_path / "c")
    with pytest.raises(CheckpointError, match="of another training"):
        train_dpo(
            small_model(), PAIRS, OVERFIT, held_out=HELD_OUT[1:], seed=1, checkpoint=tmp_path / "c"
        )


def test_one_without_the_other_is_refused():
    model = small_model()
    with pytest.raises(ValueError, match="^evaluate_every: 0 with held-out data"):
        train_dpo(model, PAIRS, DpoConfig(), held_out=HELD_OUT)
    with pytest.raises(ValueError, match="^evaluate_every: 2, wanted held-out data too"):
        train_dpo(model, PAIRS, OVERFIT)
    scored = small_model(num_labels=1)
    with pytest.raises(ValueError, match="^evaluate_every: 1, wanted held-out data too"):
        train_reward_model(scored, [RewardPair([1], [2])], RewardConfig(evaluate_every=1))
