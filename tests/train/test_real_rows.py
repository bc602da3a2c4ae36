"""Real rows in the steps of DPO: the loss by hand and by a naive loop, cuts, resuming."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import dpo_loss_reference
from srlm_fast.model import LoraConfig, add_lora
from srlm_fast.train import (
    CheckpointError,
    DpoConfig,
    SftRow,
    TokenPair,
    TrainingInterrupted,
    pair_logps,
    train_dpo,
)
from srlm_fast.train.dpo import DpoTask
from srlm_fast.train.packing import batch_items
from tests.train.helpers import assert_same_weights, make_pairs, make_rows, make_trees, small_model
from tests.train.test_dpo import naive_logp, naive_logps
from tests.train.test_resume import after, same_report

PAIRS = make_trees(2)
# Some of prompts of their own, one behind a pair's prompt, one that is a pair's chosen response,
# one twice, with other weights.
ROWS = [
    *make_rows(3, seed=3),
    SftRow(PAIRS[0].prompt_ids, [5, 6, 0], 2.0),
    SftRow(PAIRS[1].prompt_ids, PAIRS[1].chosen_ids, 0.5),
    SftRow([7, 8], [9, 0]),
    SftRow([7, 8], [9, 0], 1.5),
]
ALL = np.arange(len(PAIRS) + len(ROWS))
SMALL = {"learning_rate": 1e-2, "batch_pairs": 6, "epochs": 2}


def step_of(model, ref, **settings):
    """(loss, reported sums, gradients, micro-batches) of one step that has everything."""
    task = DpoTask(model, PAIRS, DpoConfig(**settings), ref, real=ROWS)
    batches, normalizer = task.micro_batches(ALL), task.normalizer(ALL)
    model.zero_grad()
    total, sums = 0.0, 0.0
    for batch in batches:
        loss, seen = task.objective(model, batch)
        (loss / normalizer).backward()
        total, sums = total + loss.item() / normalizer, sums + seen.double()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return total, sums, gradients, len(batches)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("loss", ["sigmoid", "simpo"])
def test_loss_and_gradients_against_a_naive_loop_in_fp64(loss, share):
    model = small_model(dtype=torch.float64)
    ref = pair_logps(small_model(1, torch.float64), PAIRS)
    settings = {"loss": loss, "beta": 0.3, "real_weight": 0.7, "share_prompts": share}
    total, sums, gradients, _ = step_of(model, ref, **settings, nll_weight=0.2)

    model.zero_grad()
    weights, labels = (
        torch.tensor([getattr(p, k) for p in PAIRS], dtype=torch.float64)
        for k in ("weight", "label")
    )
    lengths = tuple(
        torch.tensor([len(getattr(p, side)) for p in PAIRS])
        for side in ("chosen_ids", "rejected_ids")
    )
    losses = dpo_loss_reference(
        naive_logps(model, PAIRS),
        None if loss == "simpo" else ref,
        loss,
        0.3,
        labels=labels,
        lengths=lengths,
        length_normalized=loss == "simpo",
        nll_weight=0.2,
    )
    nll = [-naive_logp(model, r.prompt_ids, r.response_ids) / len(r.response_ids) for r in ROWS]
    shares = torch.tensor([row.weight for row in ROWS], dtype=torch.float64)
    wanted = (weights * losses).sum() + 0.7 * (shares * torch.stack(nll)).sum()
    wanted = wanted / (weights.sum() + shares.sum())
    wanted.backward()
    assert total == pytest.approx(wanted.item(), rel=1e-11)
    assert sums[4].item() == pytest.approx(sum(nll).item(), rel=1e-11)
    for name, param in model.named_parameters():
        assert_close(gradients[name], param.grad, rtol=1e-8, atol=1e-12)


def test_cuts_change_neither_loss_nor_gradients():
    model = small_model(dtype=torch.float64)
    ref = pair_logps(small_model(1, torch.float64), PAIRS)
    whole = step_of(model, ref)
    counts = [whole[3]]
    # Of single items some are pairs alone, others real rows alone.
    for settings in ({"micro_batch_tokens": 30}, {"micro_batch_tokens": 1}):
        model.checkpointing = len(counts) == 1
        cut = step_of(model, ref, **settings)
        counts.append(cut[3])
        assert cut[0] == pytest.approx(whole[0], rel=1e-12)
        assert_close(cut[1], whole[1], rtol=1e-10, atol=1e-10)
        for name, gradient in whole[2].items():
            assert_close(cut[2][name], gradient, rtol=1e-9, atol=1e-13)
    assert counts[0] == 1 < counts[1] < counts[2]


def test_a_real_row_is_fed_once_and_a_prompt_with_its_pairs():
    """1 2 | 3 | 5, then the row's 6 behind the same prompt; apart 1 2 3, 1 2 5 and 1 2 6."""
    pair, row = TokenPair([1, 2], [3, 4], [5, 4]), SftRow([1, 2], [6, 7])
    for share, wanted in ((True, 5), (False, 9)):
        seen = []
        config = DpoConfig(share_prompts=share)
        train_dpo(small_model(), [pair], config, real=[row], on_step=seen.append)
        assert seen[0].num_tokens == wanted


