"""The plan as it is printed, at most 100 columns wide."""

from __future__ import annotations

import shlex
import textwrap

from srlm_fast.config import Config
from srlm_fast.model import ModelConfig

from .choice import RULE, Choice, as_given, choices, chosen, dtype_of
from .command import LORA_RATE, command_words, rate_options
from .devices import Devices, at_hand, parse_devices
from .lengths import (
    ANSWER_SHARE,
    PROMPT_TOKENS,
    RUBRIC_TOKENS,
    micro_batches,
    tokens_at_once,
)
from .refusal import check_tensor, what_fits
from .settings import settings_of
from .shape import own_config, prompt_model_config
from .times import DECODE_COPY, DECODE_MATH, MATH, MATH_OF_MANY, Rates, StageTime
from .units import clock, count, size
from .work import PAIR_SHARE, Work, first_work, round_work

COLUMNS = 100


def print_plan(config: Config, devices: str | None) -> None:
    """Print the plan of a run. Raises InputError for an unknown model or device."""
    print("\n".join(plan_lines(config, parse_devices(devices) if devices else at_hand(config))))


def plan_lines(config: Config, devices: Devices) -> list[str]:
    model = own_config(config)
    check_tensor(config, model)
    found = choices(model, config, devices, settings_of(config))
    choice = chosen(found)
    lines = [*head_lines(model, config, devices), "", *recipe_lines(found, choice)]
    lines += given_lines(as_given(model, config, devices), choice)
    if choice is None:
        return [*lines, "", *wrapped(what_fits(model, config, devices))]
    lines += ["", *choice_lines(config, choice), *rate_lines(config, choice), "", "run it so:"]
    lines += command_lines(command_words(config, choice, devices))
    return [*lines, "", *round_lines(model, config, choice, devices)]


def head_lines(model: ModelConfig, config: Config, devices: Devices) -> list[str]:
    nodes = f" in {devices.nodes} nodes" if devices.nodes > 1 else ""
    return [
        f"{config.model}: {count(model.num_parameters())} parameters, {dtype_of(config, devices)}, "
        f"{devices.number} x {devices.card.name}{nodes} with {size(devices.card.memory_bytes)}"
    ]


HEADS = {"weights": 8, "grads": 9, "optim.": 9, "activ.": 9, "other": 9, "sum": 9, "KV tok.": 8}


def recipe_lines(found: list[Choice], choice: Choice | None) -> list[str]:
    """A row for each recipe."""
    heads = "".join(f"{head:>{size}}" for head, size in HEADS.items())
    return [
        "memory on each device while training; tokens in the pool of keys and values when sampling",
        f"   {'recipe':<20}{'devices':<15}{heads}",
        *(recipe_line(each, each is choice) for each in found),
        "   (-> chosen, no: does not fit, c: activations checkpointed)",
        f"   the rule: {RULE}",
    ]


def recipe_line(choice: Choice, taken: bool) -> str:
    memory = choice.memory
    other = memory.recompute + memory.workspace + memory.gathered
    state = (memory.weights, memory.gradients, memory.optimizer, memory.activations, other)
    values = (*(size(each) for each in (*state, memory.training)), count(memory.kv_tokens))
    widths = zip(values, HEADS.values(), strict=True)
    columns = "".join(f"{value:>{width}}" for value, width in widths)
    mark = "->" if taken else "" if choice.fits else "no"
    mesh = choice.mesh.name + (" c" if choice.checkpointing else "")
    return f"{mark:<3}{choice.recipe.name:<20}{mesh:<15}{columns}"


def given_lines(own: Choice, choice: Choice | None) -> list[str]:
    """Of the options as they were given."""
    if choice is not None and (own.recipe, own.mesh) == (choice.recipe, choice.mesh):
        if own.checkpointing == choice.checkpointing:
            return []
    memory = own.memory
    verdict = "fits" if own.fits else "DOES NOT FIT"
    return [
        f"   as given ({own.name}, {own.mesh.name}): {size(memory.training)} of "
        f"{size(memory.available)}: {verdict}"
    ]


def choice_lines(config: Config, choice: Choice) -> list[str]:
    """The chosen recipe, part by part."""
    memory, mesh = choice.memory, choice.mesh
    at_once = f"{tokens_at_once(config, mesh.data):,} tokens at once"
    widened = ", the one matrix that is widened" if choice.recipe.has_format else ""
    adapter = ", the adapter with them" if choice.recipe.lora_rank else ""
    rows = [
        ("weights", memory.weights, f"one copy: samples, judges, trains, refers{adapter}"),
        ("gradients", memory.gradients, gradient_note(config, mesh.data)),
        ("optimizer", memory.optimizer, f"{choice.recipe.optimizer}, while training only"),
        ("activations", memory.activations, at_once),
        ("recompute", memory.recompute, "the layer that is made again"),
        ("workspace", memory.workspace, f"blocks of logits{widened}"),
        ("gathered", memory.gathered, "layers put together while they run"),
        ("training", memory.training, f"of {size(memory.available)}"),
        ("sampling", memory.sampling, "weights, whole on each data rank"),
        ("pool", memory.pool, f"keys and values of {memory.kv_tokens:,} tokens"),
        ("reward model", memory.reward_model, "beside the weights while it scores"),
        ("prompt model", memory.prompt_model, "beside weights and pool while it makes prompts"),
    ]
    head = f"chosen: {choice.name} on {mesh.name}"
    return [head, *(f"  {n:<13}{size(v):>9}  {note}" for n, v, note in rows if v)]


