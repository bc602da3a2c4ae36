"""The fused head: log-probs of given tokens, forward and backward, against rivals and a floor.

    python -m benchmarks.bench_linear_logprob [--device cuda|cpu] [--out FOLDER] [--quick]

Heads of Llama-2-70B, Llama-3-8B and Qwen2-0.5B, 16,384 rows, bf16 (`head_cases` says which inputs);
on a CPU 2,048 rows of 768 with V = 32,000, on one core. FLOPs: 2 N D V per matmul, N the rows that
count; one to score, two for hidden's gradient, three with the head's. Bytes that must move are far
below what the matmuls take. The floor is those matmuls alone, in chunks of rows. "rate" is the
share of what a large square matmul reaches in the same run, "x least" the time over the floor's,
"x ours" a rival's time over ours: above 1 ours is faster. MiB: peak above inputs and weights,
gradients included. Errors against fp64: "value" in nats (root mean square over rows; of a scalar
loss the difference, per row for a sum), gradients relative, on a sample.

With SRLM_FAST_TUNE in the environment ours with a frozen head in blocks of other sizes too;
SRLM_FAST_FUSED_DEPTH=N takes the fused matmul up to D = N (2,048 otherwise).

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark, asked_for
from benchmarks.harness import OURS, Row, Variant
from benchmarks.head_cases import BETA, Case, Inputs, Truth, make_inputs
from benchmarks.rivals import RIVALS, Forward, Rival
from srlm_fast import __version__
from srlm_fast.kernels import dpo_loss, linear_logprob

LLAMA_70B, LLAMA_8B, QWEN = (8192, 32000), (4096, 128256), (896, 151936)
# Quantity -> (floor, cap) of the error allowed. bf16 gradients reach 1e-3 to 1e-2, log-probs that
# are rounded to bf16, as some rivals' are, 0.04 nats.
BOUNDS = {"value": (5e-2, 0.3), "hidden": (2e-2, 0.3), "head": (2e-2, 0.3)}
OURS_DPO = "ours DPO"
# Rows of one matmul of the floor, besides all at once.
FLOOR_ROWS = (4096, 1024)


def gpu_cases() -> list[Case]:
    """The most telling first: a run that is short of time leaves out the last."""

    def case(model: str, goal: str, share: float = 1.0, inputs: str = "random") -> Case:
        width, vocab = {"llama-2-70b": LLAMA_70B, "llama-3-8b": LLAMA_8B, "qwen2-0.5b": QWEN}[model]
        return Case(model, 16384, width, vocab, goal, share, inputs)

    big, middle, small = "llama-2-70b", "llama-3-8b", "qwen2-0.5b"
    return [
        case(big, "frozen"),
        case(middle, "frozen"),
        case(big, "frozen", 0.5),
        case(middle, "frozen", 0.5),
        case(middle, "trainable"),
        case(big, "trainable"),
        case(small, "trainable"),
        case(small, "frozen"),
        case(middle, "frozen", inputs="peaked"),
        case(middle, "trainable", inputs="peaked"),
        case(big, "frozen", inputs="peaked"),
        *(case(model, "score") for model in (middle, big, small)),
        *(case(model, "trainable", 0.5) for model in (middle, big, small)),
        case(small, "frozen", 0.5),
        *(case(model, "trainable", inputs="peaked") for model in (big, small)),
    ]


def cpu_cases() -> list[Case]:
    return [Case("small", 2048, 768, 32000, goal) for goal in ("trainable", "frozen")]


def quick_cases() -> list[Case]:
    tiny = Case("quick", 128, 64, 1024, "trainable", length=16)
    return [tiny, replace(tiny, goal="frozen", share=0.5, inputs="peaked")]


# Variants


def variants(inputs: Inputs, ref_sums: Tensor | None, options: argparse.Namespace) -> list[Variant]:
    """Ours, the rivals and the floor, of those asked for; ref_sums: where the case has pairs."""
    case = inputs.case
    out = [
        _ours(inputs, ref_sums, *each)
        for each in ours(case, options.device)
        if asked_for(each[0], options)
    ]
    for rival in RIVALS:
        if asked_for(rival.name, options) and (case.has_pairs or rival.computes != "dpo"):
            out.append(_theirs(rival, inputs, options))
    return [*out, *floors(inputs)]


def ours(case: Case, device: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, what it computes, arguments of linear_logprob), as far as it takes them."""
    known, over = inspect.signature(linear_logprob).parameters, {"overwrite_hidden": True}
    yield OURS, "", {}
    if "batch_invariant" in known:
        yield "ours batch-invariant", "", {"batch_invariant": True}
    if "overwrite_hidden" in known and case.goal == "frozen":
        yield "ours over hidden", "", over
    if case.goal == "trainable" and device == "cuda":
        # All exponentials are kept: 6 N D V FLOPs, whatever V.
        yield "ours all kept", "", {"workspace_bytes": 2 * case.counted * case.vocab + (1 << 30)}
    if "SRLM_FAST_TUNE" in os.environ and case.goal == "frozen" and device == "cuda":
        for size in (128, 512, 1024, 4096):
            yield f"ours {size} MiB", "", {"workspace_bytes": size << 20}
        yield "ours over hidden, 128 MiB", "", {"workspace_bytes": 128 << 20} | over
    if case.has_pairs:
        yield OURS_DPO, "dpo", {}


