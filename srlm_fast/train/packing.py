"""From rows of token ids to micro-batches: flat token streams without padding.

A segment is one prompt with one response. Its last token is never fed, for nothing is predicted
from it; token i predicts token i + 1, and only response tokens (the end token too) are targets:

    prompt [a b]  response [x y E]   fed:  a b x y     targets of rows 1, 2, 3:  x y E

Segments of one prompt may share it (prefix sharing, arXiv 2410.20305). The prompt is then fed once,
each response goes on from it, and its last row predicts the first token of all of them:

    prompt [a b]  responses [x y E], [z E], [E]
    fed:  a b | x y | z     targets of rows 1, 2, 3, 1, 4, 1:  x y E z E E

Segments of one prompt and one response, such as a candidate in several pairs, are fed once.

Shape letters: T tokens fed, C pieces of the stream, R distinct responses, N targets (tokens of the
R responses), S segments, I items (an item is what is shuffled and never split: a row of SFT is one
segment, a pair of DPO is two neighbouring ones).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Segments:
    """All segments of a data set, one behind the other in `tokens`.

    Segments with equal `prompts` share their prompt, those with equal `sequences` as well are one
    and the same. All different: nothing is shared.
    """

    tokens: Ints  # prompt and response of each segment in turn
    starts: Ints  # [S] where each begins in tokens
    prompt_lengths: Ints  # [S]
    response_lengths: Ints  # [S]
    prompts: Ints  # [S]
    sequences: Ints  # [S]

    def sharing(self) -> Segments:
        """The same segments, with equal numbers for equal token ids."""
        ends = self.starts + self.prompt_lengths
        prompts = _numbers(map(self._digest, self.starts, ends))
        responses = map(self._digest, ends, ends + self.response_lengths)
        return replace(
            self, prompts=prompts, sequences=_numbers(zip(prompts, responses, strict=True))
        )

    def apart(self, values: Iterable[Hashable]) -> Segments:
        """The same segments, where those with different values [S] are never one."""
        return replace(self, sequences=_numbers(zip(self.sequences, values, strict=True)))

    def twins(self, first: int) -> Segments:
        """The same segments, those from `first` on two by two one and the same: fed once."""
        which = np.arange(len(self.starts))
        which[first + 1 :: 2] -= 1
        return replace(self, prompts=self.prompts[which], sequences=self.sequences[which])

    def _digest(self, begin: int, end: int) -> bytes:
        return blake2b(self.tokens[begin:end].tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass. Tensors are on the model's device."""

    items: Ints  # [I] which items of the data set, in the order of their segments
    token_ids: Tensor  # [T] int64
    lengths: list[int]  # [C] tokens of each piece of the stream, T in all
    parents: list[int] | None  # [C] the piece that each goes on from, -1 for none; None: all -1
    rows: Tensor  # [N] int64, rows of the stream that predict
    targets: Tensor  # [N] int64
    responses: Ints  # [R] a segment of the data set that has it: the first of those here
    response_lengths: Tensor  # [R] int64, N in all
    sequences: Tensor  # [S] int64, which of the R is the response of each of the items' segments
    idle: bool = False  # counts for nothing: run because another rank has one more


def make_segments(
    prompts: Iterable[Sequence[int]],
    responses: Iterable[Sequence[int]],
    vocab_size: int,
    share_prompts: bool = False,
) -> Segments:
    """Flatten token ids; share_prompts: as `Segments.sharing`.

    Raises ValueError when an id is not in 0..vocab_size-1.
    """
    pairs = list(zip(prompts, responses, strict=True))
    prompt_lengths = np.array([len(prompt) for prompt, _ in pairs], dtype=np.int64)
    response_lengths = np.array([len(response) for _, response in pairs], dtype=np.int64)
    lengths = prompt_lengths + response_lengths
    flat = np.array(list(chain.from_iterable(chain.from_iterable(pairs))))
    if flat.size and flat.dtype.kind not in "iu":
        raise ValueError(f"token ids: {flat.dtype} values, wanted whole numbers")
    tokens = flat.astype(np.int64)
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab_size):
        found = tokens.min() if tokens.min() < 0 else tokens.max()
        raise ValueError(f"token ids: {found}, wanted 0..{vocab_size - 1}")
    each = np.arange(len(pairs))
    starts = np.cumsum(lengths) - lengths
    segments = Segments(tokens, starts, prompt_lengths, response_lengths, each, each)
    return segments.sharing() if share_prompts else segments


