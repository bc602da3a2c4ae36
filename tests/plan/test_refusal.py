"""The one line for a machine that cannot hold a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from srlm_fast.config import Config
from srlm_fast.model import PRESETS
from srlm_fast.plan import check_fits, refusal, settings
from srlm_fast.plan.cards import Card
from srlm_fast.plan.devices import Devices
from srlm_fast.plan.recipe import Recipe
from srlm_fast.plan.settings import Settings
from srlm_fast.plan.shape import adapter_rank
from srlm_fast.records import InputError

LLAMA_70B = Config(model="llama-2-70b")


def machine(monkeypatch: pytest.MonkeyPatch, memory_bytes: float, number: int = 1) -> None:
    card = Card("cpu", memory_bytes, 15e9, 1e11)
    monkeypatch.setattr(refusal, "of_run", lambda config: Devices(number, card))


def complaint(config: Config) -> str:
    with pytest.raises(InputError) as caught:
        check_fits(config)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_model_too_large_for_the_machine_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    machine(monkeypatch, 24e9)
    said = complaint(LLAMA_70B)
    for part in (
        "--model llama-2-70b: training 69 B parameters (full, adamw, float32) takes 1.2",
        "wanted at most 95% of the 24 GB found on cpu",
        "its weights are not on this machine",
        "what fits there: ",
        " or smaller (",
        "what would hold llama-2-70b: 1xH200-141 (LoRA r=16 over fp8) or 8xH100-80 (full, ",
    ):
        assert part in said, part
    assert "on each of" not in said


def test_a_recipe_that_fits_is_told_with_its_options(monkeypatch: pytest.MonkeyPatch):
    machine(monkeypatch, 24e9)
    said = complaint(Config(model="qwen2.5-1.5b"))
    assert "what fits there: qwen2.5-1.5b with --optimizer adamw-bf16" in said
    assert "what would hold" not in said


def test_ranks_that_a_model_cannot_be_split_over(monkeypatch: pytest.MonkeyPatch):
    machine(monkeypatch, 24e9, number=3)
    assert complaint(Config(tensor_parallel=3)) == (
        "--tensor-parallel: found 3, wanted a divisor of the 4 heads, 4 key/value heads and the "
        "feed-forward width 384 of --model tiny"
    )
    machine(monkeypatch, 24e9, number=2)
    check_fits(Config(tensor_parallel=2))


def test_every_rank_counts(monkeypatch: pytest.MonkeyPatch):
    machine(monkeypatch, 24e9, number=4)
    assert " on each of 4 devices, wanted at most 95% of the 24 GB" in complaint(LLAMA_70B)


def test_a_folder_that_fits_passes_and_one_that_does_not_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["qwen2.5-0.5b"].hf))
    config = Config(model=str(tmp_path))
    machine(monkeypatch, 64e9)
    check_fits(config)
    machine(monkeypatch, 2e9)
    assert "not on this machine" not in complaint(config)


def test_the_recipe_that_was_asked_for_is_what_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """1.5 B weights: 6 GB in float32, 25 GB of state in full, 8 GB with an adapter and what is kept
    of 2,048 tokens.
    """
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["qwen2.5-1.5b"].hf))
    config = Config(model=str(tmp_path))
    machine(monkeypatch, 20e9)
    assert "(full, adamw, float32)" in complaint(config)
    asked = Settings(Recipe(lora_rank=16), True, 1, "auto", None)
    monkeypatch.setattr("srlm_fast.plan.choice.settings_of", lambda config: asked)
    check_fits(config)
    pool = dataclasses.replace(asked, kv_gb=30.0)
    monkeypatch.setattr("srlm_fast.plan.choice.settings_of", lambda config: pool)
    assert "sampling from 1.54 B parameters (LoRA r=16, checkpointed" in complaint(config)
    assert "30 GB beside the weights" in complaint(config)


def test_a_prompt_model_has_to_fit_beside_weights_and_pool(monkeypatch: pytest.MonkeyPatch):
    """M0 takes megabytes; 7.6 B weights in float32 are 30 GB."""
    machine(monkeypatch, 24e9)
    check_fits(Config(prompt_model="qwen2.5-0.5b"))
    said = complaint(Config(prompt_model="qwen2.5-7b"))
    assert said.startswith("--prompt-model qwen2.5-7b: found 30.5 GB of weights, wanted at most 21")
    check_fits(Config(prompt_model="qwen2.5-7b", prompts_file="prompts.jsonl"))  # not needed


def test_an_adapter_is_trained_on_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, folder = tmp_path / "base", tmp_path / "adapter"
    for each in (base, folder):
        each.mkdir()
        (each / "config.json").write_text(json.dumps(PRESETS["qwen2.5-1.5b"].hf))
    saved = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj"],
    }
    saved["base_model_name_or_path"] = str(base)
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    config = Config(model=str(folder))
    assert settings.settings_of(config).recipe == Recipe(lora_rank=4)
    machine(monkeypatch, 6e9)
    said = complaint(config)
    assert "(LoRA r=4, float32)" in said
    assert f"{folder} with --base-dtype" in said
    assert "--lora-rank" not in said
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter_config.json: found no rank, wanted the field"):
        adapter_rank(str(folder))


def test_settings_of_options_that_are_not_given():
    assert settings.settings_of(LLAMA_70B) == Settings(Recipe(), False, 1, "auto", None)
