"""Who says which answer is better in a contest: one small class for each kind of judge."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast.judge import (
    DEFAULT_PAIR_PROMPT,
    Comparison,
    Duel,
    by_comparison,
    by_score,
    collect_scores,
    cross_pairs,
)
from srlm_fast.judge.duels import Groups, Match
from srlm_fast.model import load_reward_model, resolve_device
from srlm_fast.records import InputError, Judgement, Prompt, write_jsonl
from srlm_fast.sampler import Sampler, SamplingParams

from .alone import default_rubric
from .answers import AnswerStage, load_judgements, read_records
from .comparing import DuelStage
from .material import rubric_of
from .own_score import PURPOSE
from .readers import make_reader
from .reward_model import free_memory, score_answers
from .state import derive_seed

if TYPE_CHECKING:
    from .contest import Contest

SIDES = ("a", "b")


class Judge(ABC):
    """Who says which answer is better; reads and writes its `files`."""

    names: tuple[str, ...]

    def __init__(self, contest: Contest) -> None:
        self.contest, self.terms = contest, contest.terms
        self.paths = self.files(contest.out)

    @classmethod
    def files(cls, out: Path) -> list[Path]:
        return [out / f"{name}.jsonl" for name in cls.names]

    @abstractmethod
    def finished(self) -> bool:
        """Whether all rows are there."""

    @abstractmethod
    def judge(self) -> None:
        """Make the rows that are missing."""

    @abstractmethod
    def rows(self) -> dict[Any, list[Any]]:
        """All rows, by what they are about."""

    @abstractmethod
    def duels(self, matches: Iterable[Match]) -> list[Duel]: ...

    def asked_with(self) -> dict[str, str]:
        return {}

    def sampler(self) -> Sampler:
        return self.contest.model.sampler(self.terms.judge_name)


class ContestStage(DuelStage):
    asked_by = "--judge-kind pairwise"


class PairwiseJudge(Judge):
    """A model that compares, in both orders; a disagreement is a tie."""

    names = ("comparisons",)

    def finished(self) -> bool:
        wanted = cross_pairs(self.contest.matches()).values()
        rows = self.rows()
        return all(key in rows for keys in wanted for key in keys)

    def judge(self) -> None:
        stage = ContestStage(self.sampler(), self.paths[0], self.contest.matches())
        self.contest.show("comparing", stage, self.contest.both)
        self.contest.too_long["judge"] = len(set(stage.too_long))

    def rows(self) -> dict[Any, list[Any]]:
        found = read_records(self.paths[0], Comparison)
        return {(row.prompt_id, row.first, row.second): [row] for row in found}

    def duels(self, matches: Iterable[Match]) -> list[Duel]:
        return by_comparison(matches, {key: row for key, (row,) in self.rows().items()})

    def asked_with(self) -> dict[str, str]:
        return DEFAULT_PAIR_PROMPT.provenance


class PointJudge(Judge):
    """Scores of single answers; order plays no part."""

    names = ("judgements_a", "judgements_b")
    n = 1  # rows of an answer

    def groups(self) -> list[Groups]:
        answers = self.contest.answers
        return [
            {p.prompt_id: answers[side][p.prompt_id] for p in self.contest.both} for side in SIDES
        ]

    def found(self) -> list[dict[tuple[str, int], list[Judgement]]]:
        return [load_judgements(path, self.n) for path in self.paths]

    def finished(self) -> bool:
        return all(
            (c.prompt_id, c.index) in rows
            for rows, groups in zip(self.found(), self.groups(), strict=True)
            for group in groups.values()
            for c in group
        )

    def rows(self) -> dict[Any, list[Any]]:
        return {
            (side, *key): rows
            for side, found in zip(SIDES, self.found(), strict=True)
            for key, rows in found.items()
        }

    def duels(self, matches: Iterable[Match]) -> list[Duel]:
        scores = [
            collect_scores(j for rows in found.values() for j in rows) for found in self.found()
        ]
        return by_score(matches, scores[0], scores[1], self.terms.tie_within)

    def judge(self) -> None:
        for side, path, groups in zip(SIDES, self.paths, self.groups(), strict=True):
            self.score(side, path, groups)

    @abstractmethod
    def score(self, side: str, path: Path, groups: Groups) -> None:
        """The rows of one side."""


class RubricJudge(PointJudge):
    """A model that grades by a rubric."""

    def __init__(self, contest: Contest) -> None:
        super().__init__(contest)
        config = self.terms.config
        self.rubric = rubric_of(config, default_rubric(self.terms.judge_name))
        self.n = config.judge.sampling.n if config.judge.mode == "sampled" else 1

    def score(self, side: str, path: Path, groups: Groups) -> None:
        sampler, judge = self.sampler(), self.terms.config.judge
        seed = derive_seed(self.terms.config.seed, PURPOSE, "judge")
        sampling = dataclasses.replace(judge.sampling, seed=seed)
        reader = make_reader(sampler.model, self.rubric, judge.mode, sampling, judge.stop)
        stage = AnswerStage(sampler, SamplingParams(), self.rubric, reader, None, path)
        stage.candidates = {key: list(group) for key, group in groups.items()}
        self.contest.show(f"judging {side.upper()}", stage, self.contest.both)
        self.contest.too_long["judge"] += len(set(stage.too_long))

    def asked_with(self) -> dict[str, str]:
        return self.rubric.provenance


class ModelJudge(PointJudge):
    """A reward model."""

    def judge(self) -> None:
        config = self.terms.config
        self.contest.model.free()
        self.reward_model = load_reward_model(self.terms.judge_name, config.device, config.dtype)
        super().judge()
        del self.reward_model
        free_memory(resolve_device(config.device))

    def score(self, side: str, path: Path, groups: Groups) -> None:
        contest, total = self.contest, sum(map(len, groups.values()))
        with contest.display.stage(f"scoring {side.upper()}", total, "answers") as shown:

            def progress(done: int) -> None:
                shown.update(done)
                if contest.stop():
                    raise KeyboardInterrupt

            score_answers(self.reward_model, contest.both, groups, path, progress)


class GoldJudge(PointJudge):
    """The program of the tiny world."""

    def score(self, side: str, path: Path, groups: Groups) -> None:
        from srlm_fast.tiny import gold

        texts = {prompt.prompt_id: prompt.text for prompt in self.contest.both}
        write_jsonl(
            path,
            [
                Judgement(key, c.index, 0, "", float(gold.score(texts[key], c.text).score), "OK")
                for key, group in groups.items()
                for c in group
            ],
        )


def check_gold(prompts: Sequence[Prompt], option: str = "--judge-kind") -> None:
    """Raise InputError for a prompt that the program cannot read."""
    from srlm_fast.tiny.world import parse

    for prompt in prompts:
        if prompt.turns or parse(prompt.text) is None:
            raise InputError(
                f"{option} gold: found the prompt {prompt.text[:40]!r}, wanted instructions of "
                "the tiny world: its program can read no others"
            )


JUDGES: dict[str, type[Judge]] = {
    "pairwise": PairwiseJudge,
    **dict.fromkeys(("sampled", "expected", "direct"), RubricJudge),
    "model": ModelJudge,
    "gold": GoldJudge,
}
