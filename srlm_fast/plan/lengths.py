"""Lengths of texts in tokens, assumed where the data is not known."""

from __future__ import annotations

from srlm_fast.config import Config

PROMPT_TOKENS = 64
RUBRIC_TOKENS = 400  # before the question, once for all
TAIL_TOKENS = 60  # behind what is judged
PRINCIPLE_TOKENS = 80
ANSWER_SHARE = 0.5  # mean answer or judgement, of the longest


def answer_tokens(config: Config) -> float:
    """Of a mean answer."""
    return ANSWER_SHARE * config.candidates.max_tokens


def judgement_tokens(config: Config) -> float:
    """Of a mean judgement, none where the score is read at once."""
    return ANSWER_SHARE * config.judge.sampling.max_tokens * (config.judge.mode != "direct")


def pair_tokens(config: Config, answer: float) -> float:
    """A pair as it is trained: its prompt is there once."""
    return PROMPT_TOKENS + 2 * answer


def context_tokens(config: Config) -> int:
    """The longest sequence while sampling: a judged answer with its judgement."""
    asked = RUBRIC_TOKENS + PROMPT_TOKENS + TAIL_TOKENS
    return asked + config.candidates.max_tokens + config.judge.sampling.max_tokens


def tokens_at_once(config: Config, data: int = 1) -> int:
    """Tokens that one of `data` ranks runs forward and back together: at least one pair's."""
    pair = int(pair_tokens(config, config.candidates.max_tokens))
    share = -(-config.dpo.batch_pairs // data)
    return max(pair, min(config.dpo.micro_batch_tokens, pair * share))


def micro_batches(config: Config, data: int = 1) -> int:
    """Of one optimizer step on one of `data` ranks."""
    pair = pair_tokens(config, config.candidates.max_tokens)
    share = -(-config.dpo.batch_pairs // data)
    at_once = max(1, int(tokens_at_once(config, data) // pair))
    return -(-share // at_once)


def is_summed(config: Config, data: int = 1) -> bool:
    """Whether the gradients of a step are sums over micro-batches or data ranks."""
    return data > 1 or micro_batches(config, data) > 1


def response_share(config: Config) -> float:
    """Of a trained pair's tokens, those that reach the head."""
    longest = config.candidates.max_tokens
    return 2 * longest / pair_tokens(config, longest)
