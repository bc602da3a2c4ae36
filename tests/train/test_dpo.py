"""DPO: log-probs against a naive loop, ln 2 at step 0, cuts change nothing, the margin rises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels import dpo_loss_reference
from srlm_fast.kernels.dpo_loss import LOSSES
from srlm_fast.model import PackedContext
from srlm_fast.train import DpoConfig, TokenPair, pair_logps, train_dpo
from srlm_fast.train.dpo import DpoTask
from tests.train.helpers import VOCAB, make_pairs, small_model, weights_of


def naive_logp(model, prompt, response):
    ids = [*prompt, *response]
    context = PackedContext([len(ids)], model.config.windows)
    logp = (model(torch.tensor(ids), context.positions, context) @ model.head.T).log_softmax(-1)
    return sum(logp[i - 1, ids[i]] for i in range(len(prompt), len(ids)))


def naive_logps(model, pairs):
    chosen = torch.stack([naive_logp(model, p.prompt_ids, p.chosen_ids) for p in pairs])
    rejected = torch.stack([naive_logp(model, p.prompt_ids, p.rejected_ids) for p in pairs])
    return chosen, rejected


def loss_and_gradients(model, pairs, config, ref):
    """Of one batch that holds all pairs, without a step."""
    task = DpoTask(model, pairs, config, ref)
    items = np.arange(len(pairs))
    batches = task.micro_batches(items)
    model.zero_grad()
    total, sums = 0.0, 0.0
    for batch in batches:
        loss, seen = task.objective(model, batch)
        (loss / task.normalizer(items)).backward()
        total, sums = total + loss.item() / task.normalizer(items), sums + seen
    return total, {n: p.grad.clone() for n, p in model.named_parameters()}, sums, len(batches)


def test_pair_logps_against_a_naive_loop():
    pairs = make_pairs(7)
    model = small_model(dtype=torch.float64)
    for budget in (10**6, 30):
        ours = pair_logps(model, pairs, micro_batch_tokens=budget)
        for mine, wanted in zip(ours, naive_logps(model, pairs), strict=True):
            assert_close(mine, wanted.detach(), rtol=1e-12, atol=1e-12)
    model = small_model()
    chosen, rejected = pair_logps(model, pairs)
    assert chosen.dtype == rejected.dtype == torch.float32 and not chosen.requires_grad
    assert_close(chosen, naive_logps(model, pairs)[0].detach(), rtol=1e-5, atol=1e-5)
    assert [x.tolist() for x in pair_logps(model, [])] == [[], []]


def test_pair_logps_know_no_dropout_and_leave_the_mode_alone():
    model, pairs = small_model(), make_pairs(5)
    wanted = pair_logps(model, pairs)
    model.train().dropout_p = 0.5
    ours = pair_logps(model, pairs)
    assert model.training and model.dropout_p == 0.5
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))


@pytest.mark.parametrize("nll_weight", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradients_against_a_naive_loop_in_fp64(loss, nll_weight):
    model, ref_model = (small_model(seed, torch.float64) for seed in (0, 1))
    pairs = make_pairs(6)
    ref = pair_logps(ref_model, pairs)
    gamma = 0.2 if loss == "simpo" else 0.0
    config = DpoConfig(
        loss=loss,
        beta=0.3,
        label_smoothing=0.1,
        length_normalized=loss == "ipo",
        gamma=gamma,
        nll_weight=nll_weight,
        micro_batch_tokens=40,
    )
    total, grads, _, _ = loss_and_gradients(model, pairs, config, ref)

    model.zero_grad()
    policy = naive_logps(model, pairs)
    weights, labels = (
        torch.tensor([getattr(p, k) for p in pairs], dtype=torch.float64)
        for k in ("weight", "label")
    )
    lengths = tuple(
        torch.tensor([len(getattr(p, side)) for p in pairs])
        for side in ("chosen_ids", "rejected_ids")
    )
    losses = dpo_loss_reference(
        policy,
        None if loss == "simpo" else ref,
        loss,
        0.3,
        0.1,
        labels,
        lengths,
        length_normalized=loss == "ipo",
        gamma=gamma,
        nll_weight=nll_weight,
    )
    wanted = (weights * losses).sum() / weights.sum()
    wanted.backward()
    assert total == pytest.approx(wanted.item(), rel=1e-11)
    for name, param in model.named_parameters():
        assert_close(grads[name], param.grad, rtol=1e-8, atol=1e-12)


def test_micro_batches_change_neither_loss_nor_gradients():
    model, ref_model = (small_model(seed, torch.float64) for seed in (0, 1))
    pairs = make_pairs(8)
    ref = pair_logps(ref_model, pairs)
    whole = loss_and_gradients(model, pairs, DpoConfig(), ref)
    counts = {whole[3]}
    for budget in (60, 1):
        cut = loss_and_gradients(model, pairs, DpoConfig(micro_batch_tokens=budget), ref)
        counts.add(cut[3])
        assert cut[0] == pytest.approx(whole[0], rel=1e-12)
        assert_close(cut[2], whole[2], rtol=1e-10, atol=1e-10)
        for name, grad in whole[1].items():
            assert_close(cut[1][name], grad, rtol=1e-9, atol=1e-13)
    assert {1, 8} < counts


@pytest.mark.parametrize("budget", [10**6, 30], ids=["one", "many"])
def test_step_0_is_ln_2_and_nothing_moved(budget):
    """The reference is the policy: every log-ratio is 0 to the last bit."""
    pairs = [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in make_pairs(21)]
    seen = []
    config = DpoConfig(learning_rate=1e-3, batch_pairs=8, micro_batch_tokens=budget)
    report = train_dpo(small_model(), pairs, config, on_step=seen.append)
    assert report.losses[0] == pytest.approx(math.log(2), rel=3e-7)
    assert report.losses[1] != report.losses[0]
    first = seen[0]
    assert (first.margin, first.chosen_logratio, first.rejected_logratio) == (0.0, 0.0, 0.0)
    report = train_dpo(small_model(), pairs, config, pair_logps(small_model(), pairs))
    assert report.losses[0] == pytest.approx(math.log(2), rel=1e-5)


def test_a_run_raises_the_margin():
    model, pairs = small_model(), make_pairs(48)
    before = pair_logps(model, pairs)
    config = DpoConfig(learning_rate=3e-3, epochs=4, batch_pairs=16, schedule="linear", beta=0.2)
    report = train_dpo(model, pairs, config)
    after = pair_logps(model, pairs)
    gained = 0.2 * ((after[0] - before[0]) - (after[1] - before[1]))
    assert gained.mean() > 0.5 and (gained > 0).float().mean() > 0.9
    assert len(report.losses) == len(report.margins) == len(report.accuracies) == 12
    assert report.margins[-1] > report.margins[1] > 0 and report.losses[-1] < report.losses[0]
    assert report.accuracies[-1] > 0.9
    assert report.chosen_logratios[-1] > report.rejected_logratios[-1]


def test_simpo_starts_from_means_and_reports_log_ratios():
    """Nothing of its loss is relative to the start; the log-ratios that are reported are."""
    model, pairs, seen = small_model(), make_pairs(6), []
    before = pair_logps(model, pairs)
    config = DpoConfig(loss="simpo", beta=2.0, gamma=0.5, learning_rate=1e-3, batch_pairs=6)
    train_dpo(model, pairs, config, on_step=seen.append)
    lengths = [
        torch.tensor([len(getattr(p, side)) for p in pairs])
        for side in ("chosen_ids", "rejected_ids")
    ]
    margins = 2 * (before[0] / lengths[0] - before[1] / lengths[1])
    assert seen[0].margin == pytest.approx(margins.mean().item(), rel=1e-5)
    assert (seen[0].chosen_logratio, seen[0].rejected_logratio) == (0.0, 0.0)


def test_label_0_turns_the_pair_around():
    """A pair that says rejected is the better one is the swapped pair."""
    model = small_model(dtype=torch.float64)
    pairs = make_pairs(4)
    ref = pair_logps(small_model(1, torch.float64), pairs)
    straight = [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in pairs]
    turned = [TokenPair(p.prompt_ids, p.rejected_ids, p.chosen_ids, label=0.0) for p in pairs]
    left = loss_and_gradients(model, straight, DpoConfig(), ref)
    right = loss_and_gradients(model, turned, DpoConfig(), (ref[1], ref[0]))
    assert left[0] == pytest.approx(right[0], rel=1e-12)
    assert_close(left[1]["embed.weight"], right[1]["embed.weight"], rtol=1e-9, atol=1e-13)


def test_bf16_weights_move_at_a_small_rate():
    model = small_model(dtype=torch.bfloat16)
    before = weights_of(model)
    config = DpoConfig(learning_rate=1e-3, epochs=8, batch_pairs=8, schedule="constant")
    report = train_dpo(model, make_pairs(8), config)
    assert model.dtype == torch.bfloat16 and report.skipped_steps == 0
    assert report.losses[-1] < report.losses[0]
    moved = [not torch.equal(before[name], value) for name, value in model.state_dict().items()]
    assert all(moved)


def test_refusals():
    model, pair = small_model(), TokenPair([1], [2], [3])
    with pytest.raises(ValueError, match="^pairs: empty"):
        train_dpo(model, [])
    for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
        parts = {"prompt_ids": [1], "chosen_ids": [1], "rejected_ids": [1]} | {name: []}
        with pytest.raises(ValueError, match=f"^{name}: empty"):
            TokenPair(**parts)
    with pytest.raises(ValueError, match="^label: 1.5"):
        TokenPair([1], [2], [3], label=1.5)
    with pytest.raises(ValueError, match="^weight: nan"):
        TokenPair([1], [2], [3], weight=math.nan)
    with pytest.raises(ValueError, match=r"^ref_logps\[1\]: \[2\], wanted \[1\]"):
        train_dpo(model, [pair], ref_logps=(torch.zeros(1), torch.zeros(2)))
    with pytest.raises(ValueError, match=f"^token ids: {VOCAB}"):
        pair_logps(model, [TokenPair([1], [VOCAB], [3])])
