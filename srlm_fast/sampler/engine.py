"""The sampler: plan a step, launch it, accept what was drawn; until nothing is left to do.

A step is the same few calls however many samples run. Nothing in Python runs per token and
sequence. On a GPU a step is planned and launched while the one before it still runs.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import jit
from ..kernels.judge_score import ScoreTable
from ..kernels.native import available, native
from ..kernels.paged_attention import flash_attn
from ..model import Fp8Linear, Model
from . import scheduler as twin
from .executor import Executor, OnHidden
from .generation import Generation, Held, Progress, Request, Sample, Statistics
from .graph_executor import GraphExecutor
from .masks import Masks
from .paged import LANES, PagedCache, cache_dtype, page_bytes
from .paged_triton import TritonCache, triton_page_bytes
from .params import SamplingParams
from .token_bytes import decode, token_bytes

# Of a CPU. Small pages share more of short prompts: of 400 tiny judge prompts (100 questions, 4
# answers each, 35 to 61 tokens) pages of 16 compute 8,302 of 18,046 tokens, 32 compute 11,358 and
# 64 all of them. Speed differs by less than its spread (docs/decisions.md).
PAGE_TOKENS = 16
MAX_BATCH_TOKENS = 1024
# Of a GPU: a page of one head is 16 KiB in a row, and a step of a prompt fills the matmuls.
GPU_PAGE_TOKENS = 64
GPU_MAX_BATCH_TOKENS = 8192
MAX_SEQUENCES = 256
DEFAULT_CPU_KV_BYTES = 2**29
PROGRESS_SECONDS = 0.1

OnFinished = Callable[[Generation], Iterable[Request] | None]


class Sampler:
    """Draws continuations with a model's live weights.

    kv_bytes: budget of the KV pool (default: a quarter of the memory, at most 512 MiB on a CPU).
    max_batch_tokens: rows of one step (default 1,024, on a GPU 8,192). page_tokens: tokens of a
    page, a multiple of 16 (default 16, on a GPU 64). max_sequences: samples that run at once.
    deterministic: the same request gives the same tokens and log-probabilities alone, in any
    batch, in any order, after a pre-emption, with or without a prefix hit; always so on a CPU, on
    a GPU where asked for. kv_dtype: of the pool on a GPU, "fp8" or None for the model's own.
    attention: on a GPU "triton", or "flash" for flash-attn, which wants pages of a multiple of 256
    tokens and has no deterministic mode. Raises ValueError naming the argument.
    """

    def __init__(
        self,
        model: Model,
        kv_bytes: int | None = None,
        max_batch_tokens: int | None = None,
        page_tokens: int | None = None,
        max_sequences: int = MAX_SEQUENCES,
        deterministic: bool | None = None,
        kv_dtype: str | None = None,
        attention: str = "triton",
    ) -> None:
        self.model, on_gpu = model, jit.runs_triton(model.embed.weight)
        self._on_gpu = on_gpu
        if page_tokens is None:
            page_tokens = GPU_PAGE_TOKENS if on_gpu else PAGE_TOKENS
        if max_batch_tokens is None:
            max_batch_tokens = GPU_MAX_BATCH_TOKENS if on_gpu else MAX_BATCH_TOKENS
        _check_sizes(page_tokens, max_batch_tokens, max_sequences)
        self.deterministic = _checked_deterministic(deterministic, model.device)
        self.page_tokens, self.kv_dtype = page_tokens, _checked_kv_dtype(kv_dtype, on_gpu)
        self.attention = _checked_attention(attention, on_gpu, page_tokens, self.deterministic)
        self.max_batch_tokens, self.max_sequences = max_batch_tokens, max_sequences
        on_cuda = model.device.type == "cuda"
        if (
            self.deterministic
            and on_cuda
            and any(isinstance(m, Fp8Linear) for m in model.modules())
        ):
            raise ValueError("deterministic: True, wanted False; an fp8 matmul depends on its rows")
        if self.deterministic and on_gpu and model.parallel is not None:
            raise ValueError(
                "deterministic: True, wanted False; sums over ranks on a GPU depend on size"
            )
        self.kv_bytes = default_kv_bytes(model.device) if kv_bytes is None else kv_bytes
        one_page = self._page_bytes()
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
        self._cache: Any = None
        self._executor: Any = None
        self._executor_key: tuple[int, ...] = ()
        self._masks = Masks(model.config.vocab_size, model.device)
        self._token_bytes: list[bytes] = []
        self._score_tables: dict[ScoreTable, int] = {}
        self._busy = False
        self._steps, self._seconds, self._wait_seconds, self._device_seconds = 0, 0.0, 0.0, 0.0
        self._captures, self._capture_seconds = 0, 0.0

    def _page_bytes(self) -> int:
        config, tokens = self.model.local_config, self.page_tokens
        if self._on_gpu:
            return triton_page_bytes(config, tokens, self.model.dtype, self.kv_dtype)
        return page_bytes(config, tokens, cache_dtype(self.model.device, self.model.dtype))

    # ------------------------------------------------------------------------------------ face

    def generate(
        self,
        prompts: Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Generation]:
        """Generations in the order of the prompts.

        prompts: texts, taken as they are (no chat template; the tokenizer's own start token, where
        the text does not begin with it), or token ids. Equal prompts with equal params give equal
        samples. params: one for all or one for each. progress: as `run`. Raises ValueError naming
        the prompt.
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

        requests = [Request(p, q, i) for i, (p, q) in enumerate(zip(ids, every, strict=True))]
        self.run(requests, keep, progress)
        return [g for g in out if g is not None]

    def run(
        self,
        requests: Iterable[Request],
        on_finished: OnFinished | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        """Continuous batching. `on_finished` is called once per request, when all its samples (or
        its hidden row) are there, and may return new requests, which join the running batch.
        `progress` is called at most every 0.1 s and at the end.

        Raises ValueError naming the request that cannot be run (one of `on_finished` after all
        others have been finished), FloatingPointError when the model gives NaN.
        """
        open_requests: dict[int, Request] = {}
        rows: dict[int, Tensor] = {}  # of hidden requests

        def keep(ids: list[int], positions: list[int], found: Tensor) -> None:
            rows.update(zip(ids, found.to(self.model.dtype), strict=True))

        with self._session():
            report = _Reporter(self._scheduler, progress)
            self._add_all(requests, open_requests, report)
            refused: ValueError | None = None
            for _ in self._run_steps(keep):
                for request_id in self._scheduler.take_finished():
                    request, row = open_requests.pop(request_id), rows.pop(request_id, None)
                    generation = self._generation(request_id, request, row)
                    report.done += 1
                    more = on_finished(generation) if on_finished else None
                    try:
                        self._add_all(more or (), open_requests, report)
                    except ValueError as error:  # the others go on to their end
                        refused = refused or error
                report.tick()
            report.tick(last=True)
        if refused is not None:
            raise refused

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Raw log-probabilities at temperature 1, in nats, of each continuation's tokens behind its
        prompt. They are those that sampling the same tokens gives: bit for bit in the
        deterministic mode. Raises ValueError naming the prompt.
        """
        if len(prompts) != len(continuations):
            raise ValueError(
                f"continuations: {len(continuations)} of them, wanted {len(prompts)} as prompts"
            )
        out: list[list[float]] = [[] for _ in prompts]
        place: dict[int, int] = {}
        with self._session():
            for i, (prompt, more) in enumerate(zip(prompts, continuations, strict=True)):
                before = self._checked(prompt, i)
                if len(more):
                    # The last token is scored, but never enters the model.
                    ids = np.concatenate((before, self._checked(more, i, "continuations")))
                    place[self._add_read(ids, i, len(before) - 1, twin.SCORE)] = i
            for _ in self._run_steps():
                for request_id in self._scheduler.take_finished():
                    ((_, logprobs, *_),) = self._scheduler.take_results(request_id)
                    out[place[request_id]] = logprobs.tolist()
        return out

    def hidden_at(
        self, prompts: Sequence[Sequence[int]], positions: Sequence[int] | None = None
    ) -> Tensor:
        """The hidden row (after the final norm) of one token of each prompt, the last unless
        `positions` says which: [B, D] in the model's dtype. Raises ValueError naming the prompt.
        """
        model, last = self.model, [len(prompt) - 1 for prompt in prompts]
        out = torch.empty(
            len(prompts), model.config.hidden_size, dtype=model.dtype, device=model.device
        )
        place: dict[int, int] = {}

        def keep(ids: list[int], positions: list[int], rows: Tensor) -> None:
            index = torch.tensor([place[i] for i in ids], dtype=torch.int64, device=out.device)
            out.index_copy_(0, index, rows.to(out.dtype))

        places = last if positions is None else [int(at) for at in positions]
        if len(places) != len(prompts):
            raise ValueError(f"positions: {len(places)} of them, wanted {len(prompts)} as prompts")
        with self._session():
            for i, (prompt, at) in enumerate(zip(prompts, places, strict=True)):
                ids = self._checked(prompt, i)
                if not 0 <= at <= last[i]:
                    raise ValueError(f"positions[{i}]: {at}, wanted 0 to {last[i]}")
                ids = ids[: at + 1]  # rows behind it do not reach it
                place[self._add_read(ids, i, at, twin.HIDDEN)] = i
            for _ in self._run_steps(keep):
                for request_id in self._scheduler.take_finished():
                    self._scheduler.take_results(request_id)
        return out

    @property
    def statistics(self) -> Statistics:
        """Counts of everything since the sampler was made."""
        s = self._scheduler
        return Statistics(
            self._steps,
            s.prefill_tokens,
            s.cached_tokens,
            s.generated_tokens,
            s.preemptions,
            self._seconds - self._wait_seconds,
            self._wait_seconds,
            self._device_seconds + (getattr(self._executor, "device_seconds", 0.0) or 0.0),
            self._captures + getattr(self._executor, "captures", 0),
            self._capture_seconds + getattr(self._executor, "capture_seconds", 0.0),
        )

    @property
    def memory(self) -> Held:
        """What is held now; nothing after `release`."""
        packed = getattr(self._executor, "packed", None)
        pools = () if self._cache is None else (self._cache.keys, self._cache.values)
        kv_bytes = sum(pool.nbytes for pool in pools)
        return Held(kv_bytes, 0 if packed is None else packed.nbytes)

    @property
    def longest(self) -> int:
        """Tokens of prompt and sample that fit: the model's context, or the pool if it is less."""
        pool = self.num_pages * self.page_tokens
        return min(self.model.config.max_position_embeddings, pool)

    def release(self) -> None:
        """Give the pool's memory, captured graphs and packed weights back. Cached prefixes are
        lost.
        """
        if self._busy:
            raise RuntimeError("release: the sampler is running")
        self._scheduler.reset()
        self._drop_executor()
        self._cache = None

    def acquire(self) -> None:
        """Take the pool's memory again; `run` does it by itself."""
        if self._cache is not None:
            return
        model, config = self.model, self.model.local_config
        shape = (config, self.num_pages, self.page_tokens, model.device, model.dtype)
        self._cache = TritonCache(*shape, self.kv_dtype) if self._on_gpu else PagedCache(*shape)

    # ----------------------------------------------------------------------------------- steps

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
            _check_whole(self.model)
            self.acquire()
            self._scheduler.set_weights_version(self._weights_version())
            self._masks.start()
            self._prepare()
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

    def _prepare(self) -> None:
        """A new executor if the memory that the weights stand in has changed, or what it made of
        them is of another version.
        """
        local = (getattr(p, "_local_tensor", p) for p in self.model.parameters())  # of DTensors
        addresses = tuple(p.data_ptr() for p in local)
        version = 0 if self._on_gpu else self._weights_version()  # graphs read weights in place
        if self._executor is not None and self._executor_key == (version, *addresses):
            return
        self._drop_executor()  # first the old one's memory, then the new one's
        if self._on_gpu:
            sizes = (self.max_sequences, self.max_batch_tokens)
            how = (self.deterministic, self.attention)
            self._executor = GraphExecutor(self.model, self._cache, *sizes, *how)
        else:
            self._executor = Executor(self.model, self._cache)
        self._executor_key = (version, *addresses)

    def _weights_version(self) -> int:
        """Moves with `touch`, and with every change in place that autograd counts."""
        changes = sum(p._version for p in self.model.parameters() if not p.is_inference())
        return (self.model.weights_version << 40) + changes

    def _drop_executor(self) -> None:
        self._device_seconds += getattr(self._executor, "device_seconds", 0.0) or 0.0
        self._captures += getattr(self._executor, "captures", 0)
        self._capture_seconds += getattr(self._executor, "capture_seconds", 0.0)
        self._executor = None

    def _run_steps(self, on_hidden: OnHidden | None = None) -> Iterator[None]:
        """Plan, launch and accept until nothing is left; stops after each accepted step."""
        plan, executor, in_flight = self._scheduler, self._executor, deque[Any]()
        start = time.perf_counter()
        while True:
            planned = plan.plan()
            if not planned and not in_flight:
                if plan.num_running + plan.num_waiting:
                    raise RuntimeError("the scheduler stopped before its requests were done")
                return
            if planned:
                self._steps += 1
                before = time.perf_counter()
                in_flight.append(executor.launch(plan, self._masks.tensor, on_hidden))
                if executor.ahead == 0:  # the launch was the work
                    self._wait_seconds += time.perf_counter() - before
            if len(in_flight) > executor.ahead or not planned:
                before = time.perf_counter()
                drawn = executor.collect(in_flight.popleft())
                self._wait_seconds += time.perf_counter() - before
                self._accept(*drawn)
                yield
            self._seconds += time.perf_counter() - start
            start = time.perf_counter()

    def _accept(self, token_ids: np.ndarray, logprobs: np.ndarray) -> None:
        if np.isnan(logprobs).any():
            raise FloatingPointError(
                "the model's logits are not finite, or no token was allowed; its weights may be "
                "damaged"
            )
        self._scheduler.accept(token_ids, logprobs)

    # -------------------------------------------------------------------------------- requests

    def _add_all(
        self, requests: Iterable[Request], open_requests: dict[int, Request], report: _Reporter
    ) -> None:
        for request in requests:
            request_id = self._add(request, report.total)
            open_requests[request_id] = request
            report.total += 1

    def _add(self, request: Request, index: int) -> int:
        """Check and queue a request. Raises ValueError naming it by its index."""
        p = request.params
        ids = self._checked(request.prompt_token_ids, index)
        if p is None:
            return self._add_read(ids, index, len(ids) - 1, twin.HIDDEN)
        stop_ids, stops = self._stops(p)
        endings = set(stop_ids) | (set() if p.ignore_eos else set(self.model.eos_token_ids))
        if p.min_tokens and p.allowed_token_ids and endings.issuperset(p.allowed_token_ids):
            raise ValueError(
                f"prompts[{index}]: allowed_token_ids {[*p.allowed_token_ids]} all end samples, "
                f"and min_tokens is {p.min_tokens}; wanted one that does not"
            )
        numbers = (p.n, p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty)
        lengths = (p.max_tokens, p.min_tokens, p.ignore_eos)
        table = self._score_table(p.stop_score_line)
        seed, mask = p.seed & 0xFFFFFFFFFFFFFFFF, self._masks.index(tuple(p.allowed_token_ids))
        try:
            return self._scheduler.add(
                ids, *numbers, *lengths, seed, stop_ids, stops, mask, -1, twin.SAMPLE, table
            )
        except ValueError as error:
            raise ValueError(f"prompts[{index}]: {str(error).removeprefix('prompt: ')}") from None

    def _add_read(self, ids: np.ndarray, index: int, read_from: int, kind: int) -> int:
        """Queue a request that reads its own rows. Raises ValueError naming it by its index."""
        if len(ids) - (kind == twin.SCORE) > self.model.config.max_position_embeddings:
            self._checked(ids, index)
        greedy = (0.0, 0, 1.0, 0.0, 1.0)
        try:
            return self._scheduler.add(
                ids, int(kind == twin.SCORE), *greedy, 1, 0, True, 0, [], [], -1, read_from, kind
            )
        except ValueError as error:
            raise ValueError(f"prompts[{index}]: {str(error).removeprefix('prompt: ')}") from None

    def _checked(self, prompt: Any, index: int, name: str = "prompts") -> np.ndarray:
        config = self.model.config
        ids = np.asarray(prompt)
        if ids.ndim != 1 or not ids.size:
            raise ValueError(f"{name}[{index}]: {ids.size} tokens, wanted at least one")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{name}[{index}]: {ids.dtype} values, wanted token ids")
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
            raise ValueError(
                f"{name}[{index}]: token {wrong}, wanted ids from 0 to {config.vocab_size - 1}"
            )
        if ids.size > config.max_position_embeddings:
            raise ValueError(
                f"{name}[{index}]: {ids.size} tokens, wanted at most the model's "
                f"{config.max_position_embeddings} positions"
            )
        return ids.astype(np.int32)

    def _encode(self, prompt: str) -> list[int]:
        if self.model.tokenizer is None:
            raise ValueError("prompts: text, but the model has no tokenizer; wanted token ids")
        start = self.model.tokenizer.bos_token  # a rendered chat template brings its own
        more = not (start and prompt.startswith(start))
        return self.model.tokenizer(prompt, add_special_tokens=more)["input_ids"]

    def _stops(self, params: SamplingParams) -> tuple[list[int], list[bytes]]:
        """Stop ids and stop strings. A special token adds no text: its string means its id."""
        ids = [i for i in params.stop_token_ids if i < self.model.config.vocab_size]
        if not params.stop:
            return ids, []
        self._set_token_bytes()
        special = {t.content: i for i, t in self.model.tokenizer.added_tokens_decoder.items()}
        named = {s: i for s, i in special.items() if not self._token_bytes[i]}
        ids += [named[s] for s in params.stop if s in named]
        return ids, [s.encode() for s in params.stop if s not in named]

    def _score_table(self, table: ScoreTable | None) -> int:
        """The scheduler's number of a table, which is given to it once."""
        if table is None:
            return -1
        if table not in self._score_tables:
            arrays = (table.token_maps.numpy(), table.maps.numpy())
            self._score_tables[table] = self._scheduler.add_score_table(*arrays, table.start)
        return self._score_tables[table]

    def _set_token_bytes(self) -> None:
        if self._token_bytes:
            return
        if self.model.tokenizer is None:
            raise ValueError("stop: strings, but the model has no tokenizer; wanted stop_token_ids")
        table = token_bytes(self.model.tokenizer)
        # Ids that fill the vocabulary up to a round number have no text.
        self._token_bytes = table + [b""] * (self.model.config.vocab_size - len(table))
        self._scheduler.set_token_bytes(self._token_bytes)

    def _generation(self, request_id: int, request: Request, row: Tensor | None) -> Generation:
        results, params = self._scheduler.take_results(request_id), request.params
        samples = [] if params is None else [self._sample(params, *result) for result in results]
        return Generation([int(t) for t in request.prompt_token_ids], samples, request.tag, row)

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


def _check_sizes(page_tokens: int, max_batch_tokens: int, max_sequences: int) -> None:
    if page_tokens < LANES or page_tokens % LANES:
        raise ValueError(f"page_tokens: {page_tokens}, wanted a multiple of {LANES}")
    if max_batch_tokens < 1 or max_sequences < 1:
        raise ValueError(
            f"max_batch_tokens, max_sequences: {max_batch_tokens}, {max_sequences}, "
            "wanted at least 1"
        )


def _check_whole(model: Model) -> None:
    """Refuse weights that every forward would have to gather: ranks take different steps."""
    for name, p in model.named_parameters():
        mesh = getattr(p, "device_mesh", None)
        if mesh is not None and (model.parallel is None or mesh.ndim > 1):
            raise ValueError(
                f"model: {name} is sharded over data ranks; wanted whole weights, as inside "
                "`with dist.unsharded(model)`"
            )


def _checked_deterministic(deterministic: bool | None, device: torch.device) -> bool:
    if deterministic is None:
        return device.type == "cpu"
    if not deterministic and device.type == "cpu":
        raise ValueError("deterministic: False, wanted True or None; a CPU has no other mode")
    return deterministic


def _checked_attention(attention: str, on_gpu: bool, page_tokens: int, deterministic: bool) -> str:
    if attention not in ("triton", "flash"):
        raise ValueError(f'attention: {attention!r}, wanted "triton" or "flash"')
    if attention == "flash" and flash_attn() is None:
        raise ValueError("attention: 'flash', wanted 'triton'; flash-attn cannot be imported")
    if attention == "flash" and (not on_gpu or page_tokens % 256 or deterministic):
        raise ValueError(
            f"attention: 'flash', pages of {page_tokens} tokens, deterministic {deterministic}; "
            "wanted a GPU, pages of a multiple of 256 tokens, and deterministic False"
        )
    return attention


def _checked_kv_dtype(kv_dtype: str | None, on_gpu: bool) -> str | None:
    if kv_dtype not in (None, "fp8"):
        raise ValueError(f'kv_dtype: {kv_dtype!r}, wanted None or "fp8"')
    if kv_dtype and not on_gpu:
        raise ValueError(f"kv_dtype: {kv_dtype!r}, wanted None; fp8 pages need a GPU")
    return kv_dtype
