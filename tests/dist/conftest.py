"""Two and four ranks, started once for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .processes import Ranks


def started(count: int) -> Iterator[Ranks]:
    ranks = Ranks(count)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    yield from started(2)


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Ranks]:
    yield from started(4)
