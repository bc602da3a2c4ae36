"""From finished judge generations to scores: read what was written, or take the mean of what would
be written.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Protocol

import torch

from srlm_fast.judge import Rubric, compile_pattern
from srlm_fast.kernels import ScoreStatus, expected_scores, extract_scores
from srlm_fast.model import Model, ModelError, PackedContext
from srlm_fast.sampler import Generation, Sample, SamplingParams

Reading = tuple[float, str]  # score (NaN unless OK) and the name of its status
MIN_MASS = 0.5  # probability on the scores below which the position holds no score


class Reader(Protocol):
    """`sampling`: how the judge must be sampled for it."""

    sampling: SamplingParams

    def read(self, generation: Generation) -> list[Reading]:
        """One reading per sample. It does not depend on what else was read."""
        ...


def make_reader(model: Model, rubric: Rubric, mode: str, sampling: SamplingParams) -> Reader:
    """mode "sampled": the score each sample writes; "expected": the mean over the score that one
    sample would write.
    """
    kind: type[ExpectedReader] | type[SampledReader]
    kind = ExpectedReader if mode == "expected" else SampledReader
    try:
        return kind(model, rubric, sampling)
    except ModelError:
        raise
    except ValueError as error:  # a tokenizer whose tokens cannot be turned into bytes
        raise ModelError(f"the tokenizer cannot be used for judging ({error})") from None


class SampledReader:
    """The last score that the judge wrote, by the rubric's pattern, on token ids."""

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self._table = compile_pattern(model.tokenizer, rubric.pattern, rubric.low, rubric.high)

    def read(self, generation: Generation) -> list[Reading]:
        samples = generation.samples
        lengths = torch.tensor([len(sample.token_ids) for sample in samples])
        ids = torch.zeros(len(samples), max(1, int(lengths.max())), dtype=torch.int64)
        for row, sample in zip(ids, samples, strict=True):
            row[: len(sample.token_ids)] = torch.tensor(sample.token_ids, dtype=torch.int64)
        finished = torch.tensor([sample.finish_reason == "stop" for sample in samples])
        scores, status = extract_scores(ids, lengths, self._table, finished)
        names = [ScoreStatus(code).name for code in status.tolist()]
        return list(zip(scores.tolist(), names, strict=True))


class ExpectedReader:
    """The mean over the distribution of the score token behind the rubric's score prefix."""

    def __init__(self, model: Model, rubric: Rubric, sampling: SamplingParams) -> None:
        self.sampling = replace(sampling, n=1, stop=(rubric.score_prefix,))
        self._model = model
        self._lead, self._score_ids = score_continuations(model.tokenizer, rubric)

    def read(self, generation: Generation) -> list[Reading]:
        sample = generation.samples[0]
        if sample.finish_reason == "length":
            return [(math.nan, ScoreStatus.TRUNCATED.name)]
        if sample.token_ids[-1] in self._model.eos_token_ids:  # it ended without the score prefix
            return [(math.nan, ScoreStatus.MISSING.name)]
        score, mass = self._expected([*generation.prompt_token_ids, *self._justification(sample)])
        if mass < MIN_MASS:
            return [(math.nan, ScoreStatus.MISSING.name)]
        return [(score, ScoreStatus.OK.name)]

    def _justification(self, sample: Sample) -> list[int]:
        written = self._model.tokenizer(sample.text, add_special_tokens=False)["input_ids"]
        return [*written, *self._lead]

    @torch.no_grad()
    def _expected(self, ids: list[int]) -> tuple[float, float]:
        """(score, mass) of one row. Rows are read one by one: a library's matmul may round another
        way in other company, and a score must not depend on what was finished at the same time."""
        context = PackedContext([len(ids)], self._model.config.windows, self._model.device)
        tokens = torch.tensor(ids, device=self._model.device)
        hidden = self._model(tokens, context.positions, context)
        expected, mass = expected_scores(hidden[-1:], self._model.head, self._score_ids)
        return expected.item(), mass.item()


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
