"""Which engines are compared, in which dtypes, and why one cannot run here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness import OURS, installed
from benchmarks.sampler_engine import Engine
from benchmarks.sampler_ours import Ours, takes
from benchmarks.sampler_work import Work
from srlm_fast import __version__
from srlm_fast.model import Model


@dataclass(frozen=True)
class Kind:
    """One engine in one dtype. dtype: a name in `sampler_models.DTYPES`."""

    engine: str
    dtype: str
    package: str
    module: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""  # the only device it runs on; "" is any
    suffix: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.dtype} {self.suffix}".rstrip()

    @property
    def version(self) -> str:
        return __version__ if self.package == OURS else f"{self.package} {installed(self.package)}"

    @property
    def ours(self) -> bool:
        return self.engine == OURS

    @property
    def family(self) -> str:
        """Engines whose speed grows with the batch in a like way."""
        return self.package

    def reason(self, device: str) -> str | None:
        """Why it cannot run; None if it can."""
        if importlib.util.find_spec(self.module) is None:
            return "not installed"
        if self.needs and self.needs != device:
            return f"compared on a {'GPU' if self.needs == 'cuda' else 'CPU'} only"
        missing = [name for name in self.settings if self.ours and not takes(name)]
        return f"Sampler has no argument {missing[0]}" if missing else None

    def load(self) -> None:
        """Import what it needs, so that its memory is not counted as the engine's."""
        importlib.import_module(self.module)
        if self.module == "transformers":
            importlib.import_module("transformers.models.llama.modeling_llama")
            importlib.import_module("benchmarks.sampler_rivals")

    def build(self, model: Model, work: Work, threads: int) -> Engine:
        """The engine on these weights; may raise anything."""
        if self.ours:
            return Ours(model, work, **self.settings)
        if self.engine == "llama.cpp":
            from benchmarks.llama_cpp_rival import LlamaCpp

            return LlamaCpp(model, work, threads)
        from benchmarks import sampler_rivals

        kinds = {
            "transformers": sampler_rivals.Generate,
            "transformers static": sampler_rivals.Generate,
            "continuous batching": sampler_rivals.ContinuousBatching,
            "vLLM": sampler_rivals.Vllm,
        }
        return kinds[self.engine](model, work, **self.settings)


TRANSFORMERS = ("transformers", "transformers")
STATIC = {"cache_implementation": "static"}


def kinds(device: str, model: str) -> list[Kind]:
    """Ours first, then the rivals, the likely best first."""
    if device == "cuda" and model.endswith("70b"):
        # Its weights in bf16, 138 GB, leave no room for keys and values.
        fp8 = {"kv_dtype": "fp8"}
        return [Kind(OURS, "fp8", OURS, "srlm_fast", fp8), Kind("vLLM", "fp8", "vllm", "vllm")]
    if device == "cuda":
        exact, fast = {"deterministic": True}, {"deterministic": False}
        return [
            Kind(OURS, "bf16", OURS, "srlm_fast", fast if takes("deterministic") else {}),
            Kind(OURS, "bf16", OURS, "srlm_fast", exact, suffix="deterministic"),
            Kind("vLLM", "bf16", "vllm", "vllm", needs="cuda"),
            Kind("transformers", "bf16", *TRANSFORMERS),
            Kind("continuous batching", "bf16", *TRANSFORMERS),
            Kind("llama.cpp", "bf16", "llama-cpp-python", "llama_cpp", needs="cpu"),
        ]
    return [
        Kind(OURS, "fp32", OURS, "srlm_fast"),
        Kind(OURS, "bf16", OURS, "srlm_fast"),
        Kind("llama.cpp", "fp32", "llama-cpp-python", "llama_cpp"),
        Kind("transformers", "bf16", *TRANSFORMERS),
        Kind("transformers static", "bf16", *TRANSFORMERS, STATIC),
        Kind("llama.cpp", "bf16", "llama-cpp-python", "llama_cpp"),
        Kind("llama.cpp", "f16", "llama-cpp-python", "llama_cpp"),
        Kind("transformers", "fp32", *TRANSFORMERS),
        Kind("transformers static", "fp32", *TRANSFORMERS, STATIC),
        Kind("continuous batching", "bf16", *TRANSFORMERS),
        Kind("continuous batching", "fp32", *TRANSFORMERS),
        Kind("vLLM", "bf16", "vllm", "vllm", needs="cuda"),
    ]


def kind_named(name: str, device: str, model: str) -> Kind:
    return next(kind for kind in kinds(device, model) if kind.name == name)
