"""All benchmarks that run on this machine, or those named.

    python -m benchmarks [NAME ...]

Each prints its own table; `python -m benchmarks.NAME --help` has its options.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

NAMES = ("bench_sampler", "bench_round", "tiny_controls")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks one after the other; the exit status is 1 when one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    names = parser.parse_args(arguments).names or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        parser.error(f"found {unknown[0]}, wanted names of {', '.join(NAMES)}")
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
