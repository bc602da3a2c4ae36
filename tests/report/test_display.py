"""What is written on a terminal, what elsewhere, and that the figures are true."""

from __future__ import annotations

import io

import pytest

from srlm_fast.report import Display
from srlm_fast.report.display import duration, number


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(terminal: bool, width: int = 120) -> tuple[Display, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return Display(out, terminal=terminal, clock=clock, width=width), out, clock


def test_rate_and_time_left_count_only_this_process():
    display, _, clock = make(terminal=False)
    with display.stage("M2 answers", 100, "prompts", done=40) as stage:
        assert stage.seconds_left() is None
        clock.now += 10
        stage.update(60)
        assert stage.rate() == (2.0, "prompts")
        assert stage.seconds_left() == 20.0


def test_tokens_turn_the_rate_into_tokens_per_second():
    display, _, clock = make(terminal=False)
    with display.stage("M2 answers", 100, "prompts") as stage:
        clock.now += 4
        stage.update(10, tokens=800, loss=0.6931471)
        assert stage.rate() == (200.0, "tokens")
        assert "200 tokens/s" in stage.line(120)
        assert "loss 0.693" in stage.line(120)


def test_a_file_gets_plain_lines_at_intervals():
    display, out, clock = make(terminal=False)
    with display.stage("M2 DPO", 1000, "steps") as stage:
        for step in range(1, 1001):
            clock.now += 0.03
            stage.update(step)
    lines = out.getvalue().splitlines()
    assert 2 <= len(lines) <= 4
    assert all("\x1b" not in line and "\r" not in line for line in lines)
    assert lines[-1].split()[2:5] == ["1000/1000", "steps", "30s"]


def test_a_long_stage_does_not_fill_a_log():
    display, out, clock = make(terminal=False)
    with display.stage("M2 DPO", 1000, "steps") as stage:
        for step in range(1, 1001):
            clock.now += 36
            stage.update(step)
        assert "36s/step" in stage.line(120)
    assert 20 < out.getvalue().count("\n") < 70


def test_a_terminal_gets_one_line_drawn_over_and_never_wrapped():
    display, out, clock = make(terminal=True, width=50)
    with display.stage("M2 DPO", 1000, "steps") as stage:
        for step in range(1, 1001):
            clock.now += 0.03
            stage.update(step, loss=0.5, margin=1.25, learning_rate=1e-6)
    drawn = out.getvalue().rsplit("\n", 2)[0].split("\r\x1b[K")
    assert 100 < len(drawn) < 400
    assert all(len(line.split("\n")[0]) < 50 for line in drawn[:-1])
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize(("encoding", "block"), [("utf-8", "█"), ("ascii", "#")])
def test_the_bar_can_be_written_in_the_terminals_encoding(encoding: str, block: str):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    with Display(out, terminal=True, width=120).stage("M2 answers", 2, "prompts") as stage:
        stage.update(1)
        stage.draw()
    out.seek(0)
    assert block * 12 in out.read()


@pytest.mark.parametrize(("width", "cells"), [(120, 24), (80, 10), (50, 0)])
def test_a_narrow_terminal_has_a_short_bar_and_still_the_time_left(width: int, cells: int):
    display, _, clock = make(terminal=True, width=width)
    with display.stage("M2 answers", 2000, "requests") as stage:
        clock.now += 100
        stage.update(1000, tokens=300_000)
        line = stage.line(width)[: width - 1]
        assert line.count("#") == line.count(".") == cells // 2
        assert ("1m40s left" in line) == (width > 50) and "1000/2000" in line


def test_a_stage_cut_short_says_so_once():
    display, out, _ = make(terminal=False)
    with pytest.raises(KeyboardInterrupt), display.stage("M2 answers", 9, "prompts") as stage:
        stage.update(3)
        raise KeyboardInterrupt
    display.close()
    assert out.getvalue().count("cut short") == 1
    assert "3/9 prompts" in out.getvalue()


def test_a_note_does_not_destroy_the_line_being_drawn():
    display, out, _ = make(terminal=True)
    with display.stage("M2 answers", 9, "prompts"):
        display.note("stopping")
        assert "\r\x1b[Kstopping\n" in out.getvalue()
        assert out.getvalue().rsplit("\r\x1b[K", 1)[1].startswith("M2 answers")


def test_unknown_total_and_total_learnt_later():
    display, _, _ = make(terminal=False)
    with display.stage("M1 SFT", None, "steps") as stage:
        stage.update(1)
        assert "1 steps" in stage.line(120)
        stage.update(2, 80)
        assert "2/80 steps" in stage.line(120)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (4.25, "4.2s"),
        (59.4, "59s"),
        (185, "3m05s"),
        (7620, "2h07m"),
        (276_000, "3d04h"),
    ],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.6931, "0.693"),
        (12, "12"),
        (1234.5, "1234"),
        (45_600, "46k"),
        (2e7, "20M"),
        (float("nan"), "nan"),
    ],
)
def test_numbers(value: float, text: str):
    assert number(value) == text


def test_figures_without_room_are_left_out_whole():
    display, out, clock = make(terminal=True, width=75)
    with display.stage("M2 answers", 100, "requests") as stage:
        clock.now += 5
        stage.update(50, answers=512, judged=62700)
    assert all(len(line) < 75 for line in out.getvalue().strip().split("\r\x1b[K"))
    assert out.getvalue().endswith("5.0s  10 requests/s  answers 512\n")
