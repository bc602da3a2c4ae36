"""Expected scores from hidden rows, against full logits for the same rows.

    python -m benchmarks.bench_expected_scores [--device cuda|cpu] [--out FOLDER] [--quick]

Heads of Llama-2-70B and Llama-3-8B in bf16 with 1,024 rows on a GPU, of Qwen2.5-0.5B and
Llama-2-7B in fp32 with 64 rows on a CPU; scores 0 to 5 of two ids each. Out: the mean and the
variance of every row, and in the cases "with mass" how much of the vocabulary's probability the
scores hold. Rivals: all logits, then a softmax over the score tokens (with mass: over the
vocabulary), as it is done with any model's own output; that compiled; the head rows gathered in
eager PyTorch, then the same.

Without the mass the head's K rows and the hidden rows must be read, (K + B) D numbers: "rate" is
the share of what a large copy reaches in the same run, the floor is a copy of so many bytes. With
it 2 B D V FLOPs must be done: the share of a large matmul's rate, the floor is that matmul. On a
GPU the L2 cache is cold; "host" is the milliseconds until the call has returned. MiB: peak above
the inputs. Errors against fp64, absolute, of the mean ("score") and of the mass.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import BASELINE, OURS, Row, Variant
from srlm_fast import __version__
from srlm_fast.kernels import ScoreDistribution, score_distribution
from srlm_fast.model.presets import PRESETS

NAME, PYTORCH = "bench_expected_scores", f"torch {torch.__version__}"
MODELS = {"cuda": ("llama-2-70b", "llama-3-8b"), "cpu": ("qwen2.5-0.5b", "llama-2-7b")}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
ROWS, QUICK = {"cuda": 1024, "cpu": 64}, "quick"
# Quantity -> (floor, cap) of the error allowed; logits rounded to bf16 move a mean by hundredths.
BOUNDS = {"score": (1e-4, 5e-2), "mass": (1e-4, 5e-2)}
SCORES, SPELLINGS = 6, 2
Found = tuple[Tensor, ...]  # mean, variance and, where asked for, mass: [B] each


@dataclass(frozen=True)
class Case:
    model: str
    rows: int
    mass: bool

    @property
    def name(self) -> str:
        return f"{self.model} {self.rows} rows{' with mass' if self.mass else ''}"

    @property
    def sizes(self) -> tuple[int, int]:
        """(D, V)."""
        if self.model == QUICK:
            return 256, 4096
        config = PRESETS[self.model].config
        return config.hidden_size, config.vocab_size


@dataclass(frozen=True)
class Inputs:
    hidden: Tensor  # [B, D]
    head: Tensor  # [V, D]
    ids: Tensor  # [S, spellings]
    values: Tensor  # [S] fp32

    @property
    def groups(self) -> dict[int, list[int]]:
        return dict(enumerate(self.ids.tolist()))


def make_inputs(case: Case, device: str) -> Inputs:
    """Logits of a few units, those of the scores larger, as where a score is written."""
    (depth, vocab), generator = case.sizes, torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": DTYPES[device]}
    head = torch.randn(vocab, depth, **options)
    ids = torch.arange(SCORES * SPELLINGS, device=device) * (vocab // 16) + 5
    hidden = torch.randn(case.rows, depth, **options).mul_(depth**-0.5)
    hidden += head[ids].sum(0) * (6 / depth)
    values = torch.arange(SCORES, device=device, dtype=torch.float32)
    return Inputs(hidden, head, ids.view(SCORES, SPELLINGS), values)


# Variants


def ours(groups: dict[int, list[int]], mass: bool, x: Inputs) -> Found:
    return of_distribution(score_distribution(x.hidden, x.head, groups, mass))


def of_distribution(found: ScoreDistribution) -> Found:
    return found.expected, found.variance, *([] if found.mass is None else [found.mass])


def moments(weights: Tensor, values: Tensor) -> Found:
    """Mean and variance under weights [B, S], which need not add up to 1."""
    p = weights / weights.sum(-1, keepdim=True)
    mean = (p * values).sum(-1)
    return mean, (p * (values - mean[:, None]).square()).sum(-1)


def full_logits(hidden: Tensor, head: Tensor, ids: Tensor, values: Tensor, mass: bool) -> Found:
    logits = (hidden @ head.T).float()
    if mass:
        weights = logits.softmax(-1)[:, ids].sum(-1)
        return *moments(weights, values), weights.sum(-1)
    return moments(logits[:, ids].flatten(1).softmax(-1).view(-1, *ids.shape).sum(-1), values)


def gathered(x: Inputs) -> Found:
    logits = (x.hidden @ x.head[x.ids.flatten()].T).float()
    return moments(logits.softmax(-1).view(-1, *x.ids.shape).sum(-1), x.values)


def variants(case: Case, x: Inputs, options: argparse.Namespace) -> list[Variant]:
    full = (x.hidden, x.head, x.ids, x.values, case.mass)
    left = None
    if options.quick or options.device == "cpu":
        left = "on a GPU only, not with --quick"
    compiled = full_logits if left else torch.compile(full_logits, dynamic=False)
    every = [
        Variant(OURS, partial(ours, x.groups, case.mass, x), version=__version__),
        Variant(BASELINE, partial(full_logits, *full), version=PYTORCH),
        Variant("torch.compile", partial(compiled, *full), version=PYTORCH, reason=left),
        floor(case, x),
    ]
    if not case.mass:
        every.insert(3, Variant("gathered, eager", partial(gathered, x), version=PYTORCH))
    return [v for v in every if v.least or command.asked_for(v.name, options)]


def floor(case: Case, x: Inputs) -> Variant:
    if case.mass:
        return Variant("floor, one matmul", partial(torch.matmul, x.hidden, x.head.T), least=True)
    half = moved(case, x) // 2
    target, source = torch.zeros((2, half), dtype=torch.uint8, device=x.head.device)
    return Variant("floor, one copy", partial(target.copy_, source), least=True)


def moved(case: Case, x: Inputs) -> int:
    """Bytes that must be read where no mass is wanted."""
    return (case.rows + x.ids.numel()) * case.sizes[0] * x.head.itemsize


def truth_of(case: Case, x: Inputs) -> Found:
    """From all logits in fp64, a part of the head at a time."""
    wide = x.hidden.double()
    logits = torch.cat([wide @ part.double().T for part in x.head.split(8192)], dim=1)
    weights = logits.softmax(-1)[:, x.ids].sum(-1)
    return *moments(weights, x.values), *([weights.sum(-1)] if case.mass else [])


def errors_of(truth: Found, variant: Variant, output: Any) -> dict[str, float]:
    if variant.least:
        return {}
    found = {"score": 0, "mass": 2} if len(truth) > 2 else {"score": 0}
    return {q: float((output[i].double() - truth[i]).abs().max()) for q, i in found.items()}


# Running


@torch.no_grad()
def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    x = make_inputs(case, options.device)
    (depth, vocab), least = case.sizes, moved(case, x)
    flops = 2 * case.rows * depth * vocab
    must = f"{flops / 1e9:.3g} GFLOP" if case.mass else f"{least / 2**20:.3g} MiB to be read"
    print(f"\n{case.name}, D = {depth:,}, V = {vocab:,}, {must}", flush=True)
    rows = harness.measure(
        variants(case, x, options),
        partial(errors_of, truth_of(case, x)),
        BOUNDS,
        options.device,
        flops=flops if case.mass else least,
        rate=top["matmul_flops" if case.mass else "copy_bytes_per_s"],
        seconds=0.3,
        rounds=(options.rounds, 20 * options.rounds),
        peak_of=command.peaks(BENCHMARK, case, options, lambda v: options.quick or v.least),
    )
    timed = columns.times("ms", "p20", "p80", "host", "first")
    errors = (columns.error("score err", "score"), columns.error("mass err", "mass"))
    print(columns.show(rows, *timed, *columns.COMPARED, *errors), flush=True)
    return rows, {"bytes": None if case.mass else least, "flops": flops if case.mass else None}


def variants_on_cpu(case: Case, options: argparse.Namespace) -> list[Variant]:
    return variants(case, make_inputs(case, "cpu"), options)


def cases(options: argparse.Namespace) -> list[Case]:
    models = (QUICK,) if options.quick else MODELS[options.device]
    rows = 16 if options.quick else ROWS[options.device]
    return [Case(model, rows, mass) for mass in (False, True) for model in models]


BENCHMARK = Benchmark(NAME, __doc__, cases, run_case, variants_on_cpu)
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
