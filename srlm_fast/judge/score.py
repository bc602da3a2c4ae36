r"""How a judgement's score is read: a regular expression on the text. This is the specification.

A pattern says what stands around the number: `before(number)behind`, with one capturing group for
the number, or, without a group, what stands before it, white space and emphasis in between. The
number itself is always read by the grammar of `judge.number`, whatever the group holds. Matches are
found from left to right, the next one behind the number of the one before; the last one decides.
`judge.automaton` compiles the same reading into tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import regex

from srlm_fast.judge.number import (
    APART,
    CONTINUES,
    CONTINUES_DENOMINATOR,
    DENOMINATOR,
    NUMBER,
    is_score,
)
from srlm_fast.kernels.judge_score import ScoreStatus

GAP = r"[\s*_`]*"  # white space and markdown emphasis
# What must not stand before the label: ASCII, the letters of the alphabets below U+0800, more of
# Latin and Greek, and accents by themselves. Scripts that put no space between words (Chinese,
# Japanese, Thai) may stand directly before it.
_LETTER = (
    r"0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af"
    r"\u0300-\u036f\u0370-\u07ff\u1e00-\u1fff"
)
DEFAULT_PATTERN = rf"(?<![{_LETTER}_])_*[Ss][Cc][Oo][Rr][Ee]{GAP}:"

MAX_SCORE = 1000  # a table has an outcome for each score

# Whatever comes next, what was found must still be found, at the same place, to be certain.
_PROBES = ("0", "a", "_", " ", "\n", ".", "/", "-", "*", "\u4e00")


@dataclass(frozen=True)
class ScorePattern:
    """A pattern in its two parts, and the range of the integer between them."""

    before: str
    behind: str
    flags: int
    low: int
    high: int

    @cached_property
    def match(self) -> Any:
        """The whole: before, number, and behind it what the pattern says or a denominator."""
        behind = rf"(?:{self.behind})" if self.behind else rf"(?:{DENOMINATOR})?"
        source = rf"(?:{self.before}){APART}(?P<value>(?>{NUMBER})){behind}"
        return regex.compile(source, self.flags)

    def read(self, text: str, finished: bool = True) -> tuple[float, ScoreStatus]:
        """(score, OK), or NaN and the reason there is none."""
        found = self.find(text)
        if not finished and (found is None or self._is_open(text, found)):
            return math.nan, ScoreStatus.TRUNCATED
        if found is None:
            return math.nan, ScoreStatus.MISSING
        of = None if self.behind else found["of"]
        if not is_score(found["value"], of, self.low, self.high):
            return math.nan, ScoreStatus.OUT_OF_RANGE
        return float(found["value"]), ScoreStatus.OK

    def find(self, text: str) -> Any:
        """The match that decides, with its group "value", or None."""
        found, more = None, self.match.search(text)
        while more:
            found, more = more, self.match.search(text, self._end(more))
        return found

    def place(self, text: str) -> int:
        """Where the deciding number begins, -1 where there is none."""
        found = self.find(text)
        return found.start("value") if found else -1

    def _end(self, found: Any) -> int:
        """Where a match is done with: what stands behind a number is only looked at, a denominator
        belongs to it.
        """
        return found.end("value") if self.behind else found.end()

    def _is_open(self, text: str, found: Any) -> bool:
        """Whether more text could change the number found, or finish a match begun after it."""
        changes = any(
            (again := self.match.match(text + probe, found.start())) is None
            or again.span("value") != found.span("value")
            for probe in _PROBES
        )
        if not (changes or self.behind):
            more = CONTINUES_DENOMINATOR if found["of"] else CONTINUES
            changes = more.fullmatch(text, found.end(), partial=True) is not None
        begun = self.match.finditer(text, self._end(found), partial=True)
        return changes or any(match.partial and match.end() > match.start() for match in begun)


@lru_cache(maxsize=32)
def parse_pattern(pattern: str | None = None, low: int = 0, high: int = 5) -> ScorePattern:
    """A pattern, checked and split at its group.

    Raises ValueError naming `pattern`, `low` or `high`.
    """
    if not 0 <= low < high <= MAX_SCORE:
        raise ValueError(f"low, high: {low} and {high}, wanted 0 <= low < high <= {MAX_SCORE}")
    source = DEFAULT_PATTERN if pattern is None else pattern
    try:
        whole = regex.compile(source)
    except regex.error as error:
        raise ValueError(f"pattern: {source!r} is no regular expression ({error})") from None
    if whole.fullmatch(""):
        raise ValueError(f"pattern: {source!r} matches nothing at all, wanted a label")
    if whole.groups > 1:
        raise ValueError(f"pattern: {source!r} has {whole.groups} groups, wanted one, the number's")
    flags, bare = _take_flags(source)
    if not whole.groups:
        return ScorePattern(f"(?:{bare}){GAP}", "", flags, low, high)
    start, stop = _group_span(bare)
    before, behind = bare[:start], bare[stop:]
    for part in (before, behind):
        try:
            regex.compile(part, flags)
        except regex.error:
            raise ValueError(
                f"pattern: {source!r} has its group inside another or refers to it"
            ) from None
    if _has_bare_bar(before) or _has_bare_bar(behind):
        raise ValueError(f"pattern: {source!r} has | beside its group, wanted it inside (?:...)")
    return ScorePattern(before, behind, flags, low, high)


def parse_score(
    text: str, finished: bool = True, pattern: str | None = None, low: int = 0, high: int = 5
) -> tuple[float, ScoreStatus]:
    """Read the score of one judgement: (score, OK), or (NaN, why not).

    text: the judge's own turn, without its prompt. finished: False where the token limit cut it;
    then a score counts only if no further text could have changed it. pattern, low, high: as
    `parse_pattern` has them.
    """
    return parse_pattern(pattern, low, high).read(text, finished)


def _take_flags(source: str) -> tuple[int, str]:
    """`(?im)` in front as flags, and what is left."""
    found = regex.match(r"\(\?([ims]+)\)", source)
    if not found:
        return 0, source
    names = {"i": regex.IGNORECASE, "m": regex.MULTILINE, "s": regex.DOTALL}
    return sum(names[name] for name in set(found[1])), source[found.end() :]


# A character, an escape or a class; a class may open with a closing bracket.
_ATOM = regex.compile(r"(?s)\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.")


def _group_span(source: str) -> tuple[int, int]:
    """Where the one capturing group begins and ends."""
    start, depth = -1, 0
    for atom in _ATOM.finditer(source):
        if atom[0] == "(" and start < 0:
            captures = not source.startswith("(?", atom.start()) or regex.match(
                r"\(\?P?<(?![=!])", source[atom.start() :]
            )
            start = atom.start() if captures else -1
            depth = 0
        if start >= 0 and atom[0] in "()":
            depth += 1 if atom[0] == "(" else -1
            if depth == 0:
                return start, atom.end()
    raise ValueError(f"pattern: {source!r} has no group of its own for the number")


def _has_bare_bar(source: str) -> bool:
    depth = 0
    for atom in _ATOM.finditer(source):
        depth += {"(": 1, ")": -1}.get(atom[0], 0)
        if atom[0] == "|" and depth == 0:
            return True
    return False
