"""From judge generations to scores: read what was written, or take the mean of what would be.

A reader says what the sampler is asked first; of each generation it makes the readings of an
answer, or one more request that has to come before them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from srlm_fast.judge import Rubric, ScorePlace, ScoreTable, compile_pattern
from srlm_fast.kernels import ScoreStatus, extract_scores, score_distribution
from srlm_fast.kernels.expected_scores import (
    ScoreDistribution,
    ScoreIds,
    distribution_of_logits,
)
from srlm_fast.model import Model, ModelError
from srlm_fast.sampler import Generation, Request, Sample, SamplingParams

AUDITED = 16  # one judge prompt in so many is judged to its end
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
    """One judgement: what was written, its score (NaN unless OK), the name of its status. audit: of
    one that went on behind its first score line, whether its last number says the same ("same",
    "differs").
    """

    text: str
    score: float
    status: str
    audit: str = ""


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


def make_reader(
    model: Model, rubric: Rubric, mode: str, sampling: SamplingParams, stop: str = "end"
) -> Reader:
    """mode "sampled": the score each sample writes; "expected": the mean over the score that one
    sample would write behind its justification; "direct": the same without a justification. stop,
    of "sampled": the "end" that the judge makes, or the "line" that holds the first score.

    Raises ModelError for a tokenizer that the mode cannot be used with.
    """
    kinds: dict[str, type[SampledReader | DirectReader]] = {
        "sampled": LineReader if stop == "line" else SampledReader,
        "expected": ExpectedReader,
        "direct": DirectReader,
    }
    if mode not in kinds:
        raise ValueError(f"mode: {mode!r}, wanted one of {', '.join(kinds)}")
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
        self._table = table_of(model, rubric)

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        return Request(prompt_ids, self.sampling, answer)

    def read(self, generation: Generation) -> list[Reading]:
        scores = read_scores(self._table, [ended(sample) for sample in generation.samples])
        texts = [sample.text for sample in generation.samples]
        return [Reading(text, *found) for text, found in zip(texts, scores, strict=True)]


class LineReader(SampledReader):
    """The last score of the first line that holds one; the sampler stops there.

    One judge prompt in AUDITED goes on to its end. It is read like the others, and what its last
    score would have been is told beside it.
    """

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        super().__init__(model, rubric, sampling)
        self._stopping = replace(sampling, stop_score_line=self._table)

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        audited = is_audited(prompt_ids)
        return Request(prompt_ids, self.sampling if audited else self._stopping, answer)

    def read(self, generation: Generation) -> list[Reading]:
        """By first lines, whole samples and stopped ones alike."""
        rows = [ended(sample) for sample in generation.samples]
        kept = [self._table.first_line(ids) for ids, _ in rows]
        lines = [(ids[:n], done or n < len(ids)) for (ids, done), n in zip(rows, kept, strict=True)]
        first, audits = read_scores(self._table, lines), [""] * len(rows)
        if is_audited(generation.prompt_token_ids):
            last = read_scores(self._table, rows)
            # As text: NaN is not equal to itself.
            audits = [
                "same" if str(a) == str(b) else "differs" for a, b in zip(first, last, strict=True)
            ]
        texts = [sample.text for sample in generation.samples]
        return [Reading(t, *f, a) for t, f, a in zip(texts, first, audits, strict=True)]


def is_audited(prompt_ids: Sequence[int]) -> bool:
    """By what is judged alone, so that a resumed run picks the same ones."""
    digest = hashlib.blake2b(np.asarray(prompt_ids, np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % AUDITED == 0


class DirectReader:
    """The mean over the scores that would stand behind the judge prompt and the score prefix."""

    n = 1

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self._model = model
        values = range(rubric.low, rubric.high + 1)
        self._place = score_place(model, rubric.score_prefix, values)
        self.room = len(self._place.lead_up())

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        return Request([*prompt_ids, *self._place.lead_up()], tag=answer, hidden=True)

    def read(self, generation: Generation) -> list[Reading] | Request:
        assert generation.hidden is not None
        # A row at a time: a matmul may round another way in other company, and a score must not
        # depend on what was finished at the same time.
        found = distribution(self._model, generation.hidden[None], self._place.score_ids)
        assert found.mass is not None
        score, mass = torch.stack((found.expected, found.mass)).flatten().tolist()
        if mass < MIN_MASS:
            return unread(generation.tag.written, ScoreStatus.MISSING)
        return [Reading(generation.tag.written, score, ScoreStatus.OK.name)]


class ExpectedReader(DirectReader):
    """One judgement, sampled to its end; then as `DirectReader` in the place of its score, the one
    that decides and no other that it quotes on the way.
    """

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        super().__init__(model, rubric, sampling)
        self._table = table_of(model, rubric)
        self._sampling = replace(sampling, n=1)
        self.room += sampling.max_tokens

    def ask(self, prompt_ids: list[int], answer: Answer) -> Request:
        return Request(prompt_ids, self._sampling, answer)

    def read(self, generation: Generation) -> list[Reading] | Request:
        if generation.hidden is not None:
            return super().read(generation)
        sample = generation.samples[0]
        ((_, status),) = read_scores(self._table, [ended(sample)])
        if status != ScoreStatus.OK.name:
            return unread(sample.text, ScoreStatus[status])
        before = sample.token_ids[: self._table.number_at(sample.token_ids)]
        written = replace(generation.tag, written=sample.text)
        return Request([*generation.prompt_token_ids, *before], tag=written, hidden=True)


def distribution(model: Model, hidden: Tensor, score_ids: ScoreIds) -> ScoreDistribution:
    """`score_distribution` by the model's head, which tensor ranks hold together."""
    if model.parallel is None:
        return score_distribution(hidden, model.head, score_ids)
    return distribution_of_logits(model.logits(hidden), score_ids)


def table_of(model: Model, rubric: Rubric) -> ScoreTable:
    return compile_pattern(model.tokenizer, rubric.pattern, rubric.low, rubric.high)


def ended(sample: Sample) -> tuple[list[int], bool]:
    """The judge's own tokens, and whether it ended by itself."""
    return sample.token_ids, sample.finish_reason == "stop"


def read_scores(
    table: ScoreTable, rows: Sequence[tuple[list[int], bool]]
) -> list[tuple[float, str]]:
    """(score, status) of token ids, each with whether it ended by itself."""
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    padded = torch.zeros(len(rows), max(1, int(lengths.max())), dtype=torch.int64)
    for row, (ids, _) in zip(padded, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    finished = torch.tensor([done for _, done in rows])
    scores, status = extract_scores(padded, lengths, table, finished)
    names = [ScoreStatus(code).name for code in status.tolist()]
    return list(zip(scores.tolist(), names, strict=True))


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
