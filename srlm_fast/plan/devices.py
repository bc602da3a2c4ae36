"""The devices to plan for: those that `--devices` names, or those at hand."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from srlm_fast.config import Config
from srlm_fast.model import ModelError, resolve_device
from srlm_fast.options import nearest
from srlm_fast.records import InputError

from .cards import CARDS, Card, find_card

CORE_RATE = 50e9  # FLOP/s in float32, one core with AVX2
HOST_MEMORY_RATE = 15e9  # bytes/s


@dataclass(frozen=True)
class Devices:
    """`nodes` machines with `per_node` devices of one kind each."""

    per_node: int
    card: Card
    nodes: int = 1

    @property
    def number(self) -> int:
        return self.nodes * self.per_node

    @property
    def name(self) -> str:
        """As `--devices` takes it."""
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.per_node}x{self.card.name}"


def parse_devices(text: str) -> Devices:
    """ "8xH100-80", "H200", or with nodes before it "2x8xH100-80". Raises InputError."""
    known = ", ".join(card.name for card in CARDS.values())
    wanted = f"wanted [NODESx]NUMBERxCARD with one of {known}"
    match = re.fullmatch(r"(?:(\d+)\s*[xX*]\s*)?(?:(\d+)\s*[xX*]\s*)?(\S+)", text.strip())
    if match is None:
        raise InputError(f"--devices: found {text!r}, {wanted}")
    nodes, number = (int(match[1]), int(match[2])) if match[2] else (1, int(match[1] or 1))
    card = find_card(match[3])
    if card is None or nodes < 1 or number < 1:
        near = nearest(match[3].lower(), CARDS) if card is None else None
        hint = f" (did you mean {CARDS[near].name}?)" if near else ""
        raise InputError(f"--devices: found {text!r}{hint}, {wanted}")
    return Devices(number, card, nodes)


def of_run(config: Config) -> Devices:
    """The devices of this very run: one, or one for each rank of a torchrun start."""
    world = max(1, int(os.environ.get("WORLD_SIZE", "1")))
    local = min(world, max(1, int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    return Devices(local, _card(config, local), max(1, world // local))


def at_hand(config: Config) -> Devices:
    """All devices of this machine that a run of `config` could take."""
    import torch

    if config.device is None and "WORLD_SIZE" not in os.environ and torch.cuda.is_available():
        return Devices(torch.cuda.device_count(), _card(config, 1))
    return of_run(config)


def _card(config: Config, ranks: int) -> Card:
    """The device of one of `ranks` processes on this machine, with the memory that is free."""
    import torch

    try:
        device = resolve_device(config.device)
    except ModelError as error:
        raise InputError(f"--device: {str(error).removeprefix('device ')}") from None
    if device.type == "cpu":
        rate = CORE_RATE * (os.cpu_count() or 1)
        return Card("cpu", host_bytes() / ranks, HOST_MEMORY_RATE / ranks, rate / ranks)
    name = torch.cuda.get_device_name(device)
    free, _total = torch.cuda.mem_get_info(device)
    like = (c for key, c in CARDS.items() if key.partition("-")[0] in name.lower())
    return replace(next(like, CARDS["a100-40"]), name=name, memory_bytes=float(free))


def host_bytes() -> float:
    """Memory a new process may use: what is available, or a container's limit if less."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in text.splitlines())
    available = 1024 * int(fields.get("MemAvailable", fields["MemTotal"]).split()[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (found := limit.read_text().strip()).isdigit():
        available = min(available, int(found))
    return float(available)
