"""`python -m srlm_fast.report RUN [RUN...]`: the page of a run, or one page of several.

Exit status as `srlm_fast.run` has it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from srlm_fast.damage import bad_metrics, lost_rows
from srlm_fast.records import InputError, write_text_atomic
from srlm_fast.report.compare import check_ours, write_comparison
from srlm_fast.report.page import MARK, REPORT_FILE, render, write_report
from srlm_fast.run import DONE, UNUSABLE, Parser, complain, end_of, resource_message

DESCRIPTION = (
    "Makes the page of a run from the rows that are there, finished or not: RUN/report.html. Of "
    "several runs it makes one page that compares them."
)


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m srlm_fast.report",
        description=DESCRIPTION,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=100),
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that srlm_fast.run wrote")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"where the page goes (default: RUN/{REPORT_FILE}; {REPORT_FILE} here for several)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("--out: found '', wanted the name of a file")
    folders = [Path(run) for run in arguments.runs]
    out = None if arguments.out is None else Path(arguments.out)
    try:
        print(write(folders, out))
        for note in notes(folders):
            print(f"srlm_fast: {note}", file=sys.stderr)
    except OSError as error:
        message = resource_message(error, out or folders[0])
        if message is None:
            raise
        return complain(message.split(": nothing that")[0], UNUSABLE)
    return DONE


def notes(folders: Sequence[Path]) -> list[str]:
    """What is said of files that have lost something: the page has what is left of them."""
    return [
        note for folder in folders for note in (*map(str, lost_rows(folder)), *bad_metrics(folder))
    ]


def write(folders: Sequence[Path], out: Path | None) -> Path:
    """Write the page and return where it is."""
    if len(folders) > 1:
        return write_comparison(folders, out or Path(REPORT_FILE))
    if out is None:
        return write_report(folders[0])
    check_ours(out, MARK)
    write_text_atomic(out, render(folders[0]))
    return out


if __name__ == "__main__":
    sys.exit(main())
