"""A score pattern as the nodes of an automaton over characters (Thompson's construction).

Python's own parser reads the pattern; the order of a node's ways on is the order in which a
backtracking matcher would try them, so that greedy and lazy loops keep their meaning.
"""

from __future__ import annotations

import re._constants as op
import re._parser as parser
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import regex

from srlm_fast.judge import number
from srlm_fast.judge.alphabet import code_points
from srlm_fast.judge.score import ScorePattern

MAX_NODES = 20_000  # of a pattern, counted repeats unrolled
KEEP, OUT_OF_RANGE, FIRST_VALUE = (
    0,
    1,
    2,
)  # outcomes: none yet or as before, the two kinds of number

DIGITS = "0123456789"
LABEL, NUMBER, BEHIND = "label", "number", "behind"  # the part of the pattern a node belongs to


@dataclass(eq=False)
class Node:
    """One node. kind: "char" consumes a character of set `char`; "fork" goes on at any of `ways`;
    "before", "ahead", "begin", "end", "edge", "apart" go on where an assertion holds; "accept" ends
    a match.

    part: where it belongs. commits: once passed, what stands behind it in priority is given up.
    negated: of an assertion. outcome: what passing it brings.
    """

    kind: str
    part: str
    ways: list[Node] = field(default_factory=list)
    char: int = -1
    commits: bool = False
    negated: bool = False
    outcome: int = KEEP


