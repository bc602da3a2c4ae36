"""Sampling whole works against other engines: tokens per second, share of the roofline, memory.

    python -m benchmarks.bench_sampler --device cpu [--models tiny small] [--work candidates judge]
        [--threads 1 2] [--rounds 5] [--out FOLDER]
    python -m benchmarks.bench_sampler --device cuda --seconds 120 --out FOLDER

Works and their floor (FLOPs and bytes, at the rates measured in the same run) stand in
sampler_work.py, the random models in sampler_models.py, the rivals in sampler_variants.py. Every
engine has the same weights and the same random token ids.

First every engine decodes greedily from a few prompts. Its tokens must be those of transformers in
fp32 on the same weights, in 16 bits within the error of eager's logits (sampler_reference.py);
otherwise its row says WRONG and gets no ratio.

On a CPU every engine lives in a process of its own, on the cores of the case, and the turns are
interleaved. The first turn is a scout on every fourth prompt. A rival that is clearly slower than
the best of its family (the same package: engines profit unlike from a larger batch) is not asked
again, and its row is the scout's; the others get as many turns as fit into TURN_SECONDS, at least
one, the best rival two. On a GPU one engine runs after the other, as two KV pools do not fit, after
one warm-up of 32 tokens out, and a rival is stopped after LIMIT_SECONDS. What a row is made of
stands in its note.

Llama-2-70B runs on one GPU with fp8 layers and fp8 keys and values: 128 requests of 512 tokens in
and 256 out, once, after a warm-up on one prompt; its roof is that of its fp8 bytes and of a large
fp8 matmul. Its truth would not fit, so the tokens are checked on two layers of the same widths.

tok/s: tokens out over the time of the whole work; per cpu s: over the process's own time, on a
machine that others use too. prefill/s: prompt tokens, each prompt once, until all were computed.
roof: the floor over the time. x best: over the fastest right rival of any dtype. MiB: weights,
cache and working memory at the highest point. host ms: the sampler's own Python and scheduling in
a step, where it keeps count. busy: of the time after the prompts, on a GPU.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch

from benchmarks import command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import Row, Timing
from benchmarks.sampler_apart import Apart, Place
from benchmarks.sampler_busy import busy_share
from benchmarks.sampler_engine import Engine, Turn, measured_turn
from benchmarks.sampler_models import DTYPES, ENTROPY, MODELS, TEMPERATURE, make_model
from benchmarks.sampler_reference import NEW, Reference, check_prompts
from benchmarks.sampler_variants import Kind, kinds
from benchmarks.sampler_work import WORKS, Floor, Work, floor, work_named
from srlm_fast.model import Model

NAME = "bench_sampler"
SCOUT_STEP, SCOUT_SHARE, WARM_UP_TOKENS = 4, 0.7, 32
CHECKED_LAYERS = 2  # of a model whose truth in fp32 would not fit
TURN_SECONDS, LIMIT_SECONDS = 25.0, 15.0
# A rival that cannot be stopped is not begun with less time left.
SPARE_SECONDS = 4 * LIMIT_SECONDS
DECODE_SHARE = 0.7  # of the time after the prompts, so that the prompts have no part in it
# (model, work) -> tokens/s of ours over those of the best rival that are aimed at.
TARGETS = {
    ("tiny", "candidates"): 5.0,
    ("small", "candidates"): 4.0,
    ("tiny", "judge"): 8.0,
    ("small", "judge"): 10.0,
}
SCALING_TARGET = 1.7
QUICK_RATES = (1e11, 1e10)  # made up: --quick is for tests


@dataclass(frozen=True)
class Case:
    model: str
    work: str
    threads: int
    size: str  # of the work: "cuda", "cpu", or "quick"

    @property
    def name(self) -> str:
        threads = f" {self.threads} threads" if self.threads > 1 else ""
        return f"{self.model} {self.work}{threads}"


@dataclass
class SamplerRow(Row):
    """tokens_per_s: median, lowest, highest. over_best: ours over the fastest right rival, in
    time and in the processor time of both.
    """

    dtype: str = ""
    settings: str = ""
    note: str = ""
    tokens_per_s: tuple[float, float, float] | None = None
    tokens_per_cpu_s: float | None = None
    prefill_per_s: float | None = None
    counts: dict[str, float] = field(default_factory=dict)
    busy: float | None = None
    over_best: float | None = None
    over_best_cpu: float | None = None
    best_rival: str | None = None


# Running


class Contender:
    """An engine of a case, wherever it lives, and what its turns gave."""

    def __init__(self, kind: Kind, device: str) -> None:
        self.kind, self.device = kind, device
        self.row = SamplerRow(
            kind.name, kind.version, "", kind.reason(device), False, dtype=kind.dtype
        )
        self.engine: Engine | Apart | None = None
        self.scout: Turn | None = None
        self.turns: list[Turn] = []
        self.wanted = 0

    @property
    def able(self) -> bool:
        return self.row.reason is None

    def attempt(self, call: Any) -> Any:
        """What it returns; or None, with the reason in the row: a rival may fail in any way."""
        try:
            return call()
        except Exception as error:
            told = str(error) if isinstance(self.engine, Apart) else harness.one_line(error)
            self.row.reason, self.row.correct = f"failed: {told}", None
            self.close()
            return None

    def ask(self, method: str, *arguments: Any) -> Any:
        if isinstance(self.engine, Apart):
            return self.engine.ask(method, *arguments)
        if method == "turn":
            return measured_turn(self.engine, self.device, *arguments)
        return getattr(self.engine, method)(*arguments)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.engine = None
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


@cache
def rates(device: str, dtype: torch.dtype, threads: int, quick: bool) -> tuple[float, float]:
    """FLOP/s of a large square matmul, bytes/s of a large read, with these threads."""
    if quick:
        return QUICK_RATES
    return harness.ceilings(device, dtype)["matmul_flops"], harness.read_rate(device)


class Run:
    """One case: contenders in, rows out."""

    def __init__(self, case: Case, options: argparse.Namespace) -> None:
        self.case, self.options, self.device = case, options, options.device
        self.config = MODELS[case.model]
        self.work = work_named(case.work, case.size)
        every = kinds(self.device, case.model)
        asked = [kind for kind in every if command.asked_for(kind.name, options)]
        self.contenders = [Contender(kind, self.device) for kind in asked]
        self.entropy: float | None = None
        self.large = case.model.endswith("70b")
        self.rounds = 1 if self.large else options.rounds
        # In one process: on a GPU, where the engines share the weights, and in tests.
        self.together = self.device == "cuda" or options.quick
        self._small: Model | None = None  # what is checked of a large model

    def __call__(self) -> list[SamplerRow]:
        try:
            self.check()
            if self.device == "cuda":
                for contender in self.able():
                    self.alone(contender)
            else:
                self.interleaved()
            for contender in self.contenders:
                self.sum_up(contender)
        finally:
            for contender in self.contenders:
                contender.close()
        rows = [contender.row for contender in self.contenders]
        compare(rows)
        return rows

    def able(self) -> list[Contender]:
        return [contender for contender in self.contenders if contender.able]

    def late(self) -> bool:
        return time.perf_counter() > self.options.end

    def model(self, dtype: str) -> Model:
        """On a GPU the one that all share."""
        if self.device == "cuda":
            return shared_model(self.case.model, DTYPES[dtype])
        return make_model(self.config, self.device, DTYPES[dtype])

    def checked_model(self, dtype: str) -> Model:
        """The model whose tokens are checked; of a large one the first layers."""
        if not self.large:
            return self.model(dtype)
        if self._small is None:
            windows = self.config.windows[:CHECKED_LAYERS]
            config = self.config.replace(num_layers=CHECKED_LAYERS, windows=windows, hf={})
            self._small = make_model(config, self.device, DTYPES[dtype])
        return self._small

    def start(self, contender: Contender, check: bool = False) -> None:
        kind, cores = contender.kind, self.options.cores[: self.case.threads]
        if self.together:
            model = self.checked_model(kind.dtype) if check else self.model(kind.dtype)
            contender.engine = kind.build(model, self.work, self.case.threads)
        else:
            contender.engine = Apart(Place(kind.name, self.case.model, self.work, cores))
        contender.row.settings = contender.engine.settings

    # Correctness

    def check(self) -> None:
        prompts = check_prompts(self.work.prompts(self.config.vocab_size))
        found = {}
        for contender in (c for c in self.able() if c.kind.engine != "vLLM"):
            contender.attempt(partial(self.start, contender, check=True))
            if contender.able:
                answer = contender.attempt(partial(contender.ask, "greedy", prompts, NEW))
                found[contender] = answer
                if contender.able and self.large:
                    contender.close()
                elif contender.able and self.device == "cuda":
                    contender.ask("rest")
        for dtype in dict.fromkeys(c.kind.dtype for c in found if c.able):
            reference = Reference(self.checked_model(dtype))
            self.entropy = reference.entropy(prompts, TEMPERATURE)
            for contender in (c for c in found if c.able and c.kind.dtype == dtype):
                row = contender.row
                row.errors, row.limits = reference.judge(prompts, *found[contender])
                row.correct = all(error <= row.limits[q] for q, error in row.errors.items())
            del reference
            self._small = None
            gc.collect()
            if self.device == "cuda":
                torch.cuda.empty_cache()

    # Turns

    def turn(
        self, contender: Contender, number: int, work: Work, limit: float | None
    ) -> Turn | None:
        prompts = work.prompts(self.config.vocab_size, number)
        turn = contender.attempt(partial(contender.ask, "turn", prompts, work, limit))
        told = f"{turn.rate:,.0f} tok/s, {turn.seconds:.1f} s" if turn else contender.row.reason
        print(f"  turn {number}, {contender.kind.name}: {told}", flush=True)
        return turn

    def prefill(self, contender: Contender, work: Work) -> None:
        """For an engine whose turns do not tell."""
        if not contender.able or not contender.turns or contender.turns[-1].first is not None:
            return
        prompts = work.prompts(self.config.vocab_size, 999)
        seconds = contender.attempt(partial(contender.ask, "prefill", prompts))
        if seconds:
            contender.row.prefill_per_s = sum(work.lengths) / seconds

    def interleaved(self) -> None:
        for contender in self.able():
            contender.scout = self.turn(contender, 0, self.work.part(SCOUT_STEP), None)
        plan_turns(self.able(), self.work, self.options.rounds)
        for number in range(self.options.rounds):
            for contender in self.able():
                if number < contender.wanted and not (number and self.late()):
                    turn = self.turn(contender, 1 + number, self.work, None)
                    contender.turns += [turn] if turn else []
            if number == 0:
                favour_the_best(self.able(), self.options.rounds)
        for contender in self.able():
            self.prefill(contender, self.work)

    def alone(self, contender: Contender) -> None:
        """On a GPU: warm up, take its turns, make room. Ours shares the time that is left with what
        comes after it.
        """
        ours, left, able = contender.kind.ours, self.left(), self.able()
        share = left / (1 + len(able) - able.index(contender)) if ours else 0.0
        brief = ours or (contender.engine is not None and contender.engine.stops)
        if left < (0 if brief else SPARE_SECONDS):
            contender.row.reason, contender.row.correct = "no time left", None
            contender.close()
            return
        if contender.engine is None:
            contender.attempt(partial(self.start, contender))
        if contender.able:
            work = self.work.of_one_prompt() if self.large else self.work
            contender.scout = self.turn(contender, 0, work.cut(WARM_UP_TOKENS), None)
        begin = time.perf_counter()
        work = self.work if ours or not contender.able else self.shortened(contender)
        while contender.able and len(contender.turns) < self.rounds:
            turn = self.turn(contender, 1 + len(contender.turns), work, LIMIT_SECONDS)
            contender.turns += [turn] if turn else []
            if turn and time.perf_counter() - begin + turn.seconds > share:
                break
        self.prefill(contender, self.work.part(SCOUT_STEP))
        if contender.able and contender.kind == self.contenders[0].kind and not self.large:
            self.busy(contender)
        contender.close()

    def left(self) -> float:
        return self.options.end - time.perf_counter()

    def shortened(self, contender: Contender) -> Work:
        """For a rival that cannot be stopped: fewer tokens out, by its warm-up; vLLM, a rival to be
        beaten, does the whole work.
        """
        seconds = self.work.tokens / contender.scout.rate
        if contender.kind.engine != "continuous batching" or seconds < LIMIT_SECONDS:
            return self.work
        return self.work.cut(max(WARM_UP_TOKENS, int(max(self.work.new) * LIMIT_SECONDS / seconds)))

    def busy(self, contender: Contender) -> None:
        """While it decodes: of a short turn the end, after the prompts."""
        work, rate = self.work.cut(2 * WARM_UP_TOKENS), contender.row.prefill_per_s
        if not rate:
            return
        found: list[Turn] = []

        def turn() -> None:
            found.append(self.turn(contender, 998, work, None))

        turn()
        decode = found[0].seconds - sum(work.lengths) / rate if found[0] else 0.0
        contender.row.busy = busy_share(turn, DECODE_SHARE * decode)

    # Rows

    def floor(self, dtype: str) -> Floor:
        kept = DTYPES[dtype]
        # Half precision on a CPU is held against bf16, which has units of its own.
        matmul = torch.bfloat16 if kept == torch.float16 else kept
        flops, read = rates(self.device, matmul, self.case.threads, self.options.quick)
        head = 2 if kept.itemsize == 1 else None
        return floor(self.work, self.config, kept.itemsize, flops, read, head)

    def sum_up(self, contender: Contender) -> None:
        row, turns = contender.row, contender.turns
        notes = []
        if not turns and contender.scout and contender.able:
            turns = [contender.scout]
            count = len(self.work.part(SCOUT_STEP).lengths)
            notes.append(f"scout only: {count} of {len(self.work.lengths)} prompts")
        elif turns:
            notes.append(f"{len(turns)} of {self.rounds} rounds")
        if not turns:
            return
        notes += [turns[-1].note] * bool(turns[-1].note)
        if row.correct is None and contender.able:
            notes.append("tokens not checked")
            row.correct = True
        elif self.large:
            notes.append(f"tokens checked on {CHECKED_LAYERS} layers")
        row.note = ", ".join(notes)
        found = sorted(turn.rate for turn in turns)
        row.tokens_per_s = (statistics.median(found), found[0], found[-1])
        owns = [turn.tokens / turn.cpu for turn in turns if turn.cpu]
        row.tokens_per_cpu_s = statistics.median(owns) if owns else None
        # Of the whole work at that rate, also where a turn was a part of it.
        times = sorted(1e3 * self.work.tokens / rate for rate in found)
        first = contender.scout.seconds if contender.scout else turns[0].seconds
        spread = [times[round(q * (len(times) - 1))] for q in (0.2, 0.8)]
        middle = statistics.median(times)
        row.ms = Timing(spread[0], middle, spread[1], times[0], times[-1], len(times), 1e3 * first)
        row.share_of_rate = 1e3 * self.floor(row.dtype).seconds / middle
        row.times_least = 1 / row.share_of_rate
        peaks = [turn.peak_bytes for turn in turns if turn.peak_bytes is not None]
        row.peak_bytes = max(peaks, default=None)
        row.counts = dict(turns[-1].counts)
        if turns[-1].first:
            part = self.work if contender.turns else self.work.part(SCOUT_STEP)
            row.prefill_per_s = sum(part.lengths) / turns[-1].first


@cache
def _made(name: str, dtype: torch.dtype) -> Model:
    return make_model(MODELS[name], "cuda", dtype)


def shared_model(name: str, dtype: torch.dtype) -> Model:
    """The last one asked for is kept; it alone, for want of room."""
    if _made.cache_info().currsize and (name, dtype) not in _asked:
        _made.cache_clear()
        gc.collect()
        torch.cuda.empty_cache()
    _asked[:] = [(name, dtype)]
    return _made(name, dtype)


_asked: list[tuple[str, torch.dtype]] = []


def plan_turns(contenders: Sequence[Contender], work: Work, rounds: int) -> None:
    """How many whole turns each gets, by its scout."""
    best: dict[str, float] = {}
    for contender in contenders:
        family, rate = contender.kind.family, _own_rate(contender.scout)
        best[family] = max(rate, best.get(family, 0.0))
    for contender in contenders:
        fits = max(1, int(TURN_SECONDS * contender.scout.rate / work.tokens))
        contender.wanted = rounds if contender.kind.ours else min(rounds, fits)
        slow = _own_rate(contender.scout) < SCOUT_SHARE * best[contender.kind.family]
        if slow and not contender.kind.ours:
            contender.wanted = 0


def favour_the_best(contenders: Sequence[Contender], rounds: int) -> None:
    """After the first whole turns: the best rival has one more, as ours is held against it."""
    rivals = [c for c in contenders if c.turns and not c.kind.ours]
    if rivals:
        best = max(rivals, key=lambda c: _own_rate(c.turns[0]))
        best.wanted = max(best.wanted, min(2, rounds))


def _own_rate(turn: Turn) -> float:
    """By the process's own time: one busy moment of the machine must not rule a rival out."""
    return turn.tokens / (turn.cpu or turn.seconds)


