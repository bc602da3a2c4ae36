"""Scores read from the token ids of judgements, on the device they are on.

    state_0 = start;  (state_t, brought_t) = maps[token_maps[id_t], state_t-1]
    outcome = the last brought_t that is not 0;  (score, status) = ends(state_T, outcome)

A score pattern is an automaton over bytes (`judge.automaton`), lifted to the tokens of a tokenizer:
each token has a map from state to state, and most tokens of a vocabulary share one of a few hundred
maps. So a row is one look-up per token, and text is read the same however a tokenizer splits or
merges it. All integers; scores come out as fp32.

Triton, `_walk_kernel`: a lane walks a row. `_chunks_kernel`: a warp walks a row, a lane a chunk of
it, from a state that is guessed; then each lane starts from where the one before it ended, until
nothing changes any more. Most words bring all states together, so two passes are the rule where a
chunk holds several, and as many as there are chunks the most (speculative parallel automata:
Mytkowicz, Musuvathi and Schulte, ASPLOS 2014).
"""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from . import jit
from .contracts import check_tensor
from .jit import tl, triton
from .native import available, native

# Of a map's entry: 16 bits for the state, 12 for the outcome, two flags (`pack_maps`).
STATE_MASK, OUTCOME_SHIFT, OUTCOME_MASK = 0xFFFF, 16, 0xFFF
NUMBER_LINE, ANY_LINE = 1 << 28, 1 << 29
# Of an end: 12 bits for the outcome, then the flags.
OPEN, OVER = 1 << 12, 1 << 13
OUT_OF_RANGE_OUTCOME, FIRST_VALUE = 1, 2

WALK_ROWS, CHUNKS = 32, 32
# Tokens from which on a row is worth a warp. Reasoned, not measured: the walk's latency is that of
# as many dependent loads as there are tokens, that of the chunks of twice a 32nd of them. Simulated
# on prose, 512 tokens take two passes in all rows, 256 in 88 %, 128 in 36 %.
CHUNKED_FROM = 256


class ScoreStatus(IntEnum):
    """What became of one judgement. All but OK come with the score NaN."""

    OK = 0
    MISSING = 1  # it ended without a number
    OUT_OF_RANGE = 2  # the deciding number is not an integer of the range
    TRUNCATED = 3  # the token limit cut it before its score was certain


def pack_maps(rows: np.ndarray) -> np.ndarray:
    """rows [M, 4, S]: state, outcome, "a line with a number ended", "a line ended" -> [M, S]
    int32.
    """
    state, outcome, number_line, line = rows.transpose(1, 0, 2)
    if state.max(initial=0) > STATE_MASK or outcome.max(initial=0) > OUTCOME_MASK:
        raise ValueError("pattern: more states or scores than a table holds, wanted a simpler one")
    return state | outcome << OUTCOME_SHIFT | number_line * NUMBER_LINE | line * ANY_LINE


