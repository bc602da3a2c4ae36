"""Whether an engine's greedy tokens are right: transformers in fp32 on the weights of its dtype.

Its tokens are given to the reference, which says at every place how much more probable than the
engine's choice its own is, in nats: 0 everywhere means that the tokens are those of transformers'
greedy decoding. In 16 bits near ties may fall either way, so an engine may miss by a few times the
error of eager transformers' logits in that dtype; in fp32 by that error alone, 1e-5 or so. Where an
engine gives log-probabilities, their error is measured too.

Of fp8 weights the truth is what they stand for, in fp32; eager multiplies the same in bf16, with
activations rounded to fp8 row by row. Rounding of keys and values has no part in that limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.sampler_models import hf_model, round_activations
from srlm_fast.model import Fp8Linear, Model

PROMPTS, PROMPT_TOKENS, NEW = 3, 48, 16
# Choices that are right within an error r of the logits, root mean square, differ by 2 of its peaks
TIMES_GREEDY, TIMES_LOGPROB = 8.0, 2.0
FLOORS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class Reference:
    """model: the weights in the dtype that they are judged in."""

    def __init__(self, model: Model) -> None:
        self.dtype, self.device = model.dtype, model.device
        self.truth = hf_model(model, torch.float32)
        self.eager = self.truth if model.dtype == torch.float32 else hf_model(model)
        if any(isinstance(module, Fp8Linear) for module in model.modules()):
            round_activations(self.eager)

    def judge(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]] | None,
    ) -> tuple[dict[str, float], dict[str, float]]:
        """(errors, limits) in nats of "greedy", the largest regret, and of "logprob", root mean
        square.
        """
        pairs = list(zip(prompts, tokens, strict=True))
        right = torch.cat([self._logprobs(self.truth, *pair) for pair in pairs])
        eager = torch.cat([self._logprobs(self.eager, *pair) for pair in pairs])
        chosen = torch.tensor([token for row in tokens for token in row], device=self.device)
        given = right.gather(1, chosen[:, None])[:, 0]
        noise = float((eager - right).square().mean().sqrt())
        floor = FLOORS[self.dtype]
        errors = {"greedy": float((right.amax(1) - given).max())}
        limits = {"greedy": max(floor, TIMES_GREEDY * noise)}
        if logprobs is not None:
            found = torch.tensor([v for row in logprobs for v in row], device=self.device)
            errors["logprob"] = float((found - given).square().mean().sqrt())
            limits["logprob"] = max(floor, TIMES_LOGPROB * noise)
        return errors, limits

    def entropy(self, prompts: Sequence[Sequence[int]], temperature: float) -> float:
        """Nats of the next token at this temperature, the mean over the prompts' tokens."""
        found = []
        for prompt in prompts:
            logprobs = self._logprobs(self.truth, prompt[:1], prompt[1:])
            logprobs = (logprobs / temperature).log_softmax(-1)
            found.append(-(logprobs.exp() * logprobs).sum(-1).mean())
        return float(torch.stack(found).mean())

    @torch.inference_mode()
    def _logprobs(self, model: Any, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """[tokens, V] before each of the tokens."""
        ids = torch.tensor([[*prompt, *tokens]], device=self.device)
        logits = model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return logits.float().log_softmax(-1)


def check_prompts(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """A few of them, short."""
    return [list(prompt[-PROMPT_TOKENS:]) for prompt in prompts[:PROMPTS]]
