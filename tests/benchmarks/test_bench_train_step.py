"""The benchmark of train steps runs on a CPU, counts right, and gives a wrong variant no ratio."""

from __future__ import annotations

import pytest
import torch

from benchmarks import bench_train_step as bench
from benchmarks import command, train_variants
from benchmarks.bench_train_step import Runner, StepRow
from benchmarks.harness import Timing, read_rows
from benchmarks.sampler_models import MODELS, make_model
from benchmarks.train_bare import BareLlama
from benchmarks.train_variants import VARIANTS, variant_named
from benchmarks.train_work import TrainWork
from srlm_fast.train import TokenPair, pair_logps

QUICK = ["--device", "cpu", "--quick", "--rounds", "2", "--pairs", "2", "--prompt", "6"]
WORK = TrainWork("nano", "dpo", 2, 6, 5, "fp32", "cpu", 1)


def test_quick_run_writes_rows_and_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "pin", lambda cores: None)
    names = "ours unshared,bare,bare shared,TRL precomputed,TRL padding_free"
    options = [*QUICK, "--response", "5", "--variants", names, "--only", "dpo 2 x 6"]
    assert bench.main([*options, "--out", str(tmp_path)]) == 0
    rows = {row["variant"]: row for row in read_rows(tmp_path / "bench_train_step_cpu.jsonl")}
    assert list(rows) == [v.name for v in VARIANTS if v.name in names.split(",")]
    for name in ("ours unshared", "bare", "bare shared"):
        row = rows[name]
        assert row["correct"] and row["ms"]["p50"] > 0 and row["peak_bytes"] > 2**20
        assert len(row["losses"]) == 3 and row["ms"]["runs"] >= 2
    assert "ignores" in rows["TRL padding_free"]["reason"]
    assert "nano dpo 2 x 6+5" in capsys.readouterr().out


def test_bare_gives_our_log_probs():
    """Both forms, from the same weights and ids."""
    model = make_model(MODELS["nano"], "cpu", torch.float32)
    rows = WORK.ids(model.config.vocab_size)
    wanted = torch.stack(pair_logps(model, [TokenPair(*row) for row in rows]), 1).flatten()
    bare = BareLlama(model.config, dict(model.named_parameters()), WORK)
    prompts = torch.tensor([row[0] for row in rows])
    responses = torch.tensor([ids for row in rows for ids in row[1:]])
    for shared in (False, True):
        found = bare.response_logps(prompts, responses, shared).sum(1).detach()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_flops_by_hand():
    """nano: D 32, F 64, 2 layers, 2 heads and 1 key head of 16, V 300."""
    layer = 32 * (2 * 32 + 2 * 16) + 3 * 32 * 64
    head, attention = 6 * 2 * 5 * 300 * 32, 12 * 32
    seen = 2 * 6**2 / 2 + 2 * 5**2 / 2 + 2 * 5 * 6
    whole = head + 2 * (6 * 2 * 11 * layer + attention * seen)
    shared = head + 2 * (6 * (6 + 2 * 5) * layer + attention * (seen - 6**2 / 2))
    assert WORK.flops(MODELS["nano"], False) == 2 * whole
    assert WORK.flops(MODELS["nano"], True) == 2 * shared
    assert WORK.tokens == 2 * 2 * 11


def runner(name, milliseconds, peak, loss):
    found = variant_named(name)
    row = StepRow(name, found.version, "", None, False, peak_bytes=peak, losses=[loss, loss])
    row.ms = Timing(*[milliseconds] * 5, runs=2, first=milliseconds)
    return Runner(found, row, [milliseconds / 1e3])


def test_ratios_are_against_the_fastest_right_step_of_trl(capsys):
    ours = runner("ours unshared", 20.0, 60, 0.6931)
    slow, wrong = runner("TRL", 100.0, 90, 0.6931), runner("TRL precomputed", 10.0, 10, 0.8)
    fast = runner("TRL precomputed, no checkpointing", 80.0, 100, 0.69)
    everyone = [ours, slow, wrong, fast]
    bench.judge(everyone, WORK)
    assert ours.row.of_trl == (0.25, 0.6) and slow.row.of_trl == (1.25, 0.9)
    assert wrong.row.verdict == "WRONG" and wrong.row.of_trl is None
    assert bench.targets(WORK, everyone)["time of TRL's"] == (0.25, bench.TIME_TARGET)
    assert "0.25 of TRL's time, aimed at 0.33 or less" in capsys.readouterr().out
    slow.row.reason = wrong.row.reason = None
    assert not bench.worth_asking(slow, everyone) and bench.worth_asking(ours, everyone)


def test_what_fails_or_cannot_run_says_why(monkeypatch):
    monkeypatch.setitem(train_variants.sys.modules, "benchmarks.train_bare", None)
    with pytest.raises(ImportError):
        train_variants.take_steps(variant_named("bare"), WORK, "nowhere")
    options = command.parse(bench.BENCHMARK, ["--device", "cpu"])
    found = bench.take_steps_apart(variant_named("bare"), WORK, "/nowhere", options)
    assert found["reason"].startswith("failed: ")


@pytest.mark.parametrize(
    "option, message",
    [(["--pairs", "0"], "--pairs 0, wanted 1"), (["--variants", "axolotl"], "--variants axolotl")],
)
def test_wrong_options_are_refused_in_one_line(option, message, capsys, tmp_path):
    assert bench.main([*QUICK, *option, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
