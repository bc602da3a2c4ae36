"""`--plan`: memory and time of each stage for a model and the devices at hand.

Nothing is run and no weights are read. Memory is counted from the model's configuration. Time is a
rough figure from two rates of a device, arithmetic and memory traffic, and from assumed lengths;
every assumption is printed with it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from srlm_fast.config import TINY, Config
from srlm_fast.model import (
    PRESETS,
    ModelConfig,
    ModelError,
    find_folder,
    read_config,
    resolve_device,
)
from srlm_fast.model.weights import weight_files
from srlm_fast.options import nearest
from srlm_fast.records import InputError

GB = 1e9
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOMENT_BYTES = 8  # AdamW's two moments, float32
MASTER_BYTES = 4  # float32 copy that a 16-bit weight is updated through, and its gradient's sum

# Shares of the data sheet's rates that are assumed, and lengths where the data is not known yet.
ARITHMETIC_SHARE = 0.4
TRAFFIC_SHARE = 0.6
PROMPT_TOKENS = 64
RUBRIC_TOKENS = 400
ANSWER_SHARE = 0.5  # mean answer, of the longest
PAIR_SHARE = 0.75  # prompts that give a pair
MOST_SEQUENCES = 256  # sampled side by side


@dataclass(frozen=True)
class Card:
    """A kind of device. Rates are the data sheet's: bytes/s, and FLOP/s in bfloat16, dense."""

    name: str
    memory_bytes: float
    bytes_per_s: float
    flops: float


CARDS = {
    card.name.lower(): card
    for card in (
        Card("A100-40", 40 * GB, 1.555e12, 312e12),
        Card("A100-80", 80 * GB, 2.039e12, 312e12),
        Card("L40S-48", 48 * GB, 0.864e12, 362e12),
        Card("RTX4090-24", 24 * GB, 1.008e12, 165e12),
        Card("H100-80", 80 * GB, 3.35e12, 989e12),
        Card("H200-141", 141 * GB, 4.8e12, 989e12),
        Card("B200-180", 180 * GB, 7.7e12, 2250e12),
    )
}
CORE_FLOPS = 50e9  # float32, one core with AVX2
HOST_BYTES_PER_S = 15e9


@dataclass(frozen=True)
class Devices:
    """Devices of one kind. `number` above 1 shares every tensor out evenly."""

    number: int
    card: Card


