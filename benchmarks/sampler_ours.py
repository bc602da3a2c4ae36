"""Our sampler as an engine of its benchmark."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch

from benchmarks.sampler_engine import Clock, Engine, Prompts, Turn
from benchmarks.sampler_models import TEMPERATURE, TOP_P
from benchmarks.sampler_work import Work
from srlm_fast import Sampler, SamplingParams
from srlm_fast.model import Model

GPU_SHARE = 0.85  # of the memory that the weights leave


def takes(name: str) -> bool:
    """Whether Sampler has an argument of this name."""
    return name in inspect.signature(Sampler).parameters


class Ours(Engine):
    """With the settings a user gets; on a GPU the pool is as large as the work needs."""

    def __init__(self, model: Model, work: Work, **settings: Any) -> None:
        if model.device.type == "cuda":
            itemsize = 1 if settings.get("kv_dtype") == "fp8" else model.dtype.itemsize
            settings["kv_bytes"] = min(_needed(model, work, itemsize), _room())
        self.model, self.work = model, work
        self.settings = ", ".join(f"{name}={value}" for name, value in settings.items())
        self.sampler = Sampler(model, **settings)

    def greedy(self, prompts: Prompts, new: int) -> tuple[list[list[int]], list | None]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, logprobs=True)
        found = [g.samples[0] for g in self.sampler.generate(prompts, params)]
        return [s.token_ids for s in found], [s.logprobs for s in found]

    def turn(self, prompts: Prompts, work: Work, limit: float | None = None) -> Turn:
        params = [
            SamplingParams(
                n=work.n, temperature=TEMPERATURE, top_p=TOP_P, max_tokens=new, ignore_eos=True
            )
            for new in work.new
        ]
        before, clock = self._counts(), Clock(self.model.device)
        out = self.sampler.generate(prompts, params)
        seconds = clock()
        counts = {name: value - before.get(name, 0) for name, value in self._counts().items()}
        tokens = sum(len(sample.token_ids) for g in out for sample in g.samples)
        return Turn(tokens, seconds, counts=counts)

    def prefill(self, prompts: Prompts) -> float:
        clock = Clock(self.model.device)
        self.sampler.generate(prompts, SamplingParams(max_tokens=1, ignore_eos=True))
        return clock()

    def _counts(self) -> dict[str, float]:
        """The sampler's own counts, where this version keeps them."""
        found = getattr(self.sampler, "statistics", None)
        return dataclasses.asdict(found) if dataclasses.is_dataclass(found) else {}

    def rest(self) -> None:
        self.sampler.release()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def _needed(model: Model, work: Work, itemsize: int) -> int:
    """Bytes of keys and values of all samples at their longest, in whole pages."""
    c = model.config
    token = 2 * c.num_layers * c.num_kv_heads * c.head_dim * itemsize
    pairs = zip(work.lengths, work.new, strict=True)
    return token * sum(work.n * (prompt + new + 64) for prompt, new in pairs)


def _room() -> int:
    torch.cuda.empty_cache()
    return int(GPU_SHARE * torch.cuda.mem_get_info()[0])
