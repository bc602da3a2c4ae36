"""Does the tiny loop learn because its judge is right? The same seeds with three rewards.

    python -m benchmarks.tiny_controls [--first-seed 0] [--seeds 8] [--jobs N] [--work FOLDER]

Each seed makes one M1, from which three runs go on: rewarded by the model's own judgements (self),
by chance (random: what the loop does without a judge), by the world's program (gold: the ceiling).
Prints the table of the README and writes benchmarks/results/tiny_controls.json. A run that is
broken off goes on where it was when the same --work is given again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import conditions
from srlm_fast import run_folder
from srlm_fast.config import Config, differences, read_config, recipe, versions
from srlm_fast.loop import run
from srlm_fast.records import write_json_atomic, write_text_atomic

REWARDS = ("self", "random", "gold")
RESULTS = Path(__file__).parent / "results" / "tiny_controls.json"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- tiny-controls: begin", "<!-- tiny-controls: end -->"
LEAST_SEEDS = 8  # fewer are a trial, not the README's table
STATE = "state.json"


class Silent:
    """A screen that shows nothing."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> Silent:
        return self

    def note(self, text: str) -> None:
        """Nothing is shown."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: Any) -> None:
        """Nothing was opened."""

    def update(self, done: int, total: int | None = None, **figures: Any) -> None:
        """Nothing is shown."""


def share_m1(source: Path, target: Path) -> None:
    """Begin a run folder with another run's M1; the reward plays no part before M2."""
    shutil.copytree(source / "m1", target / "m1", dirs_exist_ok=True)
    state = json.loads((source / STATE).read_text("utf-8"))
    kept = {
        part: {name: value for name, value in state[part].items() if name.startswith("m1/")}
        for part in ("stages", "seconds")
    }
    write_json_atomic(target / STATE, kept)


def run_one(config: Config, folder: Path, m1_from: Path | None) -> dict[str, Any]:
    """Run, or go on with, one seed and reward in `folder`; returns its summary."""
    summary = run_folder.read_json(folder / run_folder.SUMMARY_FILE)
    config = replace(config, out=str(folder))
    if differing := run_folder.is_run_folder(folder) and differences(read_config(folder), config):
        first = differing[0]
        raise SystemExit(f"{folder}: made with {first.option} {first.there}, not {first.here}")
    if summary.get("finished"):
        return summary
    with run_folder.Lock(folder):
        if m1_from and not (folder / STATE).exists():
            share_m1(m1_from, folder)
        run_folder.write_config(folder, config.to_json(), versions())
        return run(config, Silent())


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What the table needs of one run."""
    models, rounds = summary["models"], summary["rounds"]
    return {
        "score": [model["eval"]["score"] for model in models],
        "bits": [model["eval"]["bits"] for model in models],
        "judge": [model["judge"]["pairwise_accuracy"] for model in models],
        "spearman": [model["judge"]["spearman"] for model in models],
        "length": [model["length_mean"] for model in models],
        "order_right": [row["judge_on_own"]["pairwise_accuracy"] for row in rounds],
        "pairs": [row["pairs"] for row in rounds],
        "seconds": summary["seconds"],
    }


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation over seeds."""
    found = list(values)
    deviation = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.fmean(found):.3f} ± {deviation:.3f}"


def gains(runs: Sequence[dict[str, Any]], last: int = -1, first: int = 0) -> list[float]:
    """Difference of two models' scores in each run."""
    return [row["score"][last] - row["score"][first] for row in runs]


def table(found: dict[str, list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    """Markdown: one line per reward and model, the gains, then self by seed."""
    lines = ["| reward | model | gold score | correct | clear | flawless | judge agrees |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for reward, runs in found.items():
        for t in range(len(runs[0]["score"])):
            bits = [spread(row["bits"][t][name] for row in runs) for name in BITS]
            cells = [reward, f"M{t + 1}", spread(row["score"][t] for row in runs), *bits]
            cells.append(spread(row["judge"][t] for row in runs))
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| reward | M3 − M1 | least | most |", "| --- | --- | --- | --- |"]
    for reward, runs in found.items():
        gain = gains(runs)
        lines.append(f"| {reward} | {spread(gain)} | {min(gain):+.3f} | {max(gain):+.3f} |")
    lines += ["", *by_seed(found["self"], seeds)]
    return "\n".join(lines)


BITS = ("correct", "clear", "flawless")


def by_seed(runs: Sequence[dict[str, Any]], seeds: Sequence[int]) -> list[str]:
    """The self-rewarded scores of each seed."""
    lines = ["| seed | M1 | M2 | M3 | M3 − M1 |", "| --- | --- | --- | --- | --- |"]
    for seed, row, gain in zip(seeds, runs, gains(runs), strict=True):
        scores = " | ".join(f"{score:.3f}" for score in row["score"])
        lines.append(f"| {seed} | {scores} | {gain:+.3f} |")
    return lines


def run_seed(seed: int, rewards: Sequence[str], work: Path) -> dict[str, dict[str, Any]]:
    """Figures of one seed by reward. One thread, so that seeds can run side by side."""
    torch.set_num_threads(1)
    found = {}
    for reward in rewards:
        start = time.perf_counter()
        config = replace(recipe("default", "tiny"), seed=seed, reward=reward)
        m1_from = None if reward == "self" else work / f"seed-{seed}-self"
        found[reward] = figures(run_one(config, work / f"seed-{seed}-{reward}", m1_from))
        scores = " ".join(f"{score:.3f}" for score in found[reward]["score"])
        seconds = time.perf_counter() - start
        print(f"seed {seed} {reward}: {scores} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS), choices=REWARDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="seeds side by side")
    parser.add_argument(
        "--work", type=Path, help="folder for the runs, gone on with if it holds some"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="tiny-controls-"))
    rewards = ["self", *(reward for reward in options.rewards if reward != "self")]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        rows = list(pool.map(partial(run_seed, rewards=rewards, work=work), seeds))
    found = {reward: [row[reward] for row in rows] for reward in rewards}
    text = table(found, seeds)
    print(text)
    command = f"python -m benchmarks.tiny_controls --first-seed {seeds[0]} --seeds {len(seeds)}"
    held_out = recipe("default", "tiny").evaluation
    made = conditions(command) | {"seeds": list(seeds), "evaluation": vars(held_out)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(options.out, made | {"runs": found})
    if options.out == RESULTS and len(seeds) >= LEAST_SEEDS:
        put_in_readme(text, made)
    return 0


def put_in_readme(text: str, made: dict[str, Any]) -> None:
    """The table between the README's two marks, with its conditions."""
    first, last = made["seeds"][0], made["seeds"][-1]
    evaluation, versions = made["evaluation"], made["versions"]
    note = (
        f"Mean ± standard deviation over seeds {first} to {last}; gold score from 0 to 5 over "
        f"{evaluation['num_prompts']} held-out instructions, {evaluation['samples']} answers each. "
        f"fp32, {made['device']}, torch {versions['torch']}; `{made['command']}`."
    )
    before, rest = README.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    begin = f"{BEGIN} (written by `python -m benchmarks.tiny_controls`) -->"
    write_text_atomic(README, f"{before}{begin}\n{text}\n\n{note}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
