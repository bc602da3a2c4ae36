"""The decoder's own operations, forward and backward apart, against eager, compiled and Liger.

    python -m benchmarks.bench_model_ops [--device cuda|cpu] [--out FOLDER] [--quick]

RMSNorm, RMSNorm of a sum, rotary embedding of q and k, SwiGLU, with the widths of Llama-2-70B,
Llama-3-8B and Qwen2.5-0.5B; 16,384 tokens in bf16 on a GPU, 256 in fp32 on a CPU, where ours is
eager PyTorch. q and k are cut out of the fused projection, gate and up are one tensor. Liger takes
gate and up apart, in its place we give them to it so, and it writes into its inputs, so that it
gets fresh ones, made outside the time.

Bytes that must move, with N = tokens x width of one tensor and 2 or 4 bytes each:

                 forward            backward
    rms_norm     2 N                3 N            x, y; g, x, dx
    residual     4 N                4 N            x, residual, y, sum; g, h, sum, one gradient
    rope         2 N                2 N            N = tokens x (H + G) x K; and cos, sin in fp32
    swiglu       3 N                5 N            N = tokens x F

"host" is the milliseconds until the call has returned: Python, autograd and launching.
"rate" is the share of what a large copy reaches in the same run, the floor a copy of so many bytes.
MiB: peak above what was there before the call; of a backward the graph was. Errors against fp64,
relative, the largest of the tensors.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import BASELINE, OURS, Row, Variant
from benchmarks.rivals import allow_recompiling
from srlm_fast import __version__
from srlm_fast.kernels import (
    rms_norm,
    rms_norm_reference,
    rms_norm_residual,
    rms_norm_residual_reference,
    rope_qk,
    rope_reference,
    swiglu,
    swiglu_reference,
)
from srlm_fast.kernels.rope import rope_angles
from srlm_fast.model.presets import PRESETS
from srlm_fast.model.rope import rope_frequencies

NAME, EPS, TORCH = "bench_model_ops", 1e-5, f"torch {torch.__version__}"
MODELS = ("llama-2-70b", "llama-3-8b", "qwen2.5-0.5b")
OPS, PARTS = ("rms_norm", "residual", "rope", "swiglu"), ("forward", "backward")
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
# Quantity -> (floor, cap) of the error allowed: one or two roundings to bf16.
BOUNDS = {"error": (4e-3, 3e-2)}
Tensors = tuple[Tensor, ...]
Form = Callable[..., Tensors]


@dataclass(frozen=True)
class Case:
    model: str
    op: str
    part: str
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.op} {self.part}"

    def bytes(self, itemsize: int) -> int:
        """What must move; weights of a norm left out."""
        c = PRESETS[self.model].config
        heads = (c.num_heads + c.num_kv_heads) * c.head_dim
        width = {"rope": heads, "swiglu": c.intermediate_size}.get(self.op, c.hidden_size)
        times = {"rms_norm": (2, 3), "residual": (4, 4), "rope": (2, 2), "swiglu": (3, 5)}
        angles = 4 * self.tokens * c.head_dim if self.op == "rope" else 0
        moved = times[self.op][PARTS.index(self.part)] * self.tokens * width
        return moved * itemsize + angles


@dataclass(frozen=True)
class Inputs:
    """What is differentiated, what is not, and the gradients of the outputs."""

    leaves: Tensors
    constants: Tensors
    upstream: Tensors

    def to(self, dtype: torch.dtype) -> Inputs:
        of = (self.leaves, self.constants, self.upstream)
        leaves, *others = (tuple(x.detach().to(dtype) for x in tensors) for tensors in of)
        return Inputs(tuple(x.requires_grad_() for x in leaves), *others)

    def fresh(self) -> Inputs:
        leaves = tuple(x.detach().clone().requires_grad_() for x in self.leaves)
        return Inputs(leaves, self.constants, tuple(g.clone() for g in self.upstream))


def make_inputs(case: Case, device: str) -> Inputs:
    c = PRESETS[case.model].config
    generator = torch.Generator(device).manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[device])

    rows, constants = (case.tokens, c.hidden_size), ()
    if case.op == "rope":
        groups = (c.num_heads, c.num_kv_heads, c.num_kv_heads)
        leaves = new(case.tokens, sum(groups), c.head_dim).split(groups, dim=1)[:2]
        frequencies = rope_frequencies(c)[0].to(device)
        constants = rope_angles(torch.arange(case.tokens, device=device), frequencies)
        upstream = tuple(new(*x.shape) for x in leaves)
    elif case.op == "swiglu":
        leaves = (new(case.tokens, 2 * c.intermediate_size),)
        upstream = (new(case.tokens, c.intermediate_size),)
    else:
        upstream = tuple(new(*rows) for _ in range(1 + (case.op == "residual")))
        leaves = (*(new(*rows) for _ in upstream), new(c.hidden_size) + 1)
    return Inputs(tuple(x.detach().requires_grad_() for x in leaves), constants, upstream)


# Forms: leaves and constants -> outputs.

OUR_FORMS: dict[str, Form] = {
    "rms_norm": lambda x, weight: (rms_norm(x, weight, EPS),),
    "residual": lambda x, residual, weight: rms_norm_residual(x, residual, weight, EPS),
    "rope": rope_qk,
    "swiglu": lambda gate_up: (swiglu(gate_up),),
}
EAGER: dict[str, Form] = {
    "rms_norm": lambda x, weight: (rms_norm_reference(x, weight, EPS),),
    "residual": lambda x, residual, weight: rms_norm_residual_reference(x, residual, weight, EPS),
    "rope": lambda q, k, cos, sin: (rope_reference(q, cos, sin), rope_reference(k, cos, sin)),
    "swiglu": lambda gate_up: (swiglu_reference(gate_up),),
}


@cache
def compiled(op: str) -> Form:
    allow_recompiling()
    return torch.compile(EAGER[op], dynamic=False)


def liger(op: str, inputs: Inputs) -> tuple[Form, Inputs]:
    """Its function and the inputs in its own layout."""
    from liger_kernel.transformers import functional as liger

    if op == "rms_norm":
        return lambda x, weight: (liger.liger_rms_norm(x, weight, EPS),), inputs
    if op == "residual":
        return lambda x, r, weight: liger.liger_fused_add_rms_norm(x, r, weight, EPS), inputs
    if op == "swiglu":
        halves = inputs.leaves[0].detach().chunk(2, dim=-1)
        leaves = tuple(x.contiguous().requires_grad_() for x in halves)
        return lambda gate, up: (liger.liger_swiglu(gate, up),), Inputs(leaves, (), inputs.upstream)

    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Tensors:
        heads_first = (x.transpose(0, 1)[None] for x in (q, k))
        return tuple(y[0].transpose(0, 1) for y in liger.liger_rope(*heads_first, cos, sin))

    dtype = inputs.leaves[0].dtype
    angles = tuple(torch.cat((a, a), dim=-1)[None].to(dtype) for a in inputs.constants)
    return rope, Inputs(inputs.leaves, angles, inputs.upstream)


class Step:
    """The timed part of a form; what comes before it is prepared outside the time."""

    def __init__(self, form: Form, inputs: Inputs, part: str, overwrites: bool = False) -> None:
        self.form, self.inputs, self.part, self.overwrites = form, inputs, part, overwrites
        self.taken, self.outputs = inputs, ()

    def prepare(self) -> None:
        self.outputs = ()
        if self.overwrites:
            self.taken = self.inputs.fresh()
        if self.part == "backward":
            self.outputs = self.forward()

    def forward(self) -> Tensors:
        return self.form(*self.taken.leaves, *self.taken.constants)

    def __call__(self) -> Tensors:
        if self.part == "forward":
            return self.forward()
        outputs, self.outputs = self.outputs, ()
        return torch.autograd.grad(outputs, self.taken.leaves, self.taken.upstream)


def truth(case: Case, inputs: Inputs) -> Tensors:
    step = Step(EAGER[case.op], inputs.to(torch.float64), case.part)
    step.prepare()
    return tuple(x.detach() for x in step())


def variants(case: Case, inputs: Inputs, options: argparse.Namespace) -> list[Variant]:
    left = None
    if options.device == "cpu" or options.quick:
        left = "on a GPU only, not with --quick"
    every = [
        as_variant(OURS, __version__, Step(OUR_FORMS[case.op], inputs, case.part)),
        as_variant(BASELINE, TORCH, Step(EAGER[case.op], inputs, case.part)),
        Variant("torch.compile", version=TORCH, reason=left)
        if left
        else as_variant("torch.compile", TORCH, Step(compiled(case.op), inputs, case.part)),
        liger_variant(case, inputs, left),
        Variant("floor, one copy", one_copy(case, inputs.leaves[0]), least=True),
    ]
    return [v for v in every if v.least or command.asked_for(v.name, options)]


def as_variant(name: str, version: str, step: Step) -> Variant:
    return Variant(name, step, step.prepare, version=version)


def liger_variant(case: Case, inputs: Inputs, left: str | None) -> Variant:
    version = f"liger-kernel {harness.installed('liger-kernel')}"
    try:
        if left is None:
            return as_variant("Liger", version, Step(*liger(case.op, inputs), case.part, True))
    except Exception as error:  # a rival that is absent or broken is no fault of the benchmark
        left = f"cannot be loaded: {harness.one_line(error)}"
    return Variant("Liger", version=version, reason=left)


def one_copy(case: Case, like: Tensor) -> Callable[[], Tensor]:
    """Reads a half of the bytes and writes the other."""
    size = case.bytes(like.itemsize) // 2
    target, source = torch.zeros((2, size), dtype=torch.uint8, device=like.device)
    return partial(target.copy_, source)


def errors_of(right: Tensors, variant: Variant, output: Any) -> dict[str, float]:
    if variant.least:
        return {}
    found = [x.detach() for x in output]
    if len(found) > len(right):  # gate and up apart
        found = [torch.cat(found, dim=-1)]
    return {"error": max(map(harness.relative_error, found, right))}


# Running


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    inputs = make_inputs(case, options.device)
    right, taken = truth(case, inputs), variants(case, inputs, options)
    moved = case.bytes(inputs.leaves[0].itemsize)
    print(f"\n{case.name}, T = {case.tokens:,}, {moved / 2**20:.0f} MiB must move", flush=True)
    rows = harness.measure(
        taken,
        partial(errors_of, right),
        BOUNDS,
        options.device,
        flops=moved,
        rate=top["copy_bytes_per_s"],
        seconds=0.1,
        rounds=(options.rounds, 20 * options.rounds),
        peak_of=command.peaks(BENCHMARK, case, options, lambda v: options.quick or v.name != OURS),
    )
    timed = columns.times("ms", "p20", "p80", "host", "first")
    more = (columns.speed("GB/s", moved), *columns.COMPARED, columns.error("error", "error"))
    print(columns.show(rows, *timed, *more), flush=True)
    return rows, {"bytes": moved}


def variants_on_cpu(case: Case, options: argparse.Namespace) -> list[Variant]:
    return variants(case, make_inputs(case, "cpu"), options)


def cases(options: argparse.Namespace) -> list[Case]:
    tokens = 16 if options.quick else 16384 if options.device == "cuda" else 256
    models = MODELS[-1:] if options.quick else MODELS
    return [Case(model, op, part, tokens) for model in models for op in OPS for part in PARTS]


BENCHMARK = Benchmark(NAME, __doc__, cases, run_case, variants_on_cpu, packages=("liger-kernel",))
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
