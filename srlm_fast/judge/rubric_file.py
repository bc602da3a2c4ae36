r"""A user's own rubric: a Jinja template that holds the wording and how the score is read.

    {% set pattern %}Grade\s*:{% endset %}   label of the score, a regular expression
    {% set low = 1 %}{% set high = 10 %}     its range
    {% set score_prefix = "Grade:" %}        what the judge writes before it (`expected`, `direct`)
    {% set version = "mine-3" %}
    Grade this answer from 1 to 10. ...
    The question:
    {{ prompt }}
    The answer:
    {{ response }}

The file is rendered once, when it is read, with marks in the place of the two values: question and
answers are put in afterwards as text, fenced like those of the default rubric, and never reach
Jinja. So they must stand as they are: no filter, condition or loop may look at them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from srlm_fast.judge.rubric import DEFAULT_RUBRIC, Rubric
from srlm_fast.judge.score import ScoreStatus, parse_score
from srlm_fast.records import InputError

FIELDS = ("prompt", "response")
SETTINGS: dict[str, tuple[type, str]] = {
    "pattern": (str, "a regular expression"),
    "low": (int, "a whole number"),
    "high": (int, "a whole number"),
    "score_prefix": (str, "some text"),
    "version": (str, "some text"),
    "fence": (str, "at least three of one sign"),
}
MIN_FENCE = 3


def read_rubric(path: str | Path, expected: bool = False) -> Rubric:
    """The rubric of a Jinja file. expected: its `score_prefix` will be used, so it must lead to a
    score that its pattern reads. Raises InputError, one line that begins with the file.
    """
    path = Path(path)
    try:
        rubric = _rubric(_read(path), f"file-{path.stem}")
        if expected:
            _check_prefix(rubric)
    except _MistakeError as error:
        raise InputError(f"{path}{error}") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return rubric


class _MistakeError(Exception):
    """What is wrong, with the line where it is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        where = f" line {line}: " if line else ": "
        super().__init__(where + " ".join(message.split()))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _MistakeError(f"not UTF-8 (byte {error.start + 1}), wanted UTF-8 text") from None
    except OSError as error:
        raise _MistakeError(f"{error.strerror}, wanted a Jinja template") from None


def _rubric(source: str, version: str) -> Rubric:
    import jinja2
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    marks = {field: _mark(field, source) for field in FIELDS}
    try:
        _check_uses(environment.parse(source))
        module = environment.from_string(source).make_module(dict(marks))
        settings = _settings(vars(module))
    except jinja2.TemplateSyntaxError as error:
        raise _MistakeError(f"{error.message}, wanted a Jinja template", error.lineno) from None
    except _MistakeError:
        raise
    except Exception as error:  # whatever the template's own expressions do
        raise _MistakeError(f"cannot be rendered ({type(error).__name__}: {error})") from None
    text = str(module).strip("\n")
    _check_order(text, marks)
    for field, mark in marks.items():
        text = text.replace(mark, f"{{{field}}}")
    return Rubric(text, **{"version": version, "fence": DEFAULT_RUBRIC.fence} | settings)


def _mark(field: str, source: str) -> str:
    """A stand-in that the file cannot hold, since it is made of the file."""
    return f"<{field}-{hashlib.sha256(source.encode()).hexdigest()}>"


def _check_uses(tree: Any) -> None:
    """Refuse prompt and response anywhere but as the whole of an expression to be written."""
    from jinja2 import meta, nodes

    for unknown in sorted(meta.find_undeclared_variables(tree) - set(FIELDS)):
        line = next(n.lineno for n in tree.find_all(nodes.Name) if n.name == unknown)
        raise _MistakeError(f"{unknown} is not known, wanted prompt and response alone", line)
    written = {id(node) for output in tree.find_all(nodes.Output) for node in output.nodes}
    for name in (node for node in tree.find_all(nodes.Name) if node.name in FIELDS):
        if name.ctx != "load":
            raise _MistakeError(f"{name.name} is set, wanted it to be written only", name.lineno)
        if id(name) not in written:
            wanted = f"wanted {{{{ {name.name} }}}} as it is, without filters or conditions"
            raise _MistakeError(f"{name.name} stands inside an expression, {wanted}", name.lineno)


def _check_order(text: str, marks: dict[str, str]) -> None:
    for field, mark in marks.items():
        if text.count(mark) != 1:
            found = f"{{{{ {field} }}}} is written {text.count(mark)} times"
            raise _MistakeError(f"{found}, wanted once")
    if text.index(marks["prompt"]) > text.index(marks["response"]):
        raise _MistakeError(
            "{{ response }} stands before {{ prompt }}, wanted the prompt first: what comes before "
            "the answer is computed once for all answers"
        )


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    settings = {name: found[name] for name in SETTINGS if name in found}
    for name, value in settings.items():
        kind, wanted = SETTINGS[name]
        if name == "version" and isinstance(value, int):
            settings[name] = value = str(value)
        blank = isinstance(value, str) and not value.strip()
        if not isinstance(value, kind) or isinstance(value, bool) or blank:
            raise _MistakeError(f"{name} is {value!r}, wanted {wanted}")
    _check_pattern(settings.get("pattern", ""))
    _check_fence(settings.get("fence", DEFAULT_RUBRIC.fence))
    return settings


def _check_pattern(pattern: str) -> None:
    if any(ord(char) < 32 and char not in "\t\n" for char in pattern):
        raise _MistakeError(
            f"pattern is {pattern!r}, where Jinja has read an escape; wanted it between "
            "{% set pattern %} and {% endset %}, where backslashes stay"
        )


def _check_fence(fence: str) -> None:
    if len(fence) < MIN_FENCE or len(set(fence)) > 1 or fence[0].isalnum() or fence[0].isspace():
        raise _MistakeError(f"fence is {fence!r}, wanted {SETTINGS['fence'][1]}")


def _check_prefix(rubric: Rubric) -> None:
    score, status = parse_score(
        f"{rubric.score_prefix} {rubric.low}", True, rubric.pattern, rubric.low, rubric.high
    )
    if status is not ScoreStatus.OK or score != rubric.low:
        raise _MistakeError(
            f"score_prefix is {rubric.score_prefix!r}, behind which the pattern reads no score; "
            "--judge expected and direct want a score_prefix that the pattern finds"
        )
