"""What goes into the sampler and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .params import SamplingParams


@dataclass(frozen=True)
class Request:
    """A prompt to be sampled from, or with `hidden` to be read: then nothing is sampled, and the
    Generation holds the hidden row of its last token. `tag` is anything; it comes back on the
    Generation. Raises ValueError unless exactly one of params and hidden is given.
    """

    prompt_token_ids: Sequence[int]
    params: SamplingParams | None = None
    tag: Any = None
    hidden: bool = False

    def __post_init__(self) -> None:
        if self.hidden == (self.params is not None):
            raise ValueError(f"params: {self.params}, hidden: {self.hidden}, wanted one of the two")


@dataclass(frozen=True)
class Sample:
    """One drawn continuation.

    token_ids include the token that ended it. text: without special tokens, cut before a stop
        string.
    logprob: sum over token_ids of the raw log-probabilities at temperature 1, in nats; logprobs:
        each of them, or None unless asked for.
    finish_reason: "stop" (end of text, stop id or stop string) or "length".
    """

    token_ids: list[int]
    text: str
    logprob: float
    logprobs: list[float] | None
    finish_reason: str


@dataclass(frozen=True)
class Generation:
    """The samples of one request, in order of their index; or no samples, and hidden [D], the last
    token's row behind the final norm, in the model's dtype.
    """

    prompt_token_ids: list[int]
    samples: list[Sample]
    tag: Any = None
    hidden: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """Counts since `run` began. prefill_tokens: prompt tokens computed; cached_tokens: those found
    in the cache.
    """

    requests_done: int
    requests_total: int
    generated_tokens: int
    prefill_tokens: int
    cached_tokens: int
    seconds: float

    @property
    def decode_rate(self) -> float:
        """Generated tokens per second."""
        return self.generated_tokens / max(self.seconds, 1e-9)

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens computed per second."""
        return self.prefill_tokens / max(self.seconds, 1e-9)

    @property
    def cache_hit_share(self) -> float:
        """Share of prompt tokens that were found in the cache."""
        return self.cached_tokens / max(self.cached_tokens + self.prefill_tokens, 1)


@dataclass(frozen=True)
class Statistics:
    """Counts since the sampler was made.

    host_seconds: the host's own work from step to step; wait_seconds: it waited for the device (on
    a CPU: was in the model). device_seconds: a GPU was at work; 0 on a CPU. graph_captures,
    graph_seconds: CUDA graphs that were captured, and what that took, compilation included.
    """

    steps: int
    prefill_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    host_seconds: float
    wait_seconds: float
    device_seconds: float
    graph_captures: int = 0
    graph_seconds: float = 0.0


@dataclass(frozen=True)
class Held:
    """Bytes that a sampler holds now: its KV pool, and the packed second copy of a model's matrices
    on a CPU.
    """

    kv_bytes: int
    packed_bytes: int
