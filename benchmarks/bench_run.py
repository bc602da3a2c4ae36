"""The default run as a user starts it: seconds, CPU seconds and peak memory of the process.

    python -m benchmarks.bench_run [--runs 3] [--seed 0]

Each run is a fresh process with a fresh folder. Prints each run, then the median, and the seconds
of each stage of the median run; writes benchmarks/results/bench_run_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import conditions
from srlm_fast.records import write_json_atomic

RESULTS = Path(__file__).parent / "results" / "bench_run_cpu.json"


def run_once(seed: int) -> dict[str, Any]:
    """One run from nothing. The process's own accounting gives CPU seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "srlm_fast.run", "--seed", str(seed), "--out", str(out)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"the run failed with status {os.waitstatus_to_exitcode(status)}")
        summary = json.loads((out / "summary.json").read_text("utf-8"))
        stages = json.loads((out / "state.json").read_text("utf-8"))["seconds"]
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "scores": [model["eval"]["score"] for model in summary["models"]],
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runs = []
    for number in range(options.runs):
        runs.append(run_once(options.seed))
        print(f"run {number + 1}: {line(runs[-1])}", flush=True)
    middle = sorted(runs, key=lambda row: row["seconds"])[len(runs) // 2]
    for stage, seconds in middle["stages"].items():
        print(f"  {stage:<14} {seconds:6.1f} s")
    medians = {
        name: statistics.median(row[name] for row in runs)
        for name in ("seconds", "cpu_seconds", "peak_bytes")
    }
    print(f"median of {len(runs)}: {line(middle | medians)}")
    command = f"python -m benchmarks.bench_run --runs {options.runs} --seed {options.seed}"
    made = conditions(command) | {"threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(exist_ok=True)
    write_json_atomic(RESULTS, made | {"median": medians, "runs": runs})


def line(row: dict[str, Any]) -> str:
    scores = " -> ".join(f"{score:.2f}" for score in row["scores"])
    return (
        f"{row['seconds']:.1f} s wall, {row['cpu_seconds']:.1f} s CPU, "
        f"{row['peak_bytes'] / 2**20:.0f} MiB peak, held-out score {scores}"
    )


if __name__ == "__main__":
    main()
