"""The sampler's benchmark runs on a CPU, its arithmetic is right, a wrong engine gets no ratio."""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise

import pytest
import torch

from benchmarks import bench_sampler as bench
from benchmarks import command
from benchmarks.bench_sampler import Contender, SamplerRow
from benchmarks.harness import Timing, read_rows
from benchmarks.sampler_apart import Apart, Place
from benchmarks.sampler_busy import covered
from benchmarks.sampler_engine import Turn
from benchmarks.sampler_models import FP8, MODELS, TEMPERATURE, hf_model, make_model
from benchmarks.sampler_ours import Ours
from benchmarks.sampler_reference import NEW, Reference, check_prompts
from benchmarks.sampler_variants import Kind, kinds
from benchmarks.sampler_work import (
    WORKS,
    Work,
    body_weights,
    distinct_prefixes,
    floor,
    long_tail,
    steps,
    work_named,
)

NANO = MODELS["nano"]
FP32 = torch.float32


@pytest.fixture
def not_pinned(monkeypatch):
    """The benchmark's own process pins itself to a core; the tests' must not."""
    monkeypatch.setattr(command, "pin", lambda cores: None)


@pytest.fixture(scope="module")
def nano():
    return make_model(NANO, "cpu", FP32)


# The whole


def test_quick_run_writes_rows_that_are_right(tmp_path, not_pinned, capsys):
    arguments = ["--device", "cpu", "--quick", "--rounds", "2", "--out", str(tmp_path)]
    variants = "ours fp32,ours bf16,transformers fp32,vLLM bf16"
    assert bench.main([*arguments, "--variants", variants]) == 0
    rows = read_rows(tmp_path / "bench_sampler_cpu.jsonl")
    assert [row["case"]["work"] for row in rows[::4]] == ["candidates", "judge"]
    by = {(row["case"]["work"], row["variant"]): row for row in rows}
    for (_, name), row in by.items():
        if name == "vLLM bf16":
            assert row["reason"] and row["ms"] is None and row["over_best"] is None
            continue
        assert row["correct"] and row["errors"]["greedy"] <= row["limits"]["greedy"]
        middle, low, high = row["tokens_per_s"]
        assert 0 < low <= middle <= high and row["prefill_per_s"] > 0
        assert row["share_of_rate"] == pytest.approx(1 / row["times_least"])
        assert 0.99 / high <= row["ms"]["p50"] / (1e3 * row["tokens"]) <= 1.01 / low
        assert row["note"] == "2 of 2 rounds" and row["entropy"] > 1
    ours = by["candidates", "ours fp32"]
    rival = by["candidates", "transformers fp32"]
    assert ours["errors"]["greedy"] == 0 and "logprob" in ours["errors"]
    assert ours["best_rival"] == "transformers fp32" and rival["over_best"] is None
    assert ours["result"]["best_rival"] == "transformers fp32"
    assert ours["over_best"] == pytest.approx(rival["ms"]["p50"] / ours["ms"]["p50"])
    assert {"torch", "transformers", "llama-cpp-python"} <= set(ours["versions"])
    told = capsys.readouterr().out
    assert "over the best rival (transformers fp32)" in told and "TFLOP" in told
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "bench_sampler_cpu.png").stat().st_size > 5000


def test_an_engine_in_a_process_of_its_own_is_measured_and_its_failure_is_told():
    work = work_named("candidates", "quick")
    engine = Apart(Place("ours fp32", "nano", work, (min(os.sched_getaffinity(0)),)))
    try:
        turn = engine.ask("turn", work.prompts(NANO.vocab_size), work, None)
        assert turn.tokens == work.tokens and turn.seconds > 0 and turn.cpu > 0
        assert turn.peak_bytes > NANO.num_parameters() * 4
        with pytest.raises(RuntimeError, match="ValueError: prompts"):
            engine.ask("greedy", [[NANO.vocab_size]], 1)
        assert len(engine.ask("greedy", [[5, 6]], 3)[0][0]) == 3
    finally:
        engine.close()
    assert not engine._process.is_alive()


# Correctness