@dataclass(frozen=True)
class Memory:
    """Bytes on each device while sampling and while training."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    kv_token: float
    available: float
    reward_model: float = 0.0  # beside the weights while it scores; nothing else is there then

    @property
    def training(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations

    @property
    def kv_room(self) -> float:
        """What is left for keys and values beside the weights, a tenth of the device spared."""
        return 0.9 * self.available - self.weights

    @property
    def fits(self) -> bool:
        most = max(self.training, self.weights + self.reward_model)
        return most <= 0.95 * self.available and self.kv_room > 0


@dataclass(frozen=True)
class StageTime:
    """`prefilled` tokens are read at once, `generated` ones one after another, `trained` ones
    forward and back."""

    name: str
    prefilled: float
    generated: float
    trained: float
    seconds: float


def print_plan(config: Config, devices: str | None) -> None:
    """Print the plan of a run. Raises InputError or ModelError for an unknown model or device."""
    print("\n".join(plan_lines(config, parse_devices(devices) if devices else here(config))))


def plan_lines(config: Config, devices: Devices) -> list[str]:
    model = model_config(config.model)
    dtype = config.dtype or ("float32" if devices.card.name == "cpu" else "bfloat16")
    memory = memory_of(model, config, devices, dtype)
    head = (
        f"{config.model}: {count(model.num_parameters())} parameters, {dtype}, "
        f"{devices.number} x {devices.card.name} with {size(memory.available)}"
    )
    lines = [head, "", "memory on each device", *memory_lines(memory, config)]
    if devices.number > 1:
        lines.append("  (all shared out evenly; this version runs on one device)")
    if not memory.fits:
        return [*lines, f"  {what_fits(devices, config, dtype)}"]
    times = stage_times(model, config, devices, memory)
    return [*lines, "", "one round, roughly", *time_lines(times), *assumptions(config, devices)]


def memory_lines(memory: Memory, config: Config) -> list[str]:
    longest = PROMPT_TOKENS + config.candidates.max_tokens
    sequences = max(0, int(memory.kv_room / (memory.kv_token * longest)))
    rows = [
        ("weights", memory.weights, "one copy: samples, judges, trains, and is its own reference"),
        ("gradients", memory.gradients, "training only"),
        (
            "optimizer",
            memory.optimizer,
            "training only: AdamW's moments and its copy of the weights, in float32",
        ),
        (
            "activations",
            memory.activations,
            f"training only: {tokens_at_once(config):,} tokens at once",
        ),
    ]
    if memory.reward_model:
        rows.append(("reward model", memory.reward_model, "weights, while it scores"))
    table = [f"  {name:<12}{size(value):>10}  {note}" for name, value, note in rows]
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    return [
        *table,
        f"  {'training':<12}{size(memory.training):>10}  of {size(memory.available)}: {verdict}",
        f"  {'keys, values':<12}{size(memory.kv_token):>10}  a token while sampling; room for "
        f"{sequences:,} sequences of {longest:,}",
    ]


def time_lines(times: Sequence[StageTime]) -> list[str]:
    head = f"  {'stage':<12}{'read':>10}{'generated':>12}{'trained':>10}{'time':>10}"
    rows = [
        f"  {t.name:<12}{count(t.prefilled):>10}{count(t.generated):>12}{count(t.trained):>10}"
        f"{clock(t.seconds):>10}"
        for t in times
    ]
    total = clock(sum(t.seconds for t in times))
    return [head, *rows, f"  {'sum':<12}{'':>32}{total:>10}"]


def assumptions(config: Config, devices: Devices) -> list[str]:
    card = devices.card
    return [
        f"  tokens; assumed: prompts of {PROMPT_TOKENS}, a rubric of {RUBRIC_TOKENS}, answers and "
        f"judgements of {ANSWER_SHARE:.0%} of their",
        f"  longest, a pair from {PAIR_SHARE:.0%} of the prompts, "
        f"{card.flops / 1e12:.3g} TFLOP/s at {ARITHMETIC_SHARE:.0%}, "
        f"{card.bytes_per_s / 1e9:,.0f} GB/s at {TRAFFIC_SHARE:.0%}",
    ]


def model_config(name: str) -> ModelConfig:
    """The configuration of a folder, a preset or a hub id, without fetching any weights."""
    preset = PRESETS.get(name.lower())
    folder = local_folder(name)
    if folder is None and preset is not None:
        return preset.config
    return read_config(folder or find_folder(name))


def local_folder(name: str) -> Path | None:
    """Where the model lies on this machine; None when it would have to be downloaded."""
    if name == TINY or Path(name).expanduser().exists():
        return find_folder(name)
    preset = PRESETS.get(name.lower())
    hub_id = (preset.hub_id if preset is not None else None) or name
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def memory_of(model: ModelConfig, config: Config, devices: Devices, dtype: str) -> Memory:
    width = BYTES[dtype]
    parameters = model.num_parameters() / devices.number
    kv_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * width
    master = MASTER_BYTES if width < 4 else 0
    return Memory(
        weights=parameters * width,
        gradients=parameters * (width + master),
        optimizer=parameters * (MOMENT_BYTES + master),
        activations=tokens_at_once(config) * activation_bytes(model, width) / devices.number,
        kv_token=kv_token / devices.number,
        available=devices.card.memory_bytes,
        reward_model=reward_bytes(model, config, width) / devices.number,
    )


def reward_bytes(model: ModelConfig, config: Config, width: int) -> float:
    """Of the reward model's weights: its files' on this machine, or as many as the trained one has.
    One that is neither here nor trained by the run counts as none."""
    if config.reward_model is None:
        return float(model.num_parameters() * width) if config.reward_pairs_file else 0.0
    try:
        folder = local_folder(config.reward_model)
        files = weight_files(folder) if folder else []
    except ModelError:  # told when the run looks for it
        return 0.0
    return float(sum(file.stat().st_size for file in files))


def tokens_at_once(config: Config) -> int:
    """Tokens that a training step runs forward and back together: at least one pair's, whose prompt
    stands before either answer."""
    pair = 2 * (PROMPT_TOKENS + config.candidates.max_tokens)
    return max(pair, min(config.dpo.micro_batch_tokens, pair * config.dpo.batch_pairs))


def activation_bytes(model: ModelConfig, width: int) -> float:
    """Bytes that backward needs of one token: what each matrix product and norm of a layer read."""
    heads = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    layer = 4 * model.hidden_size + heads + 4 * model.intermediate_size
    return model.num_layers * layer * width


def stage_times(
    model: ModelConfig, config: Config, devices: Devices, memory: Memory
) -> list[StageTime]:
    """The stages of one round."""
    prompts, n = config.num_prompts, config.candidates.n
    answer = ANSWER_SHARE * config.candidates.max_tokens
    judged = config.judge.sampling.n * ANSWER_SHARE * config.judge.sampling.max_tokens
    judge_prompt = PROMPT_TOKENS + answer  # the rubric's keys and values are there already
    pairs = PAIR_SHARE * prompts
    both = 2 * (PROMPT_TOKENS + answer)
    shots = config.prompts.seed_shots + config.prompts.made_shots
    work = [
        ("judge", prompts * n * judge_prompt, prompts * n * judged, 0.0),
        ("sample", prompts * PROMPT_TOKENS, prompts * n * answer, 0.0),
        ("reference", pairs * both, 0.0, 0.0),
        ("train", 0.0, 0.0, pairs * both * config.dpo.epochs),
    ]
    if config.prompts_file is None:
        work.append(("prompts", prompts * shots * PROMPT_TOKENS, prompts * PROMPT_TOKENS, 0.0))
    order = ("prompts", "sample", "judge", "reference", "train")
    rate = Rate(model, config, devices, memory)
    return sorted((rate.time(*each) for each in work), key=lambda t: order.index(t.name))


@dataclass(frozen=True)
class Rate:
    """Seconds of work: 2 FLOP per weight and token forward, 6 with backward; each decoding step
    reads all weights."""

    model: ModelConfig
    config: Config
    devices: Devices
    memory: Memory

    def time(self, name: str, prefilled: float, generated: float, trained: float) -> StageTime:
        flops = ARITHMETIC_SHARE * self.devices.card.flops * self.devices.number
        weights = self.model.num_parameters()
        seconds = (2 * prefilled + 6 * trained) * weights / flops
        seconds += generated * self.step_seconds(flops) / self.batch()
        return StageTime(name, prefilled, generated, trained, seconds)

    def batch(self) -> int:
        longest = PROMPT_TOKENS + self.config.candidates.max_tokens
        room = self.memory.kv_room / (self.memory.kv_token * longest)
        return max(1, min(MOST_SEQUENCES, int(room)))

    def step_seconds(self, flops: float) -> float:
        """One decoding step of `batch` sequences: traffic or arithmetic, whichever takes longer."""
        context = PROMPT_TOKENS + ANSWER_SHARE * self.config.candidates.max_tokens / 2
        read = self.memory.weights + self.batch() * context * self.memory.kv_token
        arithmetic = 2 * self.model.num_parameters() * self.batch() / flops
        return max(read / (TRAFFIC_SHARE * self.devices.card.bytes_per_s), arithmetic)


def parse_devices(text: str) -> Devices:
    """ "8xH100-80" or "H200-141". Raises InputError naming the kinds that are known."""
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?(\S+)", text.strip())
    known = ", ".join(card.name for card in CARDS.values())
    if match is None:
        raise InputError(f"--devices: found {text!r}, wanted NUMBERxCARD with one of {known}")
    number, name = int(match[1] or 1), match[2].lower()
    card = CARDS.get(name) or next(
        (c for key, c in CARDS.items() if key.split("-")[0] == name), None
    )
    if card is None or number < 1:
        near = nearest(name, CARDS)
        hint = f" (did you mean {CARDS[near].name}?)" if near else ""
        raise InputError(f"--devices: found {text!r}{hint}, wanted NUMBERxCARD with one of {known}")
    return Devices(number, card)


def here(config: Config) -> Devices:
    """The device a run of `config` would use on this machine."""
    import torch

    device = resolve_device(config.device)
    if device.type == "cpu":
        flops = CORE_FLOPS * (os.cpu_count() or 1)
        return Devices(1, Card("cpu", host_bytes(), HOST_BYTES_PER_S, flops))
    name = torch.cuda.get_device_name(device)
    free, _total = torch.cuda.mem_get_info(device)
    like = next((c for key, c in CARDS.items() if key.split("-")[0] in name.lower()), None)
    like = like or CARDS["a100-40"]
    return Devices(1, Card(name, float(free), like.bytes_per_s, like.flops))


def of_run(config: Config) -> Devices:
    """What a copy of the training state is spread over: this device, or those of several ranks."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    found = here(config)
    card = found.card
    if card.name == "cpu":  # whose memory the ranks of a machine share
        card = replace(card, memory_bytes=card.memory_bytes / local)
    return Devices(world if config.shard == "yes" else config.tensor_parallel, card)


