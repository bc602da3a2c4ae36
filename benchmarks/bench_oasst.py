"""Seeds from files of Open Assistant's size: seconds, CPU seconds and peak memory of the command.

    python -m benchmarks.bench_oasst [--trees 66000] [--runs 3]

Makes a corpus like the published one (66,000 trees with about 161,000 messages, of which 10,300
trees are ready for export and hold 55 % of the messages; 44 % English; answers of some 650
characters; all fields) and writes it as trees.jsonl.gz, as flat messages.jsonl in the order of
their dates, and as parquet. Each run is `python -m srlm_fast.data oasst` with its defaults in a
fresh process; all three must give the same rows. Prints the median of each form; writes
benchmarks/results/bench_oasst_cpu.json.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench_oasst_cpu.json"
FORMS = ("trees.jsonl.gz", "messages.jsonl", "messages.parquet")
ROWS = ("ift.jsonl", "eft_train.jsonl", "eft_eval.jsonl")
LANGUAGES = {"en": 44, "es": 27, "ru": 9, "de": 4, "zh": 3, "fr": 3, "pt-BR": 3, "it": 2, "th": 5}
LABELS = (
    *("spam", "lang_mismatch", "pii", "not_appropriate", "hate_speech", "sexual_content"),
    *("quality", "toxicity", "humor", "helpfulness", "creativity", "violence"),
)
TOXICITY = (
    *("toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat"),
    "sexual_explicit",
)
# Of 1000: how many replies a message has, by its depth; what lies below depth 4 has none.
READY = ((0, 30, 300, 550, 120), (500, 370, 110, 20), (60, 300, 450, 190), (840, 150, 10))
READY_SHARE, LEAST_CHARACTERS = 10_364 / 66_497, 12


class Corpus:
    """Trees that depend on the seed alone."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        letters = "eeetaoinshrdlucmfwygpb"
        self.words = [
            "".join(self.draw.choices(letters, k=self.draw.randint(2, 9))) for _ in range(4000)
        ]

    def trees(self, count: int, ready_share: float = READY_SHARE) -> Iterator[dict[str, Any]]:
        for _ in range(count):
            ready = self.draw.random() < ready_share
            lang = self.draw.choices([*LANGUAGES], [*LANGUAGES.values()])[0]
            prompt = self.message(None, 0, lang, ready)
            state = "ready_for_export" if ready else "prompt_lottery_waiting"
            yield {
                "message_tree_id": prompt["message_id"],
                "tree_state": state,
                "prompt": prompt,
            }

    def message(self, parent: str | None, depth: int, lang: str, ready: bool) -> dict[str, Any]:
        draw = self.draw
        made = {
            "message_id": self.uuid(),
            "parent_id": parent,
            "user_id": self.uuid(),
            "created_date": f"2023-02-{draw.randint(1, 28):02d}T09:{draw.randint(10, 59)}:00+00:00",
            "text": self.text(110 if depth % 2 == 0 else 650),
            "role": ("prompter", "assistant")[depth % 2],
            "lang": lang,
            "review_count": 3,
            "review_result": draw.random() > 0.01,
            "deleted": draw.random() < 0.02,
            "rank": None,
            "synthetic": False,
            "model_name": None,
            "detoxify": {name: draw.random() / 50 for name in TOXICITY},
            "emojis": {"+1": draw.randint(1, 9), "_skip_reply": 2},
            "labels": {name: {"value": draw.randint(0, 12) / 12, "count": 3} for name in LABELS},
        }
        replies = [
            self.message(made["message_id"], depth + 1, lang, ready)
            for _ in range(self.replies(depth, ready))
        ]
        if len(replies) > 1 and depth % 2 == 0 and ready:
            for rank, reply in enumerate(draw.sample(replies, len(replies))):
                reply["rank"] = rank
        return made | {"replies": replies}

    def replies(self, depth: int, ready: bool) -> int:
        if not ready:
            return depth == 0 and self.draw.choices((0, 1, 2), (78, 16, 6))[0]
        weights = READY[depth] if depth < len(READY) else (1,)
        return self.draw.choices(range(len(weights)), weights)[0]

    def text(self, mean: int) -> str:
        length = max(LEAST_CHARACTERS, int(self.draw.lognormvariate(0, 0.8) * mean * 0.73))
        return " ".join(self.draw.choices(self.words, k=max(2, length // 6)))

    def uuid(self) -> str:
        digits = f"{self.draw.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def flat(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The messages of a tree as the flat files have them, labels and emojis as lists."""
    stack = [tree["prompt"]]
    outer = {name: tree[name] for name in ("message_tree_id", "tree_state")}
    while stack:
        message = dict(stack.pop())
        stack += message.pop("replies")
        labels, emojis = message["labels"], message["emojis"]
        yield (
            message
            | outer
            | {
                "emojis": {"name": [*emojis], "count": [*emojis.values()]},
                "labels": {
                    "name": [*labels],
                    "value": [label["value"] for label in labels.values()],
                    "count": [label["count"] for label in labels.values()],
                },
            }
        )


def generate(folder: Path, count: int) -> dict[str, int]:
    """Write the corpus in all forms; its size."""
    import pyarrow
    import pyarrow.parquet

    messages = []
    with gzip.open(folder / FORMS[0], "wt", compresslevel=6, encoding="utf-8") as file:
        for tree in Corpus(0).trees(count):
            file.write(json.dumps(tree) + "\n")
            messages += flat(tree)
    messages.sort(key=lambda message: message["created_date"])
    with open(folder / FORMS[1], "w", encoding="utf-8") as file:
        file.writelines(json.dumps(message) + "\n" for message in messages)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(messages), folder / FORMS[2])
    return {"trees": count, "messages": len(messages)} | {
        f"{name} bytes": (folder / name).stat().st_size for name in FORMS
    }


def run_once(path: Path) -> dict[str, Any]:
    """One run from nothing. The process's own accounting gives CPU seconds and peak memory."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "srlm_fast.data", "oasst", str(path), "--out", out]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"it failed with status {os.waitstatus_to_exitcode(status)}")
        texts = [(Path(out) / name).read_bytes() for name in ROWS]
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * 1024,
        "rows": [text.count(b"\n") for text in texts],
        "sha256": hashlib.sha256(b"".join(texts)).hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=66_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--generate", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.generate:
        print(json.dumps(generate(options.generate, options.trees)))
        return
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: a child starts with its parent's peak.
        command = [sys.executable, "-m", "benchmarks.bench_oasst", "--trees", str(options.trees)]
        made = subprocess.run([*command, "--generate", folder], check=True, stdout=subprocess.PIPE)
        size = json.loads(made.stdout)
        print(", ".join(f"{name} {count:,}" for name, count in size.items()), flush=True)
        runs = {name: [] for name in FORMS}
        for _ in range(options.runs):
            for name in FORMS:
                runs[name].append(run_once(Path(folder) / name))
                print(f"{name:<18} {line(runs[name][-1])}", flush=True)
    report(options, size, runs)


def report(options: argparse.Namespace, size: dict, runs: dict[str, list[dict]]) -> None:
    from benchmarks.harness import commit
    from benchmarks.machine import conditions
    from srlm_fast.records import write_json_atomic

    medians = {
        name: {
            figure: statistics.median(row[figure] for row in rows)
            for figure in ("seconds", "cpu_seconds", "peak_bytes")
        }
        for name, rows in runs.items()
    }
    for name, median in medians.items():
        print(f"median of {options.runs}, {name:<18} {line(median)}")
    if len({row["sha256"] for rows in runs.values() for row in rows}) != 1:
        raise SystemExit("the forms did not give the same rows")
    command = f"python -m benchmarks.bench_oasst --trees {options.trees} --runs {options.runs}"
    made = conditions(command) | {"commit": commit()}
    RESULTS.parent.mkdir(exist_ok=True)
    write_json_atomic(RESULTS, made | {"corpus": size, "median": medians, "runs": runs})


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['seconds']:.1f} s wall, {row['cpu_seconds']:.1f} s CPU, "
        f"{row['peak_bytes'] / 2**20:.0f} MiB peak"
        + (f", rows {row['rows']} ({row['sha256']})" if "rows" in row else "")
    )


if __name__ == "__main__":
    main()