def compare(rows: Sequence[SamplerRow]) -> None:
    """Ours over the fastest right rival; how much faster the fastest of ours is than each. A wrong
    row has no share and takes no part.
    """
    for row in rows:
        if not row.correct:
            row.share_of_rate = row.times_least = None
    right = [row for row in rows if row.correct and row.ms]
    ours = [row for row in right if row.variant.startswith(harness.OURS)]
    rivals = [row for row in right if row not in ours]
    best = min(rivals, key=lambda row: row.ms.p50, default=None)
    mine = min(ours, key=lambda row: row.ms.p50, default=None)
    for row in ours:
        if best is not None:
            row.over_best, row.best_rival = best.ms.p50 / row.ms.p50, best.variant
            if row.tokens_per_cpu_s and best.tokens_per_cpu_s:
                row.over_best_cpu = row.tokens_per_cpu_s / best.tokens_per_cpu_s
    for row in right:
        if mine is not None:
            row.ours_is_faster = row.ms.p50 / mine.ms.p50


# Telling


def run_case(case: Case, options: argparse.Namespace, top: Mapping) -> tuple[list[Row], dict]:
    cores = options.cores[: case.threads]
    if options.device == "cpu":
        command.pin(cores)
    run = Run(case, options)
    dtypes = list(dict.fromkeys(c.kind.dtype for c in run.contenders))
    print(f"\n{case.name}: {run.work.title}", flush=True)
    for dtype in dtypes:
        print(f"  {dtype}: {show_floor(run.floor(dtype), run.work)}", flush=True)
    rows = run()
    print(show(rows), flush=True)
    more: dict[str, Any] = {
        "work": run.work.title,
        "tokens": run.work.tokens,
        "threads": case.threads,
        "entropy": run.entropy,
        "entropy_wanted": ENTROPY,
        "floor": {dtype: vars(run.floor(dtype)) for dtype in dtypes},
    }
    more["result"] = targets(case, rows, options)
    for line in more["result"]["told"]:
        print(line, flush=True)
    return list(rows), more


