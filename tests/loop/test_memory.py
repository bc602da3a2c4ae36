"""Memory changes hands: what the trace of a run says, and that it would say otherwise."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from srlm_fast.loop import memory_trace
from srlm_fast.loop.memory_trace import MemoryTrace, memory_figures, total_bytes
from srlm_fast.loop.state import RunState
from srlm_fast.model import random_model
from srlm_fast.records import read_jsonl
from srlm_fast.sampler import Sampler, SamplingParams
from srlm_fast.train import DpoConfig
from srlm_fast.train.optimizer import Optimizer
from tests.loop.worlds import small_run
from tests.sampler.helpers import CONFIGS

SHORT = {"iterations": 1, "num_prompts": 8, "evaluation.num_prompts": 6, "evaluation.num_judged": 2}
POOL = 0.02  # GB


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    out = tmp_path_factory.mktemp("memory") / "run"
    summary = small_run(out, **SHORT, kv_gb=POOL)
    rows = [row for row in read_jsonl(out / "metrics.jsonl") if "memory" in row]
    return summary["memory"], rows


PHASES = {"loaded", "training", "sampling", "reference", "perplexity"}


def of_phase(rows, name):
    return [row["memory"] for row in rows if row["phase"].split()[0] == name]


def test_weights_are_allocated_once_and_stay_where_they_are(traced):
    figures, rows = traced
    assert len({row["memory"]["weights_at"] for row in rows}) == 1
    assert {row["stage"] for row in rows} >= {"load", "m1/train", "m2/answers", "m2/measure"}
    assert (figures["weight_copies"], figures["weights_moved"]) == (1, 0)


def test_pool_and_optimizer_are_never_there_together(traced):
    figures, rows = traced
    training, sampling = of_phase(rows, "training"), of_phase(rows, "sampling")
    assert len(training) == 2 and len(sampling) >= 5
    human_text = of_phase(rows, "perplexity")
    for seen in training + of_phase(rows, "reference") + human_text:
        assert seen["kv_bytes"] == seen["packed_bytes"] == 0
    for seen in training:  # two moments in fp32 of fp32 weights
        assert seen["optimizer_bytes"] >= 2 * seen["weights_bytes"]
    for seen in sampling:
        assert 0 < seen["kv_bytes"] <= POOL * 1e9
        assert seen.get("optimizer_bytes", 0) == 0
    # It is looked for right behind each training.
    assert [seen["optimizer_bytes"] for seen in human_text] == [0, 0]
    assert figures["optimizer_bytes"] == training[0]["optimizer_bytes"]
    assert set(figures["peak_bytes"]) == PHASES


@pytest.fixture
def trace(tmp_path: Path):
    state = RunState(tmp_path)
    found = MemoryTrace(state)
    model = random_model(CONFIGS["llama"])
    sampler = Sampler(model, kv_bytes=2**20)
    found.of(model, sampler)
    yield found
    state.close()


def test_a_second_copy_of_the_weights_is_seen(trace):
    assert trace.owners() == {"models": 1, "optimizer_bytes": 0}
    reference = copy.deepcopy(trace.model)
    assert trace.owners()["models"] == 2
    del reference
    assert trace.owners()["models"] == 1


def test_an_optimizer_that_is_kept_is_seen(trace):
    optimizer = Optimizer(trace.model, DpoConfig())
    for p in trace.model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step(1e-6)
    weights = sum(p.nbytes for p in trace.model.parameters())
    assert 2 * weights <= optimizer.nbytes < 2 * weights + 1024
    assert trace.owners()["optimizer_bytes"] == optimizer.nbytes


def test_weights_that_move_are_counted(trace, monkeypatch):
    trace.record("load", "loaded")
    with trace.phase("sampling"):
        trace.model.embed.weight = torch.nn.Parameter(trace.model.embed.weight.detach().clone())
    figures = memory_figures(trace.state.measured())
    assert figures["weights_moved"] == 1


def test_released_pools_and_panels_are_gone(trace):
    held = trace.sampler.memory
    assert (held.kv_bytes, held.packed_bytes) == (0, 0)
    trace.sampler.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    held = trace.sampler.memory
    assert 0 < held.kv_bytes <= 2**20
    if trace.sampler._executor.packed is not None:
        matrices = [m.weight for m in trace.model.modules() if isinstance(m, torch.nn.Linear)]
        assert held.packed_bytes == total_bytes([*matrices, trace.model.head])
    trace.sampler.release()
    assert trace.sampler.memory.kv_bytes == trace.sampler.memory.packed_bytes == 0


def test_the_peak_is_that_of_the_phase(trace, tmp_path):
    memory_trace.reset_peak(torch.device("cpu"))
    if memory_trace.peak(torch.device("cpu")) > memory_trace.held_now(torch.device("cpu")) + 2**24:
        pytest.skip("this system does not let a process set its mark back")
    with trace.phase("training"):
        torch.ones(2**25)  # 128 MiB, and gone
    with trace.phase("training"):
        torch.ones(2**10)
    first, second = (row["memory"]["peak_bytes"] for row in trace.state.measured())
    assert first - second > 2**26
    assert [row["phase"] for row in trace.state.measured()] == ["training", "training 2"]


def test_nothing_measured_gives_no_figures():
    assert memory_figures([{"stage": "m1/train", "step": 0}]) == {}
