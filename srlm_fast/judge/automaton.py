"""The reading of `judge.score` as a deterministic automaton over bytes.

Characters first: a state is an ordered list of nodes, as a backtracking matcher would try them; one
that can no longer win is dropped, so that the order alone says which match counts (R. Cox, "Regular
Expression Matching: the Virtual Machine Approach", 2009). Then bytes: UTF-8 is decoded on the way,
with U+FFFD for what is none, as Python's errors="replace" does. Then the states that cannot be told
apart are merged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from srlm_fast.judge.alphabet import Alphabet
from srlm_fast.judge.pattern_nodes import (
    BEHIND,
    KEEP,
    LABEL,
    NUMBER,
    Node,
    Nodes,
)
from srlm_fast.judge.score import ScorePattern, parse_pattern
from srlm_fast.judge.utf8 import Decoder

MAX_STATES = 4_000
END = -1  # in the place of a class of characters: nothing comes any more

Context = tuple[frozenset[int], bool, int]  # sets the last character is in, begin, in a number
# A node, and whether it belongs to a match that began behind the last number.
Thread = tuple[Node, bool]
State = tuple[tuple[Thread, ...], Context]


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """next [S, 256] int32: state behind a byte; outcome [S, 256] int32: the outcome that this byte
    brings, KEEP for none. start: the first state. end [2, S] int32: the outcome that the end of an
    unfinished (0) or a finished (1) text brings. open [S] bool: an unfinished text that ends here
    is not certain. values: the score of each outcome from FIRST_VALUE on.
    """

    next: np.ndarray
    outcome: np.ndarray
    start: int
    end: np.ndarray
    open: np.ndarray
    values: tuple[int, ...]

    def read(self, data: bytes, finished: bool = True) -> tuple[int, bool]:
        """(outcome, whether more text could change it), byte by byte."""
        state, found = self.start, KEEP
        for byte in data:
            found = int(self.outcome[state, byte]) or found
            state = int(self.next[state, byte])
        found = int(self.end[int(finished), state]) or found
        return found, not finished and bool(self.open[state])


@lru_cache(maxsize=32)
def compile_automaton(pattern: str | None = None, low: int = 0, high: int = 5) -> ByteAutomaton:
    """Compile a pattern; arguments as `judge.score.parse_pattern` has them.

    Raises ValueError naming `pattern` for what is no regular expression or too large, or cannot be
    read in one pass.
    """
    return _over_bytes(_Characters(parse_pattern(pattern, low, high)))


class _Characters:
    """The automaton over classes of characters: states are made when they are first reached."""

    def __init__(self, pattern: ScorePattern) -> None:
        self.pattern, self.nodes = pattern, Nodes(pattern)
        self.alphabet = Alphabet(self.nodes.sets)
        self.behind = bool(pattern.behind)
        self.states: list[State] = [((), (frozenset(), True, 0))]
        self.index: dict[State, int] = {self.states[0]: 0}
        asked = self._asked_before()
        members = self.alphabet.members
        self._held = [frozenset(asked.intersection(np.flatnonzero(row))) for row in members]

    def _asked_before(self) -> set[int]:
        """The sets that an assertion asks of the character before it."""
        seen: set[Node] = set()
        asked, stack = set(), [self.nodes.root]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                asked |= {node.char} if node.kind in ("before", "edge") else set()
                stack += node.ways
        return asked

    def step(self, state: int, symbol: int) -> tuple[int, int]:
        """(state, outcome) behind a class of characters."""
        threads, context = self.states[state]
        threads, outcome, _ = self.advance((*threads, (self.nodes.root, True)), context, symbol)
        return self._number_of((threads, self._behind(context, symbol))), outcome

    def _number_of(self, state: State) -> int:
        if state not in self.index:
            if len(self.states) >= MAX_STATES:
                raise ValueError(f"pattern: more than {MAX_STATES} states, wanted a simpler one")
            self.index[state] = len(self.states)
            self.states.append(state)
        return self.index[state]

    def _behind(self, context: Context, symbol: int) -> Context:
        """The context behind a symbol, its last part as `judge.number.APART` looks back: 1 behind a
        digit and what counts as one, 2 behind what may join another to it, 3 behind an exponent's
        mark, 4 behind that of a hexadecimal number.
        """
        row, inside = self.alphabet.members[symbol], context[2]
        digit, separator, exponent, sign, hex_mark, in_hex, fraction = (
            bool(row[i]) for i in self.nodes.of_numbers
        )
        if digit or (inside == 4 and in_hex) or (inside == 1 and fraction):
            kind = 1
        elif inside == 1 and (exponent or hex_mark):
            kind = 3 if exponent else 4
        else:
            kind = 2 if (inside == 1 and separator) or (inside == 3 and sign) else 0
        return self._held[symbol], False, kind

    def advance(
        self, threads: tuple[Thread, ...], context: Context, symbol: int
    ) -> tuple[tuple[Thread, ...], int, bool]:
        """(threads, outcome, whether a match ended) behind a symbol."""
        out: dict[Thread, None] = {}
        outcome, matched, over = KEEP, False, False  # over: a number went on, what left it is void
        parts = set()
        for node, fresh in threads:
            label = node.part == LABEL
            if (matched and not fresh) or (over and not label):
                continue
            for option in self._options(node, context, symbol):
                if over and option.part != LABEL:  # nor does a number begin inside another
                    continue
                if option.kind == "accept":
                    matched = True
                    out = {each: None for each in out if each[0].part != BEHIND}
                    if self.behind and any(way.part == NUMBER for way, _ in out):
                        out[option, False] = None  # it counts unless the number goes on
                    else:
                        outcome = option.outcome or outcome
                    break
                late = self.behind and fresh and option.part == LABEL
                out.setdefault((option.ways[0], late), None)
                parts.add((label, option.part == LABEL))
                outcome = option.outcome or outcome
                if option.commits and not self.behind:
                    return tuple(out), outcome, matched
                over = over or option.commits
        if self.behind and {(True, False), (False, False)} <= parts:
            raise ValueError(
                "pattern: a second number could begin before the first is done with; wanted text "
                "in front of the number, such as `Score: (\\d+)/10`, or less behind it"
            )
        if over:  # what began inside the number is no later match
            out = dict.fromkeys((way, False) for way, _ in out)
        return tuple(out), outcome, matched

    def _options(self, thread: Node, context: Context, symbol: int) -> list[Node]:
        """The nodes that consume the symbol, and the accepting ones, in order of priority."""
        found, seen, stack = [], set(), [thread]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.kind == "accept":
                found.append(node)
            elif node.kind == "char":
                if symbol != END and self.alphabet.members[symbol, node.char]:
                    found.append(node)
            elif self._holds(node, context, symbol):
                stack += reversed(node.ways)
        return found

    def _holds(self, node: Node, context: Context, symbol: int) -> bool:
        held, begin, inside = context
        simple = {"fork": True, "begin": begin, "end": symbol == END, "apart": inside == 0}
        if node.kind in simple:
            return simple[node.kind]
        before = node.char in held
        ahead = symbol != END and bool(self.alphabet.members[symbol, node.char])
        truth = {"before": before, "ahead": ahead, "edge": before != ahead}[node.kind]
        return truth != node.negated

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(following [Q, C], outcome [Q, C], ends [Q, 2]: the outcome that the end brings, and
        whether a text cut there is open).
        """
        following: list[list[int]] = []
        outcome: list[list[int]] = []
        ends = []
        while len(following) < len(self.states):
            state = len(following)
            steps = [self.step(state, symbol) for symbol in range(self.alphabet.size)]
            following.append([target for target, _ in steps])
            outcome.append([brought for _, brought in steps])
            threads, context = self.states[state]
            ends.append([self.advance(threads, context, END)[1], int(self.is_open(state))])
        return np.array(following), np.array(outcome), np.array(ends)

    def is_open(self, state: int) -> bool:
        """Whether an unfinished text that ends here could still change its last number, or is
        inside a match that has begun.
        """
        threads, context = self.states[state]
        classes = range(self.alphabet.size)
        ends = [self.advance(threads, context, symbol) for symbol in (END, *classes)]
        return any(survivors for survivors, _, _ in ends) or len({m for _, _, m in ends}) > 1


