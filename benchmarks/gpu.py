"""Everything that wants a GPU, in one call of less than nine minutes.

    python -m benchmarks.gpu [--out FOLDER] [--only NAME ...] [--seconds 525]

Builds the extension in place, runs the tests marked `gpu`, then every benchmark of `BENCHMARKS`,
each with a limit of seconds after which it is cut short; what it had written by then counts.
Installs nothing. Writes into FOLDER `rows.jsonl` (all rows, with their conditions), `log.txt`,
`table.txt` and a plot per benchmark. The table comes last, the figures aimed at beside those found.

Exit status: 0 done, 1 when tests or a benchmark failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import OneLineParser, unwritable
from benchmarks.harness import mebibytes, percent, ratio, read_rows, table

ROOT = Path(__file__).parents[1]
BUILD_SECONDS, TEST_SECONDS, ALL_SECONDS = 90, 170, 525
# Name in this folder, seconds at most, more arguments. Each is called with `--device cuda --out
# FOLDER` and writes FOLDER/*.jsonl with the rows of `harness.RowFile`, and FOLDER/*.png.
BENCHMARKS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("bench_phases", 150, ()),
    ("bench_sampler", 150, ("--seconds", "120")),
    ("bench_paged_attention", 60, ("--seconds", "45")),
    ("bench_segment_attention", 30, ("--seconds", "20")),
    ("bench_sample_tokens", 30, ("--seconds", "20")),
    ("bench_judge_score", 30, ("--seconds", "20")),
    ("bench_linear_logprob", 200, ("--seconds", "150")),
    ("bench_dpo_loss", 45, ()),
    ("bench_model_ops", 75, ("--seconds", "60")),
    ("bench_expected_scores", 30, ("--seconds", "20")),
)
# Cases of a benchmark in the table, so that it fits a screen or two.
CASES_SHOWN = 12
MODELS = ("llama-2-70b", "llama-3-8b")
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """One thing that was run. status: "ok", "skipped", "left out" for want of time, "cut short",
    "failed", "over time".
    """

    name: str
    status: str
    seconds: float
    last_line: str

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "over time")


def run(name: str, command: Sequence[str], limit: float, log: Path) -> Step:
    """Run it, its output into the log; kill it and all it started when the limit is over."""
    start = time.perf_counter()
    if limit < 1:
        return Step(name, "left out", 0.0, "no time left")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n== {name}: {' '.join(command)}\n")
        file.flush()
        begin, place = file.tell(), {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | place,
            start_new_session=True,
        )
        try:
            status = "failed" if process.wait(limit) else "ok"
        except subprocess.TimeoutExpired:
            status = "over time"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = log.read_bytes()[begin:].decode("utf-8", "replace").strip().splitlines()
    return Step(name, status, time.perf_counter() - start, said[-1] if said else "")


def build(limit: float, log: Path) -> Step:
    missing = [name for name in ("pybind11", "setuptools") if not importlib.util.find_spec(name)]
    if missing:
        return Step("build", "skipped", 0.0, f"this interpreter has no {' and no '.join(missing)}")
    return run("build", [sys.executable, "setup.py", "build_ext", "--inplace"], limit, log)


def tests(limit: float, log: Path) -> Step:
    """Side by side where pytest-xdist is installed: most of their time is compilation."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "8"]
    return run("tests", command, limit, log)


def benchmark(
    name: str, more: Sequence[str], limit: float, log: Path, out: Path
) -> tuple[Step, Rows]:
    """Run one benchmark; its plots go to `out`, its rows into rows.jsonl there."""
    with tempfile.TemporaryDirectory(dir=out, prefix=name) as folder:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--device", "cuda", "--out", folder]
        step = run(name, [*command, *more], limit, log)
        for plot in Path(folder).glob("*.png"):
            plot.rename(out / plot.name)
        rows = [row for path in sorted(Path(folder).glob("*.jsonl")) for row in read_rows(path)]
    with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    if step.status == "over time" and rows:
        step = replace(step, status="cut short")  # the telling cases come first
    return step, rows


def everything(options: argparse.Namespace, log: Path) -> tuple[list[Step], Rows]:
    end = time.perf_counter() + options.seconds
    steps: list[Step] = []
    rows: Rows = []

    def left(limit: float) -> float:
        return min(limit, end - time.perf_counter())

    def done(step: Step) -> None:
        steps.append(step)
        print(f"{step.name}: {step.status}, {step.seconds:.0f} s, {step.last_line}", flush=True)

    if not options.only or "build" in options.only:
        done(build(left(BUILD_SECONDS), log))
    if not options.only or "tests" in options.only:
        done(tests(left(TEST_SECONDS), log))
    for name, limit, more in BENCHMARKS:
        if not options.only or name in options.only:
            step, found = benchmark(name, more, left(limit), log, options.out)
            done(step)
            rows += found
    return steps, rows


# What was found


