"""Sampling answers and comparing them two by two in one running batch (`--reward pairwise`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from srlm_fast.judge import (
    CHOICES,
    DEFAULT_PAIR_PROMPT,
    DEFAULT_RUBRIC,
    Choice,
    Comparison,
    PairKey,
    PairPrompt,
    ScorePlace,
    compare,
    cross_pairs,
    text_pairs,
)
from srlm_fast.judge.duels import Match
from srlm_fast.model import ModelError, chat
from srlm_fast.records import Candidate
from srlm_fast.sampler import Generation, Request, Sampler, SamplingParams

from .answers import AnswerStage, keep_rows, read_records
from .ranks import ALONE, Ranks
from .readers import distribution


@dataclass(frozen=True)
class Order:
    """One order of two texts that is put to the judge. `owners`: the pairs of candidates that gave
    them, the one shown first standing first, or second where `turned`.
    """

    owners: tuple[PairKey, ...]
    turned: bool


class CompareStage(AnswerStage):
    """Candidates of prompts, and a row for every pair of them; goes on from whatever the two files
    hold. Each pair of texts is two requests, one for each order; nothing is sampled for them.

    `judgements`: (prompt_id, first, second) -> its one Comparison. Raises ModelError for a
    tokenizer without a token for each choice. No `candidates` file: as of `AnswerStage`.
    """

    asked_by = "--reward pairwise"

    def __init__(
        self,
        sampler: Sampler,
        params: SamplingParams,
        candidates: Path | None,
        comparisons: Path,
        prompt: PairPrompt = DEFAULT_PAIR_PROMPT,
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(sampler, params, DEFAULT_RUBRIC, None, candidates, comparisons, ranks)
        self._prompt, self._halves = prompt, dict[tuple[PairKey, ...], dict[bool, Choice]]()
        try:
            self._place = ScorePlace(self.tokenizer, prompt.prefix, CHOICES)
        except ValueError as error:
            raise ModelError(
                f"{self.asked_by}: the tokenizer has {error}; wanted one that has"
            ) from None
        keep_rows(comparisons, self.judgements, ranks)

    def _load(self) -> None:
        super()._load()
        rows = read_records(self._files()[-1], Comparison)
        self.judgements = {(c.prompt_id, c.first, c.second): [c] for c in rows}

    def _pairs(self, candidates: Sequence[Candidate]) -> dict[tuple[str, str], list[PairKey]]:
        """The texts that are compared, with the candidates that gave them."""
        return text_pairs(candidates)

    def _judge(self, candidates: Sequence[Candidate]) -> list[Request]:
        """Both orders of every pair of texts of which a row is missing."""
        requests: list[Request] = []
        for texts, keys in self._pairs(candidates).items():
            owners = tuple(key for key in keys if key not in self.judgements)
            orders = [(Order(owners, False), texts), (Order(owners, True), texts[::-1])]
            if owners:
                asked = [self._ask(order, *shown) for order, shown in orders]
                requests += [request for request in asked if all(asked) and request]
        return requests

    def _ask(self, order: Order, first: str, second: str) -> Request | None:
        prompt_id = order.owners[0][0]
        reserved = chat.reserved_strings(self.tokenizer)
        text = self._prompt.render(self._texts[prompt_id], first, second, reserved)
        ids = [*chat.encode(self.tokenizer, text), *self._place.lead_up()]
        fits = self._fits(ids, 0, prompt_id)
        return Request(ids, tag=order, hidden=True) if fits else None

    def _finished(self, generation: Generation) -> Iterable[Request]:
        if not isinstance(generation.tag, Order):
            return super()._finished(generation)
        order, self.tokens.judgements = generation.tag, self.tokens.judgements + 1
        halves = self._halves.setdefault(order.owners, {})
        halves[order.turned] = self._choice(generation)
        if len(halves) == 2:
            del self._halves[order.owners]
            self._compared([compare(key, halves[False], halves[True]) for key in order.owners])
        return ()

    def _choice(self, generation: Generation) -> Choice:
        assert generation.hidden is not None
        row = generation.hidden[None]
        found = distribution(self.sampler.model, row, self._place.score_ids)
        assert found.mass is not None
        probability, mass = torch.stack((found.probs[0, 0], found.mass[0])).tolist()
        return probability, mass

    def _compared(self, rows: list[Comparison]) -> None:
        self.write[1](*rows)
        self.judgements |= {(c.prompt_id, c.first, c.second): [c] for c in rows}


class DuelStage(CompareStage):
    """Every answer of A with those of B that it meets, in both orders; `matches` has them."""

    def __init__(
        self, sampler: Sampler, rows: Path, matches: Iterable[Match], ranks: Ranks = ALONE
    ) -> None:
        self._matches: dict[str, list[Match]] = {}
        for match in matches:
            self._matches.setdefault(match[0].prompt_id, []).append(match)
        super().__init__(sampler, SamplingParams(), None, rows, ranks=ranks)
        self.candidates = {key: [met[0][0]] for key, met in self._matches.items()}

    def _pairs(self, candidates: Sequence[Candidate]) -> dict[tuple[str, str], list[PairKey]]:
        return cross_pairs(self._matches[candidates[0].prompt_id])
