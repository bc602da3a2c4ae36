"""llama.cpp through llama-cpp-python's low-level interface: 64 sequences at once.

All sequences lie in one buffer (kv_unified), so that copying a prompt shares its memory; with a
buffer for each it took a third more processor time on `tiny candidates` in fp32 (version 0.3.36).
Its flash attention costs a third to a half of the speed on a CPU and is off. A prompt is computed
once and copied to the sequences of its samples (seq_cp), a head that all prompts share too. As soon
as sequences are done the next prompts take their place. Sampler chain: temperature, top-p, draw.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as ll

from benchmarks.gguf_file import write_gguf
from benchmarks.sampler_engine import Engine, Prompts, Turn
from benchmarks.sampler_models import TEMPERATURE, TOP_P
from benchmarks.sampler_work import Work
from srlm_fast.model import Model

PARALLEL, BATCH_TOKENS = 64, 2048


class LlamaCpp(Engine):
    """The weights in the model's dtype, keys and values in llama.cpp's own, f16."""

    def __init__(self, model: Model, work: Work, threads: int, unified: bool = True) -> None:
        _silence()
        ll.llama_backend_init()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            write_gguf(model, path)
            settings = ll.llama_model_default_params()
            settings.use_mmap = False  # the file goes
            self.model = ll.llama_model_load_from_file(str(path).encode(), settings)
        if not self.model:
            raise RuntimeError("llama.cpp cannot load the model")
        self.vocab_size = model.config.vocab_size
        self.threads, self.unified = threads, unified
        longest = max(map(sum, zip(work.lengths, work.new, strict=True)))
        self.context = self._context(longest + 1, min(PARALLEL, max(work.samples, work.n)))
        self.batch = ll.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.chain = _chain(
            ll.llama_sampler_init_temp(TEMPERATURE),
            ll.llama_sampler_init_top_p(TOP_P, 1),
            ll.llama_sampler_init_dist(0),
        )
        self.greedy_chain = _chain(ll.llama_sampler_init_greedy())
        self.settings = f"{self.parallel} parallel, FA off, kv_unified={unified}"

    def _context(self, longest: int, parallel: int) -> Any:
        self.parallel = parallel
        settings = ll.llama_context_default_params()
        settings.n_seq_max = parallel + 1  # the last holds the shared head
        settings.n_ctx = -(-longest // 256) * 256 * (parallel + 1)  # split up if not unified
        settings.n_batch = BATCH_TOKENS
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.kv_unified = self.unified
        context = ll.llama_init_from_model(self.model, settings)
        if not context:
            raise RuntimeError("llama.cpp cannot make a context")
        return context

    def greedy(self, prompts: Prompts, new: int) -> tuple[list[list[int]], None]:
        work = Work("greedy", tuple(map(len, prompts)), 1, (new,) * len(prompts))
        return [samples[0] for samples in self._run(prompts, work, self.greedy_chain)[0]], None

    def turn(self, prompts: Prompts, work: Work, limit: float | None = None) -> Turn:
        begin = time.perf_counter()
        out, first = self._run(prompts, work, self.chain)
        seconds = time.perf_counter() - begin
        return Turn(sum(len(s) for samples in out for s in samples), seconds, first=first)

    def close(self) -> None:
        ll.llama_batch_free(self.batch)
        for chain in (self.chain, self.greedy_chain):
            ll.llama_sampler_free(chain)
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def _run(self, prompts: Prompts, work: Work, chain: Any) -> tuple[list[list[list[int]]], float]:
        """Tokens of each sample of each prompt; seconds spent on prompts."""
        memory = ll.llama_get_memory(self.context)
        ll.llama_memory_clear(memory, True)
        out: list[list[list[int]]] = [[[] for _ in range(work.n)] for _ in prompts]
        running: dict[int, _Slot] = {}
        free, waiting, spent = list(range(self.parallel)), list(range(len(prompts))), 0.0
        if work.shared:
            begin = time.perf_counter()
            self._feed([(prompts[0][: work.shared], 0, self.parallel)], want=False)
            spent += time.perf_counter() - begin
        while waiting or running:
            begin, admitted = time.perf_counter(), len(running)
            self._admit(prompts, work, chain, memory, out, running, free, waiting)
            spent += (time.perf_counter() - begin) if len(running) > admitted else 0.0
            self._step(chain, memory, running, free)
        return out, spent

    def _admit(
        self,
        prompts: Prompts,
        work: Work,
        chain: Any,
        memory: Any,
        out: list[list[list[int]]],
        running: dict[int, _Slot],
        free: list[int],
        waiting: list[int],
    ) -> None:
        """As many prompts as there are sequences for, in batches of BATCH_TOKENS."""
        while waiting and len(free) >= work.n:
            group: list[tuple[int, list[int]]] = []
            feeds: list[tuple[Sequence[int], int, int]] = []
            tokens = 0
            while waiting and len(free) >= work.n:
                rest = prompts[waiting[0]][work.shared :]
                if group and tokens + len(rest) > BATCH_TOKENS:
                    break
                slots = [free.pop() for _ in range(work.n)]
                if work.shared:
                    ll.llama_memory_seq_cp(memory, self.parallel, slots[0], -1, -1)
                feeds.append((rest, work.shared, slots[0]))
                group.append((waiting.pop(0), slots))
                tokens += len(rest)
            ends = self._feed(feeds, want=True)
            for (prompt, slots), end in zip(group, ends, strict=True):
                for sample, slot in enumerate(slots):
                    if sample:
                        ll.llama_memory_seq_cp(memory, slots[0], slot, -1, -1)
                    place = len(prompts[prompt])
                    running[slot] = _Slot(out[prompt][sample], place, work.new[prompt])
                    running[slot].take(ll.llama_sampler_sample(chain, self.context, end))
            self._retire(memory, running, free)

    def _step(self, chain: Any, memory: Any, running: dict[int, _Slot], free: list[int]) -> None:
        """One token for each running sequence."""
        if not running:
            return
        for row, (slot, state) in enumerate(running.items()):
            self._put(row, state.last, state.place - 1, slot, True)
        self._decode(len(running))
        for row, state in enumerate(running.values()):
            state.take(ll.llama_sampler_sample(chain, self.context, row))
        self._retire(memory, running, free)

    def _retire(self, memory: Any, running: dict[int, _Slot], free: list[int]) -> None:
        for slot in [slot for slot, state in running.items() if state.done]:
            del running[slot]
            ll.llama_memory_seq_rm(memory, slot, -1, -1)
            free.append(slot)

    def _feed(self, feeds: Sequence[tuple[Sequence[int], int, int]], want: bool) -> list[int]:
        """Tokens from a position on into sequences; rows of their last logits."""
        row, ends = 0, []
        for tokens, start, slot in feeds:
            for offset, token in enumerate(tokens):
                last = want and offset == len(tokens) - 1
                self._put(row, token, start + offset, slot, last)
                row += 1
            ends.append(row - 1)
        self._decode(row)
        return ends

    def _put(self, row: int, token: int, position: int, slot: int, want: bool) -> None:
        batch = self.batch
        batch.token[row], batch.pos[row] = token, position
        batch.n_seq_id[row], batch.seq_id[row][0] = 1, slot
        batch.logits[row] = want

    def _decode(self, rows: int) -> None:
        self.batch.n_tokens = rows
        if status := ll.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode: {status}")


class _Slot:
    """A running sample."""

    def __init__(self, tokens: list[int], place: int, new: int) -> None:
        self.tokens, self.place, self.new = tokens, place, new

    @property
    def last(self) -> int:
        return self.tokens[-1]

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.new

    def take(self, token: int) -> None:
        self.tokens.append(token)
        self.place += 1


def _chain(*samplers: Any) -> Any:
    chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
    for sampler in samplers:
        ll.llama_sampler_chain_add(chain, sampler)
    return chain


@ll.llama_log_callback
def _drop(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """What llama.cpp would print."""


def _silence() -> None:
    ll.llama_log_set(_drop, ctypes.c_void_p(0))
