"""A training step against TRL's trainers and against bare PyTorch: seconds, tokens/s, memory.

    python -m benchmarks.bench_train_step --device cpu [--model small tiny] [--dtype bf16]
        [--pairs 4] [--prompt 128] [--response 128] [--steps 2] [--rounds 2] [--only TEXT]
    python -m benchmarks.bench_train_step --device cuda --model llama-3-8b --pairs 16

Three cases of a model: a DPO step, an SFT step on as many sequences, and a DPO step with prompts
four times as long, ours with shared prompts against ours without.

Every variant has the same weights (saved once, in Hugging Face layout) and the same random token
ids, and each time a fresh process on one core, which takes one step that does not count and then
--steps that do. Variants take turns, --rounds of them; a rival that took over 1.2 times its best
kin's time is not asked again. bf16: the rivals train fp32 weights under autocast, TRL's default.

MiB: the highest point of the process after its model was loaded, on a GPU of what tensors hold.
tok/s: rows times prompt and response over the time, however often a prompt was computed. roof: the
step's matmuls at the rate of a large square one, measured in the same run; a prompt counts as often
as the variant has to compute it, what checkpointing computes again does not. loss: of the first and
the last step; a row whose first one is not ln 2 (DPO) or bare's (SFT) is WRONG and gets no ratio.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks import command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import OURS, Row, Timing
from benchmarks.sampler_models import MODELS
from benchmarks.train_variants import VARIANTS, TrainVariant, take_steps
from benchmarks.train_work import TrainWork, save_weights

LIMIT_SECONDS = 600.0  # of one process
CLEARLY_SLOWER = 1.2
LONGER = 4  # times the prompt of the case of ours against ours
# At most these shares of TRL's best step and of its memory; at least this gain by sharing.
TIME_TARGET, MEMORY_TARGET, SHARING_TARGET = 1 / 3, 0.6, 1.5


@dataclass
class StepRow(Row):
    """losses: of the last process. of_trl: (time, memory) over those of TRL's best step."""

    tokens_per_s: float | None = None
    losses: list[float] = field(default_factory=list)
    of_trl: tuple[float, float] | None = None
    note: str = ""


@dataclass
class Runner:
    """One variant of a case and what its processes found."""

    variant: TrainVariant
    row: StepRow
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def able(self) -> bool:
        return self.row.reason is None

    def take_turn(self, work: TrainWork, folder: str, options: argparse.Namespace) -> None:
        found = take_steps_apart(self.variant, work, folder, options)
        self.row.reason = found.get("reason")
        if not self.able:
            return
        self.seconds += found["seconds"]
        self.cpu_seconds += found["cpu_seconds"]
        self.row.peak_bytes = max(found["peak_bytes"], self.row.peak_bytes or 0)
        self.row.losses = found["losses"]

    def sum_up(self, work: TrainWork, rate: float) -> None:
        row, times = self.row, sorted(1e3 * s for s in self.seconds)
        middle, cpu = statistics.median(times), 1e3 * statistics.median(self.cpu_seconds)
        p20, p80 = (times[round(q * (len(times) - 1))] for q in (0.2, 0.8))
        row.ms = Timing(p20, middle, p80, times[0], times[-1], len(times), times[0], cpu)
        row.tokens_per_s = 1e3 * work.tokens / middle
        flops = work.flops(MODELS[work.model], self.variant.shared)
        row.share_of_rate = 1e3 * flops / rate / middle


def take_steps_apart(
    variant: TrainVariant, work: TrainWork, folder: str, options: argparse.Namespace
) -> dict[str, Any]:
    """In a process of its own; --quick, which is for tests, in this one."""
    if options.quick:
        return take_steps(variant, work, folder)
    cores = json.dumps([options.core])
    words = ["benchmarks.train_variants", variant.name, json.dumps(asdict(work)), folder, cores]
    return harness.in_fresh_process(words, LIMIT_SECONDS) or {"reason": "failed: the process died"}


def runners_of(work: TrainWork, options: argparse.Namespace) -> list[Runner]:
    chosen = [
        variant
        for variant in VARIANTS
        if work.kind in variant.kinds
        and command.asked_for(variant.name, options)
        and (work.rivals or variant.package == OURS)
    ]
    return [Runner(v, StepRow(v.name, v.version, "", v.reason(), False)) for v in chosen]


