"""Sampling against transformers' `generate`, interleaved in one process.

    python benchmarks/bench_sampler.py [--rounds 5] [--threads N] [--write]

Work `candidates`: 16 prompts of 32..192 random tokens, n = 4, 128 new tokens each, temperature 0.7,
top-p 0.9, end-of-text ignored: 8,192 tokens out. `judge`: 64 prompts of 256 shared and 128 own
tokens, n = 3, 32 new tokens each: 6,144 tokens out. The model is the embedded tiny one. Every round
starts with an empty prefix cache.

FLOPs of one token: 2 per weight of the projections and the head. Bytes of one decode step: the
weights once, and keys and values of every running sample. The share of peak is against a square
matmul of torch in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from srlm_fast import __version__
from srlm_fast.model import Model, load_model
from srlm_fast.records import write_json_atomic
from srlm_fast.sampler import Sampler, SamplingParams

RESULTS = Path(__file__).parent / "results" / "bench_sampler_cpu.json"
WORK = {
    "candidates": {"n": 4, "new": 128},
    "judge": {"n": 3, "new": 32},
}


def prompts_of(work: str, vocab: int) -> list[list[int]]:
    """The same random prompts on every machine."""
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, vocab, (count,), generator=draw).tolist()

    if work == "judge":
        shared = tokens(256)
        return [shared + tokens(128) for _ in range(64)]
    return [tokens(32 + round(160 * i / 15)) for i in range(16)]


def run_ours(sampler: Sampler, prompts: list[list[int]], n: int, new: int) -> int:
    sampler.model.touch()  # an empty prefix cache, and the weights packed again
    params = SamplingParams(n=n, temperature=0.7, top_p=0.9, max_tokens=new, ignore_eos=True)
    out = sampler.generate(prompts, params)
    return sum(len(s.token_ids) for g in out for s in g.samples)


def run_transformers(model: Any, prompts: list[list[int]], n: int, new: int) -> int:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=new,
            eos_token_id=None,
            pad_token_id=0,
        )
    return (out.shape[1] - longest) * out.shape[0]


def rival(model: Model, folder: Path) -> Any:
    """The same weights in transformers."""
    model.save(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.generation_config.eos_token_id = None
    return theirs.eval()


def timed(call: Callable[[], int]) -> tuple[float, int]:
    start = time.perf_counter()
    tokens = call()
    return time.perf_counter() - start, tokens


def measure(calls: dict[str, Callable[[], int]], rounds: int) -> dict[str, Any]:
    """Turn by turn, so that a busy moment of the machine hits all."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            seconds, tokens = timed(call)
            if turn > 0:  # the first is for warming up
                rates[name].append(tokens / seconds)
    out: dict[str, Any] = {name: spread(values, "tokens_per_s") for name, values in rates.items()}
    pairs = zip(rates["srlm_fast"], rates["transformers"], strict=True)
    return out | {"ratio": spread([ours / theirs for ours, theirs in pairs], "median")}


def spread(values: list[float], name: str) -> dict[str, float]:
    found = {name: statistics.median(values), "lowest": min(values), "highest": max(values)}
    return {key: round(value, 2) for key, value in found.items()}


def peak_flops() -> float:
    """FLOP/s of torch's square fp32 matmul, the best of five."""
    a = torch.randn(1024, 1024)
    best = min(timed(lambda: int((a @ a).shape[0]))[0] for _ in range(5))
    return 2 * 1024**3 / best


def weight_count(model: Model) -> int:
    """Weights that every token is multiplied with."""
    kinds = (m.weight for m in model.modules() if isinstance(m, torch.nn.Linear))
    return sum({id(w): w.numel() for w in (*kinds, model.head)}.values())


def cpu_name() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def conditions(threads: int) -> dict[str, Any]:
    return {
        "command": "python " + " ".join(["benchmarks/bench_sampler.py", *sys.argv[1:]]),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "srlm_fast": __version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", choices=[*WORK, "all"], default="all")
    parser.add_argument("--page-tokens", type=int, nargs="*", help="also compare these page sizes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_model("tiny", "cpu", "float32")
    result: dict[str, Any] = {"conditions": conditions(options.threads), "work": {}}
    with tempfile.TemporaryDirectory() as folder:
        theirs = rival(model, Path(folder))
    for work in WORK if options.work == "all" else [options.work]:
        result["work"][work] = bench(work, model, theirs, options)
    result["peak_gflops"] = round(peak_flops() / 1e9, 1)
    result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if options.write:
        RESULTS.parent.mkdir(exist_ok=True)
        write_json_atomic(RESULTS, result)


def bench(work: str, model: Model, theirs: Any, options: argparse.Namespace) -> dict[str, Any]:
    shape, prompts = WORK[work], prompts_of(work, model.config.vocab_size)

    def ours(**settings: int) -> Callable[[], int]:
        sampler = Sampler(model, **settings)
        return lambda: run_ours(sampler, prompts, **shape)

    calls = {
        "srlm_fast": ours(),
        "transformers": lambda: run_transformers(theirs, prompts, **shape),
    }
    calls |= {f"pages of {size}": ours(page_tokens=size) for size in options.page_tokens or ()}
    found = measure(calls, options.rounds)
    for name in calls:
        row = found[name]
        span = f"({row['lowest']:.0f} .. {row['highest']:.0f})"
        print(f"{work:>10}  {name:<13} {row['tokens_per_s']:8.0f} tokens/s  {span}")
    ratio = found["ratio"]
    span = f"({ratio['lowest']:.2f} .. {ratio['highest']:.2f})"
    print(f"{work:>10}  ratio         {ratio['median']:8.2f}  {span}")
    rate = 2 * weight_count(model) * found["srlm_fast"]["tokens_per_s"]
    return found | {"gflops_of_decode": round(rate / 1e9, 1)}


if __name__ == "__main__":
    main()