def test_a_wrong_engine_gets_no_ratio(not_pinned, monkeypatch, capsys):
    right = Ours.greedy

    def greedy(self, prompts, new):
        tokens, logprobs = right(self, prompts, new)
        return [[(token + 1) % NANO.vocab_size for token in row] for row in tokens], logprobs

    monkeypatch.setattr(Ours, "greedy", greedy)
    arguments = ["--device", "cpu", "--quick", "--rounds", "1", "--work", "judge"]
    options = command.parse(bench.BENCHMARK, [*arguments, "--variants", "ours fp32"])
    assert bench.wrong(options) is None
    options.end = float("inf")
    (case,) = bench.cases(options)
    (row,), more = bench.run_case(case, options, {})
    assert row.correct is False and row.tokens_per_s and "over_best" not in more["result"]
    assert row.share_of_rate is row.times_least is row.ours_is_faster is row.over_best is None
    assert "WRONG" in capsys.readouterr().out


def test_transformers_greedy_tokens_have_no_regret_and_others_have(nano):
    work = work_named("candidates", "quick")
    prompts = check_prompts(work.prompts(NANO.vocab_size))
    ids = hf_model(nano).generate(
        torch.tensor([prompts[0]]), max_new_tokens=NEW, do_sample=False, pad_token_id=0
    )
    tokens = ids[0, len(prompts[0]) :].tolist()
    reference = Reference(nano)
    errors, limits = reference.judge(prompts[:1], [tokens], None)
    assert errors["greedy"] <= limits["greedy"] <= 1e-3
    tokens[3] = (tokens[3] + 1) % NANO.vocab_size
    errors, limits = reference.judge(prompts[:1], [tokens], [[0.0] * NEW])
    assert errors["greedy"] > limits["greedy"] and errors["logprob"] > limits["logprob"]


def test_transformers_runs_on_the_very_same_weights(nano):
    theirs = hf_model(nano)
    head = dict(nano.named_parameters())["layers.1.gate_up.weight"]
    assert theirs.model.layers[1].mlp.gate_proj.weight.data_ptr() == head.data_ptr()


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_sizes_of_the_models(name):
    wanted = {"tiny": 5_639_424, "small": 124_668_672}
    assert MODELS[name].num_parameters() == wanted[name]


def test_the_next_token_is_as_open_as_a_trained_models():
    model = make_model(MODELS["tiny"], "cpu", FP32)
    prompts = check_prompts(work_named("judge", "cpu").prompts(4096))
    assert 3.4 < Reference(model).entropy(prompts, TEMPERATURE) < 4.4


def test_fp8_is_held_against_eager_with_rounded_activations():
    """Of weights as they are stored; half as many bits, and it must show."""
    model = make_model(MODELS["tiny"].replace(num_layers=2, windows=(None,) * 2), "cpu", FP8)
    prompts = check_prompts(work_named("judge", "cpu").prompts(4096))
    reference = Reference(model)
    tokens, logprobs = Ours(model, work_named("judge", "quick")).greedy(prompts, NEW)
    errors, limits = reference.judge(prompts, tokens, logprobs)
    assert 0.1 * limits["logprob"] < errors["logprob"] <= limits["logprob"] < 1
    assert errors["greedy"] <= limits["greedy"]
    model.layers[0].down.scale.mul_(1.5)  # what is wrong shows
    tokens, logprobs = Ours(model, work_named("judge", "quick")).greedy(prompts, NEW)
    errors, limits = reference.judge(prompts, tokens, logprobs)
    assert errors["logprob"] > limits["logprob"]


def test_a_large_model_is_warmed_up_on_one_prompt():
    work = work_named("chat512", "cuda")
    assert work.tokens == 128 * 256 and sum(work.lengths) == 128 * 512
    short = work.of_one_prompt().cut(32)
    assert (short.lengths, short.samples, short.tokens) == ((512,), 128, 128 * 32)


# Works and their floor


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.parametrize("size", ["cuda", "cpu", "quick"])
def test_works_are_the_same_every_time_and_other_ones_in_every_turn(name, size):
    work = work_named(name, size)
    assert work == work_named(name, size)
    prompts, again = (work.prompts(4096, turn) for turn in (0, 1))
    assert tuple(map(len, prompts)) == work.lengths and prompts == work.prompts(4096, 0)
    assert all(a[:3] != b[:3] for a, b in zip(prompts, again, strict=True))
    assert all(p[: work.shared] == prompts[0][: work.shared] for p in prompts)
    assert work.part(4).tokens < work.tokens or size == "quick"
    assert max(work.cut(3).new) == 3


