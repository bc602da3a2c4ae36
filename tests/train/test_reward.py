"""The Bradley-Terry loss by hand, micro-batches, resuming, and a reward model that learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from srlm_fast.model import reward_scores
from srlm_fast.train import (
    CheckpointError,
    RewardConfig,
    RewardPair,
    TrainingInterrupted,
    pair_accuracy,
    train_reward_model,
)
from srlm_fast.train.reward import RewardTask
from tests.train.helpers import VOCAB, assert_same_weights, small_model
from tests.train.test_resume import after, same_report

SETTINGS = RewardConfig(learning_rate=3e-3, epochs=2, batch_pairs=6, checkpoint_seconds=0.0)


def reward_model(dtype=torch.float32):
    return small_model(dtype=dtype, num_labels=1)


def make_pairs(num, seed=0, noise=True):
    """Chosen ends in token 7, rejected in another one."""
    rng = np.random.default_rng(seed)

    def row(last):
        return [*rng.integers(1, VOCAB, rng.integers(1, 9)).tolist(), last]

    def extra():
        return {
            "weight": float(rng.uniform(0.5, 2)),
            "label": float(rng.uniform(0.6, 1)),
            "margin": float(rng.uniform(0, 0.5)),
        }

    return [
        RewardPair(row(7), row(int(rng.integers(8, VOCAB))), **(extra() if noise else {}))
        for _ in range(num)
    ]


def by_hand(model, pairs):
    """Mean loss, one conversation at a time in plain arithmetic."""
    total, weights = 0.0, 0.0
    for pair in pairs:
        chosen, rejected = (
            reward_scores(model, [ids]).item() for ids in (pair.chosen_ids, pair.rejected_ids)
        )
        gap = chosen - rejected - pair.margin
        right, wrong = math.log1p(math.exp(-gap)), math.log1p(math.exp(gap))
        total += pair.weight * (pair.label * right + (1 - pair.label) * wrong)
        weights += pair.weight
    return total / weights


def loss_and_gradients(model, pairs, micro_batch_tokens):
    task = RewardTask(model, pairs, RewardConfig(micro_batch_tokens=micro_batch_tokens))
    items = np.arange(len(pairs))
    batches = task.micro_batches(items)
    model.zero_grad()
    total, sums = 0.0, 0.0
    for batch in batches:
        loss, seen = task.objective(model, batch)
        (loss / task.normalizer(items)).backward()
        total, sums = total + loss.item() / task.normalizer(items), sums + seen
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return total, gradients, task.metrics(_Result(sums.tolist()), items), len(batches)


class _Result:
    def __init__(self, sums):
        self.sums = sums


def test_the_loss_is_the_formula_and_no_cut_changes_it():
    model, pairs = reward_model(torch.float64), make_pairs(9)
    loss, gradients, metrics, cuts = loss_and_gradients(model, pairs, 10**6)
    # Scores of the by-hand loop come back in fp32.
    assert loss == pytest.approx(by_hand(model, pairs), rel=1e-5)
    small, small_gradients, small_metrics, small_cuts = loss_and_gradients(model, pairs, 20)
    assert (cuts, small_cuts > 3) == (1, True)
    assert small == pytest.approx(loss, rel=1e-12)
    assert small_metrics == pytest.approx(metrics, rel=1e-12)
    for name, gradient in gradients.items():
        assert_close(small_gradients[name], gradient, rtol=1e-9, atol=1e-12)
        assert gradient.abs().sum() > 0, name


def test_a_margin_and_a_soft_label_worked_by_hand():
    """Scores 0 and 0: margin 2 costs ln(1 + e^2); label 0.5 costs ln 2 whatever the order."""
    model = reward_model(torch.float64)
    with torch.no_grad():
        model.score.weight.zero_()
    cases = {
        (1.0, 0.0): math.log(2),
        (1.0, 2.0): math.log(1 + math.e**2),
        (0.0, 2.0): math.log(1 + math.e**-2),
        (0.5, 0.0): math.log(2),
    }
    for (label, margin), wanted in cases.items():
        pair = RewardPair([1, 2], [3], label=label, margin=margin)
        assert loss_and_gradients(model, [pair], 100)[0] == pytest.approx(wanted, rel=1e-12)


def test_only_the_last_token_is_scored():
    model = reward_model()
    (whole, prefix) = reward_scores(model, [[5, 6, 7], [5, 6]]).tolist()
    assert whole != prefix
    context_free = reward_scores(model, [[5, 6, 7]]).tolist()
    assert context_free == pytest.approx([whole], abs=1e-6)


def test_it_learns_and_says_so_on_pairs_it_has_not_seen():
    model = reward_model()
    before = pair_accuracy(model, make_pairs(40, seed=9, noise=False))
    config = RewardConfig(learning_rate=1e-2, epochs=4)
    report = train_reward_model(model, make_pairs(128, noise=False), config)
    after_ = pair_accuracy(model, make_pairs(40, seed=9, noise=False))
    assert after_["n"] == 40
    assert after_["accuracy"] > 0.9 > before["accuracy"] + 0.2
    assert report.losses[-1] < 0.5 * report.losses[0]
    assert report.margins[-1] > report.margins[0]
    assert len(report.accuracies) == len(report.losses) == 32
    assert report.chosen_logratios == []


def test_accuracy_counts_a_tie_half_and_apart():
    model = reward_model()
    better, worse = sorted([[5, 6], [9]], key=lambda ids: reward_scores(model, [ids]).item())[::-1]
    pairs = [RewardPair(better, worse), RewardPair(worse, better), RewardPair(worse, worse)]
    assert pair_accuracy(model, pairs) == {"accuracy": 0.5, "ties": 1 / 3, "n": 3}
    assert pair_accuracy(model, []) == {"accuracy": None, "ties": None, "n": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_stopped_and_resumed_is_unbroken(dtype, tmp_path):
    whole, path, pairs = reward_model(dtype), tmp_path / "c", make_pairs(20)
    wanted = train_reward_model(whole, pairs, SETTINGS, seed=5)
    for num_steps in (0, 3, 2):
        with pytest.raises(TrainingInterrupted):
            train_reward_model(
                reward_model(dtype),
                pairs,
                SETTINGS,
                seed=5,
                checkpoint=path,
                stop=after(num_steps),
            )
    model, seen = reward_model(dtype), []
    report = train_reward_model(
        model, pairs, SETTINGS, seed=5, checkpoint=path, on_step=seen.append
    )
    assert [step.step for step in seen] == [5, 6, 7]
    assert_same_weights(model, whole)
    assert same_report(report, wanted)
    other = [RewardPair(p.chosen_ids, p.rejected_ids, p.weight, p.label) for p in pairs]
    with pytest.raises(CheckpointError, match="of another training"):
        train_reward_model(reward_model(dtype), other, SETTINGS, seed=5, checkpoint=path)


def test_what_cannot_be_used_is_named():
    with pytest.raises(ValueError, match="rejected_ids: empty"):
        RewardPair([1], [])
    with pytest.raises(ValueError, match="margin: -1"):
        RewardPair([1], [2], margin=-1)
    with pytest.raises(ValueError, match="label: 1.5"):
        RewardPair([1], [2], label=1.5)
    with pytest.raises(ValueError, match="pairs: empty"):
        train_reward_model(reward_model(), [])
    with pytest.raises(ValueError, match="0 labels, wanted one"):
        train_reward_model(small_model(), make_pairs(1))
    with pytest.raises(ValueError, match="token ids: 99"):
        train_reward_model(reward_model(), [RewardPair([99], [1])])
    with pytest.raises(ValueError, match="batch_pairs: 0"):
        RewardConfig(batch_pairs=0)