class Nodes:
    """The nodes of one pattern and the sets of characters that they consume.

    root: where a match begins. Raises ValueError naming `pattern` for what no automaton of this
    kind can do: back references, look-around of more than one character, atomic groups, `$` outside
    (?m).
    """

    def __init__(self, pattern: ScorePattern) -> None:
        self.pattern = pattern
        self.sets: list[np.ndarray] = []
        self._index: dict[tuple[str, int], int] = {}
        self._count = 0
        names = ("DIGIT", "SEPARATOR", "EXPONENT", "SIGN", "HEX_MARK", "HEX", "FRACTION")
        self.of_numbers = [self.set_of(getattr(number, name)) for name in names]
        start = self._number()
        apart = self.node("apart", LABEL, [start])
        self.root = self._parse(pattern.before, LABEL, apart)

    def set_of(self, char: str, flags: int = 0) -> int:
        if (char, flags) not in self._index:
            self._index[char, flags] = len(self.sets)
            self.sets.append(code_points(char, flags))
        return self._index[char, flags]

    def node(self, kind: str, part: str, ways: Sequence[Node] = (), **more: Any) -> Node:
        self._count += 1
        if self._count > MAX_NODES:
            raise ValueError(f"pattern: more than {MAX_NODES} steps, wanted smaller repeats")
        return Node(kind, part, list(ways), **more)

    def char(self, char: str, part: str, way: Node, commits: bool = False) -> Node:
        return self.node("char", part, [way], char=self.set_of(char), commits=commits)

    # ---------------------------------------------------------------------------- the number

    def _number(self) -> Node:
        """The node where a number begins: one way for each integer of the range, and one for all
        others.
        """
        low, high = self.pattern.low, self.pattern.high
        self._none, self._held = self._exits()
        bad = self.node("fork", NUMBER)  # behind a digit of a number that is no score
        more = self._more(bad)
        bad.ways = [*self._digits(bad, DIGITS), *more, *self._exit(OUT_OF_RANGE)]
        texts = {str(value): FIRST_VALUE + value - low for value in range(low, high + 1)}
        prefixes = sorted({text[:size] for text in texts for size in range(1, len(text) + 1)})
        places = {text: self.node("fork", NUMBER) for text in prefixes}

        def ways_on(text: str) -> list[Node]:
            own = [d for d in DIGITS if text + d in places]
            known = [
                self._digit_to(d, places[text + d], texts.get(text + d, OUT_OF_RANGE)) for d in own
            ]
            return known + self._digits(bad, "".join(d for d in DIGITS if d not in own))

        for text, place in places.items():
            outcome = texts.get(text, OUT_OF_RANGE)
            place.ways = [*ways_on(text), *more, *self._exit(outcome)]
        return self.node("fork", NUMBER, [*self._signed(bad), *ways_on("")])

    def _digit_to(self, char: str, way: Node, outcome: int) -> Node:
        """A digit that makes the number what `outcome` says. With something behind the number that
        is said only when all of it has been seen.
        """
        node = self.char(char, NUMBER, way, commits=True)
        node.outcome = KEEP if self.pattern.behind else outcome
        return node

    def _signed(self, bad: Node) -> list[Node]:
        """Numbers that begin with a sign or a point."""
        digit = self._digits(bad, DIGITS)
        pointed = self.char(number.POINT, NUMBER, self.node("fork", NUMBER, digit))
        sign = self.char(number.SIGN, NUMBER, self.node("fork", NUMBER, [pointed, *digit]))
        return [sign, pointed]

    def _digits(self, way: Node, digits: str) -> list[Node]:
        return [self._digit_to(f"[{digits}]", way, OUT_OF_RANGE)] if digits else []

    def _more(self, bad: Node) -> list[Node]:
        """What makes a longer number of one: "4.5", "4-5", "1e-3", "0x1f"."""
        digit = self.node("fork", NUMBER, self._digits(bad, DIGITS))
        signed = self.node("fork", NUMBER, [self.char(number.SIGN, NUMBER, digit), *digit.ways])
        hexed = self.node("fork", NUMBER, [self._digit_to(number.HEX, bad, OUT_OF_RANGE)])
        return [
            self.char(number.SEPARATOR, NUMBER, digit),
            self.char(number.EXPONENT, NUMBER, signed),
            self.char(number.HEX_MARK, NUMBER, hexed),
            self._digit_to(number.FRACTION, bad, OUT_OF_RANGE),
        ]

    def _exits(self) -> tuple[list[Node], list[Node]]:
        """Ways on behind a number that is no score, and behind one that is: a denominator."""
        return ([], []) if self.pattern.behind else (self._denominator(False), self._denominator())

    def _exit(self, outcome: int) -> list[Node]:
        """Ways on behind a whole number: what the pattern wants there, or a denominator."""
        if self.pattern.behind:
            accept = self.node("accept", BEHIND, outcome=outcome)
            return [self._parse(self.pattern.behind, BEHIND, accept)]
        return self._none if outcome == OUT_OF_RANGE else self._held

    def _denominator(self, can_hold: bool = True) -> list[Node]:
        """Ways through a denominator. can_hold: the range's upper end leaves the score as it is."""
        bad, start = self.node("fork", NUMBER), self.node("fork", NUMBER)  # start: behind a slash
        bad.ways = [*self._digits(bad, DIGITS), *self._more(bad), *self._slash(start)]
        signed = self._signed(bad)
        start.ways = [*signed, *self._digits(bad, DIGITS)]
        first = start
        if can_hold:
            first = self.node("fork", NUMBER, [*signed, *self._holding(bad, start)])
        return [*self._slash(first), *self._out_of(first)]

    def _holding(self, bad: Node, start: Node) -> list[Node]:
        """Digit by digit through the range's upper end; what stops on the way is another number."""
        text, ends = str(self.pattern.high), [self._slash(start), self._more(bad)]
        others = [self._digits(bad, DIGITS.replace(digit, "")) for digit in text]
        behind = self.node("fork", NUMBER, [*self._digits(bad, DIGITS), *ends[0], *ends[1]])
        for at in range(len(text) - 1, -1, -1):
            digit = self._digit_to(text[at], behind, KEEP)
            over = self.node("accept", NUMBER, outcome=OUT_OF_RANGE)
            behind = self.node("fork", NUMBER, [digit, *others[at], *ends[0], *ends[1], over])
        return behind.ways[: 1 + len(others[0])]

    def _slash(self, way: Node) -> list[Node]:
        return [self._parse(number.SLASH, NUMBER, way)]

    def _out_of(self, way: Node) -> list[Node]:
        return [self._parse(number.OUT_OF, NUMBER, way)]

    # ---------------------------------------------------------------- regular expressions

    def _parse(self, source: str, part: str, way: Node) -> Node:
        """A regular expression, going on at `way`."""
        flags = self.pattern.flags if part != NUMBER else 0
        names = {regex.I: parser.SRE_FLAG_IGNORECASE, regex.M: parser.SRE_FLAG_MULTILINE}
        names[regex.S] = parser.SRE_FLAG_DOTALL
        plain = sum(theirs for ours, theirs in names.items() if flags & ours)
        try:
            parsed = parser.parse(source, plain)
        except parser.error as error:
            raise self._refusal(str(error.msg)) from None
        return self._sequence(list(parsed), part, way, flags)

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"pattern: {what} cannot be compiled into an automaton, wanted without it"
        )

    def _sequence(self, items: list[Any], part: str, way: Node, flags: int) -> Node:
        for item in reversed(items):
            way = self._item(item, part, way, flags)
        return way

    def _item(self, item: Any, part: str, way: Node, flags: int) -> Node:
        kind, value = item
        char = _one_char(item)
        if char is not None:
            held = self.set_of(char, flags)
            return self.node("char", part, [way], char=held)
        if kind is op.BRANCH:
            ways = [self._sequence(list(branch), part, way, flags) for branch in value[1]]
            return self.node("fork", part, ways)
        if kind is op.SUBPATTERN:
            _, added, removed, inner = value
            return self._sequence(list(inner), part, way, _with_flags(flags, added, removed))
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, inner = value
            return self._repeat(kind is op.MAX_REPEAT, least, most, inner, part, way, flags)
        if kind is op.AT:
            return self._place(value, part, way, flags)
        if kind in (op.ASSERT, op.ASSERT_NOT):
            direction, inner = value
            return self._look(kind is op.ASSERT_NOT, direction, inner, part, way, flags)
        raise self._refusal(str(kind).lower().replace("_", " "))

    def _repeat(
        self, greedy: bool, least: int, most: Any, inner: Any, part: str, way: Node, flags: int
    ) -> Node:
        items = list(inner)

        def fork(ways: list[Node]) -> Node:
            return self.node("fork", part, ways if greedy else ways[::-1])

        if most is op.MAXREPEAT:
            loop = self.node("fork", part)
            body = self._sequence(items, part, loop, flags)
            loop.ways = [body, way] if greedy else [way, body]
            way = loop
        else:
            behind = way
            for _ in range(most - least):
                way = fork([self._sequence(items, part, way, flags), behind])
        for _ in range(least):
            way = self._sequence(items, part, way, flags)
        return way

    def _place(self, where: Any, part: str, way: Node, flags: int) -> Node:
        lines = bool(flags & regex.M)
        if where in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            begin = self.node("begin", part, [way])
            if where is op.AT_BEGINNING_STRING or not lines:
                return begin
            line = self.node("before", part, [way], char=self.set_of(r"\n"))
            return self.node("fork", part, [begin, line])
        if where is op.AT_END_STRING or (where is op.AT_END and lines):
            end = self.node("end", part, [way])
            if where is op.AT_END_STRING:
                return end
            return self.node(
                "fork", part, [end, self.node("ahead", part, [way], char=self.set_of(r"\n"))]
            )
        if where in (op.AT_BOUNDARY, op.AT_NON_BOUNDARY):
            word, negated = self.set_of(r"\w"), where is op.AT_NON_BOUNDARY
            return self.node("edge", part, [way], char=word, negated=negated)
        raise self._refusal("$ outside (?m)")

    def _look(
        self, negated: bool, direction: int, inner: Any, part: str, way: Node, flags: int
    ) -> Node:
        items = list(inner)
        char = _one_char(items[0]) if len(items) == 1 else None
        if char is None:
            raise self._refusal("a look-around that is not one character")
        kind = "before" if direction < 0 else "ahead"
        return self.node(kind, part, [way], char=self.set_of(char, flags), negated=negated)


def _with_flags(flags: int, added: int, removed: int) -> int:
    pairs = (
        (regex.I, parser.SRE_FLAG_IGNORECASE),
        (regex.M, parser.SRE_FLAG_MULTILINE),
        (regex.S, parser.SRE_FLAG_DOTALL),
    )
    for ours, theirs in pairs:
        flags = flags | ours if added & theirs else flags
        flags = flags & ~ours if removed & theirs else flags
    return flags


_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}


def _one_char(item: Any) -> str | None:
    """The regular expression of an item that consumes exactly one character, None for another."""
    kind, value = item
    if kind is op.LITERAL:
        return _escaped(value)
    if kind is op.NOT_LITERAL:
        return f"[^{_escaped(value)}]"
    if kind is op.ANY:
        return "."
    if kind is op.IN:
        return "[" + "".join(_class_part(*part) for part in value) + "]"
    return None


def _class_part(kind: Any, value: Any) -> str:
    if kind is op.NEGATE:
        return "^"
    if kind is op.RANGE:
        return f"{_escaped(value[0])}-{_escaped(value[1])}"
    return _CATEGORIES[value] if kind is op.CATEGORY else _escaped(value)


def _escaped(code_point: int) -> str:
    return rf"\U{code_point:08X}"
