"""The command of a benchmark of one operation: options, device, cases one by one, rows, plot.

    python -m benchmarks.NAME [--device cuda|cpu] [--out FOLDER] [--quick] [--only TEXT] ...

Writes FOLDER/NAME_DEVICE.jsonl and .png. On a CPU one thread on one core, and every peak of memory
measured in a process of its own (`--peak-of VARIANT`, which prints it and does nothing else).

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from benchmarks import harness
from benchmarks.harness import OURS, Row, RowFile, Variant


@dataclass(frozen=True)
class Benchmark:
    """cases(options): dataclasses with a name. run_case(case, options, ceilings): the rows, already
    printed, and what else they should keep. variants(case, options): on a CPU, options.peak_of
    among them. packages: rivals whose versions are kept. add_options(parser) and wrong(options), a
    mistake in one line: of options that this benchmark alone has.
    """

    name: str
    doc: str
    cases: Callable[[argparse.Namespace], Sequence[Any]]
    run_case: Callable[[Any, argparse.Namespace, dict], tuple[list[Row], dict]]
    variants: Callable[[Any, argparse.Namespace], Sequence[Variant]] | None = None
    packages: Sequence[str] = ()
    dtype: torch.dtype = torch.bfloat16
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    wrong: Callable[[argparse.Namespace], str | None] = lambda options: None


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    options = parse(benchmark, arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"{benchmark.name}: no GPU here; --device cpu runs without", file=sys.stderr)
        return 2
    if mistake := wrong(benchmark, options):
        print(f"{benchmark.name}: {mistake}", file=sys.stderr)
        return 2
    if options.device == "cpu":
        pin((options.core,))
    if options.peak_of:
        return print_peak(benchmark, options)
    with tempfile.TemporaryDirectory() as cache:
        # Empty, so that the first call of what is compiled is the wait that a user sees.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        return run(benchmark, options)


def parse(benchmark: Benchmark, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        prog=f"python -m benchmarks.{benchmark.name}",
        description=benchmark.doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="default: runs/bench, results not kept"
    )
    parser.add_argument("--quick", action="store_true", help="small shapes, nothing compiled")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--variants", default="", help="these alone, names with commas between")
    parser.add_argument("--rounds", type=int, default=5, help="fewest timed calls of a variant")
    parser.add_argument("--seconds", type=float, default=1e9, help="no new case after these")
    last = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    parser.add_argument("--core", type=int, default=last, help="the core a CPU run is pinned to")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    benchmark.add_options(parser)
    return parser.parse_args(arguments)


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.rpartition('.')[2]}: {message}\n")


def wrong(benchmark: Benchmark, options: argparse.Namespace) -> str | None:
    """What is wrong with the options, before anything is measured."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {options.core}
    if options.device == "cpu" and options.core not in cores:
        return f"--core {options.core}, wanted one of {', '.join(map(str, sorted(cores)))}"
    if options.rounds < 1:
        return f"--rounds {options.rounds}, wanted 1 or more"
    if not options.seconds > 0:
        return f"--seconds {options.seconds:g}, wanted more than 0"
    if mistake := benchmark.wrong(options):
        return mistake
    if not taken(benchmark, options):
        names = ", ".join(case.name for case in benchmark.cases(options))
        return f"--only {options.only!r} is in no case's name, wanted text of: {names}"
    return unwritable(options.out)


def unwritable(folder: Path) -> str | None:
    """Makes the folder, or says why not."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"--out {folder}: {error.strerror}, wanted a folder that can be written"
    return None


def pin(cores: Sequence[int]) -> None:
    """A thread on each of the cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))


def cores_from(first: int) -> tuple[int, ...]:
    """Those that this process may use, beginning with `first`."""
    there = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {first}
    return (first, *sorted(there - {first}))


def asked_for(name: str, options: argparse.Namespace) -> bool:
    return not options.variants or name in options.variants.split(",")


def taken(benchmark: Benchmark, options: argparse.Namespace) -> list[Any]:
    return [case for case in benchmark.cases(options) if options.only in case.name]


def run(benchmark: Benchmark, options: argparse.Namespace) -> int:
    options.end = time.perf_counter() + options.seconds
    top = harness.ceilings(options.device, benchmark.dtype, 256 if options.quick else None)
    command = f"python -m benchmarks.{benchmark.name} " + " ".join(sys.argv[1:])
    made = harness.made_on(options.device, command.strip(), benchmark.packages)
    print(f"{made['device']}, torch {torch.__version__}, commit {made['commit']}")
    flops, copied = top["matmul_flops"] / 1e12, top["copy_bytes_per_s"] / 1e9
    print(f"matmul {flops:.3g} TFLOP/s, copy {copied:.0f} GB/s", flush=True)
    name, groups, left = f"{benchmark.name}_{options.device}", {}, []
    file = RowFile(options.out, name, made | {"ceilings": top})
    for case in taken(benchmark, options):
        if time.perf_counter() > options.end:
            left.append(case.name)
            continue
        rows, more = benchmark.run_case(case, options, top)
        more |= {"gpu_state": harness.gpu_state(options.device)}
        file.add(asdict(case) | {"name": case.name}, rows, **more)
        groups[case.name] = rows
    file.close()
    if left:
        print(f"\nleft out for want of time: {', '.join(left)}")
    harness.bars(options.out / f"{name}.png", groups, f"{benchmark.name}, {made['device']}")
    found = [row for rows in groups.values() for row in rows if row.variant.startswith(OURS)]
    # What ours cannot do yet is a reason; what it does wrong, or breaks at, is a failure.
    failed = [
        row for row in found if not row.correct and (row.reason or "failed").startswith("failed")
    ]
    return int(bool(failed))


def peak_apart(
    benchmark: Benchmark, case: Any, options: argparse.Namespace, variant: Variant
) -> int | None:
    """Peak memory of a variant on a CPU, in a process of its own; None where that failed."""
    arguments = [f"benchmarks.{benchmark.name}", "--device", "cpu", "--core", str(options.core)]
    arguments += ["--only", case.name, "--peak-of", variant.name, *["--quick"] * options.quick]
    found = harness.in_fresh_process(arguments)
    return None if found is None else found["peak_bytes"]


def peaks(
    benchmark: Benchmark,
    case: Any,
    options: argparse.Namespace,
    left_out: Callable[[Variant], bool],
) -> Callable[[Variant], int | None] | None:
    """`peak_of` of `harness.measure`: on a GPU its own, on a CPU `peak_apart`."""
    if options.device == "cuda":
        return None
    return lambda variant: (
        None if left_out(variant) else peak_apart(benchmark, case, options, variant)
    )


def print_peak(benchmark: Benchmark, options: argparse.Namespace) -> int:
    """In that process: once to warm up, once measured."""
    (case,) = taken(benchmark, options)
    found = benchmark.variants(case, options)
    variant = next(each for each in found if each.name == options.peak_of)
    if variant.prepare:
        variant.prepare()
    variant.call()
    print(json.dumps({"peak_bytes": harness.peak_bytes(variant, "cpu")}))
    return 0
