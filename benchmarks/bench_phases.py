"""The phases of a round in one process on one copy of the weights: sample, reference log-probs, DPO
steps, sample again.

    python -m benchmarks.bench_phases [--device cuda] [--models llama-2-70b llama-3-8b] [--out F]

llama-2-70b: fp8 matrices (random, made on the device) under LoRA of rank 16, every block's
activations recomputed. llama-3-8b: all of it trained in bf16 with bf16 moments and stochastic
rounding. Texts are random ids, so only speeds and bytes mean anything. Reported: tokens/s of
sampling, seconds of a step and its share of the measured matmul rate, the bytes held in each phase,
and whether the weights stand at the same addresses from the first phase to the last.

Work: 64 prompts of 250 ids x 4 samples x 256 ids; 16 pairs of prompt 250 and responses 500. A
step's FLOPs: per token fed 4 a frozen weight (forward, and backward to its input) and 6 a trained
one, 4 or 6 a weight of the head per response token; recomputing is not counted as work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command import OneLineParser
from benchmarks.harness import ceilings, made_on, resident_bytes, synchronize
from benchmarks.sampler_models import FP8, MODELS, make_model
from srlm_fast.model import LoraConfig, Model, add_lora
from srlm_fast.records import RowWriter
from srlm_fast.sampler import Sampler, SamplingParams
from srlm_fast.train import DpoConfig, TokenPair, pair_logps, train_dpo


@dataclass(frozen=True)
class Work:
    """Sizes of one case; `step` holds the fields of DpoConfig that are its own."""

    model: str
    dtype: torch.dtype
    lora: LoraConfig | None
    step: dict[str, Any]
    prompts: int = 64
    samples: int = 4
    prompt_ids: int = 250
    new_ids: int = 256
    pairs: int = 16
    response_ids: int = 500
    steps: int = 3


_RECOMPUTED = {"activation_checkpointing": True, "micro_batch_tokens": 8192}
WORKS = {
    work.model: work
    for work in (
        Work("llama-2-70b", FP8, LoraConfig(rank=16), _RECOMPUTED),
        Work("llama-3-8b", torch.bfloat16, None, _RECOMPUTED | {"optimizer": "adamw-bf16"}),
        Work("nano", torch.float32, None, {}, 4, 2, 12, 6, 2, 8, 2),
    )
}


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m benchmarks.bench_phases", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=WORKS, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args(arguments)
    on_gpu = options.device.startswith("cuda")
    names = options.models or (["llama-2-70b", "llama-3-8b"] if on_gpu else ["nano"])
    command = f"python -m benchmarks.bench_phases --device {options.device} --models "
    conditions = made_on(options.device, command + " ".join(names))
    options.out.mkdir(parents=True, exist_ok=True)
    with RowWriter(options.out / "bench_phases.jsonl") as rows:
        for name in names:
            row = Phases(WORKS[name], options.device).run()
            print(shown(row), flush=True)
            rows.write(row | {"benchmark": "bench_phases"} | conditions)


class Phases:
    """One model, its sampler and its training, one after the other in the same memory."""

    def __init__(self, work: Work, device: str) -> None:
        self.work, self.device = work, device
        self.rate = ceilings(device, torch.bfloat16 if device != "cpu" else torch.float32)
        self.draw = np.random.default_rng(0)
        self.bytes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> dict[str, Any]:
        self.model: Model = self.phase("load", self.load)
        stood = self.addresses()
        self.sampler = Sampler(self.model)
        prompts = [self.ids(self.work.prompt_ids) for _ in range(self.work.prompts)]
        self.phase("warm up", lambda: self.sample(prompts[:2]))
        self.phase("sample", lambda: self.sample(prompts))
        pairs = [self.pair() for _ in range(self.work.pairs)]
        self.sampler.release()
        reference = self.phase("reference", lambda: pair_logps(self.model, pairs))
        report = self.phase("train", lambda: self.train(pairs, reference))
        self.phase("sample again", lambda: self.sample(prompts))
        return self.figures(report) | {"weights_stayed": self.addresses() == stood}

    def load(self) -> Model:
        model = make_model(MODELS[self.work.model], self.device, self.work.dtype)
        return model if self.work.lora is None else add_lora(model, self.work.lora)

    def sample(self, prompts: list[list[int]]) -> None:
        w = self.work
        self.sampler.generate(
            prompts,
            SamplingParams(
                n=w.samples, temperature=0.7, top_p=0.9, max_tokens=w.new_ids, ignore_eos=True
            ),
        )

    def train(self, pairs: list[TokenPair], reference: Any) -> Any:
        config = DpoConfig(batch_pairs=len(pairs), epochs=self.work.steps, **self.work.step)
        return train_dpo(self.model, pairs, config, reference)

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        """Do it, with its seconds and the most bytes that were held meanwhile."""
        if self.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        synchronize(self.device)
        start = time.perf_counter()
        found = work()
        synchronize(self.device)
        self.seconds[name] = time.perf_counter() - start
        on_gpu = self.device != "cpu"
        self.bytes[name] = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes()
        return found

    def figures(self, report: Any) -> dict[str, Any]:
        w, second = self.work, sorted(report.seconds[1:])  # the first one compiles
        step = second[len(second) // 2]
        new = w.prompts * w.samples * w.new_ids
        rates = {name: new / self.seconds[name] for name in ("sample", "sample again")}
        return {
            "case": f"{w.model} phases",
            "variant": "ours",
            "correct": math.isclose(report.losses[0], math.log(2), rel_tol=1e-2),
            "tokens_per_s": rates,
            "ms": {"p50": 1e3 * step},
            "step_tokens": report.num_tokens[-1],
            "share_of_rate": self.flops(report.num_tokens[-1]) / step / self.rate["matmul_flops"],
            "matmul_flops": self.rate["matmul_flops"],
            "losses": report.losses,
            "skipped_steps": report.skipped_steps,
            "seconds": self.seconds,
            "peak_bytes": max(self.bytes.values()),
            "phase_bytes": self.bytes,
            "weight_bytes": sum(p.nbytes for p in self.model.parameters()),
        }

    def flops(self, tokens: int) -> float:
        """Of one step; adapters and attention, some hundredths, are left out."""
        config = self.model.config
        head = config.vocab_size * config.hidden_size
        layers = config.num_parameters() - head * (1 if config.tie_word_embeddings else 2)
        each = 6 if self.work.lora is None else 4
        targets = 2 * self.work.pairs * self.work.response_ids
        return each * (layers * tokens + head * targets)

    def addresses(self) -> list[int]:
        return [p.data_ptr() for p in self.model.parameters()]

    def ids(self, count: int) -> list[int]:
        return self.draw.integers(0, self.model.config.vocab_size, count).tolist()

    def pair(self) -> TokenPair:
        w = self.work
        return TokenPair(*map(self.ids, (w.prompt_ids, w.response_ids, w.response_ids)))


def shown(row: dict[str, Any]) -> str:
    gib = {name: f"{size / 2**30:.2f}" for name, size in row["phase_bytes"].items()}
    rates = row["tokens_per_s"]
    return (
        f"{row['case']}: {row['seconds']['load']:.0f} s to load, "
        f"{rates['sample']:,.0f} then {rates['sample again']:,.0f} tokens/s, step "
        f"{row['ms']['p50'] / 1e3:.2f} s of {row['step_tokens']:,} tokens, "
        f"{row['share_of_rate']:.0%} of the matmul rate, weights stayed: {row['weights_stayed']}\n"
        f"  most GiB: {', '.join(f'{name} {size}' for name, size in gib.items())}"
    )


if __name__ == "__main__":
    main()
