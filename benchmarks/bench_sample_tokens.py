"""One step of sampling: ours in one launch, against what transformers does, and FlashInfer.

    python -m benchmarks.bench_sample_tokens [--device cuda|cpu] [--out FOLDER] [--seconds N]

Logits [N, V] in bf16 on a GPU (fp32 on a CPU), V of Llama-2 and Llama-3, N samples of a row each.
"model" logits are 2.5 times normal with one token in a thousand raised by up to 15: a few tokens
have most of the mass, as a trained model's do; "flat" ones are normal: at temperature 0.7 four
tenths of the vocabulary make the first 0.9 of the mass. Options: temperature 1; temperature 0.7 and
top-p 0.9; top-k 50; everything (these, min-p 0.02, a penalty on 512 tokens, 4 banned, a mask).

eager        sort, softmax, cumulative sum, multinomial as transformers' logits warpers do, in fp32;
             and the raw log-probability, as ours gives it
compiled     Gumbel-max in torch.compile, plain temperature only; and the log-probability
FlashInfer   top_k_top_p_sampling_from_probs after a softmax, without log-probabilities

Least bytes: one read of the logits. "rate" is their share of what a large copy reaches in the same
run (L2 is overwritten before each call), the floor a copy of so many bytes. Correct is a token that
the options allow and a log-probability within 1e-3; ours must also be the reference's own tokens,
but for one in a hundred (another rounding) of the first 16 samples. Rivals draw with noise of their
own.

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
from srlm_fast.kernels import SamplingWorkspace, sample_tokens, sample_tokens_reference

NAME, TORCH = "bench_sample_tokens", f"torch {torch.__version__}"
VOCABS, SAMPLES = {"llama-2": 32000, "llama-3": 128_256}, (64, 256)
KINDS = ("model", "flat")
NUM_SEEN, NUM_BANNED, CHECKED = 512, 4, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-p": {"temperature": 0.7, "top_p": 0.9},
    "top-k": {"top_k": 50},
    "everything": {
        "temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.02, "repetition_penalty": 1.1,
    },
}  # fmt: skip
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
# Quantity -> (floor, cap): tokens that may not be drawn; nats; share of other tokens.
BOUNDS = {"forbidden": (0.0, 0.0), "logprob": (1e-3, 1e-3), "others": (0.01, 0.0625)}


@dataclass(frozen=True)
class Case:
    model: str
    samples: int
    options: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.model} N={self.samples} {self.options} {self.kind}"

    @property
    def vocab(self) -> int:
        return VOCABS[self.model]

    def bytes(self, itemsize: int) -> int:
        """One read of the logits."""
        return self.samples * self.vocab * itemsize


@dataclass(frozen=True)
class Inputs:
    """The flat arguments of `sample_tokens`, and the settings that all samples share."""

    flat: tuple[Tensor | None, ...]
    settings: dict[str, Any]
    seen: Tensor | None  # [N, NUM_SEEN]
    forbidden: Tensor | None  # [V] bool, of every sample

    @property
    def logits(self) -> Tensor:
        return self.flat[0]


def make_inputs(case: Case, device: str) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    count, vocab, settings = case.samples, case.vocab, OFF | OPTIONS[case.options]
    logits = torch.randn(count, vocab, generator=generator, device=device)
    if case.kind == "model":
        raised = torch.rand(count, vocab, generator=generator, device=device)
        logits = 2.5 * logits + torch.where(raised < 1e-3, 15e3 * raised, 0)
    logits = logits.to(torch.bfloat16 if device == "cuda" else torch.float32)

    def full(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((count,), settings[name], dtype=dtype, device=device)

    def ints(high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(high, shape, generator=generator, device=device, dtype=dtype)

    def starts(each: int) -> Tensor:
        return torch.arange(count + 1, dtype=torch.int32, device=device) * each

    edits = case.options == "everything"
    seen = ints(vocab, count, NUM_SEEN) if edits else None
    banned = torch.arange(NUM_BANNED, dtype=torch.int32, device=device)
    words = ints(2**31 - 1, 1, -(-vocab // 32)) if edits else None
    nothing = torch.zeros(0, dtype=torch.int32, device=device)
    flat = (
        logits,
        torch.arange(count, dtype=torch.int32, device=device),
        full("temperature"),
        full("top_k", torch.int32),
        *(full(name) for name in ("top_p", "min_p", "repetition_penalty")),
        ints(2**62, count, dtype=torch.int64),
        torch.arange(count, device=device),
        seen.flatten() if edits else nothing,
        starts(NUM_SEEN if edits else 0),
        banned.repeat(count) if edits else nothing,
        starts(NUM_BANNED if edits else 0),
        words,
        torch.zeros(count, dtype=torch.int32, device=device) if edits else None,
    )
    forbidden = None
    if edits:
        ids = torch.arange(vocab, device=device)
        forbidden = (words[0][ids // 32] >> ids % 32 & 1) == 0
        forbidden[:NUM_BANNED] = True
    return Inputs(flat, settings, seen, forbidden)


# Forms: each makes a function without arguments that gives tokens and log-probabilities.

Form = Callable[[], tuple[Tensor, Tensor | None]]


def ours(inputs: Inputs) -> Form:
    """With the buffers that a step keeps."""
    count, vocab = inputs.logits.shape
    device = inputs.logits.device
    kept = {
        "tokens": torch.empty(count, dtype=torch.int32, device=device),
        "logprobs": torch.empty(count, device=device),
        "workspace": SamplingWorkspace.empty(count, vocab, device),
    }
    return lambda: sample_tokens(*inputs.flat, **kept)


def warped(inputs: Inputs) -> Tensor:
    """fp32 scores after the penalty, what is forbidden, temperature, top-k, top-p and min-p."""
    s, scores = inputs.settings, inputs.logits.float()
    if inputs.seen is not None:
        index = inputs.seen.long()
        picked = scores.gather(1, index)
        penalty = s["repetition_penalty"]
        scores = scores.scatter(
            1, index, torch.where(picked > 0, picked / penalty, picked * penalty)
        )
    if inputs.forbidden is not None:
        scores = scores.masked_fill(inputs.forbidden, -torch.inf)
    scores = scores / s["temperature"]
    if s["top_k"] > 0:
        least = scores.topk(s["top_k"]).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if s["top_p"] < 1:
        ranked, order = scores.sort(descending=False)
        remove = ranked.softmax(-1).cumsum(-1) <= 1 - s["top_p"]
        remove[:, -1:] = False
        scores = scores.masked_fill(remove.scatter(1, order, remove), -torch.inf)
    if s["min_p"] > 0:
        probs = scores.softmax(-1)
        least = s["min_p"] * probs.amax(-1, keepdim=True)
        scores = scores.masked_fill(probs < least, -torch.inf)
    return scores


def raw_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]


def eager(inputs: Inputs) -> Form:
    def call() -> tuple[Tensor, Tensor]:
        tokens = torch.multinomial(warped(inputs).softmax(-1), 1)[:, 0]
        return tokens, raw_logprobs(inputs.logits, tokens)

    return call


@cache
def gumbel() -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    allow_recompiling()

    @partial(torch.compile, dynamic=False)
    def draw(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        z = logits.float()
        noise = -torch.empty_like(z).exponential_().log()
        tokens = (z / temperature + noise).argmax(-1)
        return tokens, raw_logprobs(logits, tokens)

    return draw


def flashinfer(inputs: Inputs) -> Form:
    from flashinfer import sampling

    s, count = inputs.settings, len(inputs.logits)
    top_k = torch.full((count,), s["top_k"] or inputs.logits.shape[1], device="cuda").int()
    top_p = torch.full((count,), s["top_p"], device="cuda")

    def call() -> tuple[Tensor, None]:
        probs = (inputs.logits.float() / s["temperature"]).softmax(-1)
        if s["top_k"] and s["top_p"] < 1:
            found = sampling.top_k_top_p_sampling_from_probs(probs, top_k, top_p)
        elif s["top_k"]:
            found = sampling.top_k_sampling_from_probs(probs, top_k)
        elif s["top_p"] < 1:
            found = sampling.top_p_sampling_from_probs(probs, top_p)
        else:
            found = sampling.sampling_from_probs(probs)
        return (found[0] if isinstance(found, tuple) else found), None

    return call


def variants(case: Case, inputs: Inputs, options: argparse.Namespace) -> list[Variant]:
    left = "on a GPU only, not with --quick" if options.device == "cpu" or options.quick else None
    every = [
        Variant(OURS, ours(inputs), version=__version__),
        Variant(BASELINE, eager(inputs), version=TORCH),
        compiled_variant(case, inputs, left),
        flashinfer_variant(case, inputs, left),
        Variant("floor, one copy", one_copy(case, inputs.logits), least=True),
    ]
    return [v for v in every if v.least or command.asked_for(v.name, options)]


def compiled_variant(case: Case, inputs: Inputs, left: str | None) -> Variant:
    reason = left or (None if case.options == "plain" else "plain temperature only")
    call = None
    if reason is None:
        call = partial(gumbel(), inputs.logits, inputs.settings["temperature"])
    return Variant("compiled", call, version=TORCH, reason=reason)


def flashinfer_variant(case: Case, inputs: Inputs, left: str | None) -> Variant:
    version = f"flashinfer-python {harness.installed('flashinfer-python')}"
    if left is None and case.options == "everything":
        left = "no penalty, mask and min-p in one call"
    try:
        if left is None:
            call = flashinfer(inputs)
            return Variant("FlashInfer", call, version=version, computes="tokens only")
    except Exception as error:  # a rival that is absent or broken is no fault of the benchmark
        left = f"cannot be loaded: {harness.one_line(error)}"
    return Variant("FlashInfer", version=version, reason=left)


def one_copy(case: Case, like: Tensor) -> Callable[[], Tensor]:
    """Reads a half of the bytes and writes the other."""
    size = case.bytes(like.itemsize) // 2
    target, source = torch.zeros((2, size), dtype=torch.uint8, device=like.device)
    return partial(target.copy_, source)


def errors_of(inputs: Inputs, variant: Variant, output: Any) -> dict[str, float]:
    if variant.least:
        return {}
    tokens, logprobs = output[0].long(), output[1]
    # Tokens equal to the least one allowed are not told apart by the rivals.
    allowed = warped(inputs).gather(1, tokens[:, None])[:, 0] > -torch.inf
    errors = {"forbidden": float((~allowed).sum())}
    if inputs.settings["top_p"] < 1:  # where rounding decides, another token may cross
        errors["forbidden"] = float((~allowed).float().mean() > 0.01)
    if logprobs is not None:
        errors["logprob"] = float(
            (logprobs - raw_logprobs(inputs.logits, tokens)).abs().max().nan_to_num(torch.inf)
        )
    if variant.name == OURS:
        few = [x[:CHECKED] if i in range(1, 9) else x for i, x in enumerate(inputs.flat)]
        right = sample_tokens_reference(*few)[0]
        errors["others"] = float((right != output[0][:CHECKED]).float().mean())
    return errors


# Running


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    inputs = make_inputs(case, options.device)
    moved = case.bytes(inputs.logits.itemsize)
    print(f"\n{case.name}, V = {case.vocab:,}, {moved / 2**20:.1f} MiB of logits", flush=True)
    rows = harness.measure(
        variants(case, inputs, options),
        partial(errors_of, inputs),
        BOUNDS,
        options.device,
        flops=moved,
        rate=top["copy_bytes_per_s"],
        seconds=0.1,
        rounds=(options.rounds, 20 * options.rounds),
        peak_of=command.peaks(BENCHMARK, case, options, lambda v: options.quick or v.name != OURS),
    )
    timed = columns.times("us", "p20", "p80", "first")
    more = (columns.speed("GB/s", moved), *columns.COMPARED, columns.COMPUTES)
    print(columns.show(rows, *timed, *more), flush=True)
    return rows, {"bytes": moved}


def variants_on_cpu(case: Case, options: argparse.Namespace) -> list[Variant]:
    return variants(case, make_inputs(case, "cpu"), options)


def cases(options: argparse.Namespace) -> list[Case]:
    """Model-like logits first; flat ones are the hard case of a search without a sort."""
    small = options.quick or options.device == "cpu"
    models = list(VOCABS)[:1] if small else list(VOCABS)[::-1]
    counts = (2,) if options.quick else (16,) if small else SAMPLES
    return [
        Case(model, count, name, kind)
        for kind in KINDS
        for model in models
        for count in counts
        for name in OPTIONS
    ]


BENCHMARK = Benchmark(
    NAME, __doc__, cases, run_case, variants_on_cpu, packages=("flashinfer-python",)
)
main = partial(command.main, BENCHMARK)

if __name__ == "__main__":
    sys.exit(main())