def gradient_note(config: Config, data: int) -> str:
    counts = {"micro-batches": micro_batches(config, data), "data ranks": data}
    summed = " and ".join(f"{number} {name}" for name, number in counts.items() if number > 1)
    return f"summed over {summed} in float32" if summed else "of one step"


def rate_lines(config: Config, choice: Choice) -> list[str]:
    """Why the command names learning rates."""
    names = " and ".join(rate_options(config, choice)[::2])
    if not names:
        return []
    why = "at the rates of full training a fresh adapter (B = 0) hardly moves"
    return [f"  {names}: {LORA_RATE}-fold: {why}"]


def round_lines(model: ModelConfig, config: Config, choice: Choice, devices: Devices) -> list[str]:
    """Times of the stages before the first round, and of one round."""
    rates = Rates(model, choice, devices, tokens_at_once(config, choice.mesh.data))
    first = [rates.time(work) for work in first_work(config)]
    times = [rates_of(work, rates, config).time(work) for work in round_work(config)]
    before = [*time_lines("before the first round", first), ""] if first else []
    return [
        *before,
        *time_lines(f"one round of {config.iterations}, --reward {config.reward}", times),
        *wrapped(dominating(times)),
        *wrapped(assumptions(devices)),
        *wrapped(unknown_prompt_model(config)),
    ]


def rates_of(work: Work, rates: Rates, config: Config) -> Rates:
    """Of the model that does a stage."""
    other = prompt_model_config(config) if work.name == "prompts" else None
    return rates if other is None else rates.of_prompt_model(other)


def unknown_prompt_model(config: Config) -> str:
    if config.other_prompt_model is None or prompt_model_config(config) is not None:
        return ""
    return (
        f"--prompt-model {config.prompt_model}: not on this machine and no preset, so that its "
        "memory is not counted, and its time as the run's own model's"
    )


def time_lines(title: str, times: list[StageTime]) -> list[str]:
    heads = "".join(f"{name:>11}" for name in ("read", "generated", "scored", "trained", "time"))
    rows = [time_line(each) for each in times]
    total = f"  {'sum':<12}{'':>44}{clock(sum(t.seconds for t in times)):>11}"
    return [title, f"  {'tokens':<12}{heads}  mostly", *rows, total]


def time_line(time: StageTime) -> str:
    work = time.work
    counts = (work.read, work.generated, work.scored, work.trained)
    columns = "".join(f"{count(value) if value else '-':>11}" for value in counts)
    return f"  {work.name:<12}{columns}{clock(time.seconds):>11}  {time.most}"


def dominating(times: list[StageTime]) -> str:
    """The stage and the kind of work that take most."""
    total = sum(time.seconds for time in times) or 1.0
    stage = max(times, key=lambda time: time.seconds)
    kinds: dict[str, float] = {}
    for time in times:
        for name, seconds in time.spent.items():
            kinds[name] = kinds.get(name, 0.0) + seconds
    kind = max(kinds, key=lambda name: kinds[name])
    return (
        f"most of it: {stage.work.name} ({stage.seconds / total:.0%} of the time); of all stages' "
        f"work, {kind} ({kinds[kind] / total:.0%})"
    )


def assumptions(devices: Devices) -> str:
    card = devices.card
    return (
        f"assumed: prompts of {PROMPT_TOKENS} tokens, a rubric of {RUBRIC_TOKENS}, answers and "
        f"judgements of {ANSWER_SHARE:.0%} of their longest, a pair from {PAIR_SHARE:.0%} of the "
        f"prompts; shared prefixes read once; decoding at {DECODE_MATH:.0%} of "
        f"{card.math / 1e12:,.3g} TFLOP/s or {DECODE_COPY:.0%} of {card.copy / 1e9:,.0f} GB/s, "
        f"reading and training at {MATH:.0%} of the former ({MATH_OF_MANY:.0%} where eight share a "
        "copy, and across nodes); launches, for which a small model on a GPU waits, are not "
        "counted; a first run takes up to twice as long"
    )


def command_lines(words: list[str]) -> list[str]:
    """For a shell, cut between options where it is long."""
    command = ""
    for before, word in zip(["", *words], words, strict=False):
        value = before.startswith("-") and not word.startswith("-")
        command += ("\0" if value else " ") + shlex.quote(word)
    rows = textwrap.wrap(
        command.strip(), COLUMNS - 6, break_long_words=False, break_on_hyphens=False
    )
    return [f"  {row}" for row in " \\\n".join(rows).replace("\0", " ").split("\n")]


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMNS, initial_indent="  ", subsequent_indent="  ")
