"""The one call for a machine with a GPU: what it says without one, how it ends what overruns."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def row(case: str, variant: str, p50: float, **more) -> dict:
    whole = {"benchmark": "bench_linear_logprob", "case": {"name": case}, "variant": variant,
             "ms": {"p50": p50}, "correct": True, "reason": None, "computes": "", "least": False,
             "peak_bytes": 1 << 20, "times_least": None, "share_of_rate": 0.5}  # fmt: skip
    return whole | more


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err == "benchmarks.gpu: no GPU here\n"
    assert not (tmp_path / "out").exists()


def test_what_overruns_is_killed_and_reported(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("")
    start = time.perf_counter()
    step = gpu.run("slow", ["sh", "-c", "echo begun; sleep 60"], 2.0, log)
    assert step.status == "over time" and step.failed and time.perf_counter() - start < 20
    assert step.last_line == "begun"


def test_a_step_that_fails_is_reported(tmp_path):
    log = tmp_path / "log.txt"
    step = gpu.run("bad", [sys.executable, "-c", "raise SystemExit('why')"], 30.0, log)
    assert step.status == "failed" and step.last_line == "why" and "== bad" in log.read_text()
    good = gpu.run("good", [sys.executable, "-c", "print('done')"], 30.0, log)
    assert good.status == "ok" and not good.failed and good.last_line == "done"


@pytest.fixture
def pretended(monkeypatch):
    """A GPU whose every step takes no time and whose benchmarks write one row each."""
    asked = []

    def run(name, command, limit, log):
        asked.append((name, list(command), limit))
        if "--out" in command:
            folder = Path(command[command.index("--out") + 1])
            made = {"commit": "abc", "device": "GPU"}
            (folder / f"{name}.jsonl").write_text(json.dumps(row("case", "ours", 2.0) | made))
            (folder / f"{name}.png").write_bytes(b"a plot")
        return gpu.Step(name, "failed" if name == "tests" else "ok", 1.0, "said last")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(gpu, "run", run)
    return asked


def test_one_call_does_all_and_a_failed_step_fails_it_with_the_table(pretended, tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), "--seconds", "100"]) == 1
    names = [name for name, _, _ in pretended]
    assert names[names.index("tests") + 1 :] == [name for name, *_ in gpu.BENCHMARKS]
    assert all(limit <= 100 for _, _, limit in pretended)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (
        len(rows) == len(gpu.BENCHMARKS)
        and (tmp_path / "bench_dpo_loss.png").read_bytes() == b"a plot"
    )
    table = (tmp_path / "table.txt").read_text()
    assert table in capsys.readouterr().out
    assert "tests" in table and "failed" in table and "wanted" in table
    # Few files, none in folders of their own: such a machine hands back only so many.
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set()


def test_steps_can_be_named(pretended, tmp_path):
    assert gpu.main(["--out", str(tmp_path), "--only", "bench_dpo_loss"]) == 0
    assert [name for name, _, _ in pretended] == ["bench_dpo_loss"]


def test_targets_stand_beside_what_was_found():
    case = "llama-3-8b frozen 100 % random"
    rows = [
        row(case, "ours", 46.0, times_least=1.1),
        row(case, "ours over hidden", 45.0, peak_bytes=100),
        row(case, "CCE exact", 90.0, peak_bytes=200),
        row(case, "ours DPO", 50.0, computes="dpo"),
        row(case, "Liger DPO", 90.0, computes="dpo"),
        row(case, "quack", 1.0, ms=None, reason="not installed", correct=None),
    ]
    lines = [line for line in gpu.targets(rows).splitlines() if "llama-2" not in line][1:]
    lines = lines[next(i for i, line in enumerate(lines) if "frozen" in line) :]
    assert lines[0].startswith("llama-3-8b frozen") and lines[0].endswith("1.10  met")
    assert "CCE exact over ours over hidden" in lines[1] and lines[1].endswith("2.00  met")
    assert "memory" in lines[2] and lines[2].endswith("0.50  met")
    assert "Liger DPO" in lines[3] and lines[3].endswith("1.80  MISSED")
    assert "half" in lines[4] and "no figure" in lines[4]
    assert "quack" in lines[5] and "no figure: not run" in lines[5]


def sampler_row(variant: str, p50: float, **more) -> dict:
    return row("llama-3-8b chat1k", variant, p50, benchmark="bench_sampler", **more)


def test_targets_of_the_sampler():
    fast = {"share_of_rate": 0.82, "tokens_per_s": [9000, 8900, 9100], "busy": 0.96}
    rows = [
        sampler_row("ours bf16", 100.0, **fast),
        sampler_row("ours bf16 deterministic", 108.0),
        row("llama-3-8b decode 64 x 1024", "ours", 1.0, share_of_rate=0.9),
        row("llama-3-8b decode 256 x 1024", "ours", 1.0, share_of_rate=0.8),
    ]
    lines = gpu.table([""] * 4, gpu.sampler_targets(rows)).splitlines()[1:]
    ends = ["0.82  met", "9000.00  met", "0.96  MISSED", "1.08  met", "not run", "0.80  MISSED"]
    assert len(lines) == len(ends)
    assert all(line.endswith(end) for line, end in zip(lines, ends, strict=True)), lines


def test_the_target_of_expected_scores_is_the_worse_model():
    rows = [row(f"{model} 1024 rows", "ours", 1.0) for model in gpu.MODELS]
    for model, ms in zip(gpu.MODELS, (25, 19), strict=True):
        rows.append(row(f"{model} 1024 rows", "eager", ms))
    (line,) = [line for line in gpu.targets(rows).splitlines() if "expected scores" in line]
    assert line.endswith("19.00  MISSED")


def test_a_wrong_sampler_meets_no_target():
    fast = {"share_of_rate": 0.82, "tokens_per_s": [9000, 8900, 9100], "busy": 0.99}
    rows = [sampler_row("ours bf16", 100.0, correct=False, **fast)]
    assert all("no figure" in line[3] for line in gpu.sampler_targets(rows))


def test_the_summary_takes_the_fastest_right_one_of_ours():
    rows = [sampler_row("ours fp32", 3.0), sampler_row("ours bf16", 2.0)]
    rows += [sampler_row("ours f16", 1.0, correct=False), sampler_row("transformers bf16", 9.0)]
    (line,) = gpu.summary(rows).splitlines()[1:]
    assert line.split()[2] == "2" and line.endswith("transformers bf16")


def test_what_there_was_no_time_for_is_no_failure(tmp_path):
    step = gpu.run("late", ["true"], 0.0, tmp_path / "log.txt")
    assert step.status == "left out" and not step.failed


def test_a_wrong_result_meets_no_target():
    case = "llama-3-8b frozen 100 % random"
    rows = [row(case, "ours DPO", 10.0, computes="dpo", correct=False),
            row(case, "Liger DPO", 90.0, computes="dpo")]  # fmt: skip
    lines = [line for line in gpu.targets(rows).splitlines() if "Liger DPO over ours" in line]
    assert len(lines) == 2 and all("no figure" in line for line in lines)


def test_the_summary_names_the_fastest_right_rival():
    rows = [row("a", "ours", 2.0), row("a", "wrong", 0.1, correct=False), row("a", "slow", 9.0),
            row("a", "rival", 3.0), row("a", "other work", 0.2, computes="sum")]  # fmt: skip
    assert gpu.summary(rows).splitlines()[1].split()[-1] == "rival"


def test_the_table_fits_a_screen_or_two(monkeypatch):
    steps = [gpu.Step(name, "ok", 1.0, "x" * 200) for name in ("build", "tests", "a", "b", "c")]
    made = {"ceilings": {}, "device": "GPU", "commit": "abc"}
    rows = [row(f"case {i}", "ours", 2.0, **made) for i in range(20)]
    rows += [row(f"case {i}", "ours", 2.0, **made, benchmark="b") for i in range(4)]
    rows += [row(f"case {i}", "ours", 2.0, **made, benchmark="c") for i in range(24)]
    text = gpu.written_out(steps, rows)
    assert len(text.splitlines()) <= 70
    assert "12 more of c in rows.jsonl" in text


def test_the_summary_says_why_ours_has_no_time():
    rows = [row("a", "ours", 1.0, ms=None, reason="failed: why", correct=None)]
    assert gpu.summary(rows).splitlines()[1].endswith("ours: failed: why")