def _over_bytes(chars: _Characters) -> ByteAutomaton:
    """States over bytes: a state over characters, and how far UTF-8 is read into the next one."""
    following, brought, ends = chars.table()
    decoder = Decoder(chars.alphabet.class_of)
    size, num_nodes, num_columns = len(following), len(decoder.nodes), len(decoder.bytes)
    states = np.arange(size)
    target = np.empty((num_nodes, size, num_columns), dtype=np.int64)
    outcome = np.empty_like(target)
    for node in range(num_nodes):
        for column, (symbols, behind) in enumerate(decoder.steps(node)):
            at, said = states, np.zeros_like(states)
            for symbol in symbols:
                said = np.where(brought[at, symbol] > 0, brought[at, symbol], said)
                at = following[at, symbol]
            target[node, :, column], outcome[node, :, column] = behind * size + at, said
    # A character cut at the end: left out where more was to come, U+FFFD where it was all.
    cut, said = following[:, decoder.replacement], brought[:, decoder.replacement]
    finished = np.where(ends[cut, 0] > 0, ends[cut, 0], said)
    whole = np.stack([ends[:, 0], ends[:, 0], ends[:, 1]], axis=1)
    inside = np.stack([ends[:, 0], finished, ends[:, 1]], axis=1)
    all_ends = np.concatenate([whole, *[inside] * (num_nodes - 1)])
    return _merged(
        target.reshape(-1, num_columns),
        outcome.reshape(-1, num_columns),
        all_ends,
        decoder.column_of,
        tuple(range(chars.pattern.low, chars.pattern.high + 1)),
    )


def _merged(
    following: np.ndarray,
    outcome: np.ndarray,
    ends: np.ndarray,
    column_of: np.ndarray,
    values: tuple[int, ...],
) -> ByteAutomaton:
    """Only states that the first one leads to, and one for all that no text tells apart (Moore's
    partition refinement).
    """
    reached = np.zeros(len(following), dtype=bool)
    front = np.array([0])
    while len(front):
        reached[front] = True
        front = np.setdiff1d(following[front], np.flatnonzero(reached))
    kept = np.flatnonzero(reached)
    following = np.searchsorted(kept, following[kept])
    outcome, ends = outcome[kept], ends[kept]
    group, count = _numbered(np.hstack([outcome, ends])), 0
    while group.max() + 1 > count:
        count = group.max() + 1
        group = _numbered(np.hstack([group[:, None], group[following]]))
    _, first = np.unique(group, return_index=True)
    return ByteAutomaton(
        group[following[first]][:, column_of].astype(np.int32),
        outcome[first][:, column_of].astype(np.int32),
        int(group[0]),
        ends[first, :2].T.astype(np.int32),
        ends[first, 2].astype(bool),
        values,
    )


def _numbered(rows: np.ndarray) -> np.ndarray:
    """Equal rows get equal numbers, from 0."""
    found: dict[bytes, int] = {}
    data = np.ascontiguousarray(rows, dtype=np.int32)
    return np.array([found.setdefault(row.tobytes(), len(found)) for row in data])
