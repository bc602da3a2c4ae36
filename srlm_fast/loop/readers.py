"""From judge generations to scores: read what was written, or take the mean of what would be.

A reader says what the sampler is asked first; of each generation it makes the readings of an
answer, or one more request that has to come before them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch

from srlm_fast.judge import Rubric, ScorePlace, compile_pattern
from srlm_fast.kernels import ScoreStatus, extract_scores, score_distribution
from srlm_fast.model import Model, ModelError
from srlm_fast.sampler import Generation, Request, Sample, SamplingParams

MIN_MASS = 0.5  # probability on the scores below which the position holds no score


@dataclass(frozen=True)
class Answer:
    """A text to be judged. `owners` are the (prompt_id, candidate index) that gave this same
    text. `written`: what the judge has written about it so far.
    """

    prompt: str
    response: str
    owners: tuple[tuple[str, int], ...]
    written: str = ""


class Reading(NamedTuple):
    """One judgement: what was written, its score (NaN unless OK), the name of its status."""

    text: str
    score: float
    status: str


class Reader(Protocol):
    """n: judgements of an answer. room: tokens that may stand behind the judge prompt."""

    n: int
    room: int

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        """The first request; `answer` is its tag."""
        ...

    def read(self, generation: Generation) -> list[Reading] | Request:
        """n readings, or the request that follows. It does not depend on what else was read."""
        ...


def make_reader(model: Model, rubric: Rubric, mode: str, sampling: SamplingParams) -> Reader:
    """mode "sampled": the score each sample writes; "expected": the mean over the score that one
    sample would write behind its justification; "direct": the same without a justification.

    Raises ModelError for a tokenizer that the mode cannot be used with.
    """
    kinds: dict[str, type[SampledReader | DirectReader]] = {
        "sampled": SampledReader,
        "expected": ExpectedReader,
        "direct": DirectReader,
    }
    try:
        return kinds[mode](model, rubric, sampling)
    except ModelError:
        raise
    except ValueError as error:  # a tokenizer whose tokens cannot be turned into bytes
        raise ModelError(f"the tokenizer cannot be used for judging ({error})") from None


class SampledReader:
    """The last score that the judge wrote, by the rubric's pattern, on token ids."""

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self.n, self.room, self.sampling = sampling.n, sampling.max_tokens, sampling
        self._table = compile_pattern(model.tokenizer, rubric.pattern, rubric.low, rubric.high)

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        return Request(prompt_ids, self.sampling, answer)

    def read(self, generation: Generation) -> list[Reading]:
        samples = generation.samples
        lengths = torch.tensor([len(sample.token_ids) for sample in samples])
        ids = torch.zeros(len(samples), max(1, int(lengths.max())), dtype=torch.int64)
        for row, sample in zip(ids, samples, strict=True):
            row[: len(sample.token_ids)] = torch.tensor(sample.token_ids, dtype=torch.int64)
        finished = torch.tensor([sample.finish_reason == "stop" for sample in samples])
        scores, status = extract_scores(ids, lengths, self._table, finished)
        found = zip(samples, scores.tolist(), status.tolist(), strict=True)
        return [Reading(s.text, score, ScoreStatus(code).name) for s, score, code in found]


class DirectReader:
    """The mean over the scores that would stand behind the judge prompt and the score prefix."""

    n = 1

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self._model = model
        values = range(rubric.low, rubric.high + 1)
        self._place = score_place(model, rubric.score_prefix, values)
        self.room = len(self._place.lead_up())

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        """`answer` with what was written about it, which stands before the score."""
        ids = [*prompt_ids, *self._place.lead_up(answer.written)]
        return Request(ids, tag=answer, hidden=True)

    def read(self, generation: Generation) -> list[Reading] | Request:
        assert generation.hidden is not None
        # A row at a time: a matmul may round another way in other company, and a score must not
        # depend on what was finished at the same time.
        row, head = generation.hidden[None], self._model.head
        found = score_distribution(row, head, self._place.score_ids)
        assert found.mass is not None
        score, mass = torch.stack((found.expected, found.mass)).flatten().tolist()
        if mass < MIN_MASS:
            return unread(generation.tag.written, ScoreStatus.MISSING)
        return [Reading(generation.tag.written, score, ScoreStatus.OK.name)]


class ExpectedReader(DirectReader):
    """One judgement, sampled up to the score prefix; then as `DirectReader` behind it."""

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        super().__init__(model, rubric, sampling)
        self._sampling = replace(sampling, n=1, stop=(rubric.score_prefix,))
        self.room += sampling.max_tokens

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        return Request(prompt_ids, self._sampling, answer)

    def read(self, generation: Generation) -> list[Reading] | Request:
        if generation.hidden is not None:
            return super().read(generation)
        sample = generation.samples[0]
        if status := self._broken_off(sample):
            return unread(sample.text, status)
        written = replace(generation.tag, written=sample.text)
        return super().ask(generation.prompt_token_ids, written)

    def _broken_off(self, sample: Sample) -> ScoreStatus | None:
        """Why the score prefix was not written."""
        if sample.finish_reason == "length":
            return ScoreStatus.TRUNCATED
        return ScoreStatus.MISSING if sample.token_ids[-1] in self._model.eos_token_ids else None


def unread(text: str, status: ScoreStatus) -> list[Reading]:
    return [Reading(text, math.nan, status.name)]


def score_place(model: Model, prefix: str, values: range) -> ScorePlace:
    """Raises ModelError naming the option for a tokenizer without a token for each value."""
    try:
        return ScorePlace(model.tokenizer, prefix, values)
    except ValueError as error:
        raise ModelError(
            f"--judge: the tokenizer has {error}; wanted one that has, or --judge sampled"
        ) from None
