"""A prompt that runs once for all its responses changes the rounding and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from srlm_fast.kernels.dpo_loss import LOSSES
from srlm_fast.train import (
    DpoConfig,
    RewardConfig,
    RewardPair,
    SftConfig,
    SftRow,
    TokenPair,
    pair_logps,
    train_dpo,
)
from srlm_fast.train.dpo import DpoTask
from srlm_fast.train.reward import RewardTask
from srlm_fast.train.sft import SftTask
from tests.train.helpers import make_trees, small_model

FAMILIES = {
    "window": {"family": "mistral", "windows": (3, None)},
    "tied": {"family": "qwen2", "tie_word_embeddings": True, "qkv_bias": True},
    "all heads": {"num_heads": 2, "num_kv_heads": 2},
}


def both_forms(config):
    return replace(config, share_prompts=False), replace(config, share_prompts=True)


def run(model, task, num_items):
    """(loss, reported sums, gradients, tokens fed) of one batch that holds all items."""
    items, total, sums = np.arange(num_items), 0.0, 0.0
    batches = task.micro_batches(items)
    model.zero_grad()
    for batch in batches:
        loss, seen = task.objective(model, batch)
        (loss / task.normalizer(items)).backward()
        total, sums = total + loss.item() / task.normalizer(items), sums + seen.double()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return total, sums, gradients, sum(batch.token_ids.numel() for batch in batches)


def assert_same(found, wanted, tolerance=1e-10):
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert_close(found[1], wanted[1], rtol=tolerance, atol=tolerance)
    for name, gradient in wanted[2].items():
        assert_close(
            found[2][name],
            gradient,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def compare_dpo(config, **changes):
    model, reference = (small_model(seed, torch.float64, **changes) for seed in (0, 1))
    pairs = make_trees(3)
    ref = pair_logps(reference, pairs, share_prompts=False)
    apart, shared = (
        run(model, DpoTask(model, pairs, form, ref), len(pairs)) for form in both_forms(config)
    )
    assert_same(shared, apart)
    # Behind each prompt: four answers, each without its last token, once.
    prompts = {tuple(p.prompt_ids) for p in pairs}
    answers = {(*p.prompt_ids, -1, *ids) for p in pairs for ids in (p.chosen_ids, p.rejected_ids)}
    own = sum(len(ids) - ids.index(-1) - 2 for ids in answers)
    assert shared[3] == sum(map(len, prompts)) + own < apart[3]


@pytest.mark.parametrize("nll_weight", [0.0, 0.5])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_in_fp64(loss, nll_weight):
    gamma = 0.2 if loss == "simpo" else 0.0
    normalized = loss in ("ipo", "sigmoid") and nll_weight == 0
    compare_dpo(
        DpoConfig(
            loss=loss,
            beta=0.3,
            label_smoothing=0.1,
            gamma=gamma,
            nll_weight=nll_weight,
            length_normalized=normalized,
        )
    )


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=FAMILIES)
def test_every_family_in_fp64(changes):
    compare_dpo(DpoConfig(beta=0.3), **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rounding_is_that_of_the_unshared_form(dtype):
    """Against fp64 on the same weights: at most twice the unshared form's error and a floor."""
    model, exact = small_model(dtype=dtype), small_model(dtype=torch.float64)
    exact.load_state_dict({name: w.double() for name, w in model.state_dict().items()})
    pairs = make_trees(4)
    ref = pair_logps(small_model(1, torch.float64), pairs)
    config = DpoConfig(beta=0.3)
    truth = run(exact, DpoTask(exact, pairs, config, ref), len(pairs))
    own = tuple(side.float() for side in ref)
    apart, shared = (
        run(model, DpoTask(model, pairs, form, own), len(pairs)) for form in both_forms(config)
    )
    floor = torch.finfo(dtype).eps
    assert abs(shared[0] - truth[0]) <= 2 * abs(apart[0] - truth[0]) + floor
    for name, gradient in truth[2].items():
        errors = [
            (form[2][name].double() - gradient).norm() / gradient.norm() for form in (apart, shared)
        ]
        assert errors[1] <= 2 * errors[0] + floor, (name, errors)