def test_the_works_that_are_asked_for():
    candidates, judge = (work_named(name, "cpu") for name in ("candidates", "judge"))
    assert (candidates.tokens, judge.tokens) == (8192, 6144)
    assert (min(candidates.lengths), max(candidates.lengths)) == (32, 192)
    assert judge.lengths == (384,) * 64 and judge.shared == 256
    assert work_named("chat1k", "cuda").tokens == 256 * 1024
    assert "16 of its 256 requests" in work_named("chat", "cpu").title
    tail = sorted(long_tail(999, 64, 512))
    assert tail[499] == pytest.approx(64, rel=0.1) and tail[0] == 8 and tail[-1] == 512


def test_the_floor_by_hand():
    """Two prompts that share two of three tokens, one sample each of 3 and 1 tokens."""
    work = Work("by hand", (3, 3), 1, (3, 1), shared=2)
    assert [values.tolist() for values in steps(work)] == [[1, 1], [4, 5]]
    # Per layer: q, k, v of 2 + 1 + 1 heads of 16, o, and three matrices of the MLP.
    assert body_weights(NANO) == 2 * (32 * 64 + 32 * 32 + 3 * 32 * 64)
    found = floor(work, NANO, 4, flops=1e6, read=1e6)
    body, head, pair = body_weights(NANO), 300 * 32, 4 * 2 * 2 * 16
    assert distinct_prefixes(work.prompts(300)) == (4, 9)
    assert found.prefill_flops == 2 * (4 * body + 2 * head) + 9 * pair
    assert found.decode_flops == 2 * 2 * (body + head) + 9 * pair
    kv = 2 * 4 * 2 * 1 * 16
    assert found.decode_bytes == 2 * 4 * (body + head) + 9 * kv
    # Bound by bytes: with 1 row a matrix is read for 2 FLOPs of 4 bytes.
    seconds = (2 * 4 * (body + head) + max(9 * pair, 9 * kv)) / 1e6
    assert found.decode_seconds == pytest.approx(seconds)


def test_the_floor_of_fp8_layers_reads_the_head_in_bf16():
    work = Work("by hand", (3,), 1, (2,))
    eight, wide = (floor(work, NANO, 1, 1e6, 1e6, head) for head in (None, 2))
    head = NANO.vocab_size * NANO.hidden_size
    assert wide.prefill_bytes == eight.prefill_bytes + head
    assert wide.decode_bytes == eight.decode_bytes + head


def test_a_prefix_is_counted_once():
    assert distinct_prefixes([[1, 2, 3]]) == (3, 6)
    assert distinct_prefixes([[1, 2, 3], [1, 2, 3]]) == (3, 6)
    assert distinct_prefixes([[1, 2, 3], [1, 2], [4]]) == (4, 7)


# Ratios


def row(variant: str, ms: float, correct: bool | None = True, **more) -> SamplerRow:
    timing = Timing(ms, ms, ms, ms, ms, 1, ms)
    found = SamplerRow(variant, "", "", None, False, ms=timing, correct=correct, **more)
    found.share_of_rate, found.tokens_per_s = 0.5, (1e3 / ms,) * 3
    return found


def test_the_best_rival_is_the_fastest_right_one():
    rows = [row("ours fp32", 2.0), row("ours bf16", 4.0), row("a", 10.0), row("b", 8.0)]
    rows += [row("wrong", 1.0, correct=False)]
    bench.compare(rows)
    assert [r.over_best for r in rows] == [4.0, 2.0, None, None, None]
    assert rows[0].best_rival == "b" and rows[2].ours_is_faster == 5.0
    assert rows[4].share_of_rate is None and rows[4].ours_is_faster is None


def test_ours_that_is_wrong_is_compared_with_nothing():
    rows = [row("ours fp32", 2.0, correct=False), row("a", 10.0)]
    bench.compare(rows)
    assert rows[0].over_best is None and rows[1].ours_is_faster is None


def test_targets_are_told_and_two_threads_are_held_against_one(capsys):
    options = command.parse(bench.BENCHMARK, ["--device", "cpu"])
    assert bench.wrong(options) is None
    for threads, ms, wanted in ((1, 2.0, ["6.00, wanted >= 5: met"]), (2, 1.0, ["12.00", "2.00"])):
        rows = [row("ours fp32", ms), row("a", 12.0)]
        bench.compare(rows)
        found = bench.targets(bench.Case("tiny", "candidates", threads, "cpu"), rows, options)
        assert all(w in line for w, line in zip(wanted, found["told"], strict=True))
    assert found["scaling"] == 2.0 and "wanted >= 1.7: met" in found["told"][1]