def show_floor(least: Floor, work: Work) -> str:
    return (
        f"prefill {least.prefill_flops / 1e12:.3g} TFLOP, {least.prefill_bytes / 1e9:.3g} GB; "
        f"decode {least.decode_flops / 1e12:.3g} TFLOP, {least.decode_bytes / 1e9:.4g} GB; "
        f"floor {least.prefill_seconds:.3g} + {least.decode_seconds:.3g} s, "
        f"{work.tokens / least.seconds:,.0f} tok/s"
    )


def show(rows: Sequence[SamplerRow]) -> str:
    head = [
        "variant",
        "tok/s",
        "low",
        "high",
        "per cpu s",
        "prefill/s",
        "roof",
        "MiB",
        "x ours",
        "x best",
    ]
    head += ["steps", "host ms", "busy", "greedy err", "", ""]
    return harness.table(head, [_cells(row) for row in rows])


def _cells(row: SamplerRow) -> list[str]:
    steps = row.counts.get("steps")
    host = row.counts.get("host_seconds")
    return [
        row.variant,
        *([f"{rate:,.0f}" for rate in row.tokens_per_s or ()] or [""] * 3),
        _count(row.tokens_per_cpu_s),
        _count(row.prefill_per_s),
        harness.percent(row.share_of_rate),
        harness.mebibytes(row.peak_bytes),
        harness.ratio(row.ours_is_faster),
        harness.ratio(row.over_best),
        f"{steps:.0f}" if steps else "",
        f"{1e3 * host / steps:.2f}" if steps and host is not None else "",
        harness.percent(row.busy),
        f"{row.errors['greedy']:.1e}" if row.errors else "",
        row.verdict,
        row.note,
    ]


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def targets(case: Case, rows: Sequence[SamplerRow], options: argparse.Namespace) -> dict[str, Any]:
    """Lines that say what was aimed at and what was found, and the figures themselves."""
    told: list[str] = []
    found: dict[str, Any] = {"told": told}
    mine = max(
        (row for row in rows if row.correct and row.variant.startswith(harness.OURS) and row.ms),
        key=lambda row: row.tokens_per_s[0],
        default=None,
    )
    if mine is None:
        return found
    rate = options.rates[case.model, case.work, case.threads] = mine.tokens_per_s[0]
    wanted = TARGETS.get((case.model, case.work)) if case.size == "cpu" else None
    if mine.over_best is not None:
        words = f"{mine.variant} over the best rival ({mine.best_rival}): {mine.over_best:.2f}"
        if mine.over_best_cpu is not None:
            words += f" ({mine.over_best_cpu:.2f} in processor time)"
        told.append(words + _aimed(mine.over_best, wanted))
        found |= {"over_best": mine.over_best, "best_rival": mine.best_rival, "wanted": wanted}
    one = options.rates.get((case.model, case.work, 1))
    if case.threads > 1 and one:
        aim = SCALING_TARGET if case.threads == 2 else None
        told.append(f"{case.threads} threads over one: {rate / one:.2f}" + _aimed(rate / one, aim))
        found["scaling"] = rate / one
    return found


