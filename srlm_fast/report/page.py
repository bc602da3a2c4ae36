"""One self-contained HTML page from a run folder.

It needs no network and no other file, and nothing that a model wrote is ever markup.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from srlm_fast.records import InputError, write_text_atomic

from .display import duration
from .examples import read_examples
from .gather import Curve, read_run
from .svg import histogram, lines, phases, scores

REPORT_FILE = "report.html"
TEMPLATE = "report.html.jinja"
# arXiv 2401.10020, table 4: what the paper's judge reached, beside ours.
PAPER_JUDGE = {
    "M1": {
        "pairwise_accuracy": 0.787,
        "five_best": 0.415,
        "exact_match": 0.131,
        "spearman": 0.279,
        "kendall": 0.253,
    },
    "M2": {
        "pairwise_accuracy": 0.804,
        "five_best": 0.443,
        "exact_match": 0.143,
        "spearman": 0.331,
        "kendall": 0.315,
    },
    "M3": {
        "pairwise_accuracy": 0.817,
        "five_best": 0.432,
        "exact_match": 0.143,
        "spearman": 0.349,
        "kendall": 0.324,
    },
}


def write_report(folder: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    A run that is not finished gives a page of what is there. Raises InputError when `folder` is
    not a run folder.
    """
    path = folder / REPORT_FILE
    write_text_atomic(path, render(folder))
    return path


def is_run(folder: Path) -> bool:
    """Whether `config.json` is a run's (a model folder has one of another kind)."""
    try:
        return "run" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False


def render(folder: Path) -> str:
    """The page as text."""
    if not is_run(folder):
        raise InputError(f"{folder}: found no config.json of a run, wanted the folder of a run")
    run = read_run(folder)
    examples = read_examples(run.round_folders)
    page = template().render(
        run=run,
        score_chart=scores(run.models),
        histograms=[(made.name, histogram(made.histogram)) for made in run.rounds if made.scored],
        curves=[chart for made in run.curves for chart in curve_charts(made)],
        phase_chart=phases(run.rounds),
        paper=PAPER_JUDGE,
        examples={"rounds": examples["rounds"], "data": as_data(examples)},
    )
    # Half of a surrogate pair, which a byte-level model can write, has no place in UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def curve_charts(made: Curve) -> list[tuple[str, Any]]:
    """A chart per figure that training wrote at each step."""
    return [
        (f"{made.name}: {figure.replace('_', ' ')}", lines(points))
        for figure, points in made.figures.items()
    ]


def template() -> Any:
    # Imported here: a display alone needs no template engine.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "duration": duration, "percent": percent}
    return environment.get_template(TEMPLATE)


def figure(value: Any, spec: str = ".2f") -> str:
    return "–" if value is None else format(value, spec)


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def as_data(value: Any) -> Any:
    """JSON that is inert inside a script element: no `<`, `>`, `&` or line separator is left."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
