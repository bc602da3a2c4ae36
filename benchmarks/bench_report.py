"""The page of a run: seconds to make it in a fresh process, its bytes, and its first paint.

    python -m benchmarks.bench_report [--candidates 10000] [--runs 3]

The run is made up: two rounds, together of so many candidates, four to a prompt, with three
judgements each; answers of some 600 and judgements of some 350 characters, of words that are as
frequent as their rank in a vocabulary of 20,000 says (Zipf), which packs worse than a model's own
text. First paint is what the browser's own performance entries say, for a file on the disk, in
headless Chromium where there is one. Also the seconds until the first example stands there and of
a search over all texts. Writes benchmarks/results/bench_report_cpu.json; exit status 1 where
a figure is not below what is wanted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.harness import commit
from benchmarks.machine import conditions
from srlm_fast.records import write_json_atomic
from tests.report.folders import make_folder

RESULTS = Path(__file__).parent / "results" / "bench_report_cpu.json"
VOCABULARY = 20_000
ANSWER_WORDS, JUDGEMENT_WORDS = (40, 160), (30, 80)
LIMITS = {"seconds": 5.0, "bytes": 15e6, "first_paint_seconds": 1.0}


def words_of(rng: random.Random) -> list[str]:
    letters = "etaoinshrdlcumwfgypbvk"
    return ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(VOCABULARY)]


def writer(lengths: tuple[int, int]) -> Callable[[random.Random], str]:
    """Texts of between so many words."""
    words = words_of(random.Random(1))
    weights = list(accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))

    def write(rng: random.Random) -> str:
        count = rng.randint(*lengths)
        return " ".join(rng.choices(words, cum_weights=weights, k=count)).capitalize() + "."

    return write


def make(folder: Path) -> dict[str, float]:
    """One page by the command, in a process of its own."""
    command = [sys.executable, "-m", "srlm_fast.report", str(folder)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"the report failed with status {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def paint(page: Path) -> dict[str, Any] | None:
    """Seconds from the start of loading, None without a browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser is None:
        return None
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab = opened.new_page()
        tab.goto(page.absolute().as_uri())
        tab.wait_for_selector(".example")
        shown = tab.evaluate("performance.now()") / 1000
        entries = tab.evaluate(
            "performance.getEntriesByType('paint').map(e => [e.name, e.startTime])"
        )
        searched = search_seconds(tab)
        version = opened.version
        opened.close()
    first = dict(entries).get("first-contentful-paint", entries[0][1])
    return {
        "first_paint_seconds": first / 1000,
        "first_example_seconds": shown,
        "search_seconds": searched,
        "browser": f"Chromium {version}",
    }


def search_seconds(tab: Any) -> float:
    """From typing a word that no text holds until nothing is listed, the wait of 0.12 s for more
    typing included."""
    start = time.perf_counter()
    tab.fill("#search", "no such words anywhere")
    tab.wait_for_selector(".example", state="detached")
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        prompts = options.candidates // 8
        make_folder(folder, prompts, answer=writer(ANSWER_WORDS), verdict=writer(JUDGEMENT_WORDS))
        rows = sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
        runs = [make(folder) for _ in range(options.runs)]
        page = folder / "report.html"
        size = page.stat().st_size
        shown = [found for _ in range(options.runs) if (found := paint(page)) is not None]
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    median |= {"bytes": size, "rows_bytes": rows}
    for name in ("first_paint_seconds", "first_example_seconds", "search_seconds"):
        if shown:
            median[name] = statistics.median(found[name] for found in shown)
    missed = [name for name, limit in LIMITS.items() if median.get(name, 0.0) >= limit]
    for name, value in median.items():
        wanted = f"  (wanted below {LIMITS[name]:,g})" if name in LIMITS else ""
        print(f"{name:<24}{value:>16,.2f}{wanted}{'  MISSED' if name in missed else ''}")
    if not shown:
        print("no Chromium or no playwright here: first paint was not measured")
    command = f"python -m benchmarks.bench_report --candidates {options.candidates}"
    made = conditions(f"{command} --runs {options.runs}") | {"commit": commit()}
    RESULTS.parent.mkdir(exist_ok=True)
    write_json_atomic(RESULTS, made | {"median": median, "runs": runs, "browser": shown})
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
