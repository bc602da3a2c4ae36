"""Attention of packed training sequences with shared prompts, forward and backward apart.

    python -m benchmarks.bench_segment_attention [--device cuda|cpu] [--out FOLDER] [--quick]

One layer with the heads of `small` (12 over 4 of 64 values) on a CPU, of Llama-3-8B (32 over 8 of
128) on a GPU; bf16. Trees of a prompt and two responses, as a preference pair is packed. q, k and v
are views of one projection, whose gradient is what backward gives.

Rivals: SDPA of whole sequences, each with its own copy of the prompt ("unshared"); SDPA of a tree
in a row with a mask; FlexAttention, compiled, with a block mask (a GPU alone: on a CPU it has no
backward); ours of whole sequences, for what sharing brings.

FLOPs are 4 H K for every pair of a row and a key that it sees, of the tree, and 10 H K backward;
"rate" is the share of a large matmul's. Time is a call's own on a CPU, whatever else the machine
did: "cpu ms". Errors against fp64, relative, the larger one of out, or of the gradient.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import BASELINE, OURS, Row, Variant
from srlm_fast import __version__
from srlm_fast.kernels import Segments, segment_attention, segment_attention_reference

NAME, TORCH = "bench_segment_attention", f"torch {torch.__version__}"
HEADS = {"small": (12, 4, 64), "llama-3-8b": (32, 8, 128)}
BOUNDS = {"error": (8e-3, 3e-2)}
RESPONSES = 2


@dataclass(frozen=True)
class Case:
    model: str
    trees: int
    prompt: int
    response: int
    part: str  # forward or backward

    @property
    def name(self) -> str:
        lengths = f"{self.trees} x ({self.prompt} + {RESPONSES} x {self.response})"
        return f"{self.model} {lengths} {self.part}"

    @property
    def flops(self) -> int:
        heads, _, width = HEADS[self.model]
        own = self.prompt * (self.prompt + 1) // 2
        child = self.response * self.prompt + self.response * (self.response + 1) // 2
        pairs = self.trees * (own + RESPONSES * child)
        return pairs * heads * width * (4 if self.part == "forward" else 10)


@dataclass(frozen=True)
class Inputs:
    """qkv [T, H + 2 G, K] of the trees; grad [T, H, K] of the output."""

    case: Case
    qkv: Tensor
    grad: Tensor

    @property
    def sizes(self) -> tuple[int, int, int]:
        heads, kv_heads, _ = HEADS[self.case.model]
        return heads, kv_heads, kv_heads

    @property
    def scale(self) -> float:
        return self.qkv.shape[2] ** -0.5

    @cached_property
    def segments(self) -> Segments:
        one = [self.case.prompt, *[self.case.response] * RESPONSES]
        parents = [p for t in range(self.case.trees) for p in (-1, *[t * len(one)] * RESPONSES)]
        return Segments(one * self.case.trees, parents)

    @cached_property
    def copies(self) -> Tensor:
        """[rows] where each row of the whole sequences is in the trees."""
        prompt, response = self.case.prompt, self.case.response
        child = torch.arange(RESPONSES)[:, None] * response + prompt + torch.arange(response)
        whole = torch.cat((torch.arange(prompt).expand(RESPONSES, -1), child), 1).flatten()
        tree = torch.arange(self.case.trees) * (prompt + RESPONSES * response)
        return (tree[:, None] + whole).flatten().to(self.qkv.device)

    def split(self, qkv: Tensor) -> Sequence[Tensor]:
        return qkv.split(self.sizes, 1)


def make_inputs(case: Case, device: str) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    heads, kv_heads, width = HEADS[case.model]
    rows = case.trees * (case.prompt + RESPONSES * case.response)
    place: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.bfloat16}
    qkv = torch.randn(rows, heads + 2 * kv_heads, width, **place)
    return Inputs(case, qkv, torch.randn(rows, heads, width, **place))


@dataclass(frozen=True)
class Form:
    """attend(qkv) -> out, of the trees or of whole sequences."""

    attend: Callable[[Tensor], Tensor]
    whole: bool = False


def of_segments(inputs: Inputs, attend: Callable[..., Tensor], segments: Segments) -> Form:
    def call(qkv: Tensor) -> Tensor:
        return attend(*inputs.split(qkv), segments, inputs.scale)

    return Form(call, segments is not inputs.segments)


def unshared(inputs: Inputs) -> Segments:
    case = inputs.case
    return Segments([case.prompt + case.response] * (case.trees * RESPONSES))


def sdpa(inputs: Inputs, whole: bool) -> Form:
    """A sequence, or a tree, in a row of the batch."""
    case = inputs.case
    batch = case.trees * RESPONSES if whole else case.trees
    mask = None if whole else tree_mask(case, inputs.qkv.device)

    def call(qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (batch, -1)).transpose(1, 2) for x in inputs.split(qkv))
        options: dict[str, Any] = {"attn_mask": mask, "is_causal": mask is None}
        options["enable_gqa"] = True
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(0, 1)

    return Form(call, whole)


def tree_mask(case: Case, device: torch.device) -> Tensor:
    """[rows, rows], True where a row of a tree sees another."""
    row = torch.arange(case.prompt + RESPONSES * case.response, device=device)
    branch = (row - case.prompt).div(case.response, rounding_mode="floor")
    seen = (row < case.prompt) | (branch[:, None] == branch)
    return seen & (row[:, None] >= row)


def flex(inputs: Inputs) -> Form:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    case, device = inputs.case, inputs.qkv.device
    mask = tree_mask(case, device)
    blocks = create_block_mask(
        lambda b, h, q, k: mask[q, k], None, None, len(mask), len(mask), device=str(device)
    )
    compiled = torch.compile(flex_attention)

    def call(qkv: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (case.trees, -1)).transpose(1, 2) for x in inputs.split(qkv))
        return compiled(q, k, v, block_mask=blocks, enable_gqa=True).transpose(1, 2).flatten(0, 1)

    return Form(call)


class Run:
    """A form's forward pass, or its backward pass with the forward one made before."""

    def __init__(self, inputs: Inputs, make: Callable[[], Form]) -> None:
        self.inputs, self.make = inputs, make
        self.call: Callable[[], Tensor] | None = None

    def prepare(self) -> None:
        if self.call is None:
            form = self.make()
            qkv, grad = whole_sequences(self.inputs) if form.whole else self.leaves()
            if self.inputs.case.part == "forward":
                self.call = partial(form.attend, qkv)
            else:
                out = form.attend(qkv.requires_grad_())
                self.call = lambda: torch.autograd.grad(out, qkv, grad, retain_graph=True)[0]

    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.inputs.qkv.detach(), self.inputs.grad

    def __call__(self) -> Tensor:
        assert self.call is not None
        return self.call()


