"""Pages, prefix cache and scheduler in plain Python: the specification of csrc/scheduler.cpp.

Both classes have one face and, for the same calls, give the same plans. Property tests hold them
against each other; the engine takes this one only where the extension is missing.

The rules:
- A page holds the keys and values of `page_tokens` consecutive tokens in every layer. It may have
  several owners; only a page with one owner is written. Free pages stand in order of their last
  use; pages that the prefix cache still knows are taken last, the longest unused first.
- Full pages are shared by content: tokens of the page and everything before it, under one version
  of the weights.
- A request's prompt is computed once. Its n samples then share all pages; who writes on the shared
  last page copies it.
- Each step takes at most `max_batch_tokens` tokens: one of every running sample first, then the
  rest of cut prompts, then new requests in order of arrival, each as far as the budget goes. While
  others wait, one prompt takes at most half of a step.
- A request is admitted when its prompt fits and every running sample still has one page in reserve.
  When a page is wanted and none is free, the youngest sample gives its pages back and is computed
  again later.
- A step may be planned while the one before it still runs. A token that is not known yet stands in
  the plan as -(1 + its sampling row in the step before), and the device puts it in. A sample that
  turns out to have ended has then run one row too many, which is dropped; its pages may be given
  away at once, because the device runs the steps in order.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..kernels.judge_score import ANY_LINE, NUMBER_LINE, OUTCOME_MASK, OUTCOME_SHIFT, STATE_MASK
from .noise import hash_tokens, noise_key


class BlockPool:
    """Reference-counted pages with a least-recently-used free list."""

    def __init__(self, num_pages: int) -> None:
        self.refs = [0] * num_pages
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))

    def take(self) -> int:
        """The page at the front of the free list, now with one owner."""
        page, _ = self.free.popitem(last=False)
        self.refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more owner; a free page comes back to life."""
        self.free.pop(page, None)
        self.refs[page] += 1

    def release(self, page: int, cached: bool) -> None:
        """One owner less; the last one puts the page at the back of the free list if it is cached,
        else in front.
        """
        self.refs[page] -= 1
        if self.refs[page] == 0:
            self.free[page] = None
            self.free.move_to_end(page, last=cached)


class PrefixCache:
    """Full pages by all the tokens up to their end. The whole prefix is the key, so there is no
    false hit.
    """

    def __init__(self) -> None:
        self.pages: dict[tuple[int, ...], int] = {}
        self.keys: dict[int, tuple[int, ...]] = {}

    def insert(self, prefix: tuple[int, ...], page: int) -> None:
        """The first page with a prefix keeps it."""
        if prefix not in self.pages:
            self.pages[prefix], self.keys[page] = page, prefix

    def forget(self, page: int) -> None:
        """Called when a page is about to be overwritten."""
        if page in self.keys:
            del self.pages[self.keys.pop(page)]

    def clear(self) -> None:
        self.pages.clear()
        self.keys.clear()


# What a request asks for: samples, the log-probabilities of its own tokens behind position
# `read_from`, or the hidden rows from there on.
SAMPLE, SCORE, HIDDEN = 0, 1, 2


@dataclass
class _Request:
    id: int
    prompt: list[int]
    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    seed: int
    stop_token_ids: list[int]
    stops: list[bytes]
    mask: int = -1
    read_from: int = -1
    kind: int = SAMPLE
    score_table: int = -1
    targets: list[int] = field(default_factory=list)
    prompt_hash: int = 0
    unfinished: int = 0
    results: dict[int, tuple[np.ndarray, np.ndarray, str, int]] = field(default_factory=dict)


