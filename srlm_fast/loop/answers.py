"""Sampling answers and judging them in one running batch.

A prompt's candidates are written when all of them are there; their judge requests then join the
batch that is still sampling other prompts. Equal answers to one prompt are judged once: the judge's
noise is keyed by what it reads, so that a second judgement would be the same.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_fast.judge import Rubric, ScoreStatus
from srlm_fast.model import chat
from srlm_fast.records import (
    Candidate,
    InputError,
    Judgement,
    Prompt,
    read_jsonl,
)
from srlm_fast.sampler import Generation, Progress, Request, Sample, Sampler, SamplingParams

from .ranks import ALONE, Ranks
from .readers import Answer, Reader, Reading, unread

OnProgress = Callable[[Progress], None]


@dataclass
class Tokens:
    """Tokens a stage generated in this process, by what they were for. A score that is read from a
    hidden row counts as one.
    """

    answers: int = 0
    judgements: int = 0


class AnswerStage:
    """Candidates of prompts, and judgements of candidates, into two files; goes on from whatever
    they hold.

    `reader` None samples answers without judging them; no `candidates` file: the attribute of that
    name is given, and they are only judged. Rows of one prompt (or of one candidate) count only
    when all of them are there. Of many ranks each takes its share of the prompts, and has what all
    have found in the end.
    """

    def __init__(
        self,
        sampler: Sampler,
        params: SamplingParams,
        rubric: Rubric,
        reader: Reader | None,
        candidates: Path | None,
        judgements: Path,
        ranks: Ranks = ALONE,
    ) -> None:
        self.sampler, self.params, self.rubric, self.reader = sampler, params, rubric, reader
        self.ranks = ranks
        self.tokenizer = sampler.model.tokenizer
        pool = sampler.num_pages * sampler.page_tokens
        self.longest = min(sampler.model.config.max_position_embeddings, pool)
        self.candidates: dict[str, list[Candidate]] = {}
        self.judgements: dict[Any, list[Any]] = {}
        self._paths = (candidates, judgements)
        self.too_long: list[str] = []
        self.tokens = Tokens()
        ranks.collect(*self._files())
        self._load()
        if candidates:
            keep_rows(candidates, self.candidates, ranks)
        if reader:
            keep_rows(judgements, self.judgements, ranks)

    def _files(self) -> list[Path]:
        return [path for path in self._paths if path is not None]

    def _load(self) -> None:
        """What is whole in the two files."""
        candidates, judgements = self._paths
        if candidates:
            self.candidates = load_candidates(candidates, self.params.n)
        if self.reader:
            self.judgements = load_judgements(judgements, self.reader.n)

    def run(self, prompts: Sequence[Prompt], progress: OnProgress | None = None) -> None:
        """Answer `prompts` that have no candidates and judge candidates that have no judgements."""
        self._texts = {prompt.prompt_id: prompt.conversation for prompt in prompts}
        (candidates, judgements), ranks = self._paths, self.ranks
        with ExitStack() as files:
            if candidates is not None:
                self._write_candidates = files.enter_context(ranks.appending(candidates)).write
            self._write_judgements = files.enter_context(ranks.appending(judgements)).write
            requests = self._requests(ranks.share(prompts))
            self.sampler.run(requests, ranks.in_step(self._finished), progress)
        if ranks.join(self._files(), list(self._texts)):
            self._load()
            self.too_long = [key for part in ranks.gather(self.too_long) for key in part]
            self.tokens = sum_tokens(ranks.gather(self.tokens))

    def _requests(self, prompts: Sequence[Prompt]) -> Iterable[Request]:
        # What an earlier process sampled but did not judge goes first, then new prompts.
        for prompt in prompts:
            yield from self._judge(self.candidates.get(prompt.prompt_id, []))
        for prompt in prompts:
            if prompt.prompt_id not in self.candidates:
                ids = chat.encode(self.tokenizer, prompt.text, prompt.turns)
                if self._fits(ids, self.params.max_tokens, prompt.prompt_id):
                    yield Request(ids, self.params, tag=prompt)

    def _finished(self, generation: Generation) -> Iterable[Request]:
        generated = sum(len(sample.token_ids) for sample in generation.samples)
        if isinstance(generation.tag, Answer):
            self.tokens.judgements += generated or 1
            return self._read(generation)
        self.tokens.answers += generated
        found = [make_candidate(generation.tag, k, s) for k, s in enumerate(generation.samples)]
        self._write_candidates(*found)
        self.candidates[generation.tag.prompt_id] = found
        return self._judge(found)

    def _judge(self, candidates: Sequence[Candidate]) -> list[Request]:
        """Judge requests for the candidates of one prompt that have no judgements, one for each
        different text.
        """
        if self.reader is None:
            return []
        owners: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for c in candidates:
            if (c.prompt_id, c.index) not in self.judgements:
                owners[c.text].append((c.prompt_id, c.index))
        requests = []
        for text, who in owners.items():
            prompt = self._texts[who[0][0]]
            ids = chat.encode(self.tokenizer, judge_text(self.rubric, self.tokenizer, prompt, text))
            if self._fits(ids, self.reader.room, who[0][0]):
                requests.append(self.reader.ask(ids, Answer(prompt, text, tuple(who))))
        return requests

    def _fits(self, ids: list[int], max_tokens: int, prompt_id: str) -> bool:
        fits = len(ids) + max_tokens <= self.longest
        if not fits:
            self.too_long.append(prompt_id)
        return fits

    def _read(self, generation: Generation) -> Iterable[Request]:
        """The readings of an answer, written down; or what has to be asked before."""
        assert self.reader is not None
        found = self.reader.read(generation)
        if isinstance(found, Request):
            if len(found.prompt_token_ids) <= self.longest:
                return [found]
            found = unread(found.tag.written, ScoreStatus.TRUNCATED)
        self._judged(generation.tag, found)
        return ()

    def _judged(self, answer: Answer, readings: Sequence[Reading]) -> None:
        rows = [
            Judgement(prompt_id, index, k, text, score if score == score else None, status, audit)
            for prompt_id, index in answer.owners
            for k, (text, score, status, audit) in enumerate(readings)
        ]
        self._write_judgements(*rows)
        for row in rows:
            self.judgements.setdefault((row.prompt_id, row.candidate), []).append(row)


def judge_text(rubric: Rubric, tokenizer: Any, prompt: str, response: str) -> str:
    """What the judge is asked; the tokenizer's special tokens cannot be spelled from inside
    question or answer.
    """
    return rubric.render(prompt, response, chat.reserved_strings(tokenizer))


def make_candidate(prompt: Prompt, index: int, sample: Sample) -> Candidate:
    return Candidate(
        prompt.prompt_id,
        index,
        sample.text,
        tuple(sample.token_ids),
        sample.logprob,
        sample.finish_reason,
    )


def load_candidates(path: Path, n: int) -> dict[str, list[Candidate]]:
    """prompt_id -> its n candidates in order. Groups that are not whole are left out. Raises
    InputError for a row that is no candidate.
    """
    groups: dict[str, dict[int, Candidate]] = defaultdict(dict)
    for row in read_records(path, Candidate):
        groups[row.prompt_id][row.index] = dataclasses.replace(row, token_ids=tuple(row.token_ids))
    return {key: [g[k] for k in sorted(g)] for key, g in groups.items() if len(g) == n}


def load_judgements(path: Path, n: int) -> dict[tuple[str, int], list[Judgement]]:
    """(prompt_id, candidate) -> its n judgements in order, as `load_candidates` does."""
    groups: dict[tuple[str, int], dict[int, Judgement]] = defaultdict(dict)
    for row in read_records(path, Judgement):
        groups[row.prompt_id, row.candidate][row.sample] = row
    return {key: [g[k] for k in sorted(g)] for key, g in groups.items() if len(g) == n}


def read_records(path: Path, kind: Any) -> list[Any]:
    """The rows of a file as records of `kind`. Raises InputError for a row that is none."""
    try:
        return [kind(**row) for row in read_jsonl(path)]
    except TypeError as error:
        raise InputError(f"{path}: found a row that is no {kind.__name__} ({error})") from None


def keep_rows(path: Path, groups: Mapping[Any, Sequence[Any]], ranks: Ranks) -> None:
    """Cut from the file what is not in `groups`: those of a prompt or candidate not whole."""
    rows = [row for group in groups.values() for row in group]
    if len(rows) != len(read_jsonl(path)):
        ranks.write(path, rows)


def sum_tokens(parts: Sequence[Tokens]) -> Tokens:
    return Tokens(sum(part.answers for part in parts), sum(part.judgements for part in parts))
