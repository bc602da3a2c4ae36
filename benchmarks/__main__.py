"""All benchmarks that run on a machine without a GPU, or those named.

    python -m benchmarks [NAME ...]

Each prints its own table; `python -m benchmarks.NAME --help` has its options. Those that want a GPU
have one call of their own, `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

# Name -> its arguments.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "bench_sampler": ("--device", "cpu"),
    "bench_run": (),
    "bench_train_step": ("--device", "cpu"),
    "bench_round": (),
    "bench_oasst": (),
    "tiny_controls": (),
    "bench_linear_logprob": ("--device", "cpu"),
    "bench_judge_score": ("--device", "cpu"),
    "bench_rouge": (),
    "bench_dpo_loss": ("--device", "cpu"),
    "bench_model_ops": ("--device", "cpu"),
    "bench_paged_attention": ("--device", "cpu"),
    "bench_segment_attention": ("--device", "cpu"),
    "bench_expected_scores": ("--device", "cpu"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks one after the other; the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    names = parser.parse_args(arguments).names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"found {unknown[0]}, wanted names of {', '.join(BENCHMARKS)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *BENCHMARKS[name]]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
