"""SFT: transformers' loss, whatever the cut into micro-batches; training lowers it."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from srlm_fast.model import PackedContext
from srlm_fast.train import SftConfig, SftRow, row_logps, train_sft
from srlm_fast.train.optimizer import Optimizer
from srlm_fast.train.sft import SftTask
from srlm_fast.train.step import train_step
from tests.train.helpers import VOCAB, make_rows, small_model, weights_of


def loss_and_gradients(model, rows, config):
    """Of one batch that holds all rows, without a step."""
    task = SftTask(model, rows, config)
    items = np.arange(len(rows))
    batches = task.micro_batches(items)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = task.objective(model, batch)[0] / task.normalizer(items)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}, len(batches)


def naive_loss(model, rows):
    """Row by row, all logits, the shift and the mask written out."""
    total, count = 0.0, 0.0
    for row in rows:
        ids = [*row.prompt_ids, *row.response_ids]
        context = PackedContext([len(ids)], model.config.windows)
        logits = model(torch.tensor(ids), context.positions, context) @ model.head.T
        logp = logits.log_softmax(-1)
        for place in range(len(row.prompt_ids), len(ids)):
            total = total - row.weight * logp[place - 1, ids[place]]
            count += row.weight
    return total / count


def test_log_probs_of_rows_are_the_naive_loops():
    model, rows = small_model(dtype=torch.float64), make_rows(6)
    wanted = [-len(row.response_ids) * naive_loss(model, [row]).item() for row in rows]
    for tokens in (16, 1024):
        found = row_logps(model, rows, micro_batch_tokens=tokens)
        assert not found.requires_grad
        assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    assert row_logps(model, []).tolist() == []


def test_against_a_naive_loop_in_fp64():
    model = small_model(dtype=torch.float64)
    rows = [SftRow(r.prompt_ids, r.response_ids, 0.5 + i) for i, r in enumerate(make_rows(5))]
    loss, grads, _ = loss_and_gradients(model, rows, SftConfig())
    model.zero_grad()
    wanted = naive_loss(model, rows)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-12)
    for name, param in model.named_parameters():
        assert_close(grads[name], param.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mistake", ["unshifted", "mask one late", "no end token"])
def test_the_usual_mistakes_would_show(mistake):
    """What a wrong mask or gather gives is far from what ours gives."""
    model = small_model(dtype=torch.float64)
    rows = make_rows(6)
    loss, _, _ = loss_and_gradients(model, rows, SftConfig())
    total, count = 0.0, sum(len(row.response_ids) for row in rows)
    for row in rows:
        ids = [*row.prompt_ids, *row.response_ids]
        context = PackedContext([len(ids)], model.config.windows)
        logp = (model(torch.tensor(ids), context.positions, context) @ model.head.T).log_softmax(-1)
        begin, end, shift = len(row.prompt_ids), len(ids), 1
        begin += mistake == "mask one late"
        end -= mistake == "no end token"
        shift -= mistake == "unshifted"
        total -= sum(logp[i - shift, ids[i]].item() for i in range(begin, end))
    assert abs(total - count * loss) > 1.0


def test_micro_batches_change_neither_loss_nor_gradients():
    """1 x 8, several of a few, 8 x 1: rows of unlike lengths and weights, one normalizer."""
    model = small_model(dtype=torch.float64)
    rows = [SftRow(r.prompt_ids, r.response_ids, 1.0 + i % 3) for i, r in enumerate(make_rows(8))]
    whole = loss_and_gradients(model, rows, SftConfig())
    counts = {whole[2]}
    for budget in (40, 25, 1):
        cut = loss_and_gradients(model, rows, SftConfig(micro_batch_tokens=budget))
        counts.add(cut[2])
        assert cut[0] == pytest.approx(whole[0], rel=1e-12)
        for name, grad in whole[1].items():
            assert_close(cut[1][name], grad, rtol=1e-10, atol=1e-13)
    assert {1, 8} < counts


def test_a_run_lowers_the_loss_and_reports_every_step():
    model = small_model()
    version, seen = model.weights_version, []
    config = SftConfig(learning_rate=1e-2, epochs=6, batch_rows=16, warmup_steps=2)
    report = train_sft(model, make_rows(40), config, on_step=seen.append)
    assert len(report.losses) == len(report.seconds) == len(seen) == 18
    assert np.mean(report.losses[-3:]) < np.mean(report.losses[:3]) - 1
    assert [s.step for s in seen] == list(range(18)) and seen[4].epoch == 1
    assert report.learning_rates[:3] == [0.005, 0.01, 0.01]
    assert report.margins == [] and report.skipped_steps == 0
    assert report.peak_bytes > 2**20 and all(s > 0 for s in report.seconds)
    assert model.weights_version > version and not model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        model = small_model()
        train_sft(model, make_rows(20), SftConfig(learning_rate=1e-2, dropout=0.1), seed=seed)
        runs[name] = weights_of(model)["embed.weight"]
    assert torch.equal(runs["a"], runs["b"]) and not torch.equal(runs["a"], runs["c"])


DROPOUT = """
import torch
from srlm_fast.train import SftConfig, train_sft
from tests.train.helpers import make_rows, small_model
torch.manual_seed(7)
wanted = torch.rand(1)
torch.manual_seed(7)
losses = {}
for dropout in (0.0, 0.5):
    model = small_model()
    config = SftConfig(dropout=dropout, batch_rows=20)
    losses[dropout] = train_sft(model, make_rows(20), config).losses[0]
    assert model.dropout_p == 0.0