def summary(rows: Rows) -> str:
    """A line per case: ours beside the floor and the fastest right rival."""
    lines = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        own = [row for row in rows if row["benchmark"] == benchmark]
        names = list(dict.fromkeys(map(_case, own)))
        lines += [_summed_up(name, _rows_of(own, name)) for name in names[:CASES_SHOWN]]
        if len(names) > CASES_SHOWN:
            more = f"{len(names) - CASES_SHOWN} more of {benchmark} in rows.jsonl"
            lines.append([more, *[""] * 7])
    return table(["case", "ours ms", "rate", "x least", "MiB", "rival ms", "MiB", "rival"], lines)


def _summed_up(name: str, case: dict[str, Any]) -> list[str]:
    ours = _ours(case)
    if not ours.get("ms"):
        return [name, *[""] * 6, f"ours: {ours.get('reason')}"[:60]]
    found = [
        f"{_ms(ours):.3g}" + ("" if ours.get("correct") else " WRONG"),
        percent(ours.get("share_of_rate")),
        ratio(ours.get("times_least")),
        mebibytes(ours.get("peak_bytes")),
    ]
    right = [row for row in case.values() if row.get("correct") and row.get("ms")]
    rivals = [r for r in right if not r["variant"].startswith("ours") and not r.get("computes")]
    if not rivals:
        return [name, *found, "", "", "none"]
    best = min(rivals, key=_ms)
    return [name, *found, f"{_ms(best):.3g}", mebibytes(best.get("peak_bytes")), best["variant"]]


def _ours(case: dict[str, Any]) -> dict[str, Any]:
    """The row called "ours"; where there is none, the fastest right one of ours."""
    found = [row for name, row in case.items() if name.startswith("ours")]
    right = [row for row in found if row.get("correct") and row.get("ms")]
    return case.get("ours") or min(right, key=_ms, default=(found or [{"reason": "not run"}])[0])


def _case(row: dict[str, Any]) -> str:
    case = row.get("case")
    return str(case.get("name")) if isinstance(case, dict) else str(case)


def _ms(row: dict[str, Any]) -> float:
    return row["ms"]["p50"]


def targets(rows: Rows) -> str:
    """The figures aimed at, beside those found."""
    lines = []
    for model in MODELS:
        whole = _rows_of(rows, f"{model} frozen 100 % random")
        half = _rows_of(rows, f"{model} frozen 50 % random")
        trained = _rows_of(rows, f"{model} trainable 100 % random")
        # Time and memory are aimed at together, so both are of one variant.
        mine = "ours over hidden" if "ours over hidden" in whole else "ours"
        cce, liger = ("CCE exact",), ("Liger DPO", "Liger DPO uncompiled")
        over_floor = whole.get("ours", {}).get("times_least")
        memory = _memory(whole, mine, *cce)
        lines += [
            _target(f"{model} frozen, ours over its matmuls", "<=", 1.15, over_floor),
            _target(
                f"  CCE exact over {mine}",
                ">=",
                1.3,
                _faster(whole, cce, (mine,)),
                _reason(whole, *cce),
            ),
            _target(f"  memory, {mine} over CCE exact", "<", 1.0, memory, _reason(whole, *cce)),
            _target("  Liger DPO over ours DPO", ">=", 2.0, _faster(whole, liger, ("ours DPO",))),
            _target("  half the rows", ">=", 4.0, _faster(half, liger, ("ours DPO",))),
            _target(
                f"{model} trainable, quack over ours",
                ">=",
                0.9,
                _faster(trained, ("quack",), ("ours", "ours all kept")),
                _reason(trained, "quack"),
            ),
        ]
    lines += sampler_targets(rows)
    cases = [_rows_of(rows, f"{model} 1024 rows") for model in MODELS]
    found = [_faster(case, ("eager", "torch.compile"), ("ours",)) for case in cases]
    worst = min((faster for faster in found if faster), default=None)
    lines.append(_target("expected scores, all logits over ours", ">=", 20, worst))
    lines += score_targets(rows) + phase_targets(rows)
    return table(["target", "wanted", "found", ""], lines)


def score_targets(rows: Rows) -> list[list[str]]:
    """Of reading written scores."""
    case = _rows_of(rows, "B=4096 L=512")
    found = _faster(case, ("eager", "row by row"), ("ours",))
    row = case.get("ours", {})
    micros = 1e3 * _ms(row) if row.get("correct") and row.get("ms") else None
    return [
        _target("scores of 4,096 x 512 ids, text and regex over ours", ">=", 100, found),
        _target("  microseconds", "<=", 100, micros),
    ]


def phase_targets(rows: Rows) -> list[list[str]]:
    """Of sampling and training in one process on one copy of the weights."""
    large, small = (_rows_of(rows, f"{model} phases").get("ours", {}) for model in MODELS)
    rates = large.get("tokens_per_s", {}).values()
    seconds = _ms(large) / 1e3 if large.get("correct") else None
    stayed = [float(row["weights_stayed"]) for row in (large, small) if row]
    return [
        _target("llama-2-70b fp8 + LoRA, sampling, tokens/s", ">=", 2500, min(rates, default=None)),
        _target("  seconds of a DPO step of 16 pairs x 750", "<=", 40, seconds),
        _target("llama-3-8b DPO step, share of matmul", ">=", 0.5, small.get("share_of_rate")),
        _target("weights at the same addresses", ">=", 1, min(stayed, default=None)),
    ]


