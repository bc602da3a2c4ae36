"""Attention over the paged KV cache: decoding and prefill, against PyTorch and flash-attn.

    python -m benchmarks.bench_paged_attention [--device cuda|cpu] [--out FOLDER] [--quick]
    python -m benchmarks.bench_paged_attention --tune [--seconds 60]

One layer with the heads of Llama-3-8B (32 over 8) and Llama-2-70B (64 over 8), K = 128, pages of
64 tokens that lie in no order, bf16 on a GPU. Contexts: all of 1,024 or 2,048 tokens, or ragged,
evenly spread over 64 .. 2,048. Siblings: four sequences share the pages of a 1,024-token prompt and
have 64 tokens of their own; "shuffled": items that share pages are no neighbours; of the same
length, 1,088 tokens, but with nothing shared is the case that follows.

Decoding is bound by memory: with S sequences of n tokens, S n G K 2 keys and values of 2 bytes must
be read (those that siblings share once), and q and out moved. "rate" is the share of what a large
reduction reads per second in the same run. Prefill, 4 prompts of 2,048 tokens, is bound by
matmuls: 4 H K FLOPs for every pair of a row and a key that it sees; "rate" is the share of a large
matmul's.

Everything on a GPU is timed as a CUDA graph, as the sampler replays it. Aimed at on an H200: 85 %
of the read rate from batch 64 and context 1k on.

`--tune` walks over a table of tiles, warps, stages, splits and grids of the decode kernel and
prints the best; the most promising come first.

Exit status: 1 when ours is wrong or failed, 2 without the device asked for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import columns, command, harness
from benchmarks.command import Benchmark
from benchmarks.harness import BASELINE, OURS, Row, Variant
from srlm_fast import __version__
from srlm_fast.kernels.attention_work import DecodeConfig, PagedWork
from srlm_fast.kernels.paged_attention import paged_attention, paged_attention_reference
from srlm_fast.model.presets import PRESETS

NAME, TORCH, PAGE, ROWS = "bench_paged_attention", f"torch {torch.__version__}", 64, 2048
PROMPT, OWN, SIBLINGS = 1024, 64, 4
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
BOUNDS = {"error": (8e-3, 3e-2)}
TARGET = 0.85


@dataclass(frozen=True)
class Case:
    model: str
    kind: str  # decode or prefill
    batch: int
    context: str  # tokens of each, or ragged, or siblings

    @property
    def name(self) -> str:
        return f"{self.model} {self.kind} {self.batch} x {self.context}"

    @property
    def heads(self) -> tuple[int, int, int]:
        c = PRESETS[self.model].config
        return c.num_heads, c.num_kv_heads, c.head_dim

    def lengths(self) -> np.ndarray:
        if self.context == "ragged":
            return np.linspace(64, 2048, self.batch).astype(np.int32)
        same = PROMPT + OWN if self.context == "siblings" else int(self.context)
        return np.full(self.batch, same, np.int32)


@dataclass(frozen=True)
class Inputs:
    q: Tensor
    keys: Tensor
    values: Tensor
    starts: np.ndarray
    lengths: np.ndarray
    table: np.ndarray

    @property
    def scale(self) -> float:
        return self.q.shape[2] ** -0.5

    @property
    def bytes(self) -> int:
        """Pages as far as they are filled, each once; q and out."""
        tokens = self.lengths[:, None] - np.arange(self.table.shape[1]) * PAGE
        filled = np.zeros(len(self.keys), np.int64)
        np.maximum.at(filled, self.table, tokens.clip(0, PAGE))
        per_token = 2 * self.keys[0, :, 0].numel() * self.keys.element_size()
        return int(filled.sum()) * per_token + 2 * self.q.numel() * self.q.element_size()

    @property
    def flops(self) -> int:
        rows = np.diff(self.starts).astype(np.int64)
        seen = rows * (self.lengths - rows) + rows * (rows + 1) // 2
        return int(4 * self.q[0].numel() * seen.sum())

    def work(self, **options: Any) -> PagedWork:
        work = PagedWork(
            num_heads=self.q.shape[1],
            num_kv_heads=self.keys.shape[1],
            head_dim=self.q.shape[2],
            page_tokens=PAGE,
            dtype=self.q.dtype,
            device=self.q.device,
            **options,
        )
        work.plan(self.starts, self.lengths, self.table)
        return work

    def attend(self, **options: Any) -> Callable[[], Tensor]:
        work = self.work(**options)
        return lambda: paged_attention(self.q, self.keys, self.values, work, self.scale)

    def reference(self, dtype: torch.dtype | None = None) -> Tensor:
        q, keys, values = (x.to(dtype or x.dtype) for x in (self.q, self.keys, self.values))
        arrays = (torch.from_numpy(a) for a in (self.starts, self.lengths, self.table))
        return paged_attention_reference(q, keys, values, *arrays, self.scale)


def make_inputs(case: Case, device: str) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)
    heads, kv_heads, width = case.heads
    lengths = case.lengths()
    counts = -(-lengths // PAGE)
    table = np.zeros((case.batch, counts.max()), np.int32)
    numbers = np.random.default_rng(0).permutation(int(counts.sum())).astype(np.int32)
    table[np.arange(table.shape[1]) < counts[:, None]] = numbers
    if case.context == "siblings":
        shared = PROMPT // PAGE
        table[:, :shared] = np.repeat(table[::SIBLINGS, :shared], SIBLINGS, axis=0)
    rows = lengths if case.kind == "prefill" else np.ones_like(lengths)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[device])

    pages = (len(numbers), kv_heads, PAGE, width)
    starts = np.concatenate(([0], np.cumsum(rows))).astype(np.int32)
    q = new(int(starts[-1]), heads, width)
    return Inputs(q, new(*pages), new(*pages), starts, lengths, table)


# Ways to do it: inputs -> what is called in the time.


def shuffled(inputs: Inputs) -> Callable[[], Tensor]:
    work = inputs.work()
    work.items.copy_(work.items[torch.randperm(len(work.items), device=work.items.device)])
    return lambda: paged_attention(inputs.q, inputs.keys, inputs.values, work, inputs.scale)


def device_table(inputs: Inputs) -> Tensor:
    return torch.from_numpy(inputs.table).to(inputs.q.device).long()


def rows_of_keys(inputs: Inputs, table: Tensor) -> list[Tensor]:
    """Keys and values, [S, G, tokens, K] each."""
    return [x[table].transpose(1, 2).flatten(2, 3) for x in (inputs.keys, inputs.values)]


def gathered(inputs: Inputs) -> Callable[[], Tensor]:
    """Pages copied into one dense tensor, then SDPA."""
    table, device = device_table(inputs), inputs.q.device
    lengths = torch.from_numpy(inputs.lengths).to(device)
    mask = (torch.arange(table.shape[1] * PAGE, device=device) < lengths[:, None])[:, None, None]
    full = bool((inputs.lengths == table.shape[1] * PAGE).all())
    options = {"attn_mask": None if full else mask, "enable_gqa": True}

    def call() -> Tensor:
        k, v = rows_of_keys(inputs, table)
        return F.scaled_dot_product_attention(inputs.q[:, :, None], k, v, **options)[:, :, 0]

    return call


def dense(inputs: Inputs) -> Callable[[], Tensor]:
    """SDPA of whole prompts whose keys lie in a row, gathered outside the time."""
    k, v = rows_of_keys(inputs, device_table(inputs))
    q = inputs.q.unflatten(0, (len(inputs.lengths), -1)).transpose(1, 2).contiguous()

    def call() -> Tensor:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return call


def flash_decode(inputs: Inputs) -> Callable[[], Tensor]:
    """Keys in a row, as flash-attn has them fastest: [S, tokens, G, K]."""
    from flash_attn import flash_attn_with_kvcache

    k, v = (x.transpose(1, 2).contiguous() for x in rows_of_keys(inputs, device_table(inputs)))
    lengths, q = torch.from_numpy(inputs.lengths).to(k.device), inputs.q[:, None]
    return lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)[:, 0]


def flash_prefill(inputs: Inputs) -> Callable[[], Tensor]:
    from flash_attn import flash_attn_func

    k, v = (x.transpose(1, 2).contiguous() for x in rows_of_keys(inputs, device_table(inputs)))
    q = inputs.q.unflatten(0, (len(inputs.lengths), -1))
    return lambda: flash_attn_func(q, k, v, causal=True).flatten(0, 1)


def graphed(call: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    """The same as a CUDA graph, so that what a CPU spends on launches is not in the time."""
    if device != "cuda":
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay(keeps: object = call) -> Tensor:
        """The graph reads tensors of `call`, so they must live as long."""
        graph.replay()
        return out

    return replay


class Lazy:
    """Made ready at the first call, which may fail without harm to the others."""

    def __init__(self, make: Callable[[], Callable[[], Tensor]], device: str) -> None:
        self.make, self.device, self.call = make, device, None

    def __call__(self) -> Tensor:
        if self.call is None:
            self.call = graphed(self.make(), self.device)
        return self.call()


def variants(case: Case, inputs: Inputs, options: argparse.Namespace) -> list[Variant]:
    ours: dict[str, Callable[[], Callable[[], Tensor]]] = {OURS: inputs.attend}
    rivals: dict[str, Callable[[], Callable[[], Tensor]]] = {}
    if case.kind == "decode":
        per_item = replace(DecodeConfig(), programs=0)
        ours["ours, a program per item"] = partial(inputs.attend, config=per_item)
        rivals["gather, SDPA"] = partial(gathered, inputs)
        rivals["flash-attn, dense"] = partial(flash_decode, inputs)
        if case.context == "siblings":
            ours["ours, shuffled"] = partial(shuffled, inputs)
    else:
        ours["ours, deterministic"] = partial(inputs.attend, deterministic=True)
        rivals["SDPA, dense"] = partial(dense, inputs)
        rivals["flash-attn, dense"] = partial(flash_prefill, inputs)
    every = [Variant(n, Lazy(m, options.device), version=__version__) for n, m in ours.items()]
    every.append(Variant(BASELINE, inputs.reference, version=TORCH))
    every += [Variant(n, Lazy(m, options.device), version=TORCH) for n, m in rivals.items()]
    return [v for v in every if command.asked_for(v.name, options)]


@cache
def read_rate(device: str) -> float:
    """Bytes/s of a large reduction: the best seen."""
    data = torch.ones((4 << 30 if device == "cuda" else 64 << 20) // 4, device=device)
    calls = [Variant("sum", data.sum), Variant("max", data.amax)]
    found = harness.interleaved(calls, device, {"sum": 0.0, "max": 0.0}, 0.2, (3, 10))
    fastest = min(timing.low for timing in found.values() if not isinstance(timing, str))
    return data.numel() * 4 / (1e-3 * fastest)


# Running


def run_case(case: Case, options: argparse.Namespace, top: dict) -> tuple[list[Row], dict]:
    inputs = make_inputs(case, options.device)
    right = inputs.reference(torch.float32)
    decode = case.kind == "decode"
    amount = inputs.bytes if decode else inputs.flops
    rate = read_rate(options.device) if decode else top["matmul_flops"]
    unit = f"{amount / 2**20:.0f} MiB" if decode else f"{amount / 1e9:.0f} GFLOP"
    print(f"\n{case.name}, {unit}", flush=True)
    rows = harness.measure(
        variants(case, inputs, options),
        lambda variant, out: {"error": harness.relative_error(out, right)},
        BOUNDS,
        options.device,
        flops=amount,
        rate=rate,
        seconds=0.1,
        rounds=(options.rounds, 20 * options.rounds),
        peak_of=None if options.device == "cuda" else lambda variant: None,
    )
    speed = columns.speed("GB/s", amount) if decode else columns.speed("TFLOP/s", amount, 1e12)
    more = (speed, columns.RATE, columns.OURS, columns.PEAK, columns.error("error", "error"))
    print(columns.show(rows, *columns.times("ms", "p20", "p80"), *more), flush=True)
    share = next((row.share_of_rate for row in rows if row.variant == OURS), None)
    if decode and options.device == "cuda" and case.batch >= 64 and share is not None:
        met = "met" if share >= TARGET else "MISSED"
        print(f"aimed at: {harness.percent(TARGET)} of the read rate: {met}", flush=True)
    return rows, {"bytes" if decode else "flops": amount, "read_bytes_per_s": rate}


def variants_on_cpu(case: Case, options: argparse.Namespace) -> list[Variant]:
    return variants(case, make_inputs(case, "cpu"), options)


def cases(options: argparse.Namespace) -> list[Case]:
    small, large = "llama-3-8b", "llama-2-70b"
    if options.quick:
        return [Case(small, "decode", 2, "256"), Case(small, "prefill", 1, "128")]
    if options.device == "cpu":
        return [Case(small, "decode", 8, "1024"), Case(small, "prefill", 1, "512")]
    found = [Case(m, "decode", b, "1024") for m in (small, large) for b in (64, 256)]
    found += [Case(small, "decode", 256, context) for context in ("siblings", "1088")]
    found += [Case(small, "decode", 64, "ragged")]
    found += [Case(m, "prefill", 4, "2048") for m in (small, large)]
    found += [Case(m, "decode", b, "2048") for m in (small, large) for b in (64, 256)]
    return [*found, Case(large, "decode", 256, "ragged"), Case(small, "decode", 1, "2048")]


# Tuning


def configs() -> Iterator[DecodeConfig]:
    """The most promising first."""
    shapes = [(64, 2, 3), (64, 4, 3), (32, 2, 4), (64, 4, 2), (64, 2, 4), (64, 4, 4), (32, 4, 4)]
    shapes += [(128, 4, 3), (32, 2, 6), (64, 8, 4), (32, 4, 6), (16, 1, 8)]
    for split, shape in product((1024, 512, 256), shapes):
        yield DecodeConfig(split, *shape)


def tune(options: argparse.Namespace) -> int:
    """One line a configuration: GB/s of each case with the best grid of it."""
    start, grids = time.perf_counter(), (0, 2, 3, 4, 6, 8)
    taken = [Case("llama-3-8b", "decode", 64, "1024"), Case("llama-2-70b", "decode", 256, "1024")]
    every = [make_inputs(case, options.device) for case in taken]
    rate = read_rate(options.device) / 1e9
    print(f"{torch.cuda.get_device_name()}, reading {rate:.0f} GB/s")
    found: list[tuple[float, DecodeConfig]] = []
    for config in configs():
        if time.perf_counter() - start > min(options.seconds, 1e6):
            print("left out for want of time: the rest")
            break
        words, shares = [], []
        for case, inputs in zip(taken, every, strict=True):
            speeds = {}
            for programs in grids:
                try:
                    call = graphed(inputs.attend(config=replace(config, programs=programs)), "cuda")
                    speeds[programs] = inputs.bytes / median_seconds(call) / 1e9
                except Exception as error:  # too much shared memory, say
                    words.append(harness.one_line(error)[:60])
                    break
            if speeds:
                best = max(speeds, key=speeds.get)
                shares.append(speeds[best] / rate)
                words.append(
                    f"{case.name}: {speeds[best]:.0f} GB/s, {harness.percent(shares[-1])}, "
                    + " ".join(f"{n}:{speed:.0f}" for n, speed in speeds.items())
                )
        found.append((min(shares, default=0.0), config))
        print(f"{config}\n    " + "\n    ".join(words), flush=True)
    for share, config in sorted(found, key=lambda pair: -pair[0])[:5]:
        print(f"{harness.percent(share)} {config}")
    return 0


def median_seconds(call: Callable[[], Any], turns: int = 15) -> float:
    """The data are several times what the L2 cache holds, so it needs no flush."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(turns)]
    for begin, end in events:
        call()  # the launch of the timed one is hidden behind this one
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return 1e-3 * statistics.median(begin.elapsed_time(end) for begin, end in events)


BENCHMARK = Benchmark(NAME, __doc__, cases, run_case, variants_on_cpu, packages=("flash-attn",))


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--tune" not in given:
        return command.main(BENCHMARK, given)
    options = command.parse(BENCHMARK, [word for word in given if word != "--tune"])
    if not torch.cuda.is_available():
        print(f"{NAME}: no GPU here, wanted one with --tune", file=sys.stderr)
        return 2
    return tune(options)


if __name__ == "__main__":
    sys.exit(main())
