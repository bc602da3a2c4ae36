"""Adapters to PEFT and transformers, and PEFT's to us, by the packages themselves."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from srlm_fast.model import ModelError, load_model
from srlm_fast.model.load import find_folder

from .conftest import logits_of

IDS = list(range(5, 40))


def base() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(find_folder("tiny"), dtype=torch.float32)


def same(theirs: torch.nn.Module, folder: Path) -> None:
    """Their logits are those of the folder as we load it, which are not the base's."""
    with torch.inference_mode():
        found = theirs.eval()(torch.tensor([IDS])).logits[0]
    ours = logits_of(load_model(folder), IDS)
    torch.testing.assert_close(found, ours, atol=1e-4, rtol=1e-4)
    assert (ours - logits_of(load_model("tiny"), IDS)).abs().max() > 0.1


def test_peft_and_transformers_read_ours(adapted, export, tmp_path):
    out = tmp_path / "out"
    export("model", adapted, "--out", out)
    same(peft.PeftModel.from_pretrained(base(), out), out)
    same(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32), out)  # finds the base
    export("model", adapted, "--out", tmp_path / "merged", "--merge", "--dtype", "fp32")
    same(peft.PeftModel.from_pretrained(base(), out).merge_and_unload(), tmp_path / "merged")


def made_by_peft(folder: Path, **settings) -> torch.nn.Module:
    """An adapter with both factors away from zero."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **settings)
    model = peft.get_peft_model(base(), config)
    draw = torch.Generator().manual_seed(1)
    for name, factor in model.named_parameters():
        if "lora_B" in name:
            factor.data.normal_(0, 0.1, generator=draw)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear", "lora_dropout": 0.1},
        {"target_modules": ["k_proj", "o_proj", "up_proj"], "use_rslora": True},
    ],
    ids=["all", "some of rsLoRA"],
)
def test_we_read_pefts_and_it_reads_them_again(settings, tmp_path):
    theirs = made_by_peft(tmp_path / "theirs", **settings)
    same(theirs, tmp_path / "theirs")
    load_model(tmp_path / "theirs").save(tmp_path / "ours")
    same(peft.PeftModel.from_pretrained(base(), tmp_path / "ours"), tmp_path / "theirs")


def test_one_that_changes_its_base_is_refused(tmp_path):
    made_by_peft(tmp_path / "a", target_modules=["q_proj"], init_lora_weights="olora")
    with pytest.raises(ModelError, match="init_lora_weights is 'olora'; it is not supported"):
        load_model(tmp_path / "a")
