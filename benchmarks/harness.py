"""What the benchmarks of single operations share: time, memory, ceilings, correctness, rows, plots.

Time: on CUDA events around the call, with the L2 cache overwritten before it and the device busy
for a millisecond before that, so that what a variant launches waits for it in the queue, as in a
step of training, whoever came before; the time that launching took on the host is given apart. On a
CPU `perf_counter`. All variants take turns, so that a busy or a hot moment of the machine hits all;
given are the median, the 20th and 80th percentile, the extremes, and the first call apart
(compilation). Milliseconds. On a CPU also the median of the process's own time, which does not
count what other processes took from its core.

Memory: bytes of the highest point of one warm call above what lay there before it, outputs and
gradients included. On CUDA what the allocator handed out; on a CPU resident memory, in a process
that runs nothing else.

Correctness comes first: a variant's errors are measured before it is timed. An error may be a few
times the baseline's (eager PyTorch), at least a floor, at most a cap. What exceeds that, NaN
included, is called wrong and gets no speed-up.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from benchmarks.machine import conditions

OURS, BASELINE = "ours", "eager"
# An error may be so many times the baseline's.
TIMES_BASELINE = 4.0
# A variant slower than this takes two turns.
SLOW_MS, SLOW_TURNS = 5000.0, 2
# Cycles that a GPU idles before a call is timed, about a millisecond. Without them a turn's first
# variant found an empty queue and was timed with its launching, the others without.
HEAD_START = 2_000_000
SMI_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")


@dataclass(frozen=True)
class Variant:
    """One way to compute a case: `call` is timed, `prepare` comes before it and is not.

    computes: "" for the case's own work, otherwise what is computed instead. reason: why it cannot
    run here. against: the variant that its time is compared with. least: a bound, not a result.
    """

    name: str
    call: Callable[[], Any] | None = None
    prepare: Callable[[], Any] | None = None
    version: str = ""
    computes: str = ""
    reason: str | None = None
    against: str = OURS
    baseline: str = BASELINE
    least: bool = False


@dataclass(frozen=True)
class Timing:
    """Milliseconds of `runs` calls, and of the first one ever; cpu: the process's own; host: until
    a GPU's call had returned.
    """

    p20: float
    p50: float
    p80: float
    low: float
    high: float
    runs: int
    first: float
    cpu: float | None = None
    host: float | None = None


@dataclass
class Row:
    """What was found out about one variant of one case."""

    variant: str
    version: str
    computes: str
    reason: str | None
    least: bool
    ms: Timing | None = None
    peak_bytes: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    correct: bool | None = None
    share_of_rate: float | None = None
    times_least: float | None = None
    ours_is_faster: float | None = None

    @property
    def verdict(self) -> str:
        if self.reason:
            return self.reason
        return "" if self.correct or self.least else "WRONG"


ErrorsOf = Callable[[Variant, Any], dict[str, float]]
Bounds = Mapping[str, tuple[float, float]]


def measure(
    variants: Sequence[Variant],
    errors_of: ErrorsOf,
    bounds: Bounds,
    device: str,
    *,
    flops: float = 0.0,
    rate: float = 0.0,
    seconds: float = 1.0,
    rounds: tuple[int, int] = (5, 30),
    peak_of: Callable[[Variant], int | None] | None = None,
) -> list[Row]:
    """A row per variant: checked, then timed, then its memory.

    errors_of(variant, its output) -> error per quantity; bounds: quantity -> (floor, cap) of the
    error allowed. flops: that the case needs; rate: FLOP/s of a large matmul here. seconds and
    rounds: of timing, for each variant. peak_of: how memory is measured, if not in this process.
    """
    rows = {v.name: Row(v.name, v.version, v.computes, v.reason, v.least) for v in variants}
    able = [v for v in variants if v.call is not None and v.reason is None]
    firsts = {v.name: _first(v, rows[v.name], errors_of, device) for v in able}
    judge(rows, {v.name: v.baseline for v in variants}, bounds)
    able = [v for v in able if rows[v.name].reason is None]
    for name, timing in interleaved(able, device, firsts, seconds, rounds).items():
        if isinstance(timing, str):
            rows[name].reason, rows[name].correct = timing, None
        else:
            rows[name].ms = timing
    for v in (v for v in able if rows[v.name].ms):
        rows[v.name].peak_bytes = (peak_of or (lambda v: peak_bytes(v, device)))(v)
    compare(rows, {v.name: v.against for v in variants}, flops, rate)
    return list(rows.values())


def _first(variant: Variant, row: Row, errors_of: ErrorsOf, device: str) -> float:
    """Milliseconds of the first call; its errors go into the row, or why there is none."""
    start = time.perf_counter()
    try:
        _prepare(variant)
        synchronize(device)
        start = time.perf_counter()
        output = variant.call()
        synchronize(device)
        spent = 1e3 * (time.perf_counter() - start)
        row.errors = errors_of(variant, output)
    except Exception as error:  # a rival may fail in any way; the others go on
        row.reason = failure(error)
        spent = 1e3 * (time.perf_counter() - start)
    output = None
    if device == "cuda" and row.reason:
        torch.cuda.empty_cache()
    return spent


def judge(rows: Mapping[str, Row], baselines: Mapping[str, str], bounds: Bounds) -> None:
    """Fill in `limits` and `correct`; a baseline itself is held to the caps."""
    for name, row in rows.items():
        if row.reason or row.least:
            continue
        baseline = rows.get(baselines[name])
        for quantity in row.errors:
            floor, cap = bounds[quantity]
            loose = TIMES_BASELINE * baseline.errors.get(quantity, 0.0) if baseline else 0.0
            if baseline is row:
                loose = cap
            # In this order a baseline of NaN does not open the gate.
            row.limits[quantity] = min(cap, max(floor, loose))
        row.correct = all(error <= row.limits[q] for q, error in row.errors.items())


def compare(rows: Mapping[str, Row], against: Mapping[str, str], flops: float, rate: float) -> None:
    """Share of the matmul rate, ratio to the least time, and how much faster ours is.

    A wrong variant has none of the three.
    """
    least = [row.ms.p50 for row in rows.values() if row.least and row.ms]
    for row in rows.values():
        if row.ms is None or (not row.least and not row.correct):
            continue
        row.share_of_rate = flops / (1e-3 * row.ms.p50) / rate if rate else None
        row.times_least = row.ms.p50 / min(least) if least else None
        ours = rows.get(against[row.variant])
        if ours is not None and ours.ms and ours.correct and not row.least:
            row.ours_is_faster = row.ms.p50 / ours.ms.p50


def interleaved(
    variants: Sequence[Variant],
    device: str,
    firsts: Mapping[str, float],
    seconds: float,
    rounds: tuple[int, int],
) -> dict[str, Timing | str]:
    """Turn by turn; a slow variant takes fewer turns, but at least rounds[0]. Or how it failed."""
    flush = _Flush(device)
    failed: dict[str, str] = {}

    def turn(taking_part: Sequence[Variant]) -> dict[str, Times]:
        """All are started before any is waited for, so that a GPU does not run dry between."""
        waiting = {}
        for v in taking_part:
            try:
                waiting[v.name] = _timed(v, device, flush)
            except Exception as error:
                failed[v.name] = failure(error)
        return {name: milliseconds() for name, milliseconds in waiting.items()}

    def turns(milliseconds: float) -> int:
        if milliseconds > SLOW_MS:
            return SLOW_TURNS
        return int(min(max(1e3 * seconds / max(milliseconds, 1e-3), rounds[0]), rounds[1]))

    wanted = {name: turns(times[0]) for name, times in turn(variants).items()}
    found: dict[str, list[Times]] = {name: [] for name in wanted}
    for number in range(max(wanted.values(), default=0)):
        still = [v for v in variants if v.name not in failed and number < wanted[v.name]]
        for name, times in turn(still).items():
            found[name].append(times)
    timings = {n: _timing(times, firsts[n]) for n, times in found.items() if n not in failed}
    return timings | failed


# Milliseconds, the process's own, the host's.
Times = tuple[float, float | None, float | None]


def _timed(variant: Variant, device: str, flush: _Flush) -> Callable[[], Times]:
    """Run once; what is returned waits for the device and gives the times."""
    _prepare(variant)
    if device == "cuda":
        torch.cuda._sleep(HEAD_START)
    flush()
    if device != "cuda":
        start, own = time.perf_counter(), time.process_time()
        variant.call()
        wall, own = time.perf_counter() - start, time.process_time() - own
        return lambda: (1e3 * wall, 1e3 * own, None)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    start = time.perf_counter()
    variant.call()
    host = 1e3 * (time.perf_counter() - start)
    end.record()

    def milliseconds() -> Times:
        end.synchronize()
        return begin.elapsed_time(end), None, host

    return milliseconds


class _Flush:
    """Overwrites the L2 cache of a GPU; nothing on a CPU, where the data exceed the cache."""

    def __init__(self, device: str) -> None:
        self.buffer = None
        if device == "cuda":
            size = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
            self.buffer = torch.empty(2 * size, dtype=torch.uint8, device=device)

    def __call__(self) -> None:
        if self.buffer is not None:
            self.buffer.zero_()


def _timing(times: Sequence[Times], first: float) -> Timing:
    walls = sorted(wall for wall, _, _ in times)
    p20, p80 = (walls[round(q * (len(walls) - 1))] for q in (0.2, 0.8))
    middle = statistics.median(walls)
    owns = [own for _, own, _ in times if own is not None]
    hosts = [host for _, _, host in times if host is not None]
    own, host = (statistics.median(values) if values else None for values in (owns, hosts))
    return Timing(p20, middle, p80, walls[0], walls[-1], len(walls), first, own, host)


def _prepare(variant: Variant) -> None:
    if variant.prepare is not None:
        variant.prepare()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# Memory


def peak_bytes(variant: Variant, device: str) -> int:
    """Bytes of one warm call above what lay there before it."""
    _prepare(variant)
    if device != "cuda":
        return peak_rss(variant.call)
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = variant.call()
    torch.cuda.synchronize()
    del output
    return torch.cuda.max_memory_allocated() - before


def peak_rss(call: Callable[[], Any], above: int | None = None) -> int:
    """Bytes by which resident memory rose at the most during the call, above what lay there before
    it or above `above`.

    Linux counts it anew after a 5 is written to /proc/self/clear_refs. Where that is refused, the
    highest point of the process's whole life stands in, so call this in a fresh process.
    """
    gc.collect()
    _trim()
    before = resident_bytes() if above is None else above
    reset = True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        reset = False
    output = call()
    highest = _status("VmHWM")
    if not reset:
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del output
    return highest - before


def resident_bytes() -> int:
    return _status("VmRSS")


def _status(name: str) -> int:
    """Bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {name}")