def _ours(
    inputs: Inputs, ref_sums: Tensor | None, name: str, computes: str, arguments: dict[str, Any]
) -> Variant:
    prepare = None
    if arguments.get("overwrite_hidden"):
        kept = inputs.hidden.detach()
        # Not a leaf: nobody's parameter is overwritten.
        inputs = replace(inputs, hidden=kept.clone().requires_grad_().clone())
        prepare = partial(inputs.hidden.detach().copy_, kept)

    def logprobs(x: Inputs) -> Tensor:
        return linear_logprob(x.hidden, x.head, x.targets, **arguments)

    def loss(x: Inputs) -> Tensor:
        sums = x.sequences(logprobs(x)).sum(1)
        return dpo_loss(sums.chunk(2), ref_sums.float().chunk(2), beta=BETA).loss

    call = partial(step, loss if computes == "dpo" else logprobs, computes, inputs)
    return Variant(name, call, prepare, __version__, computes, **_compared_with(computes))


def _theirs(rival: Rival, inputs: Inputs, options: argparse.Namespace) -> Variant:
    left_out = options.quick and rival.compiles
    reason = "left out by --quick" if left_out else rival.reason(options.device)
    call = None if reason else partial(step, rival.load(), rival.computes, inputs)
    more = _compared_with(rival.computes)
    return Variant(rival.name, call, None, rival.version, rival.computes, reason, **more)


def _compared_with(computes: str) -> dict[str, str]:
    return {"against": OURS_DPO, "baseline": "eager DPO"} if computes == "dpo" else {}


def step(forward: Forward, computes: str, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What is timed: forward and backward, or forward alone. (log-probs or loss, gradients)."""
    if not inputs.wanted:
        with torch.no_grad():
            return forward(inputs), ()
    out = forward(inputs)
    loss = out if computes else (out * inputs.upstream).sum()
    return out.detach(), torch.autograd.grad(loss, inputs.wanted)


def floors(inputs: Inputs) -> list[Variant]:
    """The case's matmuls and nothing else, by chunks of rows; on a CPU all rows at once."""
    counted = inputs.case.counted
    smaller = [size for size in FLOOR_ROWS if size < counted and inputs.hidden.is_cuda]
    return [
        Variant(f"floor, {size:,} rows a chunk", partial(floor, inputs, counted, size), least=True)
        for size in (counted, *smaller)
    ]


@torch.no_grad()
def floor(inputs: Inputs, counted: int, size: int) -> None:
    """As many matmuls of 2 N D V FLOPs as the case needs; the head's gradient added up in fp32."""
    hidden, head = inputs.hidden.detach()[:counted], inputs.head.detach()
    gradient, on_gpu = None, hidden.is_cuda
    for start in range(0, counted, size):
        rows = hidden[start : start + size]
        logits = rows @ head.T
        if inputs.case.goal != "score":
            logits @ head
        if inputs.case.goal != "trainable":
            continue
        if gradient is None:
            gradient = torch.mm(logits.T, rows, **({"out_dtype": torch.float32} if on_gpu else {}))
        elif on_gpu:
            torch.addmm(gradient, logits.T, rows, out_dtype=torch.float32, out=gradient)


def errors_of(truth: Truth, variant: Variant, output: Any) -> dict[str, float]:
    """Of the value, and of the gradients at the sampled rows and vocabulary entries."""
    if variant.least:
        return {}
    (out, gradients), computes, case = output, variant.computes, truth.inputs.case
    if computes:
        rows = case.counted if computes == "sum" else 1
        errors = {"value": float((out.double() - truth.loss(computes)).abs()) / rows}
    else:
        errors = {"value": harness.rms_error(out, truth.logp)}
    wanted = (
        ("hidden", truth.rows, truth.hidden_gradient),
        ("head", truth.columns, truth.head_gradient),
    )
    for gradient, (name, sample, right) in zip(gradients, wanted, strict=False):
        errors[name] = harness.relative_error(gradient[sample], right(computes))
    return errors


# Running


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    inputs = make_inputs(case, options.device)
    truth = Truth(inputs)
    live = truth.live_tiles()
    print(f"\n{case.line}, live tiles {100 * live:.0f} %", flush=True)
    rows = harness.measure(
        variants(inputs, truth.ref_sums if case.has_pairs else None, options),
        partial(errors_of, truth),
        BOUNDS,
        options.device,
        flops=case.flops,
        rate=top["matmul_flops"],
        seconds=0.3,
        rounds=(options.rounds, 4 * options.rounds),
        peak_of=None if options.device == "cuda" else partial(peak, case, options),
    )
    print(columns.summary(rows), flush=True)
    return rows, {"flops": case.flops, "live_tiles": live}


def peak(case: Case, options: argparse.Namespace, variant: Variant) -> int | None:
    """On a CPU; with --quick of two variants of one case only."""
    wanted = case.goal == "trainable" and variant.name in (OURS, harness.BASELINE)
    if variant.least or (options.quick and not wanted):
        return None
    return command.peak_apart(BENCHMARK, case, options, variant)


def one_variant(case: Case, options: argparse.Namespace) -> list[Variant]:
    """For its memory alone: no fp64 truth is made, whose own would be in the way."""
    alone = argparse.Namespace(device="cpu", variants=options.peak_of, quick=False)
    return variants(make_inputs(case, "cpu"), torch.zeros(case.num_rows // case.length), alone)


def cases(options: argparse.Namespace) -> list[Case]:
    if options.quick:
        return quick_cases()
    return gpu_cases() if options.device == "cuda" else cpu_cases()


BENCHMARK = Benchmark(
    "bench_linear_logprob",
    __doc__,
    cases,
    run_case,
    one_variant,
    packages=("trl", "liger-kernel", "cut-cross-entropy", "quack-kernels"),
)
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
