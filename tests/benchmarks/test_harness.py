"""What keeps a benchmark honest: wrong results get no speed-up, memory is what was taken."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import bench_linear_logprob, columns, harness
from benchmarks.harness import Row, Variant

BOUNDS = {"value": (1e-3, 0.1)}


def measured(**calls) -> dict[str, Row]:
    """Variants that should return 1, timed a little."""
    variants = [Variant(name, call) for name, call in calls.items()]

    def errors_of(variant, output):
        return {"value": abs(float(output) - 1.0)}

    options = {"flops": 1e3, "rate": 1e9, "seconds": 0.01, "rounds": (3, 5)}
    rows = harness.measure(variants, errors_of, BOUNDS, "cpu", peak_of=lambda v: None, **options)
    return {row.variant: row for row in rows}


def one() -> torch.Tensor:
    return torch.ones(())


def test_a_right_rival_gets_a_speed_up():
    rows = measured(ours=one, eager=one, rival=one)
    assert rows["rival"].correct and rows["rival"].ours_is_faster > 0
    assert rows["ours"].share_of_rate > 0 and rows["ours"].ms.runs >= 3


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
def test_a_rival_that_returns_garbage_is_called_wrong_and_gets_no_speed_up(value: float):
    rows = measured(ours=one, eager=one, rival=lambda: torch.tensor(value))
    row = rows["rival"]
    assert row.correct is False and row.ms is not None
    assert row.ours_is_faster is None and row.share_of_rate is None and row.times_least is None
    (line,) = [x for x in columns.summary(list(rows.values())).splitlines() if "rival" in x]
    assert "WRONG" in line


def test_nothing_is_compared_with_ours_when_ours_is_wrong():
    rows = measured(ours=lambda: torch.tensor(0.0), eager=one, rival=one)
    assert not rows["ours"].correct and rows["rival"].correct
    assert rows["rival"].ours_is_faster is None


@pytest.mark.parametrize(
    ("eager_error", "limit"), [(0.0, 1e-3), (0.01, 0.04), (5.0, 0.1), (float("nan"), 1e-3)]
)
def test_the_error_allowed_follows_eager_between_floor_and_cap(eager_error: float, limit: float):
    rows = measured(ours=one, eager=lambda: torch.tensor(1.0 + eager_error))
    assert rows["ours"].limits["value"] == pytest.approx(limit, rel=1e-3)
    assert rows["eager"].correct is (eager_error <= 0.1)


def test_a_rival_that_fails_is_named_and_the_others_go_on():
    def broken():
        raise RuntimeError("no such\nkernel")

    rows = measured(ours=one, eager=one, rival=broken)
    assert rows["rival"].reason == "failed: RuntimeError: no such kernel"
    assert rows["rival"].correct is None and rows["rival"].ms is None and rows["ours"].ms


def test_a_bound_is_no_rival():
    variants = [Variant("ours", one), Variant("floor", lambda: None, least=True)]

    def errors_of(variant, output):
        return {} if variant.least else {"value": 0.0}

    options = {"seconds": 0.01, "rounds": (3, 5), "peak_of": lambda v: None}
    rows = harness.measure(variants, errors_of, BOUNDS, "cpu", **options)
    assert rows[0].times_least > 0 and rows[1].ours_is_faster is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_sees_what_a_call_takes_and_gives_back():
    mib = 1 << 20
    size = 64 * mib

    def takes() -> None:
        torch.ones(size, dtype=torch.uint8)  # gone when the call returns

    assert size - 4 * mib < harness.peak_rss(takes) < size + 8 * mib
    # Not the highest point of the process's life: a later small call is small.
    assert harness.peak_rss(lambda: torch.ones(8)) < 8 * mib


def test_rows_are_kept_when_the_last_one_is_torn(tmp_path):
    file = harness.RowFile(tmp_path, "bench", {"commit": "abc"})
    file.add({"name": "case"}, list(measured(ours=one, eager=one).values()), live_tiles=0.5)
    file.close()
    text = file.path.read_text()
    file.path.write_text(text + text[:20])
    rows = harness.read_rows(file.path)
    assert [row["variant"] for row in rows] == ["ours", "eager"]
    assert rows[0]["commit"] == "abc" and rows[0]["case"] == {"name": "case"}


MISTAKES = {
    "--core 999, wanted one of": ["--core", "999"],
    "--rounds 0, wanted 1 or more": ["--rounds", "0"],
    "--seconds -3, wanted more than 0": ["--seconds", "-3"],
    "--only 'nope' is in no case's name": ["--only", "nope"],
    "--out /dev/null/x: Not a directory, wanted a folder": ["--out", "/dev/null/x"],
    "unrecognized arguments: --bad": ["--bad"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(message: str, capsys: pytest.CaptureFixture[str]):
    arguments = ["--device", "cpu", "--quick", *MISTAKES[message]]
    try:
        status = bench_linear_logprob.main(arguments)
    except SystemExit as end:
        status = end.code
    told = capsys.readouterr()
    assert status == 2 and told.out == "" and len(told.err.splitlines()) == 1
    assert told.err.startswith(f"bench_linear_logprob: {message}")
