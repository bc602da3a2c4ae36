"""The head's benchmark runs on a CPU, writes rows that say all, and knows what is true."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch

from benchmarks import bench_linear_logprob as bench
from benchmarks import command, harness
from benchmarks.harness import read_rows
from benchmarks.head_cases import Case, Truth, make_inputs
from benchmarks.rivals import RIVALS

CASE = Case("test", 32, 16, 300, "trainable", 0.5, length=8, dtype="float32")
FIELDS = {"device", "versions", "commit", "command", "threads", "case", "variant", "version", "ms",
          "share_of_rate", "peak_bytes", "errors", "limits", "correct", "reason", "ceilings",
          "times_least", "ours_is_faster", "first"}  # fmt: skip


@pytest.fixture
def not_pinned(monkeypatch):
    """The benchmark's own process pins itself to a core; the tests' must not."""
    monkeypatch.setattr(command, "pin", lambda cores: None)


def test_quick_run_writes_rows_and_a_plot(tmp_path, not_pinned, capsys):
    arguments = ["--device", "cpu", "--quick", "--variants", "ours,eager"]
    assert bench.main([*arguments, "--rounds", "3", "--out", str(tmp_path)]) == 0
    rows = read_rows(tmp_path / "bench_linear_logprob_cpu.jsonl")
    names = {row["variant"] for row in rows}
    assert names >= {"ours", "eager"} and any(name.startswith("floor") for name in names)
    ours = [row for row in rows if row["variant"] == "ours"]
    assert len(ours) == 2 and all(row["correct"] for row in ours)
    for row in ours:
        assert set(row) | set(row["ms"]) >= FIELDS
        assert 0 < row["ms"]["p20"] <= row["ms"]["p50"] <= row["ms"]["p80"]
        assert row["share_of_rate"] > 0 and row["times_least"] > 0
        assert {"value", "hidden"} <= set(row["errors"])
    assert ours[0]["peak_bytes"] > 0 and "head" in ours[0]["errors"]
    assert {"torch", "triton", "liger-kernel"} <= set(ours[0]["versions"])
    assert "floor" in capsys.readouterr().out
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "bench_linear_logprob_cpu.png").stat().st_size > 5000


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert bench.main(["--device", "cuda"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1 and "no GPU" in told.err


@pytest.mark.parametrize("computes", ["", "sum", "dpo"])
def test_the_truth_is_what_autograd_finds(computes: str):
    inputs = make_inputs(CASE, "cpu")
    truth = Truth(inputs)
    hidden, head = (x.detach().double().requires_grad_() for x in inputs.wanted)
    index = torch.where(truth.counts, inputs.targets, 0)
    logp = (hidden @ head.T).log_softmax(-1).gather(1, index[:, None]).squeeze(1)
    logp = torch.where(truth.counts, logp, 0.0)
    torch.testing.assert_close(truth.logp, logp.detach())
    sums = inputs.sequences(logp).sum(1) - truth.ref_sums
    chosen, rejected = sums.chunk(2)
    loss = {
        "": (logp * inputs.upstream).sum(),
        "sum": -logp.sum(),
        "dpo": -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean(),
    }[computes]
    torch.testing.assert_close(truth.loss(computes), loss.detach())
    grads = torch.autograd.grad(loss, [hidden, head])
    torch.testing.assert_close(truth.hidden_gradient(computes), grads[0][truth.rows])
    torch.testing.assert_close(truth.head_gradient(computes), grads[1][truth.columns])


@pytest.mark.parametrize("rival", [r for r in RIVALS if not r.compiles], ids=lambda r: r.name)
def test_a_rival_computes_what_it_is_said_to(rival):
    if not rival.package.startswith("torch") and rival.package != "liger-kernel":
        pytest.skip("its import takes seconds")
    if reason := rival.reason("cpu"):
        pytest.skip(reason)
    inputs = make_inputs(CASE, "cpu")
    truth = Truth(inputs)
    variant = bench._theirs(rival, inputs, command.parse(bench.BENCHMARK, ["--device", "cpu"]))
    errors = bench.errors_of(truth, variant, variant.call())
    assert set(errors) == {"value", "hidden", "head"} and max(errors.values()) < 1e-4, errors


def test_garbage_in_place_of_a_rival_is_found_out():
    inputs = make_inputs(CASE, "cpu")
    truth = Truth(inputs)
    options = command.parse(bench.BENCHMARK, ["--device", "cpu", "--variants", "ours,eager"])
    taken = bench.variants(inputs, None, options)
    good = taken[1]

    def unscaled():  # forgets dL/dlogp, and is half right: its log-probs are
        out, _ = good.call()
        return out, tuple(torch.ones_like(x) for x in inputs.wanted)

    taken.append(replace(good, name="rival", call=unscaled))
    rows = harness.measure(
        taken, lambda v, out: bench.errors_of(truth, v, out), bench.BOUNDS, "cpu",
        seconds=0.01, rounds=(3, 3), peak_of=lambda v: None,
    )  # fmt: skip
    found = {row.variant: row for row in rows}
    assert found["eager"].correct and found["ours"].correct
    assert not found["rival"].correct and found["rival"].ours_is_faster is None
    assert found["rival"].errors["value"] <= found["rival"].limits["value"]


def test_prompt_rows_are_left_out_of_the_work():
    whole, half = replace(CASE, share=1.0), CASE
    assert (whole.counted, half.counted) == (32, 16)
    assert whole.flops == 2 * half.flops == 6 * 32 * 16 * 300
    targets = make_inputs(half, "cpu").targets.view(-1, 8)
    assert (targets[:, :4] == -100).all() and (targets[:, 4:] >= 0).all()


@pytest.mark.parametrize("goal", ["trainable", "frozen"])
def test_each_form_of_ours_runs_and_is_right(goal: str, not_pinned):
    case = replace(CASE, goal=goal, inputs="random")
    inputs, names = make_inputs(case, "cpu"), []
    truth = Truth(inputs)
    for name, computes, arguments in bench.ours(case, "cpu"):
        variant = bench._ours(inputs, truth.ref_sums, name, computes, arguments)
        if variant.prepare:
            variant.prepare()
        errors = bench.errors_of(truth, variant, variant.call())
        assert all(error < 1e-4 for error in errors.values()), (name, errors)
        names.append(name)
    assert {"ours", "ours batch-invariant", "ours DPO"} <= set(names)
    assert ("ours over hidden" in names) == (goal == "frozen")
