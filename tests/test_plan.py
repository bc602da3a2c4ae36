"""What a run would take, and the one line for a machine that cannot hold it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from srlm_fast import plan
from srlm_fast.config import Config
from srlm_fast.model import PRESETS
from srlm_fast.plan import Card, Devices, parse_devices
from srlm_fast.records import InputError
from srlm_fast.train import DpoConfig
from srlm_fast.train.optimizer import Optimizer

H100 = plan.CARDS["h100-80"]
LLAMA_8B = Config(model="llama-3-8b")
LLAMA_70B = Config(model="llama-2-70b")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def memory(config: Config, devices: Devices, dtype: str = "bfloat16") -> plan.Memory:
    return plan.memory_of(PRESETS[config.model].config, config, devices, dtype)


def test_weights_and_keys_and_values_are_what_the_model_says():
    found = memory(LLAMA_8B, Devices(1, H100))
    assert found.weights == 2 * 8_030_261_248
    assert found.kv_token == 2 * 32 * 8 * 128 * 2
    assert memory(LLAMA_8B, Devices(1, H100), "float32").weights == 2 * found.weights


def test_training_keeps_what_the_optimizer_makes():
    """Against the tensors of a real optimizer: half precision has float32 masters and gradients."""
    for dtype, width in ((torch.bfloat16, 2), (torch.float32, 4)):
        model = torch.nn.Linear(8, 4, bias=False, dtype=dtype)
        optimizer = Optimizer(model, DpoConfig())
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.accumulate()
        optimizer.step(1e-3)
        state = optimizer.state()
        kept = [t for part in ("first", "second", "masters") for t in state[part].values()]
        held = sum(t.nbytes for t in kept) / model.weight.numel()
        found = memory(LLAMA_8B, Devices(1, H100), str(dtype).removeprefix("torch."))
        assert found.optimizer / (found.weights / width) == held


def test_devices_share_everything():
    one, eight = memory(LLAMA_70B, Devices(1, H100)), memory(LLAMA_70B, Devices(8, H100))
    assert eight.training == pytest.approx(one.training / 8)
    assert eight.kv_token == one.kv_token / 8
    assert not one.fits


def test_more_memory_never_fits_less():
    fits = [
        memory(LLAMA_8B, Devices(1, dataclasses.replace(H100, memory_bytes=size * 1e9))).fits
        for size in range(20, 400, 20)
    ]
    assert fits == sorted(fits)
    assert fits[0] is False
    assert fits[-1] is True


def test_longer_answers_take_longer_and_more_room():
    config = dataclasses.replace(
        LLAMA_8B, candidates=dataclasses.replace(LLAMA_8B.candidates, max_tokens=2048)
    )
    devices = Devices(1, plan.CARDS["b200-180"])
    model = PRESETS["llama-3-8b"].config

    def seconds(of: Config) -> dict[str, float]:
        times = plan.stage_times(model, of, devices, memory(of, devices))
        return {time.name: time.seconds for time in times}

    short, long = seconds(LLAMA_8B), seconds(config)
    assert list(short) == ["prompts", "sample", "judge", "reference", "train"]
    assert all(long[name] > short[name] > 0 for name in ("sample", "judge", "train"))
    assert memory(config, devices).activations > memory(LLAMA_8B, devices).activations


def test_prompts_of_the_user_take_no_time():
    config = dataclasses.replace(LLAMA_8B, prompts_file="/p.jsonl")
    devices = Devices(1, plan.CARDS["b200-180"])
    times = plan.stage_times(PRESETS["llama-3-8b"].config, config, devices, memory(config, devices))
    assert [time.name for time in times] == ["sample", "judge", "reference", "train"]


def test_lines_name_every_part_and_every_assumption():
    config = Config(model="qwen2.5-0.5b")
    text = "\n".join(plan.plan_lines(config, Devices(1, H100)))
    for part in (
        "qwen2.5-0.5b: 494 M parameters, bfloat16, 1 x H100-80 with 80 GB",
        "988 MB  one copy",
        "optimizer",
        "of 80 GB: fits",
        "a token while sampling",
        "judge",
        "assumed: prompts of",
    ):
        assert part in text, part


def test_what_does_not_fit_says_what_would():
    text = "\n".join(plan.plan_lines(LLAMA_70B, Devices(1, H100)))
    assert "DOES NOT FIT" in text
    assert "what fits there: " in text
    assert "one round" not in text


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("8xH100-80", 8, "H100-80"),
        ("h200", 1, "H200-141"),
        ("2 x A100-40", 2, "A100-40"),
        ("A100", 1, "A100-40"),
    ],
)
def test_devices_are_read(text: str, number: int, name: str):
    found = parse_devices(text)
    assert (found.number, found.card.name) == (number, name)


@pytest.mark.parametrize("text", ["", "8x", "x8", "8xTPU", "0xH100-80", "H100-80x8", "-1xH100-80"])
def test_unknown_devices_are_named(text: str):
    with pytest.raises(
        InputError, match="^--devices: found .* wanted NUMBERxCARD with one of A100"
    ):
        parse_devices(text)


def small_machine(monkeypatch: pytest.MonkeyPatch, memory_bytes: float) -> None:
    card = Card("cpu", memory_bytes, 15e9, 1e11)
    monkeypatch.setattr(plan, "here", lambda config: Devices(1, card))


def test_a_model_too_large_for_the_machine_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    small_machine(monkeypatch, 24e9)
    with pytest.raises(InputError) as caught:
        plan.check_fits(LLAMA_70B)
    said = str(caught.value)
    assert "\n" not in said
    for part in (
        "--model llama-2-70b: training 69 B parameters in float32 takes",
        "found 24 GB on cpu",
        "its weights are not on this machine",
        "what fits there: ",
        "llama-2-70b takes about",
    ):
        assert part in said, part


def test_a_folder_that_fits_passes_and_one_that_does_not_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["qwen2.5-0.5b"].hf))
    config = Config(model=str(tmp_path))
    small_machine(monkeypatch, 64e9)
    plan.check_fits(config)
    small_machine(monkeypatch, 2e9)
    with pytest.raises(InputError) as caught:
        plan.check_fits(config)
    assert "not on this machine" not in str(caught.value)


def test_the_host_has_memory():
    assert 1e8 < plan.host_bytes() < 1e15


def test_a_reward_model_stands_beside_the_weights_while_it_scores(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 3000)
    devices = Devices(1, H100)
    config = dataclasses.replace(LLAMA_8B, reward="model", reward_model=str(tmp_path))
    assert memory(config, devices).reward_model == 3000
    assert memory(LLAMA_8B, devices).reward_model == 0
    trained = dataclasses.replace(LLAMA_8B, reward="model", reward_pairs_file="p.jsonl")
    found = memory(trained, devices)
    assert found.reward_model == found.weights
    assert "reward model" in "\n".join(plan.memory_lines(found, trained))
    room = dataclasses.replace(found, available=found.training / 0.94)
    assert room.fits
    assert not dataclasses.replace(room, reward_model=found.training).fits
    missing = dataclasses.replace(config, reward_model=str(tmp_path / "none"))
    assert memory(missing, devices).reward_model == 0
