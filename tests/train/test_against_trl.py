"""TRL's DPO trainer and ours, same batch, same weights: loss, rewards and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from srlm_fast.train import DpoConfig, TokenPair, pair_logps
from tests.train.helpers import make_pairs, small_model
from tests.train.test_dpo import loss_and_gradients

# TRL and transformers warn about each other's argument names.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PAIRS = [TokenPair(p.prompt_ids, p.chosen_ids, p.rejected_ids) for p in make_pairs(8)]
SETTINGS = {
    # TRL's name: ours
    "sigmoid": {},
    "hinge": {"loss": "hinge"},
    "ipo": {"loss": "ipo", "length_normalized": True},
    "robust": {"loss": "robust", "label_smoothing": 0.2},
    "sigmoid_norm": {"length_normalized": True},
}


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


def trl_step(policy, reference, name, folder):
    """TRL's loss on PAIRS; its gradients are left on the policy. Returns (loss, metrics)."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(folder),
        loss_type=[name],
        beta=0.1,
        label_smoothing=SETTINGS[name].get("label_smoothing", 0.0),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        max_length=None,
    )
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "a", "rejected": "a"}]),
        processing_class=word_tokenizer(),
    )
    rows = [
        {"prompt_ids": p.prompt_ids, "chosen_ids": p.chosen_ids, "rejected_ids": p.rejected_ids}
        for p in PAIRS
    ]
    policy.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    metrics = trainer._metrics["train"] or trainer._metrics["eval"]
    return loss.item(), {key: values[-1] for key, values in metrics.items()}


def fused(named, layer):
    """TRL's gradients under our names."""
    at = f"model.layers.{layer}."
    qkv = [named[f"{at}self_attn.{part}_proj.weight"].grad for part in "qkv"]
    gate_up = [named[f"{at}mlp.{part}_proj.weight"].grad for part in ("gate", "up")]
    return {
        f"layers.{layer}.qkv.weight": torch.cat(qkv),
        f"layers.{layer}.o.weight": named[f"{at}self_attn.o_proj.weight"].grad,
        f"layers.{layer}.gate_up.weight": torch.cat(gate_up),
        f"layers.{layer}.down.weight": named[f"{at}mlp.down_proj.weight"].grad,
        f"layers.{layer}.attn_norm.weight": named[f"{at}input_layernorm.weight"].grad,
        f"layers.{layer}.mlp_norm.weight": named[f"{at}post_attention_layernorm.weight"].grad,
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_rewards_and_gradients(name, models, tmp_path):
    (ours, theirs), (our_ref, their_ref) = models
    config = DpoConfig(beta=0.1, **SETTINGS[name])
    total, grads, sums, _ = loss_and_gradients(ours, PAIRS, config, pair_logps(our_ref, PAIRS))
    wanted, metrics = trl_step(theirs, their_ref, name, tmp_path)

    assert total == pytest.approx(wanted, rel=2e-5)
    margin, right, chosen, rejected = (sums / len(PAIRS)).tolist()
    assert margin == pytest.approx(metrics["rewards/margins"], rel=1e-4)
    assert right == pytest.approx(metrics["rewards/accuracies"])
    assert 0.1 * chosen == pytest.approx(metrics["rewards/chosen"], rel=1e-4)
    assert 0.1 * rejected == pytest.approx(metrics["rewards/rejected"], rel=1e-4)

    named = dict(theirs.named_parameters())
    expected = {
        "embed.weight": named["model.embed_tokens.weight"].grad,
        "norm.weight": named["model.norm.weight"].grad,
        "lm_head.weight": named["lm_head.weight"].grad,
        **fused(named, 0),
        **fused(named, 1),
    }
    assert expected.keys() == grads.keys()
    for key, grad in expected.items():
        # fp32 sums in another order: of the tensor's own size, not of each entry's.
        size = float(grad.abs().max())
        assert_close(
            grads[key], grad, rtol=1e-3, atol=1e-5 * size, msg=lambda m, k=key: f"{k}: {m}"
        )
