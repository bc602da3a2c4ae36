"""The sampler: plan a step, run the model, draw, accept; until nothing is left to do.

A step is the same few calls however many samples run: one to plan, one model forward, one to draw
and one to accept. Nothing in Python runs per token and sequence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.native import available, native
from ..model import Model
from . import scheduler as twin
from .generation import Generation, Progress, Request, Sample
from .packed import PackedDecoder, can_pack
from .paged import LANES, PagedCache, PagedContext, cache_dtype, page_bytes
from .params import SamplingParams
from .sampling import sample
from .token_bytes import decode, token_bytes

# Small pages share more of short prompts: of 400 tiny judge prompts (100 questions, 4 answers each,
# 35 to 61 tokens) pages of 16 compute 8,302 of 18,046 tokens, 32 compute 11,358 and 64 all of them.
# Speed differs by less than its spread (benchmarks/results/bench_sampler_cpu.json).
PAGE_TOKENS = 16
MAX_BATCH_TOKENS = 1024
MAX_SEQUENCES = 256
# A library's matmul gets whole blocks of rows, so that a row's bits do not depend on their number.
ROW_BLOCK = 64
DEFAULT_CPU_KV_BYTES = 2**29
PROGRESS_SECONDS = 0.1

OnFinished = Callable[[Generation], Iterable[Request] | None]


class Sampler:
    """Draws continuations with a model's live weights.

    kv_bytes: budget of the KV pool (default: a quarter of the memory, at most 512 MiB on a CPU).
    max_batch_tokens: rows of one step. page_tokens: tokens of a page, a multiple of 16.
    max_sequences: samples that run at once. The same request gives the same tokens and
    log-probabilities alone, in any batch, in any order. Raises ValueError naming the argument.
    """

    def __init__(
        self,
        model: Model,
        kv_bytes: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        page_tokens: int = PAGE_TOKENS,
        max_sequences: int = MAX_SEQUENCES,
    ) -> None:
        if page_tokens < LANES or page_tokens % LANES:
            raise ValueError(f"page_tokens: {page_tokens}, wanted a multiple of {LANES}")
        if max_batch_tokens < 1 or max_sequences < 1:
            raise ValueError(
                f"max_batch_tokens, max_sequences: {max_batch_tokens}, {max_sequences}, "
                "wanted at least 1"
            )
        self.model, self.page_tokens = model, page_tokens
        self.kv_bytes = default_kv_bytes(model.device) if kv_bytes is None else kv_bytes
        one_page = page_bytes(
            model.local_config, page_tokens, cache_dtype(model.device, model.dtype)
        )
        # More pages than any batch of the longest samples could own would only be clutter.
        most = -(-model.config.max_position_embeddings // page_tokens) * max_sequences
        self.num_pages = min(self.kv_bytes // one_page, most)
        if self.num_pages < 1:
            raise ValueError(f"kv_bytes: {self.kv_bytes}, wanted at least one page of {one_page}")
        kind: Any = native().Scheduler if available() else twin.Scheduler
        self._scheduler = kind(
            num_pages=self.num_pages,
            page_tokens=page_tokens,
            max_batch_tokens=max_batch_tokens,
            max_sequences=max_sequences,
            max_positions=model.config.max_position_embeddings,
            eos_token_ids=list(model.eos_token_ids),
        )
        self._cache: PagedCache | None = None
        self._packed: PackedDecoder | None = None
        self._packed_key: tuple[int, ...] = ()
        self._token_bytes: list[bytes] = []
        self._busy = False

    # ------------------------------------------------------------------------------------ face

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Generations in the order of the prompts.

        prompts: texts, taken as they are (no chat template, the tokenizer's own start token), or
        token ids. params: one for all or one for each. Raises ValueError naming the prompt.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts: a string, wanted a list of strings or of token ids")
        every = (
            params if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        )
        if len(every) != len(prompts):
            raise ValueError(f"params: {len(every)} of them, wanted one or {len(prompts)}")
        ids = [self._encode(p) if isinstance(p, str) else p for p in prompts]
        out: list[Generation | None] = [None] * len(ids)

        def keep(generation: Generation) -> None:
            out[generation.tag] = generation

        self.run((Request(p, q, i) for i, (p, q) in enumerate(zip(ids, every, strict=True))), keep)
        return [g for g in out if g is not None]

    def run(
        self,
        requests: Iterable[Request],
        on_finished: OnFinished | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Continuous batching. `on_finished` is called once per request, when all its samples are
        done, and may return new requests, which join the running batch. `progress` is called at
        most every 0.1 s and at the end.

        Raises ValueError naming the request that cannot be run, FloatingPointError when the model
        gives NaN.
        """
        open_requests: dict[int, Request] = {}
        with self._session():
            report = _Reporter(self._scheduler, progress)
            self._add_all(requests, open_requests, report)
            while self._scheduler.plan():
                self._step()
                for request_id in self._scheduler.take_finished():
                    generation = self._generation(request_id, open_requests.pop(request_id))
                    report.done += 1
                    more = on_finished(generation) if on_finished else None
                    self._add_all(more or (), open_requests, report)
                report.tick()
            report.tick(last=True)

    def hidden_at_end(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The hidden row (after the final norm) of each prompt's last token: [B, D] in the model's
        dtype.
        """
        config = self.model.config
        out = torch.empty(
            len(prompts), config.hidden_size, dtype=self.model.dtype, device=self.model.device
        )
        place: dict[int, int] = {}
        with self._session():
            for i, prompt in enumerate(prompts):
                place[self._add(Request(prompt, SamplingParams(max_tokens=1)), i, n=0)] = i
            while self._scheduler.plan():
                self._step(
                    lambda ids, rows: out.index_copy_(0, _index([place[i] for i in ids], out), rows)
                )
                for request_id in self._scheduler.take_finished():
                    self._scheduler.take_results(request_id)
        return out

    def release(self) -> None:
        """Give the pool's memory and the packed weights back. Cached prefixes are lost."""
        if self._busy:
            raise RuntimeError("release: the sampler is running")
        self._scheduler.reset()
        self._cache = self._packed = None

    def acquire(self) -> None:
        """Take the pool's memory again; `run` does it by itself."""
        if self._cache is None:
            model = self.model
            self._cache = PagedCache(
                model.local_config, self.num_pages, self.page_tokens, model.device, model.dtype
            )

    # ------------------------------------------------------------------------------------ step

    @contextmanager
    def _session(self) -> Any:
        """One run: memory there, weights of now, and nothing left behind if it breaks off."""
        if self._busy:
            raise RuntimeError(
                "the sampler is already running; new requests go through on_finished"
            )
        self._busy = True
        training = self.model.training
        self.model.eval()
        try:
            self.acquire()
            self._scheduler.set_weights_version(self.model.weights_version)
            self._pack()
            with torch.inference_mode():
                yield
        except BaseException:
            # Pages are offered to the prefix cache before they are written, so none can be trusted
            # now.
            self._scheduler.reset()
            raise
        finally:
            self.model.train(training)
            self._busy = False

    def _pack(self) -> None:
        """Pack the weights again if they, or the memory they stand in, have changed."""
        addresses = (p.data_ptr() for p in self.model.parameters())
        key = (self.model.weights_version, *addresses)
        if self._packed is not None and self._packed_key == key:
            return
        assert self._cache is not None
        self._packed = PackedDecoder(self.model, self._cache) if can_pack(self.model) else None
        self._packed_key = key

    def _step(self, on_hidden: Callable[[list[int], Tensor], object] | None = None) -> None:
        plan, device = self._scheduler, self.model.device
        hidden = self._forward()
        if on_hidden and len(plan.hidden_rows):
            rows = torch.from_numpy(plan.hidden_rows).to(device)
            on_hidden(plan.hidden_ids.tolist(), hidden[rows])
        if len(plan.sample_rows) == 0:
            plan.accept(np.empty(0, np.int32), np.empty(0, np.float32))
            return
        token_ids, logprobs = sample(self._logits(hidden), plan)
        if np.isnan(logprobs).any():
            raise FloatingPointError(
                "the model's logits are not finite; its weights may be damaged"
            )
        plan.accept(token_ids, logprobs)

    def _forward(self) -> Tensor:
        """Hidden rows of the planned step: [T, D]; on torch followed by padding."""
        plan, cache, device = self._scheduler, self._cache, self.model.device
        assert cache is not None
        if len(plan.copies):
            cache.copy_pages(torch.tensor(plan.copies, dtype=torch.int64, device=device))
        context = PagedContext(cache, plan)
        if self._packed is not None:
            return self._packed.forward(plan, context)
        token_ids = _whole_blocks(torch.tensor(plan.token_ids)).to(device)
        positions = _whole_blocks(torch.tensor(plan.positions)).to(device)
        return self.model(token_ids, positions, context)

    def _logits(self, hidden: Tensor) -> Tensor:
        """[U, V] for the rows that are sampled from; on torch followed by padding."""
        rows = self._scheduler.logit_rows
        if self._packed is not None:
            return self._packed.logits(hidden, rows)
        wanted = hidden[torch.from_numpy(rows).to(hidden.device)]
        return self.model.logits(_whole_blocks(wanted))

    # -------------------------------------------------------------------------------- requests

    def _add_all(
        self, requests: Iterable[Request], open_requests: dict[int, Request], report: _Reporter
    ) -> None:
        for request in requests:
            request_id = self._add(request, report.total, request.params.n)
            open_requests[request_id] = request
            report.total += 1

    def _add(self, request: Request, index: int, n: int) -> int:
        """Check and queue a request. Raises ValueError naming it by its index."""
        p = request.params
        ids = self._checked(request.prompt_token_ids, index)
        if p.stop:
            self._set_token_bytes()
        numbers = (n, p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty)
        lengths = (p.max_tokens, p.min_tokens, p.ignore_eos)
        seed = p.seed & 0xFFFFFFFFFFFFFFFF
        stops = [s.encode() for s in p.stop]
        in_vocab = [i for i in p.stop_token_ids if i < self.model.config.vocab_size]
        try:
            return self._scheduler.add(ids, *numbers, *lengths, seed, in_vocab, stops)
        except ValueError as error:
            raise ValueError(f"prompts[{index}]: {str(error).removeprefix('prompt: ')}") from None

    def _checked(self, prompt: Sequence[int], index: int) -> np.ndarray:
        config = self.model.config
        ids = np.asarray(prompt)
        if ids.ndim != 1 or not ids.size:
            raise ValueError(f"prompts[{index}]: {ids.size} tokens, wanted at least one")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"prompts[{index}]: {ids.dtype} values, wanted token ids")
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
            raise ValueError(
                f"prompts[{index}]: token {wrong}, wanted ids from 0 to {config.vocab_size - 1}"
            )
        if ids.size > config.max_position_embeddings:
            raise ValueError(
                f"prompts[{index}]: {ids.size} tokens, wanted at most the model's "
                f"{config.max_position_embeddings} positions"
            )
        return ids.astype(np.int32)

    def _encode(self, prompt: str) -> list[int]:
        if self.model.tokenizer is None:
            raise ValueError("prompts: text, but the model has no tokenizer; wanted token ids")
        return self.model.tokenizer(prompt)["input_ids"]

    def _set_token_bytes(self) -> None:
        if self._token_bytes:
            return
        if self.model.tokenizer is None:
            raise ValueError("stop: strings, but the model has no tokenizer; wanted stop_token_ids")
        self._token_bytes = token_bytes(self.model.tokenizer)
        self._scheduler.set_token_bytes(self._token_bytes)

    def _generation(self, request_id: int, request: Request) -> Generation:
        results = self._scheduler.take_results(request_id)
        samples = [self._sample(request.params, *result) for result in results]
        return Generation([int(t) for t in request.prompt_token_ids], samples, request.tag)

    def _sample(
        self, params: SamplingParams, ids: np.ndarray, logprobs: np.ndarray, reason: str, cut: int
    ) -> Sample:
        token_ids = ids.tolist()
        text = self._text(token_ids, params, reason, cut) if self.model.tokenizer else ""
        values = logprobs.tolist() if params.logprobs else None
        return Sample(token_ids, text, float(logprobs.sum(dtype=np.float64)), values, reason)

    def _text(self, token_ids: list[int], params: SamplingParams, reason: str, cut: int) -> str:
        if cut < 0:
            ended = reason == "stop" and token_ids[-1] in params.stop_token_ids
            return decode(self.model.tokenizer, token_ids[:-1] if ended else token_ids)
        text = b"".join(self._token_bytes[i] for i in token_ids)[:cut].decode(errors="replace")
        whole = decode(self.model.tokenizer, token_ids)  # SentencePiece drops an opening space
        return text if whole.startswith(" ") else text.removeprefix(" ")


