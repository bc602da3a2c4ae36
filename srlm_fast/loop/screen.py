"""What the loop shows itself on, as far as the loop knows it."""

from __future__ import annotations

from typing import Any, Protocol


class Shown(Protocol):
    """One stage on screen (`report.display.Stage`)."""

    def __enter__(self) -> Shown: ...
    def __exit__(self, *exc: Any) -> None: ...
    def update(self, done: int, total: int | None = None, **figures: Any) -> None: ...


class Screen(Protocol):
    """What the loop shows itself on (`report.display.Display`)."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> Shown: ...
    def note(self, text: str) -> None: ...
