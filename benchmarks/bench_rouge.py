"""The ROUGE-L filter of new prompts against the `rouge-score` package.

    python -m benchmarks.bench_rouge [--pools 1000 10000 100000] [--candidates 1000] [--pairs 4000]

Texts have 5 to 60 words drawn by Zipf's law from 30,000, as prompts have; a third of the candidates
are texts of the pool with up to half of their words changed, so that both verdicts occur. For each
pool, in a process of its own with one OpenMP thread and with two, seconds per 1,000 candidates from
their texts to their verdicts (is the largest F-measure at least 0.7?), the same for the exact
maximum, and for near duplicates by word pairs.

`rouge-score` (`RougeScorer(["rougeL"]).score`, one process, and two side by side) scores a sample
of pairs of the same texts. Its time for a pool is that of a pair times the pairs: it would take
hours. How many times as fast ours is, is told by CPU seconds, which other work on the machine
changes little; either shares its work over cores. Our verdicts and maxima are checked against it on
all pairs of some candidates with a pool of the first 300 texts.

Prints a row for each pool and number of threads; writes benchmarks/results/bench_rouge_cpu.jsonl.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import commit
from benchmarks.machine import conditions
from srlm_fast.data import RougePool, word_pairs
from srlm_fast.data.nearness import SLACK
from srlm_fast.records import dump_row

RESULTS = Path(__file__).parent / "results" / "bench_rouge_cpu.jsonl"
VOCABULARY, SHORTEST, LONGEST = 30_000, 5, 60
LIMIT, NEAR_LIMIT = 0.7, 0.8
CHECKED_POOL, CHECKED = 300, 60
TURNS = 5


def texts_of(count: int, seed: int) -> list[str]:
    """Zipf texts."""
    draw = np.random.default_rng(seed)
    shares = 1 / np.arange(1, VOCABULARY + 1)
    lengths = draw.integers(SHORTEST, LONGEST + 1, size=count)
    words = draw.choice(VOCABULARY, size=lengths.sum(), p=shares / shares.sum())
    ends = np.cumsum(lengths)
    return [
        " ".join(f"w{word}" for word in words[end - length : end])
        for end, length in zip(ends, lengths, strict=True)
    ]


def candidates_of(pool: Sequence[str], count: int, seed: int) -> list[str]:
    """New texts, every third a changed one of the pool."""
    draw = np.random.default_rng(seed)
    found = texts_of(count, seed)
    for i in range(0, count, 3):
        words = pool[draw.integers(len(pool))].split()
        share = draw.uniform(0, 0.5)
        changed = [w if draw.random() > share else f"w{draw.integers(VOCABULARY)}" for w in words]
        found[i] = " ".join(changed)
    return found


def timed(work: Callable[[], Any], turns: int = TURNS) -> dict[str, float]:
    """Median seconds and CPU seconds of the process."""
    walls, busy = [], []
    for _ in range(turns):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        busy.append(time.process_time() - cpu)
    return {"seconds": statistics.median(walls), "cpu_seconds": statistics.median(busy)}


def ours(pool_size: int, count: int) -> dict[str, Any]:
    """Our times in this process, per 1,000 candidates."""
    texts = texts_of(pool_size, 0)
    candidates = candidates_of(texts, count, 1)
    pools: dict[str, RougePool] = {}
    building = timed(lambda: pools.update(rouge_l=RougePool(texts)), 1)
    pools["pairs"] = RougePool(texts, word_pairs, in_order=False)
    least = LIMIT - SLACK
    verdicts = pools["rouge_l"].best_each(candidates, least) >= least
    works: dict[str, Callable[[], Any]] = {
        "verdicts": lambda: pools["rouge_l"].best_each(candidates, least),
        "maximum": lambda: pools["rouge_l"].best_each(candidates),
        "near": lambda: pools["pairs"].best_each(candidates, NEAR_LIMIT - SLACK),
    }
    found = {name: per_thousand(timed(work), count) for name, work in works.items()}
    return found | {"building": building, "rejected": float(verdicts.mean())}


def per_thousand(times: dict[str, float], count: int) -> dict[str, float]:
    return {name: value * 1000 / count for name, value in times.items()}


def in_process(pool_size: int, count: int, threads: int) -> dict[str, Any]:
    """`ours` in a process with so many threads."""
    arguments = ["--ours", str(pool_size), "--candidates", str(count)]
    command = [sys.executable, "-m", "benchmarks.bench_rouge", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    made = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return json.loads(made.stdout.splitlines()[-1])


def pairs_sample(count: int) -> list[tuple[str, str]]:
    texts = texts_of(count, 0)
    return list(zip(candidates_of(texts, count, 1), texts, strict=True))


def score_pairs(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The package's F-measures."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [scorer.score(one, two)["rougeL"].fmeasure for one, two in pairs]


def package_times(count: int) -> dict[int, dict[str, float]]:
    """Seconds of a pair by the package, in one process and in two that share the
    pairs."""
    pairs = pairs_sample(count)
    one = timed(lambda: score_pairs(pairs), 1)
    with multiprocessing.Pool(2) as workers:
        workers.map(score_pairs, [pairs[:8], pairs[:8]])  # imports
        two = timed(lambda: workers.map(score_pairs, [pairs[::2], pairs[1::2]]), 1)
    return {1: {n: v / count for n, v in one.items()}, 2: {"seconds": two["seconds"] / count}}


def agreement() -> dict[str, Any]:
    """Largest difference from the package over the maxima of some candidates, and verdicts that
    differ."""
    texts = texts_of(CHECKED_POOL, 0)
    candidates = candidates_of(texts, CHECKED, 1)
    scores = score_pairs([(candidate, text) for candidate in candidates for text in texts])
    theirs = np.array(scores).reshape(CHECKED, CHECKED_POOL).max(axis=1)
    pool = RougePool(texts)
    found, least = pool.best_each(candidates), LIMIT - SLACK
    verdicts = pool.best_each(candidates, least) >= least
    return {
        "pairs": len(scores),
        "largest_difference": float(abs(found - theirs).max()),
        "rejected": int((theirs >= least).sum()),
        "verdicts_that_differ": int((verdicts != (theirs >= least)).sum()),
    }


def line(row: dict[str, Any]) -> str:
    times = "".join(f"{row[name]['seconds']:>10.3f}" for name in ("verdicts", "maximum", "near"))
    return (
        f"{row['pool']:>8,}{row['threads']:>8}{times}{row['rejected']:>9.0%}"
        f"{row['rouge_score_seconds']:>14,.0f}{row['times']:>12,.0f}"
    )


HEAD = (
    f"{'pool':>8}{'threads':>8}{'verdicts':>10}{'maximum':>10}{'near':>10}{'rejected':>9}"
    f"{'rouge-score':>14}{'times':>12}   (seconds per 1,000 candidates)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pools", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=4000, help="that rouge-score is timed on")
    parser.add_argument("--ours", type=int, metavar="POOL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(options.ours, options.candidates)))
        return
    checked, package = agreement(), package_times(options.pairs)
    print(f"against rouge-score: {json.dumps(checked)}")
    print(
        f"rouge-score: {1 / package[1]['seconds']:,.0f} pairs/s, two processes "
        f"{1 / package[2]['seconds']:,.0f} pairs/s\n{HEAD}"
    )
    made = conditions(f"python -m benchmarks.bench_rouge --candidates {options.candidates}")
    made |= {
        "commit": commit(),
        "rouge_score": importlib.metadata.version("rouge-score"),
        "agreement": checked,
    }
    rows, cpu = [], package[1]["cpu_seconds"]
    for pool in options.pools:
        for threads in (1, 2):
            theirs = package[threads]["seconds"] * pool * 1000
            row = {
                "pool": pool,
                "threads": threads,
                **in_process(pool, options.candidates, threads),
            }
            row |= {"rouge_score_pairs_per_second": 1 / package[threads]["seconds"]}
            row |= {
                "rouge_score_seconds": theirs,
                "times": cpu * pool * 1000 / row["verdicts"]["cpu_seconds"],
            }
            print(line(row), flush=True)
            rows.append(made | row)
    RESULTS.write_text("".join(dump_row(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