def test_cuts_change_neither_loss_nor_gradients():
    model, pairs = small_model(dtype=torch.float64), make_trees(3)
    ref = pair_logps(small_model(1, torch.float64), pairs)
    whole = run(model, DpoTask(model, pairs, DpoConfig(), ref), len(pairs))
    fed = [whole[3]]
    for budget in (40, 15, 1):
        config = DpoConfig(micro_batch_tokens=budget)
        cut = run(model, DpoTask(model, pairs, config, ref), len(pairs))
        assert_same(cut, whole)
        fed.append(cut[3])
    # Cut between prompts nothing is fed again; cut inside them prompts are.
    assert fed[0] == fed[1] < fed[2] < fed[3]


@pytest.mark.parametrize("share", [True, False])
def test_step_0_is_ln_2_to_the_last_bit(share):
    pairs = [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in make_trees(5)]
    config = DpoConfig(
        learning_rate=1e-3, batch_pairs=9, epochs=2, micro_batch_tokens=50, share_prompts=share
    )
    seen, given = [], []
    train_dpo(small_model(), pairs, config, on_step=seen.append)
    assert seen[0].loss == pytest.approx(math.log(2), rel=3e-7)
    assert (seen[0].margin, seen[0].chosen_logratio, seen[0].rejected_logratio) == (0.0, 0.0, 0.0)
    assert seen[1].margin != 0
    ref = pair_logps(small_model(), pairs, share_prompts=not share)
    train_dpo(small_model(), pairs, config, ref, on_step=given.append)
    assert given[0].loss == pytest.approx(math.log(2), rel=1e-5)
    assert given[-1].loss == pytest.approx(seen[-1].loss, rel=1e-3)


def test_tokens_reported_are_those_fed():
    """[1 2] with 3 4 | 5 (fed: 1 2 | 3 | and nothing of 5), then 1 2 3 and 1 2 apart."""
    for share, wanted in ((True, 3), (False, 5)):
        seen = []
        config = DpoConfig(share_prompts=share)
        train_dpo(small_model(), [TokenPair([1, 2], [3, 4], [5])], config, on_step=seen.append)
        assert seen[0].num_tokens == wanted


def test_a_response_with_two_references_keeps_both():
    """References that are no function of the response: the pairs' own ones count."""
    model = small_model(dtype=torch.float64)
    pairs = [TokenPair([1, 2], [3, 4, 0], [5, 0]), TokenPair([1, 2], [3, 4, 0], [6, 0])]
    ref = (torch.tensor([-9.0, -3.0]).double(), torch.tensor([-5.0, -6.0]).double())
    apart, shared = (
        run(model, DpoTask(model, pairs, form, ref), 2) for form in both_forms(DpoConfig())
    )
    assert_same(shared, apart)


def test_prompts_that_end_elsewhere_are_not_one():
    """1 2 | 3 4 and 1 2 3 | 4: the same tokens, other targets."""
    model = small_model(dtype=torch.float64)
    pairs = [TokenPair([1, 2], [3, 4], [5]), TokenPair([1, 2, 3], [4], [5])]
    for mine, wanted in zip(
        pair_logps(model, pairs), pair_logps(model, pairs, share_prompts=False), strict=True
    ):
        assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
        assert mine[0] != mine[1]


def test_rows_of_one_prompt():
    rows = [
        SftRow(p.prompt_ids, ids, p.weight)
        for p in make_trees(2)
        for ids in (p.chosen_ids, p.rejected_ids)
    ]
    model = small_model(dtype=torch.float64)
    for budget in (10**6, 25):
        apart, shared = (
            run(model, SftTask(model, rows, form), len(rows))
            for form in both_forms(SftConfig(micro_batch_tokens=budget))
        )
        assert_same(shared, apart)
        assert shared[3] < apart[3]


def test_conversations_share_what_they_begin_with():
    """Also where one goes on from the other, where both are one, and where nothing is common."""
    rows = [
        ([1, 2, 3, 4], [1, 2, 5]),
        ([1, 2, 3], [1, 2]),
        ([7, 8], [7, 8]),
        ([9, 1], [8]),
        ([1, 2, 6], [1, 2, 5]),
    ]
    pairs = [RewardPair(*row, 0.5 + i, 0.9, 0.1 * i) for i, row in enumerate(rows)]
    model = small_model(dtype=torch.float64, num_labels=1)
    apart, shared = (
        run(model, RewardTask(model, pairs, form), len(pairs))
        for form in both_forms(RewardConfig())
    )
    assert_same(shared, apart)
    # 1 2 with 3 4, 5, 3, nothing and 6 behind it; 7 8 once; 9 1 and 8 apart.
    assert (apart[3], shared[3]) == (25, 7 + 2 + 3)