@pytest.mark.parametrize("budget", [10**6, 30], ids=["one", "many"])
def test_the_first_step_by_hand(budget):
    """No log-ratio has moved, to the last bit: (16 ln 2 + a sum of 4 mean NLLs) / (16 + 4)."""
    model, rows, seen = small_model(), make_rows(4, seed=3), []
    pairs = [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in make_pairs(16)]
    with torch.no_grad():
        nll = [-naive_logp(model, r.prompt_ids, r.response_ids) / len(r.response_ids) for r in rows]
    config = DpoConfig(real_weight=0.5, micro_batch_tokens=budget)
    report = train_dpo(model, pairs, config, real=rows, on_step=seen.append)
    (first,) = seen
    assert (first.margin, first.chosen_logratio, first.rejected_logratio) == (0.0, 0.0, 0.0)
    assert first.real_nll == pytest.approx(sum(nll).item() / 4, rel=1e-5)
    assert report.real_nlls == [first.real_nll] and first.to_row()["real_nll"] == first.real_nll
    assert first.loss == pytest.approx((16 * math.log(2) + 0.5 * sum(nll).item()) / 20, rel=1e-5)


def test_figures_of_pairs_are_means_over_pairs():
    model, pairs, seen = small_model(), make_pairs(6), []
    ref, now = pair_logps(small_model(1), pairs), pair_logps(model, pairs)
    train_dpo(model, pairs, DpoConfig(), ref, real=make_rows(3), on_step=seen.append)
    chosen, rejected = ((side - old).mean().item() for side, old in zip(now, ref, strict=True))
    (step,) = seen
    assert step.chosen_logratio == pytest.approx(chosen, rel=1e-4)
    assert step.rejected_logratio == pytest.approx(rejected, rel=1e-4)
    assert step.margin == pytest.approx(0.1 * (chosen - rejected), rel=1e-4)


def test_real_rows_are_learnt_and_the_loss_of_held_out_pairs_knows_none_of_them():
    model, rows = small_model(), make_rows(24, seed=3)
    config = DpoConfig(learning_rate=3e-3, epochs=4, batch_pairs=8, evaluate_every=100)
    pairs = make_pairs(24)
    held_out = [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in pairs[:6]]
    before = pair_logps(model, held_out)
    report = train_dpo(model, pairs, config, real=rows, held_out=held_out)
    assert len(report.real_nlls) == len(report.losses) == 12
    assert report.real_nlls[-1] < report.real_nlls[0] - 0.5 and report.margins[-1] > 0.1
    now = pair_logps(model, held_out)
    margins = 0.1 * ((now[0] - before[0]) - (now[1] - before[1]))
    (found,) = report.evaluations
    assert found.loss == pytest.approx(-margins.sigmoid().log().mean().item(), rel=1e-5)
    assert train_dpo(model, pairs, DpoConfig()).real_nlls == []


def test_an_epoch_has_every_real_row_once_spread_over_its_steps():
    """10 items by 4 are 4, 4 and 2; 6 mixed ones behind them 2, 2 and 2: up to 2.4, 4.8 and 6."""
    seen = [batch_items(10, 4, 3, step, 6) for step in range(6)]
    assert [len(items) for items in seen] == [6, 6, 4] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(np.concatenate(epoch)) == list(range(16))
    mixed = [[i for items in epoch for i in items if i >= 10] for epoch in (seen[:3], seen[3:])]
    assert mixed[0] != mixed[1]
    for step, items in enumerate(seen):  # the others are what they are without them
        assert items[items < 10].tolist() == batch_items(10, 4, 3, step).tolist()
    few = [batch_items(10, 4, 3, step, 1).tolist() for step in range(3)]
    assert [10 in items for items in few] == [False, False, True]


def start(model, rows=ROWS, **keep):
    config = DpoConfig(**SMALL, dropout=0.1, activation_checkpointing=True)
    return train_dpo(model, make_pairs(15), config, real=rows, seed=5, **keep)


MODELS = {
    "fp32": small_model,
    "masters": lambda: small_model(dtype=torch.bfloat16),
    "lora": lambda: add_lora(small_model(), LoraConfig(2, 4.0), seed=1),
}


@pytest.mark.parametrize("small_model", MODELS.values(), ids=MODELS)
def test_stopped_and_resumed_is_unbroken(small_model, tmp_path):
    whole, path = small_model(), tmp_path / "c"
    wanted = start(whole)
    assert len(wanted.losses) == 6
    for num_steps in (0, 2, 2):
        with pytest.raises(TrainingInterrupted):
            start(small_model(), checkpoint=path, stop=after(num_steps))
    model, seen = small_model(), []
    report = start(model, checkpoint=path, on_step=seen.append)
    assert [step.step for step in seen] == [4, 5]
    assert_same_weights(model, whole)
    assert same_report(report, wanted)
    for rows in (ROWS[1:], [dataclasses.replace(ROWS[0], weight=3.0), *ROWS[1:]], []):
        with pytest.raises(CheckpointError, match="of another training"):
            start(small_model(), rows, checkpoint=path)


def test_refusals():
    with pytest.raises(ValueError, match="^real_weight: -1, wanted 0 or more"):
        DpoConfig(real_weight=-1)
    with pytest.raises(ValueError, match="^token ids: 61"):
        start(small_model(), [SftRow([1], [61])])
