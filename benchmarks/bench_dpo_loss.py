"""The preference loss from token log-probs, forward and backward, against PyTorch compositions.

    python -m benchmarks.bench_dpo_loss [--device cuda|cpu] [--out FOLDER] [--quick]

64 and 1,024 pairs, responses of 512 and 4,096 tokens on average (each from half to one and a half
times that), fp32, sigmoid loss; rewards, margins and accuracy are made by all. Out: the loss and
its gradient for every token. Rivals: sums by index_add with the segment ids given, that compiled,
and rows padded to the longest response with a mask, as TRL has them.

Bytes that must move: the T log-probs in, the T gradients out, 8 T; "rate" is the share of what a
large copy reaches in the same run, and the floor one copy of T numbers. Microseconds are those of
the device, gaps between launches included, with a cold L2 cache and the host ahead of it; "host us"
until the call has returned, Python, autograd and launching; "launches" and "device" are what the
profiler saw on the GPU. MiB: peak above the inputs, gradient included. Errors against fp64: "value"
of the loss, "gradient" relative.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import BASELINE, OURS, Row, Variant
from srlm_fast import __version__
from srlm_fast.kernels import dpo_loss_tokens

NAME, BETA = "bench_dpo_loss", 0.1
# Quantity -> (floor, cap) of the error allowed: sums of thousands of nats, each rounded to fp32.
BOUNDS = {"value": (1e-5, 1e-2), "gradient": (1e-4, 1e-1)}
Step = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    pairs: int
    length: int

    @property
    def name(self) -> str:
        return f"{self.pairs} pairs of {self.length} tokens"


@dataclass(frozen=True)
class Inputs:
    """The same batch packed and padded; rows are the chosen ones, then the rejected ones."""

    logps: Tensor  # [T]
    boundaries: Tensor  # [2 P + 1]
    pairs: Tensor  # [P, 2]
    ref: Tensor  # [2 P]
    segments: Tensor  # [T], the row of each token
    padded: Tensor  # [2 P, longest]
    mask: Tensor  # [2 P, longest]


def make_inputs(case: Case, device: str, dtype: torch.dtype = torch.float32) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    rows = 2 * case.pairs
    lengths = torch.randint(case.length // 2, 3 * case.length // 2, (rows,), generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = torch.where(mask, -torch.randn(mask.shape, generator=generator).exp(), 0.0).double()
    ref = padded.sum(1) + 5 * torch.randn(rows, generator=generator, dtype=torch.float64)
    boundaries = F.pad(lengths.cumsum(0), (1, 0))
    pairs = torch.arange(rows).view(2, -1).T.contiguous()
    segments = torch.arange(rows).repeat_interleave(lengths)
    floats = [x.to(device, dtype) for x in (padded[mask], ref, padded)]
    logps, ref, padded = (floats[0].requires_grad_(), floats[1], floats[2].requires_grad_())
    others = [x.to(device) for x in (boundaries, pairs, segments, mask)]
    return Inputs(logps, others[0], others[1], ref, others[2], padded, others[3])


# Variants: each gives (loss, gradient of its log-probs).


def ours(x: Inputs) -> Step:
    out = dpo_loss_tokens(x.logps, x.boundaries, x.pairs, x.ref, beta=BETA)
    return out.loss.detach(), *torch.autograd.grad(out.loss, x.logps)


def of_sums(sums: Tensor, ref: Tensor) -> tuple[Tensor, ...]:
    """Loss, rewards, margins and accuracy, as they are written in PyTorch."""
    chosen, rejected = (sums - ref).chunk(2)
    losses = -F.logsigmoid(BETA * (chosen - rejected))
    rewards = BETA * chosen.detach(), BETA * rejected.detach()
    margins = rewards[0] - rewards[1]
    return losses.mean(), losses, *rewards, margins, (margins > 0).float().mean()


def packed(logps: Tensor, segments: Tensor, ref: Tensor) -> tuple[Tensor, ...]:
    return of_sums(torch.zeros_like(ref).index_add(0, segments, logps), ref)


def padded(logps: Tensor, mask: Tensor, ref: Tensor) -> tuple[Tensor, ...]:
    return of_sums((logps * mask).sum(1), ref)


def packed_step(function: Callable[..., tuple[Tensor, ...]], x: Inputs) -> Step:
    loss = function(x.logps, x.segments, x.ref)[0]
    return loss.detach(), *torch.autograd.grad(loss, x.logps)


def padded_step(x: Inputs) -> Step:
    loss = padded(x.padded, x.mask, x.ref)[0]
    return loss.detach(), *torch.autograd.grad(loss, x.padded)


def variants(x: Inputs, options: argparse.Namespace) -> list[Variant]:
    pytorch = f"torch {torch.__version__}"
    target, source = torch.empty_like(x.logps), x.logps.detach()
    left = "left out by --quick" if options.quick else None
    compiled = packed if left else torch.compile(packed)
    every = [
        Variant(OURS, partial(ours, x), version=__version__),
        Variant(BASELINE, partial(packed_step, packed, x), version=pytorch),
        Variant("torch.compile", partial(packed_step, compiled, x), version=pytorch, reason=left),
        Variant("padded, as TRL", partial(padded_step, x), version=pytorch),
        Variant("floor, one copy", partial(target.copy_, source), least=True),
    ]
    return [v for v in every if v.least or command.asked_for(v.name, options)]


def errors_of(truth: Step, mask: Tensor, variant: Variant, output: Any) -> dict[str, float]:
    if variant.least:
        return {}
    loss, gradient = output
    gradient = gradient[mask] if gradient.dim() == 2 else gradient
    return {
        "value": float((loss.double() - truth[0]).abs()),
        "gradient": harness.relative_error(gradient, truth[1]),
    }


def seen_on_device(call: Callable[[], Any]) -> tuple[int, float]:
    """(launches, copies and fills included; microseconds of device time) of one warm call."""
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type.name == "CUDA"]
    return len(events), sum(event.device_time for event in events)


# Running


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    x = make_inputs(case, options.device)
    wide = make_inputs(case, options.device, torch.float64)
    truth, taken = packed_step(packed, wide), variants(x, options)
    del wide
    tokens = x.logps.numel()
    print(f"\n{case.name}, T = {tokens:,}, {8 * tokens / 2**20:.1f} MiB must move", flush=True)
    rows = harness.measure(
        taken,
        partial(errors_of, truth, x.mask),
        BOUNDS,
        options.device,
        flops=8 * tokens,
        rate=top["copy_bytes_per_s"],
        seconds=0.3,
        rounds=(options.rounds, 20 * options.rounds),
        peak_of=command.peaks(
            BENCHMARK, case, options, lambda v: v.least or (options.quick and v.name != OURS)
        ),
    )
    device = {}
    if options.device == "cuda":
        measured = {row.variant for row in rows if row.ms}
        device = {v.name: seen_on_device(v.call) for v in taken if v.name in measured}
    print(show(rows, device), flush=True)
    on_device = {name: {"launches": n, "device_us": us} for name, (n, us) in device.items()}
    return rows, {"tokens": tokens, "on_device": on_device}


def show(rows: Sequence[Row], device: dict[str, tuple[int, float]]) -> str:
    def on_device(head: str, i: int) -> columns.Column:
        return head, lambda row: harness.number(device[row.variant][i]) if row.ms and device else ""

    return columns.show(
        rows,
        *columns.times("us", "p20", "p80", "host", "first"),
        on_device("launches", 0),
        on_device("device us", 1),
        *columns.COMPARED,
        *(columns.error(f"{quantity} err", quantity) for quantity in BOUNDS),
    )


def variants_on_cpu(case: Case, options: argparse.Namespace) -> list[Variant]:
    return variants(make_inputs(case, "cpu"), options)


def cases(options: argparse.Namespace) -> list[Case]:
    if options.quick:
        return [Case(4, 32), Case(8, 64)]
    return [Case(pairs, length) for length in (512, 4096) for pairs in (64, 1024)]


BENCHMARK = Benchmark(NAME, __doc__, cases, run_case, variants_on_cpu, dtype=torch.float32)
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
