"""A run that trains an adapter: its folders, its reference, and a run broken off."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from srlm_fast import config as configs
from srlm_fast.loop import run, state
from srlm_fast.loop.state import ModelFolder
from srlm_fast.loop.weights import WeightsOf
from srlm_fast.model import load_model, lora_parameters
from srlm_fast.records import InputError, read_jsonl
from srlm_fast.run import read_options
from tests.loop.test_resume import Killed, break_at
from tests.loop.worlds import Silent, small_config, small_run

SMALL = {
    "lora.rank": 4,
    "iterations": 1,
    "lora.base_dtype": "int8",
    "reward": "gold",
    "num_ift": 8,
    "num_eft": 2,
    "num_prompts": 6,
    "evaluation.num_prompts": 2,
    "evaluation.num_judged": 0,
    "candidates.max_tokens": 10,
    "prompt_sampling.max_tokens": 16,
    "dpo.epochs": 1,
    "sft.epochs": 1,
    "sft.learning_rate": 1e-2,
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    return out, small_run(out, **SMALL)


def test_folders_hold_adapters_of_the_given_model(finished):
    out, summary = finished
    m1, m2 = (load_file(out / name / "model" / WEIGHTS) for name in ("m1", "m2"))
    assert m1.keys() == m2.keys() and any(not torch.equal(m1[name], m2[name]) for name in m1)
    assert not list(out.glob("m*/model/model*.safetensors")) and not list(out.glob("m*/*.pt"))
    size = sum(tensor.numel() for tensor in m1.values())
    assert [model["trained_parameters"] for model in summary["models"]] == [size, size]
    base = json.loads((out / "m2" / "model" / "adapter_config.json").read_text())
    assert (base["base_model_name_or_path"], base["r"], base["lora_alpha"]) == ("tiny", 4, 8.0)
    rows = read_jsonl(out / "metrics.jsonl")
    steps = [row for row in rows if row["stage"] == "m2/train" and "step" in row]
    # The reference is M1's adapter, which is where M2 begins.
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-3)
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    loaded = load_model(out / "m2" / "model", base_dtype="int8")
    assert loaded.adapter.config.rank == 4


def test_broken_off_it_ends_the_same(finished, tmp_path, monkeypatch):
    unbroken, summary = finished
    out = tmp_path / "run"
    for count in (1, 2, 3):
        with monkeypatch.context() as patch:
            break_at(patch, state.RunState, "finish", count)
            with pytest.raises(Killed):
                run(small_config(out, **SMALL), Silent())
    again = small_run(out, **SMALL)
    for name in ("m1", "m2"):
        path = f"{name}/model/{WEIGHTS}"
        assert (out / path).read_bytes() == (unbroken / path).read_bytes()
    for name in ("pairs.jsonl", "candidates.jsonl"):
        rows = [sorted((each / "m2" / name).read_text().splitlines()) for each in (out, unbroken)]
        assert rows[0] == rows[1] and rows[0]
    assert [m["eval"] for m in again["models"]] == [m["eval"] for m in summary["models"]]


def test_another_models_adapter_for_a_while(finished):
    out, _ = finished
    m1, m2 = (ModelFolder(out, t) for t in (1, 2))
    model = load_model(m2.model)
    own = [factor.detach().clone() for _, factor in lora_parameters(model)]
    with WeightsOf(SimpleNamespace(model=model, folders=[m1, m2]), m1):
        for (_, ours), (_, theirs) in zip(
            lora_parameters(model), lora_parameters(load_model(m1.model)), strict=True
        ):
            assert torch.equal(ours, theirs)
        assert not all(map(torch.equal, own, (factor for _, factor in lora_parameters(model))))
    assert all(map(torch.equal, own, (factor for _, factor in lora_parameters(model))))


def options(*given):
    return configs.from_options(read_options(list(given)))


def test_options(finished, tmp_path):
    out, _ = finished
    adapter = str(out / "m1" / "model")
    assert options("--lora-rank", "8").lora.fresh(3).config.alpha == 16
    assert options("--lora-rank", "0").lora.fresh(3) is None
    config = options("--lora-rank", "8", "--lora-alpha", "4", "--base-dtype", "fp8")
    assert config.lora == configs.AdapterConfig(8, 4.0, "fp8")
    assert configs.from_json(config.to_json()) == config
    assert options("--model", adapter, "--base-dtype", "int8").lora.base_dtype == "int8"
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("{}\n")
    reward = ("--reward", "model", "--reward-pairs", str(pairs))
    for given, wanted in (
        (("--base-dtype", "fp8"), "--base-dtype: found 'fp8' without --lora-rank"),
        (("--base-dtype", "int4", "--lora-rank", "2"), "--base-dtype: found 'int4', wanted fp8"),
        (("--lora-alpha", "8"), "--lora-alpha: found without --lora-rank"),
        (("--lora-rank", "2", "--model", adapter), "--lora-rank: found 2 with --model"),
        (("--lora-rank", "2", *reward), "--reward-pairs: found with an adapter"),
    ):
        with pytest.raises(InputError, match=wanted):
            options(*given)