@dataclass
class _Sequence:
    """One sample; before its prompt is done, the first one stands for all n of them.

    tokens: prompt and sample; the last may be unknown yet (negative). closed: no further row will
    be planned. step: in which it was last scheduled.
    """

    request: _Request
    tokens: list[int]
    sample: int = 0
    forked: bool = False
    logprobs: list[float] = field(default_factory=list)
    text: bytes = b""
    score_state: int = -1
    score_found: bool = False
    computed: int = 0
    registered: int = 0
    step: int = -1
    closed: bool = False
    finished: bool = False
    pages: list[int] = field(default_factory=list)

    @property
    def order(self) -> tuple[int, int]:
        return (self.request.id, self.sample)

    @property
    def remaining(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def known(self) -> int:
        """Leading tokens that are known."""
        return len(self.tokens) - (self.tokens[-1] < 0)

    @property
    def weight(self) -> int:
        return 1 if self.forked else max(self.request.n, 1)

    @property
    def waits_for_token(self) -> bool:
        """Whether its next row needs all its tokens on the host: the penalty looks at them."""
        return self.request.repetition_penalty != 1 and self.known < len(self.tokens)


_PLAN: dict[str, type] = {
    "token_ids": np.int64,  # [T]; negative: not known yet
    "positions": np.int64,  # [T]
    "slots": np.int64,  # [T] page * page_tokens + offset
    "row_starts": np.int32,  # [S + 1] rows of each sequence
    "context_lengths": np.int32,  # [S] keys that its last row sees
    "block_table": np.int32,  # [S, W] its pages
    "copies": np.int32,  # [C, 2] pages: from, to
    "logit_rows": np.int64,  # [U] rows of T that go under the head
    "sample_rows": np.int64,  # [N] row of U that each sample is drawn from
    "temperature": np.float32,  # [N], and so on
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "repetition_penalty": np.float32,
    "noise_keys": np.uint64,
    "sample_positions": np.int64,  # position of the token to be drawn
    "history": np.int32,  # seen tokens of the rows with a penalty
    "history_starts": np.int32,  # [N + 1]
    "banned": np.int32,  # tokens that may not be drawn
    "banned_starts": np.int32,  # [N + 1]
    "mask_rows": np.int32,  # [N] the mask of allowed tokens, -1 where all are
    "forced": np.int32,  # [N] the token that is scored instead of drawing one, or -1
    "hidden_rows": np.int64,  # rows of T wanted as they are
    "hidden_ids": np.int64,  # their requests
    "hidden_positions": np.int64,  # and their positions
}
PLAN_FIELDS = tuple(_PLAN)


class Scheduler:
    """Call `add`, then `plan` and `accept` in turn until `plan` is False; the plan's arrays are
    attributes, until the next plan. `plan` may run one step ahead of `accept`.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    row_starts: np.ndarray
    block_table: np.ndarray
    copies: np.ndarray
    logit_rows: np.ndarray
    sample_rows: np.ndarray
    hidden_rows: np.ndarray
    hidden_ids: np.ndarray
    hidden_positions: np.ndarray

    def __init__(
        self,
        num_pages: int,
        page_tokens: int,
        max_batch_tokens: int,
        max_sequences: int,
        max_positions: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        self.num_pages, self.page_tokens = num_pages, page_tokens
        self.max_batch_tokens, self.max_sequences = max_batch_tokens, max_sequences
        self.max_positions, self.eos_token_ids = max_positions, list(eos_token_ids)
        self.pool, self.cache = BlockPool(num_pages), PrefixCache()
        self.token_bytes: list[bytes] = []
        self.version = self.next_id = 0
        self.waiting: list[_Sequence] = []
        self.running: list[_Sequence] = []  # in order of arrival
        self.scheduled: list[_Sequence] = []  # this step's, in row order
        # Of each step: the owner of each sampling row, and which of its tokens that is.
        self.in_flight: list[list[tuple[_Sequence, int]]] = []
        self.ending: list[list[_Sequence]] = []  # of each step: hidden requests that end with it
        self.step = 0
        self.requests: dict[int, _Request] = {}
        self.score_tables: list[tuple[list[int], list[list[int]], int]] = []
        self.finished: list[int] = []
        self.prefill_tokens = self.cached_tokens = self.generated_tokens = self.preemptions = 0
        self._clear_plan()

    num_free_pages = property(lambda self: len(self.pool.free))
    num_cached_pages = property(lambda self: len(self.cache.pages))
    num_running = property(lambda self: len(self.running))
    num_in_flight = property(lambda self: len(self.in_flight))
    num_waiting = property(lambda self: len(self.waiting))

    def page_refs(self, page: int) -> int:
        """Owners of a page."""
        return self.pool.refs[page]

    def set_token_bytes(self, table: Sequence[bytes]) -> None:
        """The bytes of every token, for stop strings."""
        self.token_bytes = list(table)

    def add_score_table(self, token_maps: np.ndarray, maps: np.ndarray, start: int) -> int:
        """A table whose first line with a score ends a sample; its number for `add`."""
        self.score_tables.append((token_maps.tolist(), maps.tolist(), start))
        return len(self.score_tables) - 1

    def set_weights_version(self, version: int) -> None:
        """Forget all cached pages if the weights have changed."""
        if version == self.version:
            return
        if self.running or self.waiting:
            raise RuntimeError("the weights changed while requests were running")
        self.version = version
        self.cache.clear()

    def add(self, prompt: Sequence[int], n: int, *params: object) -> int:
        """Queue a request; `params` in the order of `_Request` up to `score_table`. SCORE and
        HIDDEN read the prompt's own rows, from position `read_from` on.

        Raises ValueError when it can never fit.
        """
        request = _Request(self.next_id, [int(t) for t in prompt], n, *params)  # type: ignore[arg-type]
        more = max(request.max_tokens, 1) if request.kind == SAMPLE else 1
        longest = min(len(request.prompt) + more - 1, self.max_positions)
        if self._pages_for(longest) > self.num_pages:
            raise ValueError(
                f"prompt: {len(request.prompt)} tokens and max_tokens {request.max_tokens} need "
                f"{self._pages_for(longest)} pages, and the KV pool has {self.num_pages}; "
                "wanted a shorter request or a larger kv_bytes"
            )
        self.next_id += 1
        request.prompt_hash = hash_tokens(0, request.prompt)
        request.unfinished = n
        tokens = list(request.prompt)
        if request.kind == SCORE:  # the last token is scored by the row before it
            request.targets = tokens[request.read_from + 1 :]
            tokens.pop()
        self.requests[request.id] = request
        self.waiting.append(_Sequence(request, tokens))
        return request.id

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    # ------------------------------------------------------------------------------------ plan

    def plan(self) -> bool:
        """Choose the next step. False when there is nothing to do, or nothing before the step in
        flight is accepted.
        """
        if len(self.in_flight) > 1:
            raise RuntimeError("plan: two steps are in flight; wanted accept first")
        self._clear_plan()
        self.scheduled = []
        self.owners: list[tuple[_Sequence, int]] = []
        self.ends: list[_Sequence] = []
        self.step += 1
        self.budget = self.max_batch_tokens
        self._plan_decodes()
        self._plan_prefills()
        self._admit()
        self._finish_plan()
        if self.scheduled:
            self.in_flight.append(self.owners)
            self.ending.append(self.ends)
        return bool(self.scheduled)

    def _clear_plan(self) -> None:
        self._lists: dict[str, list] = {name: [] for name in _PLAN}
        for name in ("row_starts", "history_starts", "banned_starts"):
            self._lists[name].append(0)

    def _plan_decodes(self) -> None:
        for sequence in list(self.running):
            if self.budget == 0:
                break
            # One that was pre-empted in this very loop has no pages left.
            if not sequence.pages or sequence.remaining != 1 or sequence.closed:
                continue
            if not sequence.waits_for_token and self._make_writable(sequence):
                self._schedule(sequence, 1)

    def _plan_prefills(self) -> None:
        for sequence in list(self.running):
            if self.budget > 0 and sequence.remaining > 1 and sequence.step != self.step:
                self._schedule(sequence, self._chunk(sequence))

    def _admit(self) -> None:
        while self.waiting and self.budget > 0 and self._admit_first(self.waiting[0]):
            sequence = self.waiting.pop(0)
            bisect.insort(self.running, sequence, key=lambda s: s.order)
            self._schedule(sequence, self._chunk(sequence))

    def _chunk(self, sequence: _Sequence) -> int:
        """Tokens of a prompt in this step."""
        half = (self.max_batch_tokens + 1) // 2
        most = min(self.budget, half) if self.waiting else self.budget
        return min(sequence.remaining, most)

    def _admit_first(self, sequence: _Sequence) -> bool:
        busy = sum(s.weight for s in self.running) + sequence.weight
        if (self.running and busy > self.max_sequences) or sequence.waits_for_token:
            return False
        hits = self._find_prefix(sequence)
        needed = self._pages_for(len(sequence.tokens)) - len(hits)
        free_after = len(self.pool.free) - needed - sum(self.pool.refs[p] == 0 for p in hits)
        if self.running and free_after < busy:
            return False
        for page in hits:
            self.pool.share(page)
        sequence.pages = hits + [self._take_page() for _ in range(needed)]
        sequence.registered = len(hits)
        sequence.computed = len(hits) * self.page_tokens
        self.cached_tokens += sequence.computed
        return True

    def _find_prefix(self, sequence: _Sequence) -> list[int]:
        """Cached pages at the head. Rows that are wanted are always computed anew: the last one of
        a sample, those that a request reads.
        """
        hits: list[int] = []
        read_from = sequence.request.read_from
        most = len(sequence.tokens) - 1 if read_from < 0 else read_from
        for index in range(most // self.page_tokens):
            prefix = tuple(sequence.tokens[: (index + 1) * self.page_tokens])
            if prefix not in self.cache.pages:
                break
            hits.append(self.cache.pages[prefix])
        return hits

    def _schedule(self, sequence: _Sequence, count: int) -> None:
        """Put the next `count` tokens into the step.

        Pages that become full are offered to the cache now, before they are written: every row of a
        step writes its keys before any row attends, so a later sequence of this same step may
        already use them.
        """
        plan, size = self._lists, self.page_tokens
        end = sequence.computed + count
        for position in range(sequence.computed, end):
            plan["token_ids"].append(sequence.tokens[position])
            plan["positions"].append(position)
            plan["slots"].append(sequence.pages[position // size] * size + position % size)
        start, sequence.computed, sequence.step = sequence.computed, end, self.step
        self.budget -= count
        for index in range(sequence.registered, min(end, sequence.known) // size):
            self.cache.insert(tuple(sequence.tokens[: (index + 1) * size]), sequence.pages[index])
            sequence.registered = index + 1
        plan["row_starts"].append(len(plan["token_ids"]))
        plan["context_lengths"].append(end)
        if count > 1 or not sequence.forked:
            self.prefill_tokens += count
        self.scheduled.append(sequence)
        if sequence.request.kind != SAMPLE:
            self._read_rows(sequence, start)
        elif end == len(sequence.tokens):
            self._draw(sequence)

    def _read_rows(self, sequence: _Sequence, start: int) -> None:
        """The rows of this step that a SCORE or HIDDEN request reads."""
        plan, request, end = self._lists, sequence.request, sequence.computed
        for position in range(max(start, request.read_from), end):
            row = len(plan["token_ids"]) - end + position
            if request.kind == HIDDEN:
                plan["hidden_rows"].append(row)
                plan["hidden_ids"].append(request.id)
                plan["hidden_positions"].append(position)
                continue
            plan["logit_rows"].append(row)
            index = position - request.read_from
            self._add_sampling_row(sequence, index, request.targets[index])
        if end == len(sequence.tokens):
            sequence.closed = True
            if request.kind == HIDDEN:
                self.ends.append(sequence)

    def _draw(self, sequence: _Sequence) -> None:
        """Sampling rows under the last row; all samples of the request when the prompt is done."""
        self._lists["logit_rows"].append(len(self._lists["token_ids"]) - 1)
        for sample in [sequence] if sequence.forked else self._fork(sequence):
            index = len(sample.tokens) - len(sample.request.prompt)
            self._add_sampling_row(sample, index, -1)
            sample.tokens.append(-len(self._lists["sample_rows"]))
            full = len(sample.tokens) >= self.max_positions
            sample.closed = index + 1 >= sample.request.max_tokens or full

    def _add_sampling_row(self, sequence: _Sequence, index: int, forced: int) -> None:
        plan, request = self._lists, sequence.request
        self.owners.append((sequence, index))
        plan["sample_rows"].append(len(plan["logit_rows"]) - 1)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            plan[name].append(getattr(request, name))
        plan["noise_keys"].append(noise_key(request.seed, request.prompt_hash, sequence.sample))
        plan["sample_positions"].append(len(sequence.tokens))
        if request.repetition_penalty != 1:
            plan["history"] += sequence.tokens
        plan["history_starts"].append(len(plan["history"]))
        plan["mask_rows"].append(request.mask)
        plan["forced"].append(forced)
        if index < request.min_tokens:  # whatever would end the sample
            plan["banned"] += request.stop_token_ids
            plan["banned"] += [] if request.ignore_eos else self.eos_token_ids
        plan["banned_starts"].append(len(plan["banned"]))

    def _finish_plan(self) -> None:
        lengths = self._lists["context_lengths"]
        width = max(map(self._pages_for, lengths), default=0)
        for sequence, length in zip(self.scheduled, lengths, strict=True):
            pages = sequence.pages[: self._pages_for(length)]
            self._lists["block_table"].append(pages + [0] * (width - len(pages)))
        for name, dtype in _PLAN.items():
            setattr(self, name, np.array(self._lists[name], dtype))
        self.block_table = self.block_table.reshape(len(self.scheduled), width)
        self.copies = self.copies.reshape(-1, 2)

    # ----------------------------------------------------------------------------------- pages

    def _take_page(self) -> int:
        page = self.pool.take()
        self.cache.forget(page)
        return page

    def _release(self, page: int) -> None:
        self.pool.release(page, page in self.cache.keys)

    def _make_writable(self, sequence: _Sequence) -> bool:
        """The page of the next token, owned by this sequence alone. A shared last page is
        copied.
        """
        index = sequence.computed // self.page_tokens
        append = index == len(sequence.pages)
        while append or self.pool.refs[sequence.pages[index]] > 1:
            if not self.pool.free:
                youngest = self.running[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    return False
                continue  # a freed sibling may have left the last page to us
            page = self._take_page()
            if append:
                sequence.pages.append(page)
                return True
            self._lists["copies"].append((sequence.pages[index], page))
            self._release(sequence.pages[index])
            sequence.pages[index] = page
        return True

    def _preempt(self, sequence: _Sequence) -> None:
        """One that only waits for its last token needs no pages any more, and no second turn."""
        self._release_pages(sequence)
        self.running.remove(sequence)
        if not sequence.closed:
            bisect.insort(self.waiting, sequence, key=lambda s: s.order)
            self.preemptions += 1

    def _release_pages(self, sequence: _Sequence) -> None:
        """The last page first: a page is of use only while all pages before it are there."""
        for page in reversed(sequence.pages):
            self._release(page)
        sequence.pages = []
        sequence.computed = sequence.registered = 0

    # ---------------------------------------------------------------------------------- accept

    def accept(self, token_ids: np.ndarray, logprobs: np.ndarray) -> None:
        """What was drawn for the sampling rows of the oldest step in flight: token_ids [N],
        logprobs [N].
        """
        owners = self.in_flight[0] if self.in_flight else []
        if len(token_ids) != len(owners) or len(logprobs) != len(token_ids):
            raise ValueError("accept: wanted one token for each sampling row of the plan")
        self.in_flight, ends, self.ending = self.in_flight[1:], self.ending[:1], self.ending[1:]
        for sequence in ends[0] if ends else ():
            self._finish(sequence, "length", -1)
        drawn = zip(owners, token_ids.tolist(), logprobs.tolist(), strict=True)
        for (sequence, index), token, logprob in drawn:
            if not sequence.finished:
                self._keep(sequence, index, token, logprob)
        self.running = [s for s in self.running if not s.finished]
        self.waiting = [s for s in self.waiting if not s.finished]

    def _fork(self, leader: _Sequence) -> list[_Sequence]:
        """The samples of a finished prompt share all its pages."""
        leader.forked = True
        place = self.running.index(leader)
        samples = [leader]
        for sample in range(1, leader.request.n):
            pages = list(leader.pages)
            for page in pages:
                self.pool.share(page)
            twin = _Sequence(leader.request, list(leader.tokens), sample, True, pages=pages)
            twin.computed, twin.registered = leader.computed, leader.registered
            twin.step = leader.step
            samples.append(twin)
        self.running[place : place + 1] = samples
        return samples

    def _keep(self, sequence: _Sequence, index: int, token: int, logprob: float) -> None:
        """One row of the device. Those of a SCORE request may come twice, after a pre-emption."""
        request = sequence.request
        del sequence.logprobs[index:]
        sequence.logprobs.append(logprob)
        if request.kind == SCORE:
            if len(sequence.logprobs) == len(request.targets):
                self._finish(sequence, "length", -1)
            return
        sequence.tokens[len(request.prompt) + index] = token
        self.generated_tokens += 1
        reason, cut = self._finish_reason(sequence, token)
        if reason:
            del sequence.tokens[len(request.prompt) + index + 1 :]  # the step in flight draws it
            self._finish(sequence, reason, cut)

    def _finish(self, sequence: _Sequence, reason: str, cut: int) -> None:
        request = sequence.request
        self._release_pages(sequence)
        sequence.finished = True
        if request.kind != HIDDEN:
            drawn = sequence.tokens[len(request.prompt) :]
            ids = np.array(request.targets if request.kind == SCORE else drawn, np.int32)
            values = np.array(sequence.logprobs, np.float32)
            request.results[sequence.sample] = (ids, values, reason, cut)
            request.unfinished -= 1
        if request.unfinished == 0:
            self.finished.append(request.id)

    def _finish_reason(self, sequence: _Sequence, token: int) -> tuple[str, int]:
        request, generated = sequence.request, len(sequence.logprobs)
        before = len(sequence.text)
        if request.stops and token < len(self.token_bytes):
            sequence.text += self.token_bytes[token]
        line = request.score_table >= 0 and self._ends_score_line(sequence, token)
        if generated >= request.min_tokens:
            text, stops = sequence.text, request.stops
            found = [text.find(stop, max(0, before + 1 - len(stop))) for stop in stops]
            if any(at >= 0 for at in found):
                return "stop", min(at for at in found if at >= 0)
            if line:
                return "stop", -1
            if token in self.eos_token_ids and not request.ignore_eos:
                return "stop", -1
            if token in request.stop_token_ids:
                return "stop", -1
        full = len(request.prompt) + generated >= self.max_positions
        return ("length" if generated >= request.max_tokens or full else "", -1)

    def _ends_score_line(self, sequence: _Sequence, token: int) -> bool:
        token_maps, maps, start = self.score_tables[sequence.request.score_table]
        state = start if sequence.score_state < 0 else sequence.score_state
        entry = maps[token_maps[token]][state] if token < len(token_maps) else state
        ends = bool(entry & NUMBER_LINE) or (sequence.score_found and bool(entry & ANY_LINE))
        sequence.score_found |= bool(entry >> OUTCOME_SHIFT & OUTCOME_MASK)
        sequence.score_state = entry & STATE_MASK
        return ends

    def take_finished(self) -> list[int]:
        """Requests all of whose samples are done, since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def take_results(self, request_id: int) -> list[tuple[np.ndarray, np.ndarray, str, int]]:
        """(token_ids, logprobs, finish_reason, byte where a stop string began or -1) of each
        sample, once.
        """
        request = self.requests.pop(request_id)
        return [request.results[sample] for sample in range(request.n)]

    def reset(self) -> None:
        """Drop every request and everything cached."""
        for sequence in self.running:
            self._release_pages(sequence)
        self.waiting, self.running, self.scheduled, self.finished = [], [], [], []
        self.in_flight, self.ending = [], []
        self.requests.clear()
        self.cache.clear()
        self._clear_plan()
