"""Which rows are taken.

Trees are put in an order by a hash of seed and tree id. IFT takes from its beginning; EFT from its
end, first turns of trees that IFT has not taken, then, where these are too few, later turns of such
trees, then later turns of IFT's trees. A prompt (but for case and white space) is taken once in
all. Each tree with EFT rows is of training or of evaluation: at its first row of the side that has
less of what it wants. So nothing depends on the order of files or lines.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from srlm_fast.data.fields import Skipped, read_rows
from srlm_fast.data.oasst.messages import COLUMNS, FORM, TreeMessage, tree_messages
from srlm_fast.data.oasst.store import Candidate, Store
from srlm_fast.data.oasst.trees import OF_IFT, SPARE, TAKEN, TWICE, Account, Tree, new_account
from srlm_fast.data.selfmade import same_text

Row = dict[str, Any]
SIDES = ("eft_train", "eft_eval")
Told = Callable[[int, int], None]  # (index of a file, bytes of it that have been read)


@dataclass(frozen=True)
class OasstConfig:
    """Rows wanted, by default the paper's numbers (section 3.1). lang: of all messages, spelled as
    the files have it."""

    seed: int = 0
    lang: str = "en"
    ift: int = 3200
    eft_train: int = 1630
    eft_eval: int = 541


@dataclass(frozen=True)
class OasstSeeds:
    """ift: rows of `seeds.IftRow`; eft_train, eft_eval: of `seeds.EftEvalRow`, scores from ranks,
    0 the worst; all with the ids of their messages. account: counts by section and reason."""

    ift: list[Row]
    eft_train: list[Row]
    eft_eval: list[Row]
    account: dict[str, dict[str, int]]


def make_seeds(
    paths: Sequence[str | Path],
    config: OasstConfig,
    skipped: Skipped | None = None,
    told: Told | None = None,
) -> OasstSeeds:
    """Seeds from files of trees or messages, in any mixture; fewer than wanted where there are not
    so many. Memory does not grow with the files.

    skipped: counts lines that cannot be read, instead of an error. Raises InputError naming file,
    line and field, sqlite3.OperationalError where the disk is full.
    """
    account = new_account()
    with Store() as store:
        for index, path in enumerate(paths):
            account["messages"]["read"] += store.add(_messages(path, config, skipped, told, index))
        account["messages"]["apart from their tree"] += store.place()
        store.add_candidates(_candidates(store, config.seed, account))
        topics: set[str] = set()
        ift = _choose_ift(store, config.ift, topics, account)
        sides = _choose_eft(store, config, topics, account)
    return OasstSeeds(ift, *sides, {name: dict(counts) for name, counts in account.items()})


def _messages(
    path: str | Path, config: OasstConfig, skipped: Skipped | None, told: Told | None, index: int
) -> Iterator[TreeMessage]:
    return read_rows(
        path,
        lambda line: tree_messages(line, config.lang),
        FORM,
        skipped,
        COLUMNS,
        None if told is None else lambda done: told(index, done),
    )


def _candidates(store: Store, seed: int, account: Account) -> Iterator[Candidate]:
    for messages in store.trees():
        tree = Tree(messages, account)
        place = _hash(f"{seed}/{tree.id}")
        for found in tree.found():
            part, topic = _hash(f"{seed}/{found.prompt_id}"), _hash(same_text(found.prompt))
            row = json.dumps(found.row)
            yield Candidate(found.kind, tree.id, found.turn, place, part, topic, row)


def _hash(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()


def _choose_ift(store: Store, wanted: int, topics: set[str], account: Account) -> list[Row]:
    """`topics` grows by those of the rows taken."""
    rows: list[Row] = []
    seen, counts = set(), account["ift"]
    for candidate in store.ift():
        if candidate.topic in seen:
            counts[TWICE] += 1
        elif len(rows) == wanted:
            counts[SPARE] += 1
        else:
            rows.append(json.loads(candidate.row))
            seen.add(candidate.topic)
    topics |= seen
    store.take(row["message_tree_id"] for row in rows)
    counts["taken"] = len(rows)
    return rows


def _choose_eft(
    store: Store, config: OasstConfig, topics: set[str], account: Account
) -> tuple[list[Row], list[Row]]:
    counts, of_ift = account["eft"], set()
    sides = _Sides({side: getattr(config, side) for side in SIDES})
    for candidate, is_taken in store.eft():
        if is_taken:
            of_ift.add(candidate.tree)
        if is_taken and candidate.turn == 0:
            counts[OF_IFT] += 1
        elif candidate.topic in topics:
            counts[TWICE] += 1
        elif not sides.add(candidate):
            counts[SPARE] += 1
        else:
            topics.add(candidate.topic)
    taken = [sides.rows[side] for side in SIDES]
    figures = [
        (
            len(rows),
            sum(row["turn"] > 0 for row in rows),
            sum(row["message_tree_id"] in of_ift for row in rows),  # whose beginning IFT teaches
        )
        for rows in taken
    ]
    counts.update(dict(zip(TAKEN, itertools.chain(*figures), strict=True)))
    return sides.rows["eft_train"], sides.rows["eft_eval"]


class _Sides:
    """Training and evaluation as they fill up."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self.wanted = wanted
        self.rows: dict[str, list[Row]] = {side: [] for side in wanted}
        self.side_of: dict[str, str] = {}

    def add(self, candidate: Candidate) -> bool:
        """Take a row, if the side of its tree is not full."""
        side = self.side_of.get(candidate.tree) or self._emptiest()
        if not side or len(self.rows[side]) == self.wanted[side]:
            return False
        self.side_of[candidate.tree] = side
        self.rows[side].append(json.loads(candidate.row))
        return True

    def _emptiest(self) -> str | None:
        left = [side for side, count in self.wanted.items() if len(self.rows[side]) < count]
        return min(left, key=lambda side: len(self.rows[side]) / self.wanted[side], default=None)