def whole_sequences(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """qkv and grad with a prompt for each response; the prompt's gradient comes with the first."""
    qkv, grad = inputs.qkv[inputs.copies], inputs.grad[inputs.copies]
    grad.unflatten(0, (inputs.case.trees, RESPONSES, -1))[:, 1:, : inputs.case.prompt] = 0
    return qkv, grad


def variants(inputs: Inputs, options: argparse.Namespace) -> list[Variant]:
    on_cpu = "no backward on a CPU" if options.device == "cpu" else None
    left = "left out by --quick" if options.quick else on_cpu
    made: dict[str, tuple[Callable[[], Form], str, str | None]] = {
        OURS: (lambda: of_segments(inputs, segment_attention, inputs.segments), "", None),
        "ours, unshared": (
            lambda: of_segments(inputs, segment_attention, unshared(inputs)), "unshared", None,
        ),
        BASELINE: (
            lambda: of_segments(inputs, segment_attention_reference, inputs.segments), "", None,
        ),
        "SDPA, unshared": (partial(sdpa, inputs, True), "unshared", None),
        "SDPA, mask": (partial(sdpa, inputs, False), "", None),
        "FlexAttention": (partial(flex, inputs), "", left),
    }  # fmt: skip
    every = []
    for name, (make, computes, reason) in made.items():
        run, version = Run(inputs, make), __version__ if name.startswith(OURS) else TORCH
        every.append(Variant(name, run, run.prepare, version, computes, reason))
    return [v for v in every if command.asked_for(v.name, options)]


def truth_of(inputs: Inputs) -> Tensor:
    wide = Inputs(inputs.case, inputs.qkv.double(), inputs.grad.double())
    run = Run(wide, lambda: of_segments(wide, segment_attention_reference, wide.segments))
    run.prepare()
    return run().detach()


def error_of(inputs: Inputs, truth: Tensor, variant: Variant, found: Tensor) -> dict[str, float]:
    found = found.detach()
    if variant.computes == "unshared":
        if inputs.case.part == "forward":
            truth = truth[inputs.copies]
        else:
            found = torch.zeros_like(truth).index_add(0, inputs.copies, found.to(truth))
    return {"error": harness.relative_error(found, truth)}


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    inputs = make_inputs(case, options.device)
    truth = truth_of(inputs)
    print(f"\n{case.name}, {case.flops / 1e9:.2f} GFLOP", flush=True)
    rows = harness.measure(
        variants(inputs, options),
        partial(error_of, inputs, truth),
        BOUNDS,
        options.device,
        flops=case.flops,
        rate=top["matmul_flops"],
        seconds=0.5,
        rounds=(options.rounds, 20 * options.rounds),
        peak_of=None if options.device == "cuda" else lambda variant: None,
    )
    timed = columns.times("ms", "p20", "p80", "cpu")
    more = (columns.speed("GFLOP/s", case.flops), columns.RATE, columns.OURS, columns.PEAK)
    print(columns.show(rows, *timed, *more, columns.error("error", "error")), flush=True)
    return rows, {"flops": case.flops}


def variants_on_cpu(case: Case, options: argparse.Namespace) -> list[Variant]:
    return variants(make_inputs(case, "cpu"), options)


def cases(options: argparse.Namespace) -> list[Case]:
    parts = "forward", "backward"
    if options.quick:
        return [Case("small", 1, 40, 20, part) for part in parts]
    model, shapes = "small", [(4, 128, 127), (4, 512, 127)]
    if options.device == "cuda":
        model, shapes = "llama-3-8b", [(8, 512, 512), (4, 2048, 512), (8, 1024, 128)]
    return [Case(model, *shape, part) for shape in shapes for part in parts]


BENCHMARK = Benchmark(NAME, __doc__, cases, run_case, variants_on_cpu)


def main(arguments: Sequence[str] | None = None) -> int:
    return command.main(BENCHMARK, arguments)


if __name__ == "__main__":
    sys.exit(main())
