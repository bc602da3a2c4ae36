"""TRL's trainers and ours, same batch, same weights: loss, rewards, gradients and three steps."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.train import (
    DpoConfig,
    SftConfig,
    SftRow,
    TokenPair,
    pair_logps,
    train_dpo,
    train_sft,
)
from tests.train import test_sft
from tests.train.helpers import make_pairs, make_rows, make_trees, small_model
from tests.train.test_dpo import loss_and_gradients

# TRL and transformers warn about each other's argument names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

# Prompts of one pair and of several, answers in two pairs, answers of a single token.
PAIRS = [
    TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in (*make_pairs(3), *make_trees(2))
]
ROWS = [*make_rows(4), *(SftRow(p.prompt_ids, p.chosen_ids) for p in make_trees(1))]
SETTINGS = {
    # TRL's name: ours
    "sigmoid": {},
    "hinge": {"loss": "hinge"},
    "ipo": {"loss": "ipo", "length_normalized": True},
    "robust": {"loss": "robust", "label_smoothing": 0.2},
    "sigmoid_norm": {"length_normalized": True},
}
SCHEDULE = {"learning_rate": 3e-3, "weight_decay": 0.1, "max_grad_norm": 0.5}
OURS = {**SCHEDULE, "schedule": "linear", "final_fraction": 0.0, "epochs": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(policy, reference), each ours and as transformers reads it from the folder ours wrote."""
    from transformers import AutoModelForCausalLM

    both = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("model")
        ours = small_model(seed)
        ours.save(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        both.append((ours, theirs))
    return both


def word_tokenizer():
    """TRL wants one although every batch here is token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def trl_settings(folder, batch_size):
    """Three steps, each on all rows, without what needs a device, a disk or a network."""
    return {
        **SCHEDULE,
        "output_dir": str(folder),
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": 3,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": [],
        "max_length": None,
    }


def dpo_trainer(policy, reference, name, folder):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            **trl_settings(folder, len(PAIRS)),
            loss_type=[name],
            beta=0.1,
            label_smoothing=SETTINGS[name].get("label_smoothing", 0.0),
        ),
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}]),
        processing_class=word_tokenizer(),
    )
    sides = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [{side: list(getattr(pair, side)) for side in sides} for pair in PAIRS]
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


def sft_trainer(policy, folder):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": [*row.prompt_ids, *row.response_ids],
            "labels": [-100] * len(row.prompt_ids) + list(row.response_ids),
        }
        for row in ROWS
    ]
    return SFTTrainer(
        model=policy,
        args=SFTConfig(**trl_settings(folder, len(ROWS))),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(),
    )


def one_pass(trainer):
    """(loss, metrics) on all rows; the gradients are left on the policy."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    loss.backward()
    metrics = trainer._metrics["train"] or trainer._metrics["eval"]
    return loss.item(), {key: values[-1] for key, values in metrics.items()}


def under_our_names(model, read=lambda weight: weight.detach()):
    """`read` of transformers' weights."""
    named = {name: read(weight) for name, weight in model.named_parameters()}
    ours = {
        "embed.weight": named["model.embed_tokens.weight"],
        "norm.weight": named["model.norm.weight"],
        "lm_head.weight": named["lm_head.weight"],
    }
    for layer in range(2):
        at, to = f"model.layers.{layer}.", f"layers.{layer}."
        qkv = [named[f"{at}self_attn.{part}_proj.weight"] for part in "qkv"]
        gate_up = [named[f"{at}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        ours |= {
            f"{to}qkv.weight": torch.cat(qkv),
            f"{to}o.weight": named[f"{at}self_attn.o_proj.weight"],
            f"{to}gate_up.weight": torch.cat(gate_up),
            f"{to}down.weight": named[f"{at}mlp.down_proj.weight"],
            f"{to}attn_norm.weight": named[f"{at}input_layernorm.weight"],
            f"{to}mlp_norm.weight": named[f"{at}post_attention_layernorm.weight"],
        }
    return ours


def assert_same_gradients(grads, theirs):
    expected = under_our_names(theirs, lambda weight: weight.grad)
    assert expected.keys() == grads.keys()
    for key, grad in expected.items():
        # fp32 sums in another order: of the tensor's own size, not of each entry's.
        size = float(grad.abs().max())
        assert_close(
            grads[key], grad, rtol=1e-3, atol=1e-5 * size, msg=lambda m, k=key: f"{k}: {m}"
        )


def assert_same_updates(ours, theirs, before):
    """What three steps moved. Adam's first steps are all of one size, also where a gradient is
    only rounding: of the tensor's whole update, not of each entry's."""
    expected, found = under_our_names(theirs), ours.state_dict()
    assert expected.keys() == found.keys() == before.keys()
    for key, weight in expected.items():
        update = weight - before[key]
        assert update.norm() > 0, key
        assert (found[key] - weight).norm() < 2e-3 * update.norm(), key


@pytest.mark.parametrize("name", SETTINGS)
def test_dpo_loss_rewards_and_gradients(name, models, tmp_path):
    (ours, theirs), (our_ref, their_ref) = models
    wanted, metrics = one_pass(dpo_trainer(theirs, their_ref, name, tmp_path))
    for share in (True, False):
        config = DpoConfig(beta=0.1, share_prompts=share, **SETTINGS[name])
        total, grads, sums, _ = loss_and_gradients(ours, PAIRS, config, pair_logps(our_ref, PAIRS))
        assert total == pytest.approx(wanted, rel=2e-5)
        margin, right, chosen, rejected = (sums / len(PAIRS)).tolist()
        assert margin == pytest.approx(metrics["rewards/margins"], rel=1e-4)
        assert right == pytest.approx(metrics["rewards/accuracies"])
        assert 0.1 * chosen == pytest.approx(metrics["rewards/chosen"], rel=1e-4)
        assert 0.1 * rejected == pytest.approx(metrics["rewards/rejected"], rel=1e-4)
        assert_same_gradients(grads, theirs)


def test_sft_loss_and_gradients(models, tmp_path):
    ours, theirs = models[0]
    wanted, _ = one_pass(sft_trainer(theirs, tmp_path))
    for share in (True, False):
        config = SftConfig(share_prompts=share)
        total, grads, _ = test_sft.loss_and_gradients(ours, ROWS, config)
        assert total == pytest.approx(wanted, rel=2e-5)
        assert_same_gradients(grads, theirs)


def test_three_steps_of_dpo(models, tmp_path):
    """From the reference itself: margins are 0 at first, then those of the moved weights."""
    ours, theirs = deepcopy(models[0])
    before, seen = deepcopy(ours.state_dict()), []
    trainer = dpo_trainer(theirs, deepcopy(theirs), "sigmoid", tmp_path)
    trainer.train()
    config = DpoConfig(**OURS, batch_pairs=len(PAIRS))
    train_dpo(ours, PAIRS, config, on_step=seen.append)
    logged = [row for row in trainer.state.log_history if "rewards/margins" in row]
    assert len(logged) == len(seen) == 3
    for row, step in zip(logged, seen, strict=True):
        assert step.loss == pytest.approx(row["loss"], rel=1e-4)
        assert step.learning_rate == pytest.approx(row["learning_rate"], rel=1e-12)
        assert step.grad_norm == pytest.approx(row["grad_norm"], rel=1e-4)
        assert step.margin == pytest.approx(row["rewards/margins"], rel=1e-3, abs=1e-6)
        assert 0.1 * step.chosen_logratio == pytest.approx(
            row["rewards/chosen"], rel=1e-3, abs=1e-6
        )
    assert_same_updates(ours, theirs, before)


def test_three_steps_of_sft(models, tmp_path):
    ours, theirs = deepcopy(models[0])
    before, seen = deepcopy(ours.state_dict()), []
    trainer = sft_trainer(theirs, tmp_path)
    trainer.train()
    train_sft(ours, ROWS, SftConfig(**OURS, batch_rows=len(ROWS)), on_step=seen.append)
    logged = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logged) == len(seen) == 3
    for row, step in zip(logged, seen, strict=True):
        assert step.loss == pytest.approx(row["loss"], rel=1e-4)
        assert step.grad_norm == pytest.approx(row["grad_norm"], rel=1e-4)
    assert_same_updates(ours, theirs, before)
