"""Sampling answers and judging them in one running batch.

A prompt's candidates are written when all of them are there; their judge requests then join the
batch that is still sampling other prompts. Equal answers to one prompt are judged once: the judge's
noise is keyed by what it reads, so that a second judgement would be the same.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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
from srlm_fast.sampler import Generation, Request, Sample, Sampler, SamplingParams

from .ranks import ALONE, Ranks
from .readers import Answer, Reader, Reading, unread
from .row_stage import OnProgress, RowStage


class AnswerStage(RowStage):
    """Candidates of prompts, and judgements of candidates, into two files.

    `reader` None samples answers without judging them; no `candidates` file: the attribute of that
    name is given, and they are only judged. Rows of one prompt (or of one candidate) count only
    when all of them are there.
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
        self.params, self.rubric, self.reader = params, rubric, reader
        self.candidates: dict[str, list[Candidate]] = {}
        self.judgements: dict[Any, list[Any]] = {}
        super().__init__(sampler, (candidates, judgements), ranks)
        if candidates:
            keep_rows(candidates, self.candidates, ranks)
        if reader:
            keep_rows(judgements, self.judgements, ranks)

    def _load(self) -> None:
        candidates, judgements = self.paths
        if candidates:
            self.candidates = load_candidates(candidates, self.params.n)
        if self.reader and judgements:
            self.judgements = load_judgements(judgements, self.reader.n)

    def run(self, prompts: Sequence[Prompt], progress: OnProgress | None = None) -> None:
        """Answer `prompts` that have no candidates and judge candidates that have no judgements."""
        self._texts = {prompt.prompt_id: prompt.conversation for prompt in prompts}
        super().run(prompts, progress)

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
        self.write[0](*found)
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
        self.write[1](*rows)
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
