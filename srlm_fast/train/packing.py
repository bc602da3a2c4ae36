"""From rows of token ids to micro-batches: flat token streams without padding.

A segment is one prompt with one response. Its last token is never fed, for nothing is predicted
from it; token i predicts token i + 1, and only response tokens (the end token too) are targets:

    prompt [a b]  response [x y E]   fed:  a b x y     targets of rows 1, 2, 3:  x y E

Shape letters: T tokens fed, N targets, S segments, I items (an item is what is shuffled and never
split: a row of SFT is one segment, a pair of DPO is two neighbouring ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """All segments of a data set, one behind the other in `tokens`."""

    tokens: Ints  # prompt and response of each segment in turn
    starts: Ints  # [S] where each begins in tokens
    prompt_lengths: Ints  # [S]
    response_lengths: Ints  # [S]

    @property
    def lengths(self) -> Ints:
        """[S] tokens that are fed."""
        return self.prompt_lengths + self.response_lengths - 1


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. Tensors are on the model's device."""

    items: Ints  # [I] which items of the data set, in the order of their segments
    token_ids: Tensor  # [T] int64
    lengths: list[int]  # tokens of each segment, T in all
    rows: Tensor  # [N] int64, rows of the stream that predict
    targets: Tensor  # [N] int64
    response_lengths: Tensor  # [S] int64, N in all
    idle: bool = False  # counts for nothing: run because another rank has one more


def make_segments(
    prompts: Iterable[Sequence[int]], responses: Iterable[Sequence[int]], vocab_size: int
) -> Segments:
    """Flatten token ids. Raises ValueError when an id is not in 0..vocab_size-1."""
    pairs = list(zip(prompts, responses, strict=True))
    prompt_lengths = np.array([len(prompt) for prompt, _ in pairs], dtype=np.int64)
    response_lengths = np.array([len(response) for _, response in pairs], dtype=np.int64)
    lengths = prompt_lengths + response_lengths
    flat = chain.from_iterable(chain.from_iterable(pairs))
    tokens = np.fromiter(flat, dtype=np.int64, count=int(lengths.sum()))
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab_size):
        found = tokens.min() if tokens.min() < 0 else tokens.max()
        raise ValueError(f"token ids: {found}, wanted 0..{vocab_size - 1}")
    return Segments(tokens, np.cumsum(lengths) - lengths, prompt_lengths, response_lengths)


def pack(
    segments: Segments, items: Ints, per_item: int, device: torch.device | str = "cpu"
) -> MicroBatch:
    """The micro-batch of these items; item i owns segments i * per_item and those behind it."""
    which = (items[:, None] * per_item + np.arange(per_item)).reshape(-1)
    lengths, response_lengths = segments.lengths[which], segments.response_lengths[which]
    starts, first_target = segments.starts[which], segments.prompt_lengths[which]
    stream_starts = np.cumsum(lengths) - lengths
    fed = segments.tokens[_ranges(starts, lengths)]
    rows = _ranges(stream_starts + first_target - 1, response_lengths)
    targets = segments.tokens[_ranges(starts + first_target, response_lengths)]
    token_ids, rows_N, targets_N, counts_S = (
        torch.from_numpy(array).to(device, non_blocking=True)
        for array in (fed, rows, targets, response_lengths)
    )
    return MicroBatch(items, token_ids, lengths.tolist(), rows_N, targets_N, counts_S)


def split_by_tokens(lengths: Ints, budget: int) -> list[Ints]:
    """Cut items into groups of at most `budget` tokens (one item at least), like lengths together.

    lengths [I] -> groups of indices into it. The longest come first, so that a micro-batch which
    does not fit in memory fails at once. Depends on nothing but its arguments.
    """
    order = np.argsort(-lengths, kind="stable")
    groups, begin, used = [], 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if place > begin and used + length > budget:
            groups.append(order[begin:place])
            begin, used = place, 0
        used += length
    return [*groups, order[begin:]]


def batch_items(num_items: int, batch_size: int, seed: int, step: int) -> Ints:
    """Items of one optimizer step: a slice of the epoch's permutation.

    (seed, epoch) alone decides the permutation. The last batch of an epoch holds what is left.
    """
    epoch, place = divmod(step, num_batches(num_items, batch_size))
    order = np.random.default_rng([seed % 2**64, epoch]).permutation(num_items)
    return order[place * batch_size : (place + 1) * batch_size]


def num_batches(num_items: int, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return -(-num_items // batch_size)


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... (lengths[0] of them), then from starts[1], and so on."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
