"""A whole round M1 -> M2, per phase, against the same round assembled from libraries.

    python -m benchmarks.bench_round [--rounds 3] [--seed 0] [--prompts 512]

Each round runs two fresh processes one after the other: `python -m srlm_fast.run --iterations 1` on
the embedded model, and `benchmarks.assembled_round` (transformers' generate, a regular expression,
TRL's DPO trainer) on the M1 and the prompts that the first one made, with the same settings, rubric
and dtype. Both count from the prompts to the stored M2, without imports and loading. What they
sample differs by chance alone, so their counts stand beside the seconds. Ours judges equal answers
to a prompt once and fsyncs every row and checkpoint; the rival does neither.

Prints each round, then medians, spread and the ratio; writes
benchmarks/results/bench_round_cpu.json. Where there is a GPU both use it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import conditions
from srlm_fast.config import tiny
from srlm_fast.records import write_json_atomic

RESULTS = Path(__file__).parent / "results"
PHASES = ("sample", "judge", "learn")  # learn: pairs, reference log-probs, DPO, the model stored
BATCH_SEQUENCES = 256  # side by side in the rival; the sampler's own number


def settings(dtype: str) -> dict[str, Any]:
    """The embedded run's own numbers, in the names that the rival's libraries have."""
    c = tiny()

    def sampling(params: Any) -> dict[str, Any]:
        names = {"temperature": params.temperature, "top_p": params.top_p}
        return names | {"max_new_tokens": params.max_tokens}

    return {
        "candidates": c.candidates.n,
        "sampling": sampling(c.candidates),
        "judgements": c.judge.sampling.n,
        "judge_sampling": sampling(c.judge.sampling),
        "batch_sequences": BATCH_SEQUENCES,
        "learning_rate": c.dpo.learning_rate,
        "beta": c.dpo.beta,
        "batch_pairs": c.dpo.batch_pairs,
        "dtype": dtype,
    }


def ours(out: Path, seed: int, prompts: int) -> dict[str, Any]:
    """Seconds and counts of the round that made M2; the run folder is left."""
    options = ["--iterations", "1", "--seed", str(seed), "--num-prompts", str(prompts)]
    few = ["--eval-count", "8", "--eval-judged", "8"]  # measuring is no part of a round
    peak, _ = measured(["-m", "srlm_fast.run", *options, *few, "--out", str(out)])
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    stages = json.loads((out / "state.json").read_text("utf-8"))["seconds"]
    round_ = summary["rounds"][0]
    seconds = {name: round_["seconds"][name] for name in ("sample", "judge")}
    seconds["learn"] = stages["m2/pairs"] + stages["m2/train"]
    tokens = json.loads((out / "state.json").read_text("utf-8"))["stages"]["m2/answers"]["tokens"]
    counts = {"answer_tokens": tokens["answers"], "judge_tokens": tokens["judgements"]}
    return {
        "seconds": seconds,
        "counts": counts | {"pairs": round_["pairs"]},
        "peak_bytes": peak,
    }


def assembled(run: Path, out: Path, dtype: str) -> dict[str, Any]:
    """The rival's round on the run's M1 and prompts."""
    files = [str(run / "m1" / "model"), str(run / "m2" / "prompts.jsonl")]
    peak, printed = measured(
        ["-m", "benchmarks.assembled_round", *files, json.dumps(settings(dtype)), str(out)]
    )
    return json.loads(printed.splitlines()[-1]) | {"peak_bytes": peak}


def measured(arguments: list[str]) -> tuple[int, str]:
    """(peak resident bytes, what was printed) of a process."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen([sys.executable, *arguments], stdout=printed, stderr=noise)
        _, status, usage = os.wait4(process.pid, 0)
        printed.seek(0)
        noise.seek(0)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise SystemExit(f"{arguments[1]}: status {code}\n{noise.read()}")
        return usage.ru_maxrss * 1024, printed.read()


def total(row: dict[str, Any]) -> float:
    return sum(row["seconds"][phase] for phase in PHASES)


def line(name: str, row: dict[str, Any]) -> str:
    phases = "  ".join(f"{phase} {row['seconds'][phase]:6.2f}" for phase in PHASES)
    c = row["counts"]
    return (
        f"{name:<10} {total(row):7.2f} s   {phases}   {c['answer_tokens']:,} + "
        f"{c['judge_tokens']:,} tokens, {c['pairs']} pairs, {row['peak_bytes'] / 2**20:,.0f} MiB"
    )


def compare(seed: int, prompts: int, dtype: str) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        found = {"ours": ours(run, seed, prompts)}
        found["assembled"] = assembled(run, Path(folder) / "assembled", dtype)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=512)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rounds = []
    for _ in range(options.rounds):
        dtype = "bfloat16" if device == "cuda" else "float32"
        rounds.append(compare(options.seed, options.prompts, dtype))
        print("\n".join(line(name, row) for name, row in rounds[-1].items()), flush=True)
    ratios = sorted(total(r["assembled"]) / total(r["ours"]) for r in rounds)
    summary = {name: statistics.median(total(r[name]) for r in rounds) for name in rounds[0]}
    for phase in PHASES:
        each = [r["assembled"]["seconds"][phase] / r["ours"]["seconds"][phase] for r in rounds]
        print(f"  {phase:<8} {statistics.median(each):6.1f} times as fast")
    print(
        f"  {'round':<8} {statistics.median(ratios):6.1f} times as fast "
        f"({ratios[0]:.1f} to {ratios[-1]:.1f}); medians "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in summary.items())
    )
    command = f"python -m benchmarks.bench_round --rounds {options.rounds} --seed {options.seed}"
    made = conditions(f"{command} --prompts {options.prompts}")
    rivals = {name: importlib.metadata.version(name) for name in ("transformers", "trl")}
    RESULTS.mkdir(exist_ok=True)
    write_json_atomic(
        RESULTS / f"bench_round_{device}.json",
        made | {"rivals": rivals, "medians": summary, "ratios": ratios, "rounds": rounds},
    )


if __name__ == "__main__":
    main()
