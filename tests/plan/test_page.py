"""What `--plan` prints."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

import pytest

from srlm_fast.config import Config, from_options
from srlm_fast.model import PRESETS
from srlm_fast.plan import plan_lines
from srlm_fast.plan.choice import Choice, choices
from srlm_fast.plan.command import CHOSEN, command_words
from srlm_fast.plan.devices import parse_devices
from srlm_fast.plan.settings import settings_of
from srlm_fast.records import InputError
from srlm_fast.run import read_options

MODELS = ("tiny", "qwen2.5-7b", "llama-3-8b", "llama-2-70b")
DEVICES = ("1xH200", "8xH100-80", "8xH200", "2x8xH100-80", "1xRTX4090", "8x8xH200")


def text(model: str, devices: str, **options: Any) -> str:
    return "\n".join(plan_lines(Config(model=model, **options), parse_devices(devices)))


def command_of(page: str) -> list[str]:
    _, _, rest = page.partition("run it so:\n")
    return shlex.split(rest.partition("\n\n")[0].replace("\\\n", " "))


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_it_is_100_columns_wide(model: str, devices: str):
    page = text(model, devices)
    assert max(map(len, page.split("\n"))) <= 100
    assert "\n\n\n" not in page


def test_it_names_every_part_and_every_assumption():
    page = text("qwen2.5-0.5b", "1xH100")
    for part in (
        "qwen2.5-0.5b: 494 M parameters, bfloat16, 1 x H100-80 with 85 GB",
        "memory on each device",
        "-> full, adamw",
        "   LoRA r=16 over fp8",
        "988 MB  one copy",
        "optimizer",
        "chosen: full, adamw on 1 device",
        "one round of 2, --reward self",
        "judge",
        "most of it: ",
        "assumed: prompts of 64 tokens",
    ):
        assert part in page, part
    assert command_of(page)[:4] == ["python", "-m", "srlm_fast.run", "--model"]


def test_what_does_not_fit_says_what_would():
    page = text("llama-2-70b", "1xRTX4090")
    assert "DOES NOT FIT" in page
    assert "what fits there: qwen3-8b or smaller (LoRA r=16" in page
    assert "1xH200-141 (LoRA r=16 over fp8)" in page
    assert "one round" not in page
    assert "run it so" not in page


def test_the_command_has_what_was_given_and_what_is_chosen():
    config = Config(model="llama-2-70b", seed=3, reward="pairwise", dtype="bfloat16")
    devices = parse_devices("2x8xH100")
    line = shlex.join(command_of("\n".join(plan_lines(config, devices))))
    assert line.startswith("torchrun --nnodes 2 ")
    assert " --nproc-per-node 8 -m srlm_fast.run --model llama-2-70b --seed 3 " in line
    assert line.endswith("--reward pairwise --tensor-parallel 8 --shard yes --optimizer adamw-bf16")
    assert "--out some/place" in shlex.join(
        command_of("\n".join(plan_lines(dataclasses.replace(config, out="some/place"), devices)))
    )
    alone = command_of(text("llama-2-70b", "1xH200"))
    assert alone[:3] == ["python", "-m", "srlm_fast.run"]
    assert alone[3:9] == "--model llama-2-70b --lora-rank 16 --base-dtype fp8".split()
    assert float(alone[alone.index("--kv-gb") + 1]) == pytest.approx(64, abs=1)


def test_an_adapter_is_given_ten_times_the_learning_rates_of_full_training():
    page, note = text("llama-2-70b", "1xH200"), "10-fold: at the rates of full training"
    line = shlex.join(command_of(page))
    assert "--lr 1e-05 --sft-lr 5.5e-05" in line
    assert f"  --lr and --sft-lr: {note}" in page
    assert note not in text("llama-2-70b", "8xH200")
    assert "--lr" not in command_of(text("llama-2-70b", "8xH200"))
    own = dataclasses.replace(Config().dpo, learning_rate=3e-6)
    page = text("llama-2-70b", "1xH200", dpo=own)
    assert command_of(page).count("--lr") == 1
    assert "--lr 3e-06" in shlex.join(command_of(page))
    assert f"  --sft-lr: {note}" in page


def test_ranks_that_a_model_cannot_be_split_over_are_refused():
    with pytest.raises(
        InputError, match="^--tensor-parallel: found 16, wanted a divisor of the 64"
    ):
        text("llama-2-70b", "2x8xH200", tensor_parallel=16)


def every_choice() -> list[tuple[str, str, Choice]]:
    return [
        (model, devices, choice)
        for model in MODELS[1:]
        for devices in DEVICES
        for choice in choices(PRESETS[model].config, Config(model=model), parse_devices(devices))
        if choice.fits
    ]


def test_no_other_options_are_named_than_these():
    words = {word for *_, choice in every_choice() for word in choice.options()}
    assert {word for word in words if word.startswith("--")} <= set(CHOSEN)


def test_every_command_parses_into_what_was_chosen():
    for model, devices, choice in every_choice():
        config, wanted = Config(model=model), parse_devices(devices)
        words = command_words(config, choice, wanted)
        said = settings_of(from_options(read_options(words[words.index("srlm_fast.run") + 1 :])))
        assert (said.recipe, said.tensor) == (choice.recipe, choice.mesh.tensor)
        assert said.checkpointing == choice.checkpointing
        assert (said.shard == "yes") == choice.mesh.shard
