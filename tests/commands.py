"""What the tests of commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def complaint_of(main: Callable[[Sequence[str]], int], capsys: Any) -> Callable[..., str]:
    """Call a command that must refuse its words: what it says, one line."""

    def complain(*argv: object) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 2
        written = capsys.readouterr().err
        assert written.startswith("srlm_fast: ") and written.count("\n") == 1, written
        return written

    return complain