def _aimed(value: float, wanted: float | None) -> str:
    if wanted is None:
        return ""
    return f", wanted >= {wanted:g}: {'met' if value >= wanted else 'MISSED'}"


# The command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: by device")
    parser.add_argument("--work", nargs="+", choices=WORKS, help="default: by device")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="a case for each (CPU)")


def wrong(options: argparse.Namespace) -> str | None:
    """Also settles what follows from the options together."""
    options.cores = command.cores_from(options.core)
    options.rates = {}
    most = len(options.cores)
    for count in options.threads:
        if options.device == "cpu" and not 1 <= count <= most:
            return f"--threads {count}, wanted 1 to {most}, the cores there are"
    large = [name for name in options.models or () if name.startswith("llama")]
    if options.device == "cpu" and large:
        return f"--models {large[0]}, wanted a GPU for it, or one of nano, tiny, small"
    return None


def cases(options: argparse.Namespace) -> list[Case]:
    """The telling ones first."""
    size = "quick" if options.quick else options.device
    if options.quick:
        default = [("nano", work) for work in ("candidates", "judge")]
    elif options.device == "cpu":
        default = [(model, work) for work in ("candidates", "judge") for model in ("tiny", "small")]
    else:
        large = ("llama-3-8b", "llama-2-70b")
        default = [(large[0], "chat1k"), (large[0], "candidates"), (large[0], "judge")]
        default += [(large[0], "long-tail"), (large[0], "chat"), (large[1], "chat512")]
    if options.models or options.work:
        models = options.models or list(dict.fromkeys(model for model, _ in default))
        every = list(dict.fromkeys(work for _, work in default))
        own = {model: [work for of, work in default if of == model] or every for model in models}
        default = [(model, work) for model in models for work in options.work or own[model]]
    threads = options.threads if options.device == "cpu" else [1]
    return [Case(model, work, count, size) for model, work in default for count in threads]


BENCHMARK = Benchmark(
    NAME,
    __doc__,
    cases,
    run_case,
    packages=("transformers", "llama-cpp-python", "vllm"),
    add_options=add_options,
    wrong=wrong,
)
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