def _trim() -> None:
    """Give freed memory back, so that a call which takes it again is seen to."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def in_fresh_process(arguments: Sequence[str], limit: float = 600.0) -> dict[str, Any] | None:
    """The JSON object that `python -m ARGUMENTS` prints last; None where it failed."""
    command = [sys.executable, "-m", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, ValueError, IndexError):
        return None


# Ceilings


def ceilings(device: str, dtype: torch.dtype, size: int | None = None) -> dict[str, float]:
    """FLOP/s of a large square matmul, bytes/s of a large copy (both ways): the best seen.

    In fp8 the matmul has a scale for each row and column, and gives bf16.
    """
    size = size or (8192 if device == "cuda" else 2048)
    a, b = torch.randn(2, size, size, device=device, dtype=torch.float32).to(dtype)
    if dtype == torch.float8_e4m3fn:
        from srlm_fast.model.fp8 import scaled_matmul

        ones = torch.ones(size, 1, device=device)
        matmul = partial(scaled_matmul, a, ones, b, ones, torch.bfloat16)
    else:
        matmul = partial(torch.matmul, a, b)
    source = torch.ones(
        (4 << 30) if device == "cuda" else (256 << 20), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    calls = [Variant("matmul", matmul), Variant("copy", lambda: target.copy_(source))]
    found = interleaved(calls, device, {"matmul": 0.0, "copy": 0.0}, 0.2, (3, 10))
    return {
        "matmul_flops": 2 * size**3 / (1e-3 * found["matmul"].low),
        "copy_bytes_per_s": 2 * source.numel() / (1e-3 * found["copy"].low),
    }


def read_rate(device: str) -> float:
    """Bytes/s of a large reduction: the best seen."""
    count = (1 << 30) if device == "cuda" else (64 << 20)
    source = torch.ones(count, device=device)
    calls = [Variant("sum", lambda: source.sum()), Variant("largest", lambda: source.amax())]
    found = interleaved(calls, device, {"sum": 0.0, "largest": 0.0}, 0.2, (3, 10))
    return 4 * count / (1e-3 * min(timing.low for timing in found.values()))


# Errors


def relative_error(out: Tensor, truth: Tensor) -> float:
    """|out - truth| / |truth|, Euclidean."""
    difference = torch.linalg.vector_norm(out.to(truth) - truth)
    return float(difference / torch.linalg.vector_norm(truth).clamp_min(1e-30))


def rms_error(out: Tensor, truth: Tensor) -> float:
    """Root of the mean square of out - truth."""
    return float((out.to(truth) - truth).square().mean().sqrt())


# Rows, tables, plots


def made_on(device: str, command: str, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Machine, versions and commit, as every row keeps them."""
    made = conditions(command)
    made["threads"] = torch.get_num_threads()
    made["load_average"] = round(os.getloadavg()[0], 2)
    made["commit"] = commit()
    made["versions"] |= {name: installed(name) for name in packages}
    if device == "cuda":
        made["cpu"], made["device"] = made["device"], torch.cuda.get_device_name()
        made["versions"]["cuda"] = torch.version.cuda
        made["driver"] = (_smi(("driver_version",)) or {}).get("driver_version")
    return made


