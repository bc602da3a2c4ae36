"""The one line for a machine that cannot hold a run: what is missing, and what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from srlm_fast.config import TINY, Config
from srlm_fast.model import PRESETS, ModelConfig, find_folder
from srlm_fast.records import InputError

from .choice import Choice, as_given, choices, chosen, dtype_of, holders
from .command import chosen_options
from .devices import Devices, of_run
from .memory import SAMPLING_SHARE, TRAINING_SHARE
from .mesh import divides
from .shape import local_folder, own_config
from .units import GB, count, size


def check_fits(config: Config) -> None:
    """Raise InputError, in one line, for a model that the devices of this run cannot train."""
    devices = of_run(config)
    model = own_config(config)
    check_lengths(config, model)
    check_tensor(config, model)
    own = as_given(model, config, devices)
    if own.fits:
        find_folder(config.model)
        return
    check_prompt_model(config, own)
    check_pool(config, own)
    weights = "" if local_folder(config.model) else "; its weights are not on this machine"
    raise InputError(
        f"--model {config.model}: {what_is_missing(model, config, own, devices)}{weights}; "
        f"{what_fits(model, config, devices)}"
    )


def check_tensor(config: Config, model: ModelConfig) -> None:
    """Raise InputError for a --tensor-parallel that the model cannot be trained with."""
    if not divides(model, config.tensor_parallel):
        raise InputError(
            f"--tensor-parallel: found {config.tensor_parallel}, wanted a divisor of the "
            f"{model.num_heads} heads, {model.num_kv_heads} key/value heads and the feed-forward "
            f"width {model.intermediate_size} of --model {config.model}"
        )


def check_prompt_model(config: Config, own: Choice) -> None:
    """Raise InputError for a --prompt-model without which the run would fit."""
    without = replace(own.memory, prompt_model=0.0)
    if own.memory.prompt_model and without.fits:
        raise InputError(
            f"--prompt-model {config.prompt_model}: found {size(own.memory.prompt_model)} of "
            f"weights, wanted at most {size(without.kv_room - without.pool)}, what is left beside "
            "those of --model and the pool of keys and values; m1 takes nothing more"
        )


def check_pool(config: Config, own: Choice) -> None:
    """Raise InputError for a --kv-gb that is too little for a sequence, or too much beside the
    weights, where these alone would fit.
    """
    if config.kv_gb is None:
        return
    memory = own.memory
    least = memory.least_tokens * memory.kv_token / GB
    most = memory.kv_room / GB
    if config.kv_gb < least:
        raise InputError(
            f"--kv-gb: found {config.kv_gb:g}, wanted at least {least:.2g}: one sequence of "
            f"{memory.least_tokens:,.0f} tokens"
        )
    if most > least and config.kv_gb > most:
        raise InputError(
            f"--kv-gb: found {config.kv_gb:g}, wanted at most {most:.3g}, what is left beside the "
            "weights"
        )


def what_is_missing(model: ModelConfig, config: Config, own: Choice, devices: Devices) -> str:
    """Memory, of training or of sampling, and how much there is."""
    memory, each = own.memory, f" on each of {devices.number} devices" * (devices.number > 1)
    how = f"{count(model.num_parameters())} parameters ({own.name}, {dtype_of(config, devices)})"
    there = f"the {size(memory.available)} found on {devices.card.name}"
    if memory.training > TRAINING_SHARE * memory.available:
        wanted = f"wanted at most {TRAINING_SHARE:.0%} of {there}"
        return f"training {how} takes {size(memory.training)}{each}, {wanted}"
    beside = max(memory.pool, memory.least_tokens * memory.kv_token, memory.reward_model)
    takes = f"{size(memory.sampling)} and {size(beside)} beside the weights"
    return (
        f"sampling from {how} takes {takes}{each}, wanted at most {SAMPLING_SHARE:.0%} of {there}"
    )


def what_fits(model: ModelConfig, config: Config, devices: Devices) -> str:
    """This model by another recipe or the largest known one that fits, and what would hold it."""
    choice = chosen(choices(model, config, devices))
    if choice is not None:
        options = " ".join(chosen_options(config, choice, devices)) or "the defaults"
        return f"what fits there: {config.model} with {options} ({choice.name})"
    largest = largest_preset(config, devices)
    holding = " or ".join(holders(model, config)) or "more than 8x8xH200-141"
    return f"what fits there: {largest}; what would hold {config.model}: {holding}"


def largest_preset(config: Config, devices: Devices) -> str:
    """The largest known model that some recipe trains on these devices."""
    known = sorted(PRESETS.items(), key=lambda each: -each[1].config.num_parameters())
    for name, preset in known:
        choice = chosen(choices(preset.config, config, devices))
        if choice is not None:
            return f"{name} or smaller ({choice.name})"
    return TINY


LENGTHS = ("--max-tokens", "--judge-max-tokens")


def check_lengths(config: Config, model: ModelConfig, options: Sequence[str] = LENGTHS) -> None:
    """Raise InputError for a longest text that leaves no room for what it answers."""
    longest = model.max_position_embeddings
    wanted = {"--max-tokens": config.candidates, "--judge-max-tokens": config.judge.sampling}
    for option in options:
        params = wanted[option]
        if params.max_tokens >= longest:
            raise InputError(
                f"{option}: found {params.max_tokens}, wanted less than the {longest} tokens of "
                f"the context of --model {config.model}"
            )
