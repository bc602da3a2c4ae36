"""New prompts by the model itself: shown a few tasks, it goes on with another (arXiv 2401.10020,
2212.10560).

The work is a row of requests. Request i shows demonstrations drawn by (seed, i) from the seed
prompts and from what the batches before its own brought; its output is taken in the order of i. So
the prompts depend on the seed alone, not on which request finishes first or where a run was broken
off.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from srlm_fast.data.made_text import is_refusal, split_output
from srlm_fast.data.nearness import Nearness
from srlm_fast.data.rouge import word_pairs, words
from srlm_fast.records import Prompt

# What a text model cannot work with: Self-Instruct's list (2212.10560), then Alpaca's additions,
# then ours.
KEYWORDS = (
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps"),
    *("draw", "plot", "go to"),
    *("video", "audio", "music", "flowchart", "diagram"),
    *("photo", "photos"),
)
REASONS = (
    *("truncated", "empty", "surplus", "refusal", "malformed", "too_short", "too_long"),
    *("keyword", "held_out", "duplicate", "near_duplicate", "similar"),
)
CLOSING = tuple(".,;:!?)]}>%…")  # a prompt that starts with one of these lacks its beginning

# (request index, text to go on from) of each request -> what the model wrote; None where the token
# limit cut it.
Generate = Callable[[list[tuple[int, str]]], Sequence[str | None]]
Exclude = Iterable[str] | Callable[[str], bool]


@dataclass(frozen=True)
class PromptConfig:
    """How prompts are asked for and which are kept.

    header, item, tail: the request is header, one item per demonstration, tail. `{n}` is the number
    of a task, from 1; `{prompt}` its text, in `item` alone.
    seed_shots, made_shots: demonstrations from the seeds and from earlier self-made prompts; as
    long as there are too few of the latter, seeds stand in.
    batch_requests: requests per call of `generate`. per_request: prompts taken at most from one
    output.
    requests_per_prompt: how many requests are made in all, per prompt wanted, before giving up.
    min_words, max_words, keywords: filters. similarity: ROUGE-L F-measure from which on a prompt is
    too much like one of the pool. near_duplicate: F-measure of word pairs (ROUGE-2, numbers written
    alike) from which on it says the same, though ROUGE-L misses it, as where clauses have changed
    places; 0: any.
    chat_tail: stands in for `tail` where a chat model is asked in a turn; empty where none is.
    """

    header: str = "Come up with a series of tasks:\n\n"
    item: str = "Task {n}: {prompt}\n"
    tail: str = "Task {n}:"
    chat_tail: str = "Write task {n}, unlike these. Give the task alone, without an answer."
    seed_shots: int = 6
    made_shots: int = 2
    batch_requests: int = 64
    per_request: int = 1
    requests_per_prompt: int = 10
    min_words: int = 3
    max_words: int = 150
    keywords: tuple[str, ...] = KEYWORDS
    similarity: float = 0.7
    near_duplicate: float = 0.8

    def __post_init__(self) -> None:
        if "{prompt}" not in self.item:
            raise ValueError(f"item: {self.item!r}, wanted a text with {{prompt}}")
        for name in ("seed_shots", "batch_requests", "per_request", "requests_per_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, wanted at least 1")


@dataclass(frozen=True)
class Progress:
    """What has been done: requests whose outputs were taken, rejected prompts by reason."""

    requests: int = 0
    rejects: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MadePrompts:
    """The accepted prompts in order, fewer than asked for where the model ran dry, and the final
    account."""

    prompts: list[Prompt]
    progress: Progress


OnBatch = Callable[[list[Prompt], Progress], None]


def make_prompts(
    generate: Generate,
    seed_prompts: Sequence[str],
    count: int,
    config: PromptConfig,
    seed: int = 0,
    exclude: Exclude = (),
    *,
    pool: Iterable[str] = (),
    accepted: Sequence[Prompt] = (),
    progress: Progress | None = None,
    on_batch: OnBatch | None = None,
) -> MadePrompts:
    """Make `count` new prompts.

    generate: gets the requests of one batch; its results must depend on each request alone. The
    index is there to key the sampling noise. exclude: held-out prompts, which no new one may equal
    but for case and white space, or a test for them. pool: further texts that new prompts must
    differ from, besides the seeds.
    on_batch: called with the new prompts of each batch and the account so far, to be written down
    together.
    accepted, progress: what was written down, to go on from there; rows beyond `progress` are made
    again alike and are not handed to on_batch a second time. Without `progress` the batch of the
    last row is done again.
    Raises ValueError for no seed prompts, or a number of outputs other than that of the requests.
    """
    if not seed_prompts:
        raise ValueError("seed_prompts: none, wanted at least one")
    done = progress or Progress(_batch_start(accepted, config.batch_requests))
    maker = _Maker(config, seed, list(seed_prompts), exclude, pool)
    maker.restore(accepted, done)
    limit = count * config.requests_per_prompt
    while len(maker.prompts) < count and maker.requests < limit:
        first = maker.requests
        batch = range(first, min(first + config.batch_requests, limit))
        before = len(maker.prompts)
        maker.take(batch, generate([(i, maker.request(i)) for i in batch]), count)
        if on_batch:
            on_batch(maker.fresh(before, accepted), maker.progress())
    return MadePrompts(maker.prompts[:count], maker.progress())


_FIELD = re.compile(r"\{(n|prompt)\}")


def _fill(template: str, n: int, prompt: str = "") -> str:
    """One pass, so that braces in a prompt are left alone."""
    return _FIELD.sub(lambda match: str(n) if match[1] == "n" else prompt, template)


def same_text(text: str) -> str:
    """What two texts share that differ in case and white space only."""
    return " ".join(text.casefold().split())


def _request_of(prompt: Prompt) -> int:
    """The request that made a prompt; its id is made-SEED-REQUEST-NUMBER."""
    try:
        return int(prompt.prompt_id.rsplit("-", 2)[1])
    except (IndexError, ValueError):
        raise ValueError(f"accepted: id {prompt.prompt_id!r} is not a self-made prompt's") from None


def _batch_start(accepted: Sequence[Prompt], batch_requests: int) -> int:
    last = max(map(_request_of, accepted), default=0)
    return last - last % batch_requests


class _Maker:
    """The state: what was accepted, what new prompts are compared with, the counts."""

    def __init__(
        self,
        config: PromptConfig,
        seed: int,
        seeds: list[str],
        exclude: Exclude,
        pool: Iterable[str],
    ) -> None:
        self.config, self.seed, self.seeds = config, seed, seeds
        self.prompts: list[Prompt] = []
        self.requests = 0
        self.rejects: Counter[str] = Counter()
        known = [*seeds, *pool]
        self.known = {same_text(text) for text in known}
        self.near = [Nearness("similar", config.similarity, known)]
        if limit := config.near_duplicate:
            self.near.append(Nearness("near_duplicate", limit, known, word_pairs, in_order=False))
        self.is_held_out = exclude if callable(exclude) else _membership(exclude)
        keywords = "|".join(re.escape(word) for word in config.keywords)
        self.keyword = re.compile(rf"(?i)\b(?:{keywords})\b") if keywords else None

    def restore(self, accepted: Sequence[Prompt], done: Progress) -> None:
        self.requests, self.rejects = done.requests, Counter(done.rejects)
        for prompt in accepted:
            if _request_of(prompt) < done.requests:
                self._accept(prompt)

    def request(self, index: int) -> str:
        """The text of request `index`; called before its batch is taken."""
        draw = random.Random(f"{self.seed}/{index}")
        num_made = min(self.config.made_shots, len(self.prompts))
        shots = self.config.seed_shots + self.config.made_shots - num_made
        texts = draw.sample(self.seeds, min(shots, len(self.seeds)))
        texts += [prompt.text for prompt in draw.sample(self.prompts, num_made)]
        draw.shuffle(texts)
        items = [_fill(self.config.item, n, text) for n, text in enumerate(texts, 1)]
        tail = _fill(self.config.tail, len(texts) + 1)
        return self.config.header + "".join(items) + tail

    def take(self, batch: range, outputs: Sequence[str | None], count: int) -> None:
        """Take the outputs in order until there are `count` prompts."""
        if len(outputs) != len(batch):
            raise ValueError(f"generate: {len(outputs)} outputs, wanted {len(batch)}")
        pieces = [None if output is None else self._split(output) for output in outputs]
        self._begin([text for found in pieces for text in (found or [])[: self.config.per_request]])
        for index, found in zip(batch, pieces, strict=True):
            if len(self.prompts) >= count:
                return
            self._take_one(index, found)
            self.requests = index + 1

    def _split(self, output: str) -> list[str]:
        return split_output(output, self.config.item, self.config.header)

    def _begin(self, texts: Sequence[str]) -> None:
        """What can be said of a batch's prompts before any of them is accepted."""
        self.flaws = {text: self._flaw(text) for text in texts}
        unflawed = [text for text, flaw in self.flaws.items() if not flaw]
        for near in self.near:
            near.begin(unflawed)

    def _take_one(self, index: int, pieces: Sequence[str] | None) -> None:
        if not pieces:
            self.rejects["truncated" if pieces is None else "empty"] += 1
        for number, text in enumerate(pieces or ()):
            surplus = number >= self.config.per_request
            if reason := "surplus" if surplus else self._reject(text):
                self.rejects[reason] += 1
            else:
                prompt_id = f"made-{self.seed}-{index:06d}-{number}"
                self._accept(Prompt(prompt_id, text, "self-made"))

    def _reject(self, text: str) -> str:
        """Why a prompt of the batch is not taken; empty when it is."""
        if flaw := self.flaws[text]:
            return flaw
        if same_text(text) in self.known:
            return "duplicate"
        return next((near.reason for near in self.near if near.holds(text)), "")

    def _flaw(self, text: str) -> str:
        """What is wrong with a prompt by itself; empty where nothing is."""
        if is_refusal(text) or text.startswith(CLOSING):
            return "refusal" if is_refusal(text) else "malformed"
        length = len(words(text))
        if length < self.config.min_words or length > self.config.max_words:
            return "too_short" if length < self.config.min_words else "too_long"
        if self.keyword and self.keyword.search(text):
            return "keyword"
        return "held_out" if self.is_held_out(text) else ""

    def _accept(self, prompt: Prompt) -> None:
        self.prompts.append(prompt)
        self.known.add(same_text(prompt.text))
        for near in self.near:
            near.add(prompt.text)

    def fresh(self, before: int, accepted: Sequence[Prompt]) -> list[Prompt]:
        """The prompts from position `before` on that are not among those already written down."""
        written = {prompt.prompt_id for prompt in accepted}
        return [prompt for prompt in self.prompts[before:] if prompt.prompt_id not in written]

    def progress(self) -> Progress:
        return Progress(self.requests, {reason: self.rejects[reason] for reason in REASONS})


def _membership(texts: Iterable[str]) -> Callable[[str], bool]:
    held_out: Mapping[str, None] = dict.fromkeys(same_text(text) for text in texts)
    return lambda text: same_text(text) in held_out