def pack_ends(outcome: np.ndarray, is_open: np.ndarray, over: np.ndarray) -> np.ndarray:
    """[2, S] each: outcome, "more text could change it", "the turn is over" -> [2, S] int32."""
    return (outcome | is_open * OPEN | over * OVER).astype(np.int32)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """A score pattern compiled for one tokenizer; made by `srlm_fast.judge.compile_pattern`.

    token_bytes: the bytes that each token id adds to the text; none for special tokens.
    end_ids: ids that end the judge's turn; nothing behind them is read.
    read: (text, finished) -> (score, status), the specification; NaN unless the status is OK.
    place: text -> where the deciding number begins, -1 without one.
    score_ids: for each score of the range the ids that spell it alone, with or without a space
    before it. low: the range's lower end; start: the first state.
    token_maps [V] int32: the map of each token. maps [M, S] int32 as `pack_maps` has them, the
    first of them the identity. ends [2, S] int32 as `pack_ends` has them: of an unfinished and a
    finished row. guess: a state that most words lead to.
    """

    token_bytes: tuple[bytes, ...]
    end_ids: frozenset[int]
    read: Callable[[str, bool], tuple[float, ScoreStatus]]
    place: Callable[[str], int]
    score_ids: dict[int, tuple[int, ...]]
    low: int
    start: int
    guess: int
    token_maps: Tensor
    maps: Tensor
    ends: Tensor
    _moved: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(token_maps, maps, ends) on a device; copied there once."""
        if device not in self._moved:
            own = (self.token_maps, self.maps, self.ends)
            self._moved[device] = tuple(each.to(device).contiguous() for each in own)  # type: ignore
        return self._moved[device]

    def text(self, token_ids: Iterable[int], finished: bool = True) -> str:
        """The text of a row. Bytes that are not UTF-8 become U+FFFD; a character cut at the end is
        left out."""
        data = b"".join(self.token_bytes[i] for i in token_ids if 0 <= i < len(self.token_bytes))
        return codecs.getincrementaldecoder("utf-8")("replace").decode(data, finished)

    def turn(self, token_ids: list[int]) -> tuple[list[int], bool]:
        """The ids before the first one that ends the turn, and whether there is such a one."""
        end = next((at for at, i in enumerate(token_ids) if i in self.end_ids), None)
        return (token_ids, False) if end is None else (token_ids[:end], True)

    def number_at(self, token_ids: Sequence[int]) -> int:
        """Index of the token in which the deciding number begins, -1 without one."""
        place = self.place(self.text(token_ids))

        def chars(at: int) -> int:
            return len(self.text(token_ids[: at + 1]))

        return -1 if place < 0 else bisect_right(range(len(token_ids)), place, key=chars)

    def first_line(self, token_ids: Sequence[int]) -> int:
        """How many tokens reach to the end of the first line that holds a number; all of them where
        none does. A sampler that stops there (`SamplingParams.stop_score_line`) draws these.
        """
        state, found = self.start, False
        for at, token in enumerate(token_ids):
            state, found, ended = self.advance(state, found, token)
            if ended:
                return at + 1
        return len(token_ids)

    def advance(self, state: int, found: bool, token: int) -> tuple[int, bool, bool]:
        """(state, whether a number has been seen, whether a line that holds one ends here)."""
        maps, token_maps = self._rows
        entry = maps[token_maps[token]][state] if 0 <= token < len(token_maps) else state
        ended = bool(entry & NUMBER_LINE) or (found and bool(entry & ANY_LINE))
        return entry & STATE_MASK, found or bool(entry >> OUTCOME_SHIFT & OUTCOME_MASK), ended

    @cached_property
    def _rows(self) -> tuple[list[list[int]], list[int]]:
        return self.maps.tolist(), self.token_maps.tolist()


def extract_scores_reference(
    rows: Sequence[list[int]], finished: Sequence[bool], table: ScoreTable
) -> list[tuple[float, ScoreStatus]]:
    """One (score, status) per row of token ids: a regular expression on the decoded text."""
    read = []
    for row, row_finished in zip(rows, finished, strict=True):
        ids, ended = table.turn(row)
        done = row_finished or ended
        read.append(table.read(table.text(ids, done), done))
    return read


def walk_reference(
    token_ids: Tensor, lengths: Tensor, table: ScoreTable, finished: Tensor
) -> tuple[Tensor, Tensor]:
    """The table walked in PyTorch, all rows one token at a time; arguments as `extract_scores`."""
    token_maps, maps, ends = table.tensors(token_ids.device)
    state = torch.full_like(lengths, table.start, dtype=torch.int64)
    outcome = torch.zeros_like(state)
    for at in range(token_ids.shape[1]):
        token = token_ids[:, at].long()
        known = (at < lengths) & (token >= 0) & (token < len(token_maps))
        entry = maps[token_maps[token * known].long(), state].long()
        brought = entry >> OUTCOME_SHIFT & OUTCOME_MASK
        outcome = torch.where(known & (brought > 0), brought, outcome)
        state = torch.where(known, entry & STATE_MASK, state)
    end = ends[finished.long(), state].long()
    outcome = torch.where((end & OUTCOME_MASK) > 0, end & OUTCOME_MASK, outcome)
    return _resolved(outcome, (end & OPEN) > 0, (end & OVER) > 0, table.low)


def _resolved(outcome: Tensor, is_open: Tensor, over: Tensor, low: int) -> tuple[Tensor, Tensor]:
    none = torch.where(over, int(ScoreStatus.MISSING), int(ScoreStatus.TRUNCATED))
    number = torch.where(outcome == OUT_OF_RANGE_OUTCOME, int(ScoreStatus.OUT_OF_RANGE), 0)
    status = torch.where(outcome == 0, none, number)
    status = torch.where(is_open, int(ScoreStatus.TRUNCATED), status).to(torch.int32)
    value = (outcome - FIRST_VALUE + low).float()
    return torch.where(status == 0, value, torch.nan), status


@triton.jit
def _looked_up(token, live, state, token_maps_ptr, maps_ptr, vocab, states):
    """The entry of a token and a state; that of the identity where the token is none."""
    known = live & (token >= 0) & (token < vocab)
    which = tl.load(token_maps_ptr + token, mask=known, other=0)
    return tl.load(maps_ptr + which * states + state, mask=known, other=0) + tl.where(
        known, 0, state
    )


@triton.jit
def _finish(state, outcome, finished, row, mask, ends_ptr, scores_ptr, status_ptr, states, low):
    """Store (score, status). The numbers are OPEN, OVER and those of ScoreStatus."""
    end = tl.load(ends_ptr + finished * states + state, mask=mask, other=0)
    outcome = tl.where((end & 0xFFF) > 0, end & 0xFFF, outcome)
    none = tl.where((end & 0x2000) > 0, 1, 3)
    status = tl.where(outcome == 0, none, tl.where(outcome == 1, 2, 0))
    status = tl.where((end & 0x1000) > 0, 3, status)
    score = tl.where(status == 0, (outcome - 2 + low).to(tl.float32), float("nan"))
    tl.store(scores_ptr + row, score, mask=mask)
    tl.store(status_ptr + row, status, mask=mask)


@triton.jit
def _walk_kernel(
    ids_ptr, lengths_ptr, finished_ptr, token_maps_ptr, maps_ptr, ends_ptr, scores_ptr, status_ptr,
    num_rows, width, stride, vocab, states, start, low, ROWS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < num_rows
    length = tl.load(lengths_ptr + row, mask=mask, other=0).to(tl.int32)
    length = tl.minimum(tl.maximum(length, 0), width)
    state = tl.zeros((ROWS,), dtype=tl.int32) + start
    outcome = tl.zeros((ROWS,), dtype=tl.int32)
    for begin in range(0, tl.max(length, axis=0), UNROLL):
        for step in tl.static_range(UNROLL):
            live = begin + step < length
            token = tl.load(ids_ptr + row * stride + begin + step, mask=live, other=-1)
            entry = _looked_up(token, live, state, token_maps_ptr, maps_ptr, vocab, states)
            brought = (entry >> 16) & 0xFFF
            outcome = tl.where(brought > 0, brought, outcome)
            state = entry & 0xFFFF
    finished = tl.load(finished_ptr + row, mask=mask, other=0).to(tl.int32)
    _finish(state, outcome, finished, row, mask, ends_ptr, scores_ptr, status_ptr, states, low)


@triton.jit
def _chunks_kernel(
    ids_ptr, lengths_ptr, finished_ptr, token_maps_ptr, maps_ptr, ends_ptr, scores_ptr, status_ptr,
    width, stride, vocab, states, start, guess, low, CHUNKS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths_ptr + row).to(tl.int32)
    length = tl.minimum(tl.maximum(length, 0), width)
    size = (length + CHUNKS - 1) // CHUNKS
    chunk = tl.arange(0, CHUNKS)
    first = chunk * size
    begun = tl.where(chunk == 0, start, guess)
    state = begun
    outcome = tl.zeros((CHUNKS,), dtype=tl.int32)
    stale = 1
    while stale > 0:
        state = begun
        outcome = tl.zeros((CHUNKS,), dtype=tl.int32)
        for begin in range(0, size, UNROLL):
            for step in tl.static_range(UNROLL):
                at = first + begin + step
                live = (begin + step < size) & (at < length)
                token = tl.load(ids_ptr + row * stride + at, mask=live, other=-1)
                entry = _looked_up(token, live, state, token_maps_ptr, maps_ptr, vocab, states)
                brought = (entry >> 16) & 0xFFF
                outcome = tl.where(brought > 0, brought, outcome)
                state = entry & 0xFFFF
        before = tl.gather(state, tl.maximum(chunk - 1, 0), 0)
        before = tl.where(chunk == 0, start, before)
        stale = tl.max(tl.where((before == begun) | (first >= length), 0, 1), axis=0)
        begun = before
    # The last outcome that is one, and the state of the last chunk that is not empty.
    latest = tl.max(tl.where(outcome > 0, chunk * 4096 + outcome, 0), axis=0) & 0xFFF
    used = (length + size - 1) // tl.maximum(size, 1)
    last = tl.sum(tl.where(chunk == used - 1, state, 0), axis=0) + tl.where(length == 0, start, 0)
    finished = tl.load(finished_ptr + row).to(tl.int32)
    _finish(last, latest, finished, row, True, ends_ptr, scores_ptr, status_ptr, states, low)


def _launch(token_ids, lengths, finished, table, out, chunked):
    (num_rows, width), (scores, status) = token_ids.shape, out
    token_maps, maps, ends = table.tensors(token_ids.device)
    tensors = (
        token_ids,
        lengths,
        finished.view(torch.uint8),
        token_maps,
        maps,
        ends,
        scores,
        status,
    )
    sizes = (width, token_ids.stride(0), len(token_maps), maps.shape[1], table.start)
    if chunked:
        more = (*sizes, table.guess, table.low)
        _chunks_kernel[(num_rows,)](*tensors, *more, CHUNKS=CHUNKS, UNROLL=4, num_warps=1)
    else:
        grid = (jit.cdiv(num_rows, WALK_ROWS),)
        more = (num_rows, *sizes, table.low)
        _walk_kernel[grid](*tensors, *more, ROWS=WALK_ROWS, UNROLL=8, num_warps=1)


def _walk_native(token_ids, lengths, finished, table, out):
    token_maps, maps, ends = table.tensors(token_ids.device)
    scores, status = out
    lengths = lengths.to(torch.int64).contiguous()
    native().extract_scores(
        token_ids.data_ptr(), token_ids.stride(0), token_ids.dtype == torch.int64,
        lengths.data_ptr(), finished.data_ptr(), len(token_ids),
        token_maps.data_ptr(), len(token_maps), maps.data_ptr(), maps.shape[1], ends.data_ptr(),
        table.start, table.low, scores.data_ptr(), status.data_ptr(),
    )  # fmt: skip


@jit.on_its_device
def extract_scores(
    token_ids: Tensor,
    lengths: Tensor,
    table: ScoreTable,
    finished: Tensor | Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the score of each judgement from its token ids.

    token_ids [B, L] int64 or int32: the judge's own turn, without its prompt. lengths [B] integer:
    valid ids per row. finished [B] bool: False where the token limit cut the row; None: every row
    ended by itself.
    Returns (scores [B] fp32, NaN where not OK; status [B] int32, values of ScoreStatus), on
    token_ids' device. Ids outside the vocabulary add nothing. On CUDA nothing waits for the device,
    so there lengths are cut to 0..L instead of refused.
    Raises ValueError naming the argument that breaks the contract.
    """
    _check_rows(token_ids, lengths)
    if not isinstance(table, ScoreTable):
        raise ValueError(f"table: {type(table).__name__}, wanted one of judge.compile_pattern")
    num_rows, device = len(token_ids), token_ids.device
    done = torch.ones(num_rows, dtype=torch.bool, device=device) if finished is None else finished
    done = torch.as_tensor(done, device=device).to(torch.bool).contiguous()
    if tuple(done.shape) != (num_rows,):
        raise ValueError(f"finished: {list(done.shape)} entries, wanted {num_rows}")
    if token_ids.stride(-1) != 1 and token_ids.shape[1] > 1:
        token_ids = token_ids.contiguous()
    if not (jit.runs_triton(token_ids) or (available() and device.type == "cpu")):
        return walk_reference(token_ids, lengths, table, done)
    scores = torch.empty(num_rows, dtype=torch.float32, device=device)
    out = scores, torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows and jit.runs_triton(token_ids):
        chunked = token_ids.shape[1] >= CHUNKED_FROM
        _launch(token_ids, lengths.contiguous(), done, table, out, chunked)
    elif num_rows:
        _walk_native(token_ids, lengths, done, table, out)
    return out


def _check_rows(token_ids: Tensor, lengths: Tensor) -> None:
    integers = (torch.int64, torch.int32)
    check_tensor("token_ids", token_ids, ["B", "L"], integers)
    num_rows, width = token_ids.shape
    check_tensor("lengths", lengths, [num_rows], integers, token_ids.device)
    if lengths.is_cuda or not num_rows:
        return
    if not 0 <= int(lengths.min()) <= int(lengths.max()) <= width:
        low, high = int(lengths.min()), int(lengths.max())
        raise ValueError(f"lengths: from {low} to {high}, wanted 0 to {width}")