assert losses[0.0] != losses[0.5]
assert torch.equal(torch.rand(1), wanted)
"""


def test_dropout_changes_training_only_and_leaves_the_callers_generator_alone():
    """In a process of its own: the generator is everybody's, whatever ran before in this one."""
    done = subprocess.run([sys.executable, "-c", DROPOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    model = small_model()
    before = weights_of(model)
    rows = make_rows(4)

    def poison(step):
        """The first step leaves spoilt weights, so the second sees NaN; then they are mended."""
        with torch.no_grad():
            model.norm.weight[0] = math.nan if step.step == 0 else 1.0

    report = train_sft(
        model,
        rows,
        SftConfig(learning_rate=1e-2, epochs=3, batch_rows=4),
        on_step=poison,
    )
    assert report.skipped_steps == 1
    assert math.isnan(report.losses[1]) and math.isfinite(report.losses[2])
    after = weights_of(model)
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(after["embed.weight"], before["embed.weight"])


def test_a_skipped_step_leaves_weights_and_moments_alone():
    model = small_model()
    task = SftTask(model, make_rows(4), SftConfig(learning_rate=1e-2))
    optimizer, items = Optimizer(model, task.config), np.arange(4)

    def step(objective):
        return train_step(
            model, task.micro_batches(items), objective, task.normalizer(items), optimizer, 1e-2
        )

    assert step(task.objective).applied
    weights, moments = weights_of(model), str(optimizer.state())

    def broken(model, batch):
        loss, sums = task.objective(model, batch)
        return loss * math.inf, sums

    result = step(broken)
    assert not result.applied and not math.isfinite(result.grad_norm)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert str(optimizer.state()) == moments
    assert step(task.objective).applied


def test_rows_without_weight_give_loss_zero():
    model = small_model()
    rows = [SftRow([1], [2, 0], weight=0.0)]
    report = train_sft(model, rows, SftConfig(learning_rate=1e-2))
    assert report.losses == [0.0] and report.grad_norms == [0.0]


def test_against_transformers_loss_on_the_same_batch(tmp_path):
    from transformers import AutoModelForCausalLM

    model = small_model(num_kv_heads=2)
    model.save(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    rows = make_rows(8)
    loss, grads, _ = loss_and_gradients(model, rows, SftConfig())

    longest = max(len(r.prompt_ids) + len(r.response_ids) for r in rows)
    ids, labels = torch.zeros(2, len(rows), longest, dtype=torch.int64)
    labels.fill_(-100)
    for i, row in enumerate(rows):
        begin, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
        ids[i, :end] = torch.tensor([*row.prompt_ids, *row.response_ids])
        labels[i, begin:end] = ids[i, begin:end]
    wanted = theirs(input_ids=ids, labels=labels).loss
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    named = dict(theirs.named_parameters())
    pairs = {
        "embed.weight": "model.embed_tokens.weight",
        "layers.0.down.weight": "model.layers.0.mlp.down_proj.weight",
        "layers.1.o.weight": "model.layers.1.self_attn.o_proj.weight",
        "lm_head.weight": "lm_head.weight",
    }
    for ours, name in pairs.items():
        assert_close(grads[ours], named[name].grad, rtol=1e-4, atol=3e-7)


def test_refusals():
    model = small_model()
    with pytest.raises(ValueError, match="^rows: empty"):
        train_sft(model, [])
    with pytest.raises(ValueError, match="^prompt_ids: empty"):
        SftRow([], [1])
    with pytest.raises(ValueError, match="^response_ids: empty"):
        SftRow([1], [])
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="^weight: "):
            SftRow([1], [1], weight)
    with pytest.raises(ValueError, match=f"token ids: {VOCAB}, wanted 0..{VOCAB - 1}"):
        train_sft(model, [SftRow([1], [VOCAB])])
