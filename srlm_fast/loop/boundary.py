"""Where the ranks of a run meet: they go on together, or none of them does.

Through the store that started them and not through a collective: a rank may come hours after
another, and one that leaves says so where the others will look. Each boundary gets one verdict, the
first that is put down. "go" takes all ranks, so whoever leaves before a boundary, or while it waits
there, leaves its own verdict in time: no rank goes on to wait for one that has left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

GO, STOP, END = "go", "stop", "end"
PAUSE_SECONDS = 0.05  # at most, between two looks


class RankEndedError(RuntimeError):
    """Another rank has ended, and has told why."""


class Boundary:
    """The boundaries of a run in turn.

    store: a `torch.distributed.Store` with no keys, the same for all ranks. rank, world: of the
    process.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.store, self.rank, self.world = store, rank, world
        self.number = 0

    def meet(self, asked: Callable[[], bool]) -> None:
        """Until all ranks are here. Raises KeyboardInterrupt on all of them where `asked` is true
        on one, RankEndedError where one has ended.
        """
        if asked():
            self.put(STOP)
        elif self.store.add(self._key("arrived"), 1) == self.world:
            self.put(GO)
        pause = PAUSE_SECONDS / 16
        while (verdict := self.verdict()) is None:
            if asked():
                self.put(STOP)
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS)
        if verdict != GO:
            self.leave(verdict)
        self.number += 1

    def verdict(self) -> str | None:
        """That of the next boundary, None while there is none."""
        key = self._key("verdict")
        return self.store.get(key).decode() if self.store.check([key]) else None

    def put(self, verdict: str) -> str:
        """Put a verdict down unless there is one. Returns the one that holds."""
        return self.store.compare_set(self._key("verdict"), "", verdict).decode()

    def leave(self, verdict: str = STOP) -> None:
        """Raise what a verdict means, which all ranks will find at the next boundary."""
        if self.put(verdict) == STOP:
            raise KeyboardInterrupt
        raise RankEndedError("another rank has ended")

    def tell(self, status: int) -> bool:
        """Say that this rank ends, with its exit status. True for the first one, which tells the
        user why.
        """
        mine = f"{self.rank} {status}"
        first = self.store.compare_set("told", "", mine).decode()
        self.put(END)
        return first == mine

    def told(self) -> int | None:
        """The exit status of the rank that ended first, None where none has."""
        key = "told"
        return int(self.store.get(key).split()[1]) if self.store.check([key]) else None

    def part(self, seconds: float) -> None:
        """Until all ranks are about to exit, so that the launcher ends none of them before it is
        through; not longer than `seconds`.
        """
        until, key = time.monotonic() + seconds, "parting"
        self.store.add(key, 1)
        while self.store.add(key, 0) < self.world and time.monotonic() < until:
            time.sleep(PAUSE_SECONDS)

    def _key(self, what: str) -> str:
        return f"{self.number}/{what}"
