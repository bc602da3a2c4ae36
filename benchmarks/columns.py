"""Columns of the table that a benchmark prints of one case: a head, and the cell of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.harness import Row, mebibytes, number, percent, ratio, table

Column = tuple[str, Callable[[Row], str]]

VARIANT: Column = ("variant", lambda row: row.variant)
RATE: Column = ("rate", lambda row: percent(row.share_of_rate))
LEAST: Column = ("x least", lambda row: ratio(row.times_least))
OURS: Column = ("x ours", lambda row: ratio(row.ours_is_faster))
PEAK: Column = ("MiB", lambda row: mebibytes(row.peak_bytes))
COMPARED = (RATE, LEAST, OURS, PEAK)
COMPUTES: Column = ("", lambda row: row.computes)
VERDICT: Column = ("", lambda row: row.verdict)


def times(unit: str, *parts: str) -> list[Column]:
    """Median, then other fields of `Timing` by name; unit: "ms" or "us"."""
    heads = {"p50": unit, "cpu": f"cpu {unit}"}
    return [(heads.get(part, part), _time(part, unit)) for part in ("p50", *parts)]


def _time(part: str, unit: str) -> Callable[[Row], str]:
    scale = {"ms": 1.0, "us": 1e3}[unit]

    def cell(row: Row) -> str:
        value = getattr(row.ms, part, None)
        return "" if value is None else number(scale * value)

    return cell


def speed(head: str, amount: float, unit: float = 1e9) -> Column:
    """Bytes or operations a second, in `unit` of them."""
    return head, lambda row: f"{amount / (1e-3 * row.ms.p50) / unit:.0f}" if row.ms else ""


def error(head: str, quantity: str) -> Column:
    return head, lambda row: f"{row.errors[quantity]:.1e}" if quantity in row.errors else ""


def show(rows: Sequence[Row], *columns: Column) -> str:
    """The table: variant, the columns, verdict."""
    every = (VARIANT, *columns, VERDICT)
    return table([head for head, _ in every], [[cell(row) for _, cell in every] for row in rows])


def summary(rows: Sequence[Row]) -> str:
    """The table of all that a row holds."""
    on_cpu = any(row.ms and row.ms.cpu is not None for row in rows)
    timed = times("ms", *(("low", "high", "cpu", "first") if on_cpu else ("p20", "p80", "first")))
    quantities = dict.fromkeys(quantity for row in rows for quantity in row.errors)
    errors = [error(f"{quantity} err", quantity) for quantity in quantities]
    return show(rows, *timed, *COMPARED, *errors, COMPUTES)