class _Reporter:
    """Counts of one run, and the clock of its progress callback."""

    def __init__(self, scheduler: Any, progress: Callable[[Progress], None] | None) -> None:
        self.scheduler, self.progress = scheduler, progress
        self.done = self.total = 0
        self.start = self.last = time.perf_counter()
        self.before = self._counts()

    def _counts(self) -> tuple[int, int, int]:
        s = self.scheduler
        return s.generated_tokens, s.prefill_tokens, s.cached_tokens

    def tick(self, last: bool = False) -> None:
        now = time.perf_counter()
        if self.progress is None or not (last or now - self.last >= PROGRESS_SECONDS):
            return
        self.last = now
        made, computed, cached = (a - b for a, b in zip(self._counts(), self.before, strict=True))
        self.progress(Progress(self.done, self.total, made, computed, cached, now - self.start))


def default_kv_bytes(device: torch.device) -> int:
    """A quarter of the memory there is, on a CPU at most 512 MiB: a stated budget, not what
    happens to be free now.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(memory // 4, DEFAULT_CPU_KV_BYTES)


def _index(places: list[int], like: Tensor) -> Tensor:
    return torch.tensor(places, dtype=torch.int64, device=like.device)


def _whole_blocks(x: Tensor) -> Tensor:
    """x [T, ...] filled with zeros up to whole blocks of rows."""
    missing = -len(x) % ROW_BLOCK
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x
