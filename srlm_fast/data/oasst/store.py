"""Messages and what could be taken of them, on disk, so that memory does not grow with the files.

A private temporary database that is gone with the process (SQLITE_TMPDIR says where).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from srlm_fast.data.oasst.messages import NOT_READY, UNKNOWN, TreeMessage

CACHE_KIB = 65536
SCHEMA = """
CREATE TABLE message (tree, id, parent, role, flaw, rank, text, labels);
CREATE TABLE candidate (kind, tree, turn, place, part, topic, row);
CREATE TABLE taken (tree PRIMARY KEY) WITHOUT ROWID;
BEGIN
"""
# Trees of messages that name a parent alone, from those known downwards.
PLACE = f"""
CREATE INDEX unplaced ON message (parent) WHERE tree = '{UNKNOWN}';
CREATE TABLE placed (id, tree);
INSERT INTO placed
WITH RECURSIVE known(id, tree) AS (
    SELECT id, tree FROM message WHERE tree <> '{UNKNOWN}'
    UNION
    SELECT message.id, known.tree FROM known JOIN message
    ON message.parent = known.id AND message.tree = '{UNKNOWN}'
) SELECT * FROM known;
CREATE INDEX by_id ON placed (id);
UPDATE message SET tree = (SELECT min(tree) FROM placed WHERE placed.id = message.id)
WHERE tree = '{UNKNOWN}';
"""


class Candidate(NamedTuple):
    """A row that could be taken. place: of its tree in the order drawn by the seed; part: of the
    prompt in that of its tree. topic: the same for the same prompt. row: as JSON."""

    kind: str  # "ift" or "eft"
    tree: str
    turn: int  # user turns before the prompt
    place: str
    part: str
    topic: str
    row: str


class Store:
    """A context manager."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        for pragma in (f"cache_size = -{CACHE_KIB}", "journal_mode = OFF", "temp_store = FILE"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(SCHEMA)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, messages: Iterable[TreeMessage]) -> int:
        """The number of them. Of a tree that is not ready the first message alone is kept."""
        count = 0

        def counted() -> Iterator[TreeMessage]:
            nonlocal count
            for message in messages:
                count += 1
                if message.flaw != NOT_READY or message.parent is None:
                    yield message

        self._db.executemany("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?, ?)", counted())
        return count

    def place(self) -> int:
        """Find the trees of messages that name a parent alone; how many belong to none and are
        taken out."""
        unplaced = f"SELECT count(*) FROM message WHERE tree = '{UNKNOWN}'"
        if not self._db.execute(unplaced).fetchone()[0]:
            return 0
        for statement in PLACE.split(";"):
            self._db.execute(statement)
        return self._db.execute("DELETE FROM message WHERE tree IS NULL").rowcount

    def trees(self) -> Iterator[list[TreeMessage]]:
        """The messages of each tree, in whatever order they came: by tree, then by id."""
        self._db.execute("CREATE INDEX by_tree ON message (tree)")
        rows = self._db.execute("SELECT * FROM message ORDER BY tree")
        for _, group in groupby(map(TreeMessage._make, rows), attrgetter("tree")):
            yield sorted(group, key=lambda message: (message.id, repr(message)))

    def add_candidates(self, candidates: Iterable[Candidate]) -> None:
        self._db.executemany("INSERT INTO candidate VALUES (?, ?, ?, ?, ?, ?, ?)", candidates)

    def take(self, trees: Iterable[str]) -> None:
        """Remember the trees that IFT has taken."""
        self._db.executemany("INSERT INTO taken VALUES (?)", ((tree,) for tree in trees))

    def ift(self) -> Iterator[Candidate]:
        """In the order drawn by the seed."""
        return self._found("WHERE kind = 'ift' ORDER BY place, tree")

    def eft(self) -> Iterator[tuple[Candidate, bool]]:
        """From the other end of that order, with whether IFT has taken the tree: first turns, later
        turns of trees that IFT has not taken, those of trees that it has. First turns of these come
        last; they are not to be used."""
        mine = "(SELECT count(*) FROM taken WHERE taken.tree = candidate.tree)"
        group = f"CASE WHEN turn > 0 THEN 1 + {mine} ELSE 3 * {mine} END"
        rows = self._db.execute(
            f"SELECT *, {mine} FROM candidate WHERE kind = 'eft' "
            f"ORDER BY {group}, place DESC, tree, part, topic"
        )
        return ((Candidate._make(row[:-1]), bool(row[-1])) for row in rows)

    def _found(self, condition: str) -> Iterator[Candidate]:
        return map(Candidate._make, self._db.execute(f"SELECT * FROM candidate {condition}"))