def host_bytes() -> float:
    """Memory a new process may use: what is available, or a container's limit if less."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    available = 1024 * int(fields.get("MemAvailable", fields["MemTotal"]).split()[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (found := limit.read_text().strip()).isdigit():
        available = min(available, int(found))
    return float(available)


def check_fits(config: Config) -> None:
    """Raise InputError, in one line, for a model that this machine cannot train: what is missing,
    what would fit."""
    devices = of_run(config)
    model = model_config(config.model)
    check_lengths(config, model)
    dtype = config.dtype or ("float32" if devices.card.name == "cpu" else "bfloat16")
    memory = memory_of(model, config, devices, dtype)
    if memory.fits:
        find_folder(config.model)
        return
    weights = "" if local_folder(config.model) else ", and its weights are not on this machine"
    raise InputError(
        f"--model {config.model}: training {count(model.num_parameters())} parameters in {dtype} "
        f"takes {size(memory.training)}, found {size(memory.available)} on {devices.card.name}"
        f"{weights}; {what_fits(devices, config, dtype)}"
    )


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


def what_fits(devices: Devices, config: Config, dtype: str) -> str:
    """The largest known model for these devices, and the cards that would hold this one."""
    fitting = [
        (preset.config.num_parameters(), name)
        for name, preset in PRESETS.items()
        if memory_of(preset.config, config, devices, dtype).fits
    ]
    largest = max(fitting, default=(0, TINY))[1]
    return f"what fits there: {largest} or smaller{cards_that_hold(config)}"


def cards_that_hold(config: Config) -> str:
    model = model_config(config.model)
    holding = [
        card.name
        for card in CARDS.values()
        if memory_of(model, config, Devices(1, card), "bfloat16").fits
    ]
    if holding:
        return f"; what would hold {config.model}: one {' or '.join(holding)}"
    need = memory_of(model, config, Devices(1, CARDS["h100-80"]), "bfloat16").training
    number = math.ceil(need / (0.9 * CARDS["h100-80"].memory_bytes))
    return (
        f"; {config.model} takes about {number} H100-80, more than the one device this version uses"
    )


def size(value: float) -> str:
    """Bytes in a unit of three digits."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value / 1e3:.3g} kB"


def count(value: float) -> str:
    for unit, step in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= step:
            return f"{value / step:.3g} {unit}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
