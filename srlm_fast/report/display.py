"""What is on screen while a run goes on: stages with rate and time left, then one table.

On a terminal the current stage is one line that is drawn over. Elsewhere (a file, a pipe, a CI log)
the same facts are plain lines, at the start of a long stage, every few seconds in it, and at its
end. The bar tells the truth about resumed work: it starts where the earlier process ended, and the
rate and the time left come from this process's work alone.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, TextIO

from srlm_fast.report.picture import score_picture
from srlm_fast.report.table import summary_table

REDRAW_S = 0.1
PLAIN_LINE_S = 10.0  # between plain lines, and a tenth of the stage's time once that is longer
BAR_WIDTHS = {100: 24, 60: 10}  # at least so many columns: cells of the bar


class Display:
    """Progress on `out`. `terminal` and `clock` are found out unless given (tests give them)."""

    def __init__(
        self,
        out: TextIO,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        width: int | None = None,
    ) -> None:
        self._out = out
        self._terminal = out.isatty() if terminal is None else terminal
        self._clock = clock
        self._width = width
        self._stage: Stage | None = None
        unicode = (getattr(out, "encoding", None) or "").lower().startswith("utf")
        self.blocks = "█░" if unicode else "#."

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> Stage:
        """A context manager for one stage. total: in `unit`, None when it is not known beforehand.
        done: how much an earlier process had finished."""
        return Stage(self, name, total, unit, done)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._write(f"{text}\n")
        self._redraw()

    def table(self, summary: dict[str, Any]) -> None:
        """A picture of the scores and the closing table, M1 -> M2 -> M3."""
        picture = score_picture(summary, self.columns(), unicode=self.blocks[0] != "#")
        parts = ["", *([picture, ""] if picture else []), summary_table(summary), ""]
        self._write("\n".join(parts))

    def close(self) -> None:
        """Leave the line of a stage that was cut short as it is, and start a new one."""
        if self._stage is not None:
            self._stage.leave(finished=False)

    def _write(self, text: str) -> None:
        erase = "\r\x1b[K" if self._terminal else ""
        try:
            self._out.write(erase + text)
            self._out.flush()
        except BrokenPipeError:
            # The reader has gone (`| head`); the work goes on without being watched.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())

    def _redraw(self) -> None:
        if self._stage is not None and self._terminal:
            self._stage.draw()

    def columns(self) -> int:
        return self._width or shutil.get_terminal_size().columns


class Stage:
    """One stage in progress: `with display.stage(...) as stage: stage.update(done, tokens=...,
    loss=...)`."""

    def __init__(
        self, display: Display, name: str, total: int | None, unit: str, done: int
    ) -> None:
        self._display = display
        self._clock = display._clock
        self.name, self.total, self.unit = name, total, unit
        self.first, self.done = done, done
        self.figures: dict[str, Any] = {}
        self._started = self._drawn = self._clock()

    def __enter__(self) -> Stage:
        self._display._stage = self
        if self._display._terminal:
            self.draw()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.leave(finished=kind is None)

    def update(self, done: int, total: int | None = None, **figures: Any) -> None:
        """done: units finished in all, earlier processes' included. `tokens=` counts this process's
        tokens and turns the rate into tokens/s; other figures are shown by name."""
        self.done, self.figures = done, self.figures | figures
        if total is not None:
            self.total = total
        if self._clock() - self._drawn >= self.wait():
            self.draw()

    def wait(self) -> float:
        """Seconds from one drawing to the next; the last line of a log is `leave`'s."""
        if self._display._terminal:
            return REDRAW_S
        return math.inf if self.done == self.total else max(PLAIN_LINE_S, self.seconds() / 10)

    def draw(self) -> None:
        self._drawn = self._clock()
        if self._display._terminal:
            columns = self._display.columns()
            self._display._write(self.line(columns))
        else:
            self._display._write(self.line(0) + "\n")

    def leave(self, finished: bool) -> None:
        """The stage's last line, which stays. Called twice it does nothing the second time."""
        if self._display._stage is not self:
            return
        self._display._stage = None
        self._display._write(self.last_line(finished) + "\n")

    def seconds(self) -> float:
        return self._clock() - self._started

    def rate(self) -> tuple[float, str]:
        """(units per second, their name), from this process's work only."""
        tokens = self.figures.get("tokens")
        amount, unit = (self.done - self.first, self.unit) if tokens is None else (tokens, "tokens")
        seconds = self.seconds()
        return (amount / seconds if seconds > 0 else 0.0), unit

    def seconds_left(self) -> float | None:
        """None until this process has finished something, or when the total is not known."""
        here = self.done - self.first
        if self.total is None or here <= 0:
            return None
        return (self.total - self.done) * self.seconds() / here

    def line(self, columns: int) -> str:
        rate, unit = self.rate()
        parts = [f"{self.name:<20}", self.count()]
        cells = next((cells for least, cells in BAR_WIDTHS.items() if columns >= least), 0)
        if self.total and cells:
            parts.insert(1, bar(self.done / self.total, self._display.blocks, cells))
        if rate:
            parts.append(speed(rate, unit))
        left = self.seconds_left()
        if left is not None:
            parts.append(f"{duration(left)} left")
        return self.fitted(parts, columns)

    def fitted(self, parts: list[str], columns: int) -> str:
        """The parts, and of the figures those that have room whole. columns: 0 is without end."""
        line = "  ".join(parts)
        for figure in self.named_figures():
            if columns and len(line) + 2 + len(figure) >= columns:
                break
            line += f"  {figure}"
        return line[: columns - 1] if columns else line

    def last_line(self, finished: bool) -> str:
        rate, unit = self.rate()
        parts = [f"{self.name:<20}", self.count(), duration(self.seconds())]
        if rate:
            parts.append(speed(rate, unit))
        if self.first:
            parts.append(f"({self.first} from before)")
        if not finished:
            parts.append("(cut short)")
        terminal = self._display._terminal
        return self.fitted(parts, self._display.columns() if terminal else 0)

    def count(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        return f"{self.done}{of} {self.unit}"

    def named_figures(self) -> list[str]:
        shown = {name: value for name, value in self.figures.items() if name != "tokens"}
        return [f"{name.replace('_', ' ')} {number(value)}" for name, value in shown.items()]


def bar(share: float, blocks: str, cells: int) -> str:
    filled = round(cells * min(max(share, 0.0), 1.0))
    return blocks[0] * filled + blocks[1] * (cells - filled)


def speed(rate: float, unit: str) -> str:
    """12 steps/s, or 4.2s/step where that is slower than one a second."""
    if rate >= 1:
        return f"{number(rate)} {unit}/s"
    return f"{duration(1 / rate)}/{unit.removesuffix('s')}"


def number(value: Any) -> str:
    """A figure in few characters: 12, 1.3k, 0.693."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if abs(value) >= 10_000_000:
        return f"{value / 1e6:.0f}M"
    if abs(value) >= 10_000:
        return f"{value / 1e3:.0f}k"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """4.2s, 3m05s, 2h07m, 3d04h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
