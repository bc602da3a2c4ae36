"""How to draw: the sampling parameters of a request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..kernels.judge_score import ScoreTable

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """Applied in this order: repetition penalty, temperature, top-k, top-p among those, min-p.

    n: samples per prompt.
    temperature: 0 is greedy (the largest logit, the lowest id among equals).
    top_p: keeps the smallest set of most probable tokens that reaches it, so also the token that
        crosses it. top_k: 0 is off. min_p: floor relative to the most probable token.
    repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or
        sample; 1 is off.
    max_tokens, min_tokens: length of a sample in tokens.
    stop: strings that end a sample; its text is cut before the first. stop_token_ids: tokens that
        end it. ignore_eos: go on after an end-of-text token.
    allowed_token_ids: the only tokens that may be drawn; empty allows all. The log-probability
        stays that of the whole distribution.
    stop_score_line: a table of `judge.compile_pattern`: a sample ends with the first line that
        holds a score, that line's end included.
    seed: with the prompt, the sample's index and the token's position it fixes the noise.
    logprobs: also return each token's log-probability.
    Raises ValueError naming the field.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 256
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int = 0
    logprobs: bool = False
    allowed_token_ids: Sequence[int] = ()
    stop_score_line: ScoreTable | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        for name in ("stop_token_ids", "allowed_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_integers()
        self._check("temperature", 0 <= self.temperature < math.inf, "at least 0")
        self._check("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1")
        self._check("min_p", 0 <= self.min_p <= 1, "from 0 to 1")
        self._check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "more than 0")
        self._check("stop", all(isinstance(s, str) and s for s in stop), "strings, none empty")
        self._check("min_tokens", self.min_tokens <= self.max_tokens, "at most max_tokens")

    def _check_integers(self) -> None:
        for name, least in (("n", 1), ("top_k", 0), ("max_tokens", 1), ("min_tokens", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and least <= value <= INT32_MAX
            self._check(name, whole, f"an integer of at least {least}")
        self._check("seed", isinstance(self.seed, int), "an integer")
        for name in ("stop_token_ids", "allowed_token_ids"):
            ids = getattr(self, name)
            self._check(name, all(isinstance(i, int) and i >= 0 for i in ids), "token ids")

    def _check(self, name: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise ValueError(f"{name}: {getattr(self, name)!r}, wanted {wanted}")