def take_turns(runners: Sequence[Runner], work: TrainWork, options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_weights(work, folder)
        if work.device == "cuda":
            torch.cuda.empty_cache()
        for number in range(options.rounds):
            for runner in runners:
                if runner.able and (number == 0 or worth_asking(runner, runners)):
                    runner.take_turn(work, folder, options)


def worth_asking(runner: Runner, runners: Sequence[Runner]) -> bool:
    kin = [r.seconds for r in runners if r.able and r.variant.package == runner.variant.package]
    best = min(statistics.median(seconds) for seconds in kin)
    slower = statistics.median(runner.seconds) > CLEARLY_SLOWER * best
    return runner.variant.package == OURS or not slower


def judge(runners: Sequence[Runner], work: TrainWork) -> None:
    """Marks what began with another loss, and compares the rest with TRL's best step."""
    rows = {r.variant.name: r.row for r in runners if r.able}
    bare = rows.get("bare")
    wanted = math.log(2) if work.kind == "dpo" else bare.losses[0] if bare else None
    for row in rows.values():
        row.correct = wanted is None or abs(row.losses[0] - wanted) < 0.02 * wanted
    best = best_of_trl(runners)
    for row in rows.values():
        if best and row.correct and row.ms and row.peak_bytes:
            time = row.ms.p50 / best.ms.p50
            row.of_trl = (time, row.peak_bytes / best.peak_bytes)


def best_of_trl(runners: Sequence[Runner]) -> Any:
    right = [r.row for r in runners if r.variant.package == "trl" and r.row.correct]
    return min(right, key=lambda row: row.ms.p50, default=None)


def run_case(work: TrainWork, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    runners = runners_of(work, options)
    print(f"\n{work.name}, {work.dtype}, {work.tokens} tokens")
    take_turns(runners, work, options)
    for runner in runners:
        if runner.able:
            runner.sum_up(work, top["matmul_flops"])
    judge(runners, work)
    print(show([runner.row for runner in runners]), flush=True)
    reached = targets(work, runners)
    return [runner.row for runner in runners], {"targets": reached}


def show(rows: Sequence[StepRow]) -> str:
    head = ["variant", "s/step", "low", "high", "cpu s", "tok/s", "roof", "MiB"]
    return harness.table([*head, "of TRL", "MiB of TRL", "loss", ""], [_cells(r) for r in rows])


def _cells(row: StepRow) -> list[str]:
    ms, of_trl = row.ms, row.of_trl or (None, None)
    times = [ms.p50, ms.low, ms.high, ms.cpu] if ms else [None] * 4
    return [
        row.variant,
        *["" if t is None else f"{t / 1e3:.3g}" for t in times],
        harness.number(row.tokens_per_s),
        harness.percent(row.share_of_rate),
        harness.mebibytes(row.peak_bytes),
        *[harness.ratio(value) for value in of_trl],
        " ".join(f"{loss:.4f}" for loss in row.losses[:: max(len(row.losses) - 1, 1)]),
        row.verdict,
    ]


def targets(work: TrainWork, runners: Sequence[Runner]) -> dict[str, Any]:
    """What this case aims at, and what was found; printed."""
    rows = {r.variant.name: r.row for r in runners if r.able and r.row.correct}
    reached: dict[str, Any] = {}
    ours = min(
        (row for name, row in rows.items() if name.startswith(OURS)),
        key=lambda row: row.ms.p50,
        default=None,
    )
    if ours is not None and ours.of_trl:
        found = zip(("time", "memory"), ours.of_trl, (TIME_TARGET, MEMORY_TARGET), strict=True)
        for name, share, wanted in found:
            aimed = wanted if work.kind == "dpo" else None
            reached[f"{name} of TRL's"] = (share, aimed)
            aim = f", aimed at {aimed:.2f} or less" if aimed else ""
            print(f"{ours.variant}: {share:.2f} of TRL's {name}{aim}")
    if OURS in rows and f"{OURS} unshared" in rows:
        gain = rows[f"{OURS} unshared"].ms.p50 / rows[OURS].ms.p50
        wanted = None if work.rivals else SHARING_TARGET
        reached["gain by sharing"] = (gain, wanted)
        print(f"sharing prompts: {gain:.2f} x" + (f", aimed at {wanted}" if wanted else ""))
    return reached


def cases(options: argparse.Namespace) -> list[TrainWork]:
    default = "llama-3-8b" if options.device == "cuda" else "small"
    names = ["nano"] if options.quick else options.model or [default]
    found = []
    for name in names:
        shape = (options.pairs, options.prompt, options.response)
        tail = (options.dtype, options.device, options.steps)
        found.append(TrainWork(name, "dpo", *shape, *tail))
        found.append(TrainWork(name, "sft", 2 * shape[0], *shape[1:], *tail))
        longer = (shape[0], LONGER * shape[1], shape[2])
        found.append(TrainWork(name, "dpo", *longer, *tail, rivals=False))
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=2)
    parser.add_argument("--model", nargs="+", choices=sorted(MODELS), metavar="NAME")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    for name, value in (("pairs", 4), ("prompt", 128), ("response", 128), ("steps", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)


def wrong(options: argparse.Namespace) -> str | None:
    for name in ("pairs", "prompt", "response", "steps"):
        if getattr(options, name) < 1:
            return f"--{name} {getattr(options, name)}, wanted 1 or more"
    names = [variant.name for variant in VARIANTS]
    unknown = [n for n in options.variants.split(",") if n and n not in names]
    if unknown:
        return f"--variants {unknown[0]}, wanted of: {', '.join(names)}"
    return None


BENCHMARK = Benchmark(
    name="bench_train_step",
    doc=__doc__ or "",
    cases=cases,
    run_case=run_case,
    packages=("trl", "transformers", "liger-kernel"),
    add_options=add_options,
    wrong=wrong,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return command.main(BENCHMARK, arguments)


if __name__ == "__main__":
    sys.exit(main())
