r"""How a judgement's score is read: the number behind the last score label that has one.

The label is a regular expression, by default the word `Score` and a colon; the number behind it is
always read by the grammar below, as far as it goes, so that 10 is never a 1:

    number      = sign? point? digit (digit | [-–.,_'] before a digit | exponent | hex mark)*
    denominator = ("/" | "out of") number ("/" number)*          emphasis and spaces, no line break,
    in between

It counts when the number is a plain integer of the range and the denominator, if there is one, is
the range's upper end. Anything else that is a number is OUT_OF_RANGE. Words and full-width digits
are no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

from srlm_fast.judge.token_bytes import end_ids, token_bytes
from srlm_fast.kernels.judge_score import ScoreStatus, ScoreTable

# White space and markdown emphasis, with and without line breaks.
_GAP = r"[\s*_`]*"
_INLINE = r"[ \t\u00a0\u202f\u3000*_`]"
# What must not stand before the label's word: ASCII and the letters of the alphabets below U+0800.
# Scripts that put no space between words (Chinese, Japanese, Thai) may stand directly before it.
_LETTER = r"0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0370-\u07ff"

DEFAULT_PATTERN = rf"(?<![{_LETTER}_])_*[Ss][Cc][Oo][Rr][Ee]{_GAP}:"

_SIGN = r"[-+\u2212]"
_START = rf"{_SIGN}?\.?[0-9]"
_MORE = rf"[-\u2013.,_'][0-9]|[eE]{_SIGN}?[0-9]|[xX][0-9a-fA-F]"
_DIGITS = rf"{_START}(?:[0-9]|{_MORE})*"
_OF = rf"{_INLINE}*(?:/|(?i:out)[ \t]+(?i:of){_INLINE}){_INLINE}*"
_DENOMINATOR = rf"{_OF}(?P<of>{_DIGITS}(?:{_INLINE}*/{_INLINE}*[0-9]+)*)"
_NUMBER = regex.compile(rf"(?P<value>{_DIGITS})(?:{_DENOMINATOR})?")
_CONTINUED = regex.compile(rf"{_MORE}|{_OF}{_START}|{_INLINE}*/{_INLINE}*[0-9]")
_INTEGER = regex.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class ScorePattern:
    """A compiled label and the range of the integer behind it."""

    label: Any  # regex.Pattern; it matches up to the first digit of the number
    low: int
    high: int

    def read(self, text: str, finished: bool = True) -> tuple[float, ScoreStatus]:
        """(score, OK), or NaN and the reason there is none."""
        number = None
        for number in self._numbers(text):  # noqa: B007 (the last one decides)
            pass
        if not finished and (number is None or self._is_open(text, number.end())):
            return math.nan, ScoreStatus.TRUNCATED
        if number is None:
            return math.nan, ScoreStatus.MISSING
        if not self._counts(number):
            return math.nan, ScoreStatus.OUT_OF_RANGE
        return float(number["value"]), ScoreStatus.OK

    def _numbers(self, text: str) -> Iterator[Any]:
        """The numbers behind the labels, each as long as it can be."""
        at = 0
        while (label := self.label.search(text, at)) is not None:
            number = _NUMBER.match(text, label.start(1)) if label.start(1) >= 0 else None
            at = max(label.end(), number.end() if number else label.start() + 1)
            if number:
                yield number

    def _is_open(self, text: str, end: int) -> bool:
        """Whether more text could change the number that ends at `end`, or finish a label begun
        after it."""
        if _CONTINUED.fullmatch(text, end, partial=True):
            return True
        begun = self.label.finditer(text, end, partial=True)
        return any(match.partial and match.end() > match.start() for match in begun)

    def _counts(self, number: Any) -> bool:
        value, of = number["value"], number["of"]
        in_range = bool(_INTEGER.fullmatch(value)) and self.low <= int(value) <= self.high
        return in_range and (of is None or of == str(self.high))


@lru_cache(maxsize=32)
def compile_label(pattern: str | None = None, low: int = 0, high: int = 5) -> ScorePattern:
    """A label as a regular expression, compiled.

    With a capturing group, the number starts where the first group does; without one, behind the
    match and optional white space and emphasis. Raises ValueError naming `pattern`, `low` or
    `high`.
    """
    if not 0 <= low < high:
        raise ValueError(f"low, high: {low} and {high}, wanted 0 <= low < high")
    source = DEFAULT_PATTERN if pattern is None else pattern
    try:
        label = regex.compile(source)
    except regex.error as error:
        raise ValueError(f"pattern: {source!r} is no regular expression ({error})") from None
    if label.fullmatch(""):
        raise ValueError(f"pattern: {source!r} matches nothing at all, wanted a label")
    if not label.groups:
        label = regex.compile(rf"(?:{source}){_GAP}({_START})")
    return ScorePattern(label, low, high)


def parse_score(
    text: str, finished: bool = True, pattern: str | None = None, low: int = 0, high: int = 5
) -> tuple[float, ScoreStatus]:
    """Read the score of one judgement: (score, OK), or (NaN, why not).

    text: the judge's own turn, without its prompt. finished: False where the token limit cut it;
    then a score counts only if no further text could have changed it. pattern, low, high: as
    `compile_label` has them.
    """
    return compile_label(pattern, low, high).read(text, finished)


def compile_pattern(
    tokenizer: Any, pattern: str | None = None, low: int = 0, high: int = 5
) -> ScoreTable:
    """Compile a score pattern once per tokenizer (a transformers or a tokenizers one).

    Raises ValueError naming `pattern`, or `tokenizer` where the bytes of its tokens cannot be told.
    """
    reader = compile_label(pattern, low, high)
    data = token_bytes(tokenizer)
    ids: dict[int, list[int]] = {score: [] for score in range(low, high + 1)}
    spelled = {str(score).encode(): group for score, group in ids.items()}
    for token_id, token in enumerate(data):
        if token.strip() in spelled:
            spelled[token.strip()].append(token_id)
    score_ids = {score: tuple(group) for score, group in ids.items()}
    return ScoreTable(data, end_ids(tokenizer), reader.read, score_ids)
