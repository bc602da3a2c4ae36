"""The command: options in, the contest, figures out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from srlm_fast.records import write_json_atomic
from srlm_fast.run import DONE, INTERRUPTED, complain, end_of, in_one_line, stop_on_interrupt
from srlm_fast.run_folder import Lock
from srlm_fast.run_models import resolve_model

from .figures import figures_of
from .folder import take_folder
from .options import read_options
from .terms import terms_of

if TYPE_CHECKING:
    from srlm_fast.loop.contest import Terms
    from srlm_fast.report.display import Display

FIGURES_FILE = "comparison.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    arguments = read_options(argv)
    models = {side: resolve_model(getattr(arguments, side)) for side in ("a", "b")}
    # From here on torch is needed, which takes seconds to import.
    from srlm_fast.report.display import Display

    out, display = Path(arguments.out), Display(sys.stdout)
    try:
        with in_one_line(out):
            terms = terms_of(arguments, models)
            with Lock(out):
                take_folder(out, terms, display)
                return contest(terms, out, display)
    finally:
        display.close()


def contest(terms: Terms, out: Path, display: Display) -> int:
    """Answers, judgements, figures."""
    from srlm_fast.loop.contest import Contest
    from srlm_fast.report.compare_text import compare_text

    try:
        with stop_on_interrupt(display) as stop:
            outcome = Contest(terms, out, display, stop).run()
    except KeyboardInterrupt:
        display.close()
        kept = f"interrupted; everything finished is kept in {out}"
        return complain(f"{kept}: the same command goes on from there", INTERRUPTED)
    figures = figures_of(terms, outcome)
    write_json_atomic(out / FIGURES_FILE, figures)
    display.note(compare_text(figures))
    return DONE
