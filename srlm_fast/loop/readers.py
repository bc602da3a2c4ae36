"""From finished judge generations to scores: read what was written, or take the mean of what would
be written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from srlm_fast.judge import Rubric, compile_pattern
from srlm_fast.kernels import ScoreStatus, expected_scores, extract_scores
from srlm_fast.model import Model, ModelError, PackedContext
from srlm_fast.sampler import Generation, SamplingParams

Reading = tuple[float, str]  # score (NaN unless OK) and the name of its status
MIN_MASS = 0.5  # probability on the scores below which the position holds no score


class Reader(Protocol):
    """`batch`: how many generations it likes to see at once. `sampling`: how the judge must be
    sampled for it.
    """

    batch: int
    sampling: SamplingParams

    def read(self, generations: Sequence[Generation]) -> list[list[Reading]]:
        """One list per generation, one reading per sample."""
        ...


def make_reader(model: Model, rubric: Rubric, mode: str, sampling: SamplingParams) -> Reader:
    """mode "sampled": the score each sample writes; "expected": the mean over the score that one
    sample would write.
    """
    if mode == "expected":
        return ExpectedReader(model, rubric, sampling)
    return SampledReader(model, rubric, sampling)


class SampledReader:
    """The last score that the judge wrote, by the rubric's pattern, on token ids."""

    batch = 1

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self._table = compile_pattern(model.tokenizer, rubric.pattern, rubric.low, rubric.high)

    def read(self, generations: Sequence[Generation]) -> list[list[Reading]]:
        samples = [sample for generation in generations for sample in generation.samples]
        lengths = torch.tensor([len(sample.token_ids) for sample in samples])
        ids = torch.zeros(len(samples), max(1, int(lengths.max())), dtype=torch.int64)
        for row, sample in zip(ids, samples, strict=True):
            row[: len(sample.token_ids)] = torch.tensor(sample.token_ids, dtype=torch.int64)
        finished = torch.tensor([sample.finish_reason == "stop" for sample in samples])
        scores, status = extract_scores(ids, lengths, self._table, finished)
        names = [ScoreStatus(code).name for code in status.tolist()]
        return _regroup(list(zip(scores.tolist(), names, strict=True)), generations)


class ExpectedReader:
    """The mean over the distribution of the score token behind the rubric's score prefix."""

    batch = 64

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self.sampling = replace(sampling, n=1, stop=(rubric.score_prefix,))
        self._model = model
        self._lead, self._score_ids = score_continuations(model.tokenizer, rubric)

    def read(self, generations: Sequence[Generation]) -> list[list[Reading]]:
        statuses = [self._status(generation) for generation in generations]
        ready = [g for g, status in zip(generations, statuses, strict=True) if status == "OK"]
        found = iter(self._expected(ready) if ready else [])
        return [[next(found) if s == "OK" else (float("nan"), s)] for s in statuses]

    def _status(self, generation: Generation) -> str:
        """OK when the justification ran up to the score prefix."""
        sample = generation.samples[0]
        if sample.finish_reason == "length":
            return ScoreStatus.TRUNCATED.name
        ended = bool(sample.token_ids) and sample.token_ids[-1] in self._model.eos_token_ids
        return ScoreStatus.MISSING.name if ended else ScoreStatus.OK.name

    @torch.no_grad()
    def _expected(self, generations: Sequence[Generation]) -> list[Reading]:
        encode = self._model.tokenizer
        rows = [
            [
                *generation.prompt_token_ids,
                *encode(generation.samples[0].text, add_special_tokens=False)["input_ids"],
                *self._lead,
            ]
            for generation in generations
        ]
        context = PackedContext(
            [len(r) for r in rows], self._model.config.windows, self._model.device
        )
        flat = torch.tensor([token for row in rows for token in row], device=self._model.device)
        hidden = self._model(flat, context.positions, context)
        last = torch.tensor([len(row) for row in rows], device=hidden.device).cumsum(0) - 1
        expected, mass = expected_scores(hidden[last], self._model.head, self._score_ids)
        scores = [
            score if share >= MIN_MASS else float("nan")
            for score, share in zip(expected.tolist(), mass.tolist(), strict=True)
        ]
        return [(s, ScoreStatus.OK.name if s == s else ScoreStatus.MISSING.name) for s in scores]


def score_continuations(tokenizer: Any, rubric: Rubric) -> tuple[list[int], dict[int, list[int]]]:
    """(ids that lead up to the score, score -> its ids). Raises ModelError if scores share a
    token.
    """
    scores = range(rubric.low, rubric.high + 1)
    texts = [f"{rubric.score_prefix} {k}" for k in scores]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    shared = 0
    while len({tuple(row[: shared + 1]) for row in rows}) == 1:
        shared += 1
    ids = [row[shared] for row in rows if len(row) > shared]
    if len(set(ids)) != len(texts):
        raise ModelError(
            f"--judge expected: the tokenizer gives no token of its own to each score "
            f"{rubric.low}..{rubric.high}; use --judge sampled"
        )
    return rows[0][:shared], {k: [token] for k, token in zip(scores, ids, strict=True)}


def _regroup(readings: list[Reading], generations: Sequence[Generation]) -> list[list[Reading]]:
    rest = iter(readings)
    return [[next(rest) for _ in generation.samples] for generation in generations]
