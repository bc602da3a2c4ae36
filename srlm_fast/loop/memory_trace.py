"""What holds memory in each phase of a run, as lines of `metrics.jsonl`.

A line is a phase of a stage: {"stage": "m2/train", "phase": "training", "memory": {...}}. Phases
are "sampling", "reference" (log-probs of pairs), "training", "scoring" (a reward model) and
"prompting" (a prompt model), with a number from the second of a stage on, "loaded" at the start and
"end" behind each stage. Bytes are of this process and its device:

weights_bytes: of the model's parameters. weights_at: a hash of the addresses at which they lie.
packed_bytes: the second copy of the matrices that a CPU samples with (sampler/packed.py). kv_bytes:
the pool of keys and values. graph_captures, graph_seconds: CUDA graphs captured so far, which hold
addresses of the pool and are captured again after each hand-over. held_bytes: by all tensors on a
GPU, resident on a CPU. peak_bytes: most of that since the phase began; since the process began
where the system cannot set its mark back.

Behind a training's first step, in the first phase after a training, and wherever a reward model
scores, also: models, the copies of weights that the run holds, and optimizer_bytes, moments and
master weights. They are looked for among all live objects, so that one which somebody forgot to
drop is counted too; that takes some 40 ms.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srlm_fast.model import Model
from srlm_fast.sampler import Sampler
from srlm_fast.train.optimizer import Optimizer, local

from .state import RunState

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
BESIDE = ("scoring", "prompting")  # phases with another model beside the run's own
RESET_PEAK = "5"  # of clear_refs: the peak of the resident size


class MemoryTrace:
    """Measures memory at the phases of a run and writes it down with the other measurements."""

    def __init__(self, state: RunState) -> None:
        self.state, self.stage = state, ""
        self.others = addresses(live(Model)[0])  # in a process that does more than this run
        self.phases: Counter[str] = Counter()
        self.changed = True  # whether an optimizer or a model may have come or gone

    def of(self, model: Model, sampler: Sampler) -> None:
        """Say whose memory it is."""
        self.model, self.sampler = model, sampler

    def begin(self, stage: str) -> None:
        self.stage = stage
        self.phases.clear()

    def end(self) -> None:
        """The stage's last line."""
        self.record(self.stage, "end")

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[], None]]:
        """A phase of the stage. What is yielded looks at the memory, the first time it is called;
        otherwise this is done when the phase ends.
        """
        reset_peak(self.model.device)
        makes = name in ("training", *BESIDE)
        seen: dict[str, Any] = {}

        def look() -> None:
            if not seen:
                seen.update(self.snapshot() | (self.owners() if makes or self.changed else {}))

        yield look
        look()
        self.changed = makes
        self.phases[name] += 1
        number = self.phases[name]
        seen["peak_bytes"] = peak(self.model.device)
        self.write(self.stage, name if number == 1 else f"{name} {number}", seen)

    def record(self, stage: str, phase: str) -> None:
        self.write(stage, phase, self.snapshot() | {"peak_bytes": peak(self.model.device)})

    def write(self, stage: str, phase: str, memory: dict[str, Any]) -> None:
        self.state.measure({"stage": stage, "phase": phase, "memory": memory})

    def snapshot(self) -> dict[str, Any]:
        """What is held now, but for the peak and what has to be looked for."""
        held, captured = self.sampler.memory, self.sampler.statistics
        weights = [local(p) for p in self.model.parameters()]
        places = sorted(p.data_ptr() for p in weights)
        return {
            "process": os.getpid(),
            "weights_bytes": total_bytes(weights),
            "weights_at": hashlib.blake2b(str(places).encode(), digest_size=8).hexdigest(),
            "packed_bytes": held.packed_bytes,
            "kv_bytes": held.kv_bytes,
            "graph_captures": captured.graph_captures,
            "graph_seconds": captured.graph_seconds,
            "held_bytes": held_now(self.model.device),
        }

    def owners(self) -> dict[str, Any]:
        models, optimizers = live(Model, Optimizer)
        return {
            "models": len(addresses(models) - self.others),
            "optimizer_bytes": sum(optimizer.nbytes for optimizer in optimizers),
        }


def memory_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The trace in short, for `summary.json`: the most of each kind, and the peak of each phase.

    weight_copies: models held at once, apart from a reward or prompt model in its own phase.
    weights_moved: how often a process's weights were found at other addresses than before; shards
    that have been gathered for sampling do not count.
    """
    seen = [row["memory"] | {"phase": row["phase"].split()[0]} for row in rows if "memory" in row]
    if not seen:
        return {}
    peaks = {row["phase"]: 0 for row in seen if row["phase"] != "end"}
    for row in seen:
        if row["phase"] in peaks:
            peaks[row["phase"]] = max(peaks[row["phase"]], row["peak_bytes"])
    still = [row for row in seen if row["weights_bytes"] == seen[0]["weights_bytes"]]
    places = {(row["process"], row["weights_at"]) for row in still}
    kinds = ("weights_bytes", "packed_bytes", "kv_bytes", "optimizer_bytes")
    counts = ("graph_captures", "graph_seconds")
    return {
        "weight_copies": max(row.get("models", 1) for row in seen if row["phase"] not in BESIDE),
        "weights_moved": len(places) - len({row["process"] for row in still}),
        **{kind: max(row.get(kind, 0) for row in seen) for kind in kinds},
        **{kind: sum(_by_process(seen, kind).values()) for kind in counts},
        "peak_bytes": peaks,
    }


def _by_process(seen: Iterable[Mapping[str, Any]], kind: str) -> dict[int, float]:
    """The last count of each process."""
    return {row["process"]: row[kind] for row in seen}


def live(*kinds: type[Any]) -> list[list[Any]]:
    """All objects in memory of each class, derived ones included."""
    found = gc.get_objects()
    # By their types first: there are hundreds of thousands of objects, and few of those.
    there = set(map(type, found))
    types = [{each for each in there if issubclass(each, kind)} for kind in kinds]
    every = set().union(*types)
    mine = [one for one in found if type(one) in every]
    return [[one for one in mine if type(one) in each] for each in types]


def addresses(models: Iterable[Model]) -> set[int]:
    """Where the models' embeddings lie: those that share their weights lie at one place."""
    found = (local(model.embed.weight) for model in models)
    return {weight.data_ptr() for weight in found if not weight.is_meta}


def total_bytes(tensors: Iterable[Tensor]) -> int:
    """Of tensors, those that share their memory counted once."""
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def held_now(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Let the peak begin anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def _status(name: str) -> int:
    """A line of the process's status in bytes, 0 where there is none."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