def installed(name: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit measured, with a + where the working tree differs from it."""
    root = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    name = git("rev-parse", "--short", "HEAD")
    if name is None:
        return os.environ.get("SRLM_FAST_COMMIT", "unknown")
    return name + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def gpu_state(device: str) -> dict[str, str] | None:
    """Clocks, power and temperature, where nvidia-smi tells."""
    return _smi(SMI_FIELDS) if device == "cuda" else None


def _smi(fields: Sequence[str]) -> dict[str, str] | None:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.strip().splitlines()[0].split(", ")
    return dict(zip(fields, values, strict=False))


class RowFile:
    """Rows as JSON lines, each written at once: a run that is stopped keeps what it found."""

    def __init__(self, folder: Path, name: str, made: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.name, self.made = folder / f"{name}.jsonl", name, made
        self._file: TextIO = self.path.open("w", encoding="utf-8")

    def add(self, case: Mapping[str, Any], rows: Sequence[Row], **more: Any) -> None:
        for row in rows:
            whole = {"benchmark": self.name, "case": case, **asdict(row), **more, **self.made}
            self._file.write(json.dumps(whole) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What a RowFile wrote; a torn last line is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(head) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, *lines]
    )


def number(value: float | None) -> str:
    """Four digits or so, never an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def mebibytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**20:.{0 if size >= 10 << 20 else 1}f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def failure(error: BaseException) -> str:
    return f"failed: {one_line(error)}"


def one_line(error: BaseException) -> str:
    words = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {words[:140]}"


def bars(path: Path, groups: Mapping[str, Sequence[Row]], title: str) -> bool:
    """A plot with a panel per case, a bar per variant; False where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot", file=sys.stderr)
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {name: [row for row in rows if row.ms] for name, rows in groups.items()}
    groups = {name: rows for name, rows in groups.items() if rows}
    heights = [0.9 + 0.24 * len(rows) for rows in groups.values()] or [1.0]
    figure, panels = pyplot.subplots(
        len(heights),
        1,
        figsize=(9, sum(heights)),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    for panel, (name, rows) in zip(panels[:, 0], groups.items(), strict=False):
        _panel(panel, name, rows)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _panel(panel: Any, name: str, rows: Sequence[Row]) -> None:
    """Ours dark, bounds grey, wrong results hatched; memory beside the bar."""
    for place, row in enumerate(rows):
        ours = row.variant.startswith(OURS)
        colour = "0.75" if row.least else "tab:blue" if ours else "tab:orange"
        wrong = not row.least and not row.correct
        panel.barh(
            place,
            row.ms.p50,
            color=colour,
            hatch="///" if wrong else None,
            xerr=[[row.ms.p50 - row.ms.p20], [row.ms.p80 - row.ms.p50]],
        )
        memory = "" if row.peak_bytes is None else f", {mebibytes(row.peak_bytes)} MiB"
        text = f" {number(row.ms.p50)} ms{memory}{' (wrong)' if wrong else ''}"
        panel.text(row.ms.p80, place, text, va="center", fontsize=7)
    panel.set_yticks(range(len(rows)), [row.variant for row in rows], fontsize=7)
    panel.invert_yaxis()
    panel.set_xlim(0, 1.3 * max(row.ms.p80 for row in rows))
    panel.tick_params(axis="x", labelsize=7)
    panel.set_title(name, fontsize=8, loc="left")
