"""What is sampled, and the least time that can take.

    candidates  prompts of evenly spread lengths, n = 4, temperature 0.7, top-p 0.9
    judge       prompts that share a long head, n = 3, short answers
    long-tail   as candidates, but a request's answers are as long as a log-normal draw, clipped
    chat        lengths in and out uniform from 100 to 1024: the work of nano-vllm's script
    chat1k      256 prompts of 1,024 tokens, 1,024 tokens out
    chat512     128 prompts of 512 tokens, 256 tokens out: what Llama-2-70B in fp8 does in 20 s

End-of-text is ignored, so that the tokens out are known before. Token ids are random, the same for
every engine, and others in every turn: no engine finds a prompt of an earlier turn in its cache.

The floor, with P weights of a token's matrices and head, W their bytes, F the FLOP/s of a large
square matmul and R the bytes/s of a large read, both measured in the same run
(where the layers are fp8, of an fp8 matmul, for all FLOPs; the head's bytes are bf16's):

    prefill     max(2 P_body T + head of the last rows + causal attention FLOPs over F, W / R),
                where T counts every distinct prefix of the prompts once
    a step      max(2 P B / F, W / R) + max(attention FLOPs / F, keys and values read / R)

with all samples that are not yet done in every step (B of them): the operations of a step follow
one another, each as fast as the machine allows, and nothing else costs anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from srlm_fast.model import ModelConfig

FIRST_TOKEN = 3  # ids below are often special


@dataclass(frozen=True)
class Work:
    """lengths: of the prompts, `shared` tokens of each being the same; n: samples of a prompt; new:
    tokens of each sample of a prompt.
    """

    name: str
    lengths: tuple[int, ...]
    n: int
    new: tuple[int, ...]
    shared: int = 0
    said: str = ""

    @property
    def tokens(self) -> int:
        """Tokens out."""
        return self.n * sum(self.new)

    @property
    def samples(self) -> int:
        return self.n * len(self.lengths)

    @property
    def title(self) -> str:
        shared = f" ({self.shared} shared)" if self.shared else ""
        return (
            f"{len(self.lengths)} prompts of {_span(self.lengths)} tokens{shared}, n = {self.n}, "
            f"{_span(self.new)} new, {self.tokens:,} tokens out{self.said}"
        )

    def prompts(self, vocab: int, turn: int = 0) -> list[list[int]]:
        """The turn's random prompts, the same on every machine."""
        draw = torch.Generator().manual_seed(1000 + turn)

        def ids(count: int) -> list[int]:
            return torch.randint(FIRST_TOKEN, vocab, (count,), generator=draw).tolist()

        head = ids(self.shared)
        return [head + ids(length - self.shared) for length in self.lengths]

    def part(self, step: int) -> Work:
        """Every step-th prompt, at least two: a scout."""
        step = max(1, min(step, len(self.lengths) // 2))
        return Work(
            self.name, self.lengths[::step], self.n, self.new[::step], self.shared, self.said
        )

    def cut(self, new: int) -> Work:
        """All prompts, but at most `new` tokens out of each sample."""
        short = tuple(min(new, own) for own in self.new)
        return Work(self.name, self.lengths, self.n, short, self.shared, self.said)

    def of_one_prompt(self) -> Work:
        """As many samples, but all of the first prompt: to decode as the work does, soon."""
        return Work(self.name, self.lengths[:1], self.samples, self.new[:1], said=self.said)


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}..{high}"


def work_named(name: str, size: str) -> Work:
    """size: "cuda", "cpu", or "quick" for tests."""
    scale = {"cuda": 2, "cpu": 1, "quick": 0}[size]
    if name == "candidates":
        count, low, high, new = ((3, 4, 9, 6), (16, 32, 192, 128), (64, 128, 512, 512))[scale]
        return Work(name, _even(count, low, high), 4, (new,) * count)
    if name == "judge":
        count, head, own, new = ((3, 20, 6, 4), (64, 256, 128, 32), (256, 512, 256, 64))[scale]
        return Work(name, (head + own,) * count, 3, (new,) * count, head)
    if name == "long-tail":
        count, low, high = ((3, 4, 9), (16, 32, 192), (64, 128, 512))[scale]
        middle, most = ((4, 16), (64, 512), (256, 4096))[scale]
        new = long_tail(count, middle, most)
        said = f", log-normal of median {middle} and sigma 1, clipped to 8..{most}"
        return Work(name, _even(count, low, high), 4, new, said=said)
    if name == "chat":
        count, low, high = ((3, 4, 12), (16, 100, 1024), (256, 100, 1024))[scale]
        lengths = np.random.default_rng(0).integers(low, high, (2, count), endpoint=True)
        said = "" if scale == 2 else f", {count} of its 256 requests"
        return Work(name, tuple(lengths[0].tolist()), 1, tuple(lengths[1].tolist()), said=said)
    if name == "chat512":
        count, each, new = ((3, 8, 4), (8, 512, 256), (128, 512, 256))[scale]
        said = "" if scale == 2 else f", {count} of its 128 requests"
        return Work(name, (each,) * count, 1, (new,) * count, said=said)
    count, each = ((3, 8), (8, 1024), (256, 1024))[scale]
    said = "" if scale == 2 else f", {count} of its 256 requests"
    return Work(name, (each,) * count, 1, (each,) * count, said=said)


WORKS = ("candidates", "judge", "long-tail", "chat", "chat1k", "chat512")


def _even(count: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(low + round((high - low) * i / (count - 1)) for i in range(count))


def long_tail(count: int, middle: int, most: int) -> tuple[int, ...]:
    """Lengths of answers: log-normal with this median and sigma 1, clipped, of a fixed seed."""
    drawn = middle * np.exp(np.random.default_rng(0).standard_normal(count))
    return tuple(np.clip(drawn.round(), min(8, middle), most).astype(int).tolist())


# The floor


@dataclass(frozen=True)
class Floor:
    """FLOPs and bytes that a work needs, and the seconds they take at the rates given."""

    prefill_flops: float
    prefill_bytes: float
    decode_flops: float
    decode_bytes: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def seconds(self) -> float:
        return self.prefill_seconds + self.decode_seconds


def floor(
    work: Work,
    config: ModelConfig,
    itemsize: int,
    flops: float,
    read: float,
    head_itemsize: int | None = None,
) -> Floor:
    """itemsize: bytes of a weight, and of a key or a value; head_itemsize: of one of the head's
    where they are others. flops and read: rates per second.
    """
    body, head = body_weights(config), config.vocab_size * config.hidden_size
    weight_bytes = itemsize * body + (head_itemsize or itemsize) * head
    # Of one token and one token before it: scores and values, each a multiply and an add.
    pair_flops = 4 * config.num_layers * config.num_heads * config.head_dim
    kv_bytes = 2 * itemsize * config.num_layers * config.num_kv_heads * config.head_dim

    tokens, pairs = distinct_prefixes(work.prompts(config.vocab_size))
    prefill = 2.0 * (body * tokens + head * len(work.lengths)) + pair_flops * pairs
    prefill_bytes = float(weight_bytes + kv_bytes * tokens)
    prefill_seconds = max(prefill / flops, prefill_bytes / read)

    running, context = steps(work)
    matmul, attention = 2.0 * (body + head) * running, float(pair_flops) * context
    reads = float(kv_bytes) * context
    seconds = np.maximum(matmul / flops, weight_bytes / read)
    seconds += np.maximum(attention / flops, reads / read)
    return Floor(
        prefill,
        prefill_bytes,
        float((matmul + attention).sum()),
        float(weight_bytes * len(running) + reads.sum()),
        prefill_seconds,
        float(seconds.sum()),
    )


def body_weights(c: ModelConfig) -> int:
    """Weights of the layers' matrices."""
    attention = c.hidden_size * c.head_dim * 2 * (c.num_heads + c.num_kv_heads)
    return c.num_layers * (attention + 3 * c.hidden_size * c.intermediate_size)


def steps(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Samples that run in each decode step, and the tokens that they attend to together. The first
    token of a sample comes out of the prefill.
    """
    lengths, new = (np.repeat(values, work.n) for values in (work.lengths, work.new))
    step = np.arange(1, new.max())[:, None]
    runs = step < new
    return runs.sum(1), (runs * (lengths + step)).sum(1)


def distinct_prefixes(prompts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Tokens to compute when every prefix is computed once, and pairs of one and one it sees."""
    tokens = pairs = 0
    for before, prompt in pairwise([[], *sorted(map(list, prompts))]):
        same = next(
            (i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b),
            min(len(before), len(prompt)),
        )
        tokens += len(prompt) - same
        pairs += (len(prompt) * (len(prompt) + 1) - same * (same + 1)) // 2
    return tokens, pairs