def sampler_targets(rows: Rows) -> list[list[str]]:
    """Of a whole work, and of the attention in it: shares of what the device can do."""
    fast, exact = "ours bf16", "ours bf16 deterministic"
    chat = _rows_of(rows, "llama-3-8b chat1k")
    row = chat.get(fast, {})
    right = row if row.get("correct") and row.get("ms") else {}
    rate = (right.get("tokens_per_s") or [None])[0]
    cost = _faster(chat, (exact,), (fast,))
    lines = [
        _target("llama-3-8b chat1k, share of the roofline", ">=", 0.8, right.get("share_of_rate")),
        _target("  tokens/s on an H200", ">=", 8850, rate, _reason(chat, fast)),
        _target("  share of the time the GPU is busy", ">=", 0.97, right.get("busy")),
        _target("  deterministic over not", "<=", 1.1, cost, _reason(chat, exact)),
    ]
    for model in MODELS:
        names = (f"{model} decode {batch} x 1024" for batch in (64, 256))
        found = [case["ours"] for name in names if "ours" in (case := _rows_of(rows, name))]
        shares = [row["share_of_rate"] for row in found if row.get("correct") and row.get("ms")]
        least = min(shares) if shares and len(shares) == len(found) else None
        words = f"{model} decode attention, share of the read rate"
        lines.append(_target(words, ">=", 0.85, least))
    return lines


def _target(words: str, sign: str, bound: float, found: float | None, why: str = "") -> list[str]:
    wanted = f"{sign} {bound:g}"
    if found is None:
        return [words, wanted, "", f"no figure: {why or 'not run'}"[:60]]
    met = {"<=": found <= bound, "<": found < bound, ">=": found >= bound}[sign]
    return [words, wanted, ratio(found), "met" if met else "MISSED"]


def _memory(case: dict[str, Any], mine: str, theirs: str) -> float | None:
    """Our peak over theirs; None unless there are right results of both."""
    if _faster(case, (theirs,), (mine,)) is None:
        return None
    return case[mine]["peak_bytes"] / max(case[theirs]["peak_bytes"], 1)


def _rows_of(rows: Rows, name: str) -> dict[str, Any]:
    return {row["variant"]: row for row in rows if _case(row) == name}


def _faster(case: dict[str, Any], theirs: Sequence[str], mine: Sequence[str]) -> float | None:
    """Their fastest time over our fastest; None unless there are right results of both."""

    def fastest(names: Sequence[str]) -> float | None:
        found = [case[n] for n in names if n in case and case[n]["ms"] and case[n]["correct"]]
        return min(map(_ms, found), default=None)

    them, us = fastest(theirs), fastest(mine)
    return None if them is None or us is None else them / us


def _reason(case: dict[str, Any], name: str) -> str:
    row = case.get(name)
    return "not run" if row is None else row["reason"] or ("" if row["correct"] else "wrong")


def heading(rows: Rows) -> str:
    if not rows:
        return f"{torch.cuda.get_device_name()}: no rows"
    row = rows[0]
    top, state = row.get("ceilings") or {}, row.get("gpu_state") or {}
    parts = [
        row["device"],
        f"commit {row['commit']}",
        f"torch {torch.__version__}",
        f"matmul {top.get('matmul_flops', 0) / 1e12:.0f} TFLOP/s",
        f"copy {top.get('copy_bytes_per_s', 0) / 1e12:.2f} TB/s",
        *(f"{name} {value}" for name, value in state.items()),
    ]
    return ", ".join(parts)


def written_out(steps: Sequence[Step], rows: Rows) -> str:
    lines = [[s.name, s.status, f"{s.seconds:.0f} s", s.last_line[:70]] for s in steps]
    parts = [heading(rows), table(["step", "", "", ""], lines)]
    if rows:
        parts += [summary(rows), targets(rows)]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ("build", "tests", *(name for name, *_ in BENCHMARKS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="default: runs/gpu")
    parser.add_argument("--only", nargs="+", choices=names, help="these steps alone")
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="of all steps together")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: no GPU here", file=sys.stderr)
        return 2
    if mistake := unwritable(options.out):
        print(f"benchmarks.gpu: {mistake}", file=sys.stderr)
        return 2
    options.out = options.out.resolve()
    log = options.out / "log.txt"
    for old in (log, options.out / "rows.jsonl"):
        old.write_text("")
    steps, rows = everything(options, log)
    text = written_out(steps, rows)
    (options.out / "table.txt").write_text(text + "\n")
    print("\n" + text)
    return int(any(step.failed for step in steps))


if __name__ == "__main__":
    sys.exit(main())
