"""The command line that runs a choice."""

from __future__ import annotations

from srlm_fast.config import Config, get, recipe
from srlm_fast.options import OPTIONS

from .choice import Choice
from .devices import Devices
from .memory import default_pool
from .settings import settings_of
from .shape import adapter_rank
from .units import GB

CHOSEN = (
    *("--optimizer", "--lora-rank", "--base-dtype", "--activation-checkpointing"),
    *("--tensor-parallel", "--shard", "--kv-gb"),
)
RATES, LORA_RATE = ("--lr", "--sft-lr"), 10


def command_words(config: Config, choice: Choice, devices: Devices) -> list[str]:
    """With the options that were given, but for those that the choice sets."""
    words = [*launcher(devices), "-m", "srlm_fast.run", *given(config)]
    out = ["--out", config.out] if config.out else []
    return words + out + chosen_options(config, choice, devices)


def chosen_options(config: Config, choice: Choice, devices: Devices) -> list[str]:
    """Those of CHOSEN, and an adapter's learning rates. A model that is an adapter has its rank."""
    words = choice.options()
    if adapter_rank(config.model):
        at = words.index("--lora-rank")
        del words[at : at + 2]
    words += rate_options(config, choice)
    own = settings_of(config).kv_gb
    return words + (pool_options(choice, devices) if own is None else ["--kv-gb", f"{own:g}"])


def rate_options(config: Config, choice: Choice) -> list[str]:
    """Of an adapter, the learning rates that were not given: a usual factor over the recipe's,
    which are those of full training.
    """
    usual, words = recipe(config.recipe, config.model), list[str]()
    for name in RATES if choice.recipe.lora_rank else ():
        path = next(option.path for option in OPTIONS if option.name == name)
        rate = get(usual, path)
        if get(config, path) == rate:
            words += [name, f"{LORA_RATE * rate:g}"]
    return words


def launcher(devices: Devices) -> list[str]:
    if devices.number == 1:
        return ["python"]
    nodes = ["--nnodes", str(devices.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", "HOST"]
    ranks = ["--nproc-per-node", str(devices.per_node)]
    return ["torchrun", *(nodes if devices.nodes > 1 else []), *ranks]


def pool_options(choice: Choice, devices: Devices) -> list[str]:
    """Where the sampler's own budget is more than there is room for, or less than it can use."""
    memory = choice.memory
    usual = default_pool(memory.available, devices.card.name == "cpu")
    if memory.pool <= usual <= memory.kv_room:
        return []
    return ["--kv-gb", f"{memory.pool / GB:.3g}"]


def given(config: Config) -> list[str]:
    """The options in which a run differs from its recipe's defaults."""
    usual = recipe(config.recipe, config.model)
    words: list[str] = []
    for option in OPTIONS:
        value = get(config, option.path)
        if option.name == "--model" or (value != get(usual, option.path) and value is not None):
            said = "yes" if value is True else "no" if value is False else str(value)
            words += [] if option.name in CHOSEN else [option.name, said]
    return words + (["--recipe", config.recipe] if config.recipe != "default" else [])