def scouted(engine: str, package: str, own: float, seconds: float) -> Contender:
    contender = Contender(Kind(engine, "fp32", package, "torch"), "cpu")
    contender.scout = Turn(100, seconds, cpu=own)
    return contender


def test_a_rival_clearly_slower_than_its_family_is_a_scout_and_the_best_has_two_turns():
    found = [scouted("fast", "a", 1.0, 0.1), scouted("near", "a", 1.4, 0.1)]
    found += [scouted("slow", "a", 1.5, 0.1), scouted("other family", "b", 9.0, 9.0)]
    work = work_named("candidates", "cpu")
    bench.plan_turns(found, work, 5)
    # 8,192 tokens at 1,000 tokens/s: three turns fit.
    assert [contender.wanted for contender in found] == [3, 3, 0, 1]
    for contender, own in zip(found, (5.0, 6.0, None, 4.0), strict=True):
        contender.turns = [Turn(100, 99.0, cpu=own)] if own else []
    bench.favour_the_best(found, 5)
    assert [contender.wanted for contender in found] == [3, 3, 0, 2]


def test_ours_has_all_the_rounds():
    ours = Contender(kinds("cpu", "tiny")[0], "cpu")
    ours.scout = Turn(1, 1000.0)
    bench.plan_turns([ours], work_named("judge", "cpu"), 5)
    assert ours.wanted == 5


def test_busy_time_counts_overlaps_once_and_the_end_alone():
    assert covered([(0, 4), (2, 6), (8, 10)], 10) == pytest.approx(0.8)
    assert covered([(0, 4), (2, 6), (8, 10)], 4) == pytest.approx(0.5)
    assert covered([(0, 2)], 100) == 1.0 and covered([], 1) is None


# What cannot run


def test_why_an_engine_cannot_run():
    by = {kind.name: kind for kind in kinds("cuda", "llama-3-8b")}
    assert by["ours bf16"].reason("cuda") is None
    assert by["llama.cpp bf16"].reason("cuda") in ("not installed", "compared on a CPU only")
    missing = Kind("ours", "bf16", "ours", "srlm_fast", {"no_such": 1})
    assert missing.reason("cpu") == "Sampler has no argument no_such"
    assert Kind("x", "fp32", "no-such", "no_such_module").reason("cpu") == "not installed"


MISTAKES = {
    "--threads 0, wanted 1 to": ["--threads", "0"],
    "--threads 999, wanted 1 to": ["--threads", "999"],
    "--models llama-3-8b, wanted a GPU": ["--models", "llama-3-8b"],
    "argument --models: invalid choice: 'huge'": ["--models", "huge"],
    "argument --work: invalid choice: 'sleep'": ["--work", "sleep"],
    "--only 'nope' is in no case's name": ["--only", "nope"],
    "--out /dev/null/x: Not a directory": ["--out", "/dev/null/x"],
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_line_and_status_2(message, capsys):
    try:
        status = bench.main(["--device", "cpu", "--quick", *MISTAKES[message]])
    except SystemExit as end:
        status = end.code
    told = capsys.readouterr()
    assert status == 2 and told.out == "" and len(told.err.splitlines()) == 1
    assert told.err.startswith(f"bench_sampler: {message}")


def test_the_telling_case_comes_first_on_a_gpu():
    options = command.parse(bench.BENCHMARK, ["--device", "cuda"])
    names = [case.name for case in bench.cases(options)]
    assert names[0] == "llama-3-8b chat1k" and names[-1] == "llama-2-70b chat512"
    assert all(a != b for a, b in pairwise(names))


llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed"
)


@llama_cpp
@pytest.mark.parametrize("name", ["candidates", "judge", "long-tail"])
@pytest.mark.parametrize("unified", [True, False])
def test_llama_cpp_does_the_work_and_its_tokens_are_right(nano, name, unified):
    from benchmarks.llama_cpp_rival import LlamaCpp

    work = work_named(name, "quick")
    engine = LlamaCpp(nano, work, 1, unified)
    prompts = check_prompts(work.prompts(NANO.vocab_size))
    tokens, _ = engine.greedy(prompts, NEW)
    errors, limits = Reference(nano).judge(prompts, tokens, None)
    assert errors["greedy"] <= 10 * limits["greedy"]  # its keys and values are f16
    turn = engine.turn(work.prompts(NANO.vocab_size), work)
    assert turn.tokens == work.tokens and 0 < turn.first < turn.seconds
    engine.close()
