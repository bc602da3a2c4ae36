"""`python -m srlm_fast.report RUN [RUN...]`: make `report.html` of a run folder again."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from srlm_fast.records import InputError

from .page import write_report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m srlm_fast.report",
        description="Make report.html of a run folder again, from the rows that are there.",
    )
    parser.add_argument("run", nargs="+", type=Path, help="a folder that srlm_fast.run wrote")
    for folder in parser.parse_args(argv).run:
        try:
            print(write_report(folder))
        except InputError as error:
            print(f"srlm_fast: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