def check_lengths(segments: Segments, longest: int) -> None:
    """Raise ValueError for a sequence that feeds more tokens than the model has positions."""
    fed = segments.prompt_lengths + segments.response_lengths - 1
    found = int(fed.max(initial=0))
    if found > longest:
        raise ValueError(f"tokens: {found} in one sequence, wanted at most the model's {longest}")


def item_tokens(segments: Segments, per_item: int) -> Ints:
    """[I] tokens that each item feeds when nothing is shared with another one."""
    items = np.arange(len(segments.starts) // per_item)[:, None]
    fed = [sum(_parts(segments, _segments_of(item, per_item)).values()) for item in items]
    return np.array(fed, dtype=np.int64)


def micro_batches(
    segments: Segments,
    items: Ints,
    per_item: int,
    budget: int,
    device: torch.device | str = "cpu",
) -> list[MicroBatch]:
    """The items cut into micro-batches of at most `budget` tokens fed, or of one item.

    Items of one prompt stay together as far as the budget allows; where it does not, the prompt is
    fed again. No items: no micro-batch.
    """
    if len(items) == 0:
        return []
    groups, tokens = _by_prompt(segments, items, per_item, budget)
    return [
        pack(segments, np.concatenate([groups[i] for i in part]), per_item, device)
        for part in split_by_tokens(tokens, budget)
    ]


def pack(
    segments: Segments, items: Ints, per_item: int, device: torch.device | str = "cpu"
) -> MicroBatch:
    """The micro-batch of these items; item i owns segments i * per_item and those behind it."""
    which = _segments_of(items, per_item)
    stream = _Stream()
    for branches in _trees(segments, which):
        stream.plant(segments, branches)
    responses = np.array(stream.responses)
    places = {sequence: i for i, sequence in enumerate(segments.sequences[responses].tolist())}
    sequences = np.array([places[i] for i in segments.sequences[which].tolist()])
    counts = segments.response_lengths[responses]
    targets = _ranges(segments.starts[responses] + segments.prompt_lengths[responses], counts)

    def tensor(values: Ints) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return MicroBatch(
        items=items,
        token_ids=tensor(segments.tokens[stream.fed()]),
        lengths=stream.lengths,
        parents=stream.parents if max(stream.parents) >= 0 else None,
        rows=tensor(stream.predicting(counts)),
        targets=tensor(segments.tokens[targets]),
        responses=responses,
        response_lengths=tensor(counts),
        sequences=tensor(sequences),
    )


class _Stream:
    """A stream while it is laid out, piece behind piece."""

    def __init__(self) -> None:
        self.starts: list[int] = []  # [C] of each piece in Segments.tokens
        self.lengths: list[int] = []  # [C]
        self.parents: list[int] = []  # [C]
        self.num_rows = 0
        self.responses: list[int] = []  # [R] as in MicroBatch
        self.prompt_rows: list[int] = []  # [R] row of the prompt's last token
        self.first_rows: list[int] = []  # [R] row of the response's first token, if that is fed

    def plant(self, segments: Segments, branches: list[int]) -> None:
        """One prompt with these segments' responses; a single one stays in a piece with it."""
        trunk, alone = len(self.lengths), len(branches) == 1
        prompt = int(segments.prompt_lengths[branches[0]])
        fed = [int(segments.response_lengths[branch]) - 1 for branch in branches]
        last_row = self.num_rows + prompt - 1
        self._lay(segments.starts[branches[0]], prompt + (fed[0] if alone else 0), -1)
        for branch, length in zip(branches, fed, strict=True):
            self.responses.append(branch)
            self.prompt_rows.append(last_row)
            self.first_rows.append(last_row + 1 if alone else self.num_rows)
            if length and not alone:
                self._lay(segments.starts[branch] + prompt, length, trunk)

    def fed(self) -> Ints:
        """[T] places in Segments.tokens."""
        return _ranges(np.array(self.starts), np.array(self.lengths))

    def predicting(self, counts: Ints) -> Ints:
        """[N] rows whose next token is a target, counts [R] of them for each response."""
        rows = _ranges(np.array(self.first_rows) - 1, counts)
        rows[np.cumsum(counts) - counts] = self.prompt_rows
        return rows

    def _lay(self, start: int, length: int, parent: int) -> None:
        self.starts.append(int(start))
        self.lengths.append(int(length))
        self.parents.append(parent)
        self.num_rows += int(length)


def _trees(segments: Segments, which: Ints) -> list[list[int]]:
    """The segments by prompt, each sequence once, in the order of first appearance."""
    trees: dict[int, dict[int, int]] = {}
    prompts, sequences = segments.prompts[which].tolist(), segments.sequences[which].tolist()
    for segment, prompt, sequence in zip(which.tolist(), prompts, sequences, strict=True):
        trees.setdefault(prompt, {}).setdefault(sequence, segment)
    return [list(branches.values()) for branches in trees.values()]


def _by_prompt(
    segments: Segments, items: Ints, per_item: int, budget: int
) -> tuple[list[Ints], Ints]:
    """Groups of items of one prompt, each within the budget or of one item, in the order of their
    first items; and the tokens that each group feeds."""
    groups: list[tuple[list[int], dict[int, int]]] = []
    latest: dict[int, int] = {}  # prompt -> its last group
    for item in items.tolist():
        which = _segments_of(np.array([item]), per_item)
        prompt, parts = int(segments.prompts[which[0]]), _parts(segments, which)
        members, known = groups[latest[prompt]] if prompt in latest else ([], {})
        if members and sum((known | parts).values()) <= budget:
            members.append(item)
            known.update(parts)
        else:
            latest[prompt] = len(groups)
            groups.append(([item], parts))
    tokens = np.array([sum(parts.values()) for _, parts in groups], dtype=np.int64)
    return [np.array(members) for members, _ in groups], tokens


def _parts(segments: Segments, which: Ints) -> dict[int, int]:
    """Tokens that the segments feed, each part once: prompt p under p, response r under -1 - r."""
    keys = np.concatenate((segments.prompts[which], -1 - segments.sequences[which]))
    fed = np.concatenate((segments.prompt_lengths[which], segments.response_lengths[which] - 1))
    return dict(zip(keys.tolist(), fed.tolist(), strict=True))


def split_by_tokens(lengths: Ints, budget: int) -> list[Ints]:
    """Cut items into groups of at most `budget` tokens (one item at least), like lengths together.

    lengths [I] -> groups of indices into it: as few as the budget allows in this order, and of
    those the ones whose largest is the smallest. The longest items come first, so that a
    micro-batch which does not fit in memory fails at once. Depends on nothing but its arguments.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order].tolist()
    fewest, low, high = len(_fill(ordered, budget)), 1, budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_fill(ordered, middle)) == fewest else (middle + 1, high)
    return np.split(order, _fill(ordered, low)[1:])


def _fill(lengths: Sequence[int], budget: int) -> list[int]:
    """Where groups of neighbours begin when each takes all that fits."""
    begins, used = [0], 0
    for place, length in enumerate(lengths):
        if place > begins[-1] and used + length > budget:
            begins.append(place)
            used = 0
        used += length
    return begins


def batch_items(num_items: int, batch_size: int, seed: int, step: int, num_mixed: int = 0) -> Ints:
    """Items of one optimizer step: a slice of the epoch's permutation.

    (seed, epoch) alone decides the permutation. The last batch of an epoch holds what is left.
    num_mixed: items behind the others, in an order of their own; each epoch has all of them, each
    of its steps a share in proportion to its slice.
    """
    epoch, place = divmod(step, num_batches(num_items, batch_size))
    order = np.random.default_rng([seed % 2**64, epoch]).permutation(num_items)
    begin, end = place * batch_size, min((place + 1) * batch_size, num_items)
    if not num_mixed:
        return order[begin:end]
    mixed = np.random.default_rng([seed % 2**64, epoch, 1]).permutation(num_mixed) + num_items
    first, last = (place * num_mixed // num_items for place in (begin, end))
    return np.concatenate((order[begin:end], mixed[first:last]))


def num_batches(num_items: int, batch_size: int) -> int:
    """Optimizer steps of one epoch."""
    return -(-num_items // batch_size)


def _ranges(starts: Ints, lengths: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... (lengths[0] of them), then from starts[1], and so on."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def _segments_of(items: Ints, per_item: int) -> Ints:
    return (items[:, None] * per_item + np.arange(per_item)).reshape(-1)


def _numbers(keys: Iterable[Hashable]) -> Ints:
    """[S] equal numbers for equal keys."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
