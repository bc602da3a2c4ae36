"""Two models answer the same prompts, and one judge says who was better: `python -m
srlm_fast.compare`.

In the folder: `answers_a.jsonl`, `answers_b.jsonl` (candidates), and what the judge says,
`comparisons.jsonl` (`first` is the index of A's answer, `second` of B's) or `judgements_a.jsonl`,
`judgements_b.jsonl`. Rows are appended as they finish. One model is in memory at a time: the one
that also judges answers last, and what is already there needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from srlm_fast.config import Config, from_json
from srlm_fast.judge import DEFAULT_RUBRIC, Duel, matched
from srlm_fast.judge.duels import Match
from srlm_fast.model import load_model
from srlm_fast.records import Candidate, Prompt, write_jsonl
from srlm_fast.run_models import ModelAt
from srlm_fast.sampler import Sampler, SamplingParams

from .alone import show_judging
from .answers import AnswerStage, load_candidates
from .contest_judges import JUDGES, SIDES, Judge
from .judging import audit_counts, status_counts
from .measuring import answer_sampling
from .reward_model import free_memory
from .screen import Screen


@dataclass(frozen=True)
class Terms:
    """What is compared and how. models: by side. judge: None for a program. kind: a key of
    `JUDGES`. config: how answers are sampled (`candidates`, `evaluation.samples`, `seed`) and
    judged. of_run: the prompts are those that the run of both models holds out. match, tie_within:
    as `judge.matched` and `judge.by_score` have them. limit: how many were drawn; None: all.
    """

    models: Mapping[str, ModelAt]
    judge: ModelAt | None
    kind: str
    config: Config
    prompts: Sequence[Prompt]
    of_run: bool = False
    match: str = "all"
    tie_within: float = 0.0
    limit: int | None = None

    @property
    def sampling(self) -> SamplingParams:
        """Of the answers: the seed is that of a run's own measurement, the same for both sides."""
        return answer_sampling(self.config, self.config.evaluation.samples)

    @property
    def judge_name(self) -> str:
        return "" if self.judge is None else self.judge.folder_or_name


def borrowed(terms: Terms, side: str) -> dict[str, list[Candidate]]:
    """prompt_id -> answers that the run itself sampled when it measured this model, where they are
    to the same prompts and with the same settings; fewer samples are the first ones of more.
    """
    at = terms.models[side]
    if not terms.of_run or at.rows is None:
        return {}
    own, params = from_json(at.run_config or {}), terms.sampling
    there = own.evaluation.samples
    alike = answer_sampling(own, params.n) == params and own.dtype == terms.config.dtype
    if not alike or there < params.n:
        return {}
    found = load_candidates(at.rows / "evaluation.jsonl", there)
    return {
        p.prompt_id: found[p.prompt_id][: params.n] for p in terms.prompts if p.prompt_id in found
    }


class OneModel:
    """The sampler of one model; another one takes its place in memory."""

    def __init__(self, config: Config) -> None:
        self.config, self.name = config, ""
        self._sampler: Sampler | None = None

    def sampler(self, name: str) -> Sampler:
        if self._sampler is None or self.name != name:
            self.free()
            config = self.config
            model = load_model(name, config.device, config.dtype)
            kv_bytes = None if config.kv_gb is None else int(config.kv_gb * 1e9)
            self._sampler, self.name = Sampler(model, kv_bytes), name
        return self._sampler

    def free(self) -> None:
        if self._sampler is not None:
            device = self._sampler.model.device
            self._sampler.release()
            self._sampler = None
            free_memory(device)


@dataclass
class Outcome:
    """duels: of the matched answers. asked_with: version and digest of the judge's prompt, {} for
    none. judgements: rows of the judge by status. too_long: prompts left out, wholly or in part.
    borrowed: prompts whose answers are the run's own. unanswered: prompts without a duel.
    """

    duels: list[Duel]
    asked_with: dict[str, str]
    judgements: dict[str, int]
    audits: dict[str, int]
    too_long: dict[str, int]
    borrowed: dict[str, int]
    unanswered: int


class Contest:
    """Goes on from whatever the folder holds. Raises InputError, ModelError, and KeyboardInterrupt
    at the next safe point after `stop()` is true.
    """

    def __init__(
        self,
        terms: Terms,
        out: Path,
        display: Screen,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.terms, self.out, self.display, self.stop = terms, out, display, stop
        self.model = OneModel(terms.config)
        self.answers: dict[str, dict[str, list[Candidate]]] = {}  # by side, by prompt_id
        self.both: list[Prompt] = []  # answered by both
        self.too_long, self.borrowed = dict.fromkeys((*SIDES, "judge"), 0), dict.fromkeys(SIDES, 0)

    def run(self) -> Outcome:
        # The one that judges comes last and stays.
        for side in sorted(SIDES, key=self._judges):
            self.answer(side)
        met = self.answers["a"].keys() & self.answers["b"].keys()
        self.both = [prompt for prompt in self.terms.prompts if prompt.prompt_id in met]
        judge = JUDGES[self.terms.kind](self)
        if not judge.finished():
            judge.judge()
        self.model.free()
        return self._outcome(judge)

    def _judges(self, side: str) -> bool:
        return self.terms.models[side].folder_or_name == self.terms.judge_name

    def _outcome(self, judge: Judge) -> Outcome:
        rows = judge.rows()
        return Outcome(
            judge.duels(self.matches()),
            judge.asked_with(),
            status_counts(rows),
            audit_counts(rows),
            self.too_long,
            self.borrowed,
            len(self.terms.prompts) - len(self.both),
        )

    def matches(self) -> list[Match]:
        sides = [
            {prompt.prompt_id: self.answers[side][prompt.prompt_id] for prompt in self.both}
            for side in SIDES
        ]
        return matched(sides[0], sides[1], self.terms.match)

    def answer(self, side: str) -> None:
        """A model's answers, those on disk and those of its run included."""
        path, params = self.out / f"answers_{side}.jsonl", self.terms.sampling
        known = borrowed(self.terms, side)
        if known and not path.exists():
            write_jsonl(path, [row for group in known.values() for row in group])
        found = load_candidates(path, params.n)
        if any(prompt.prompt_id not in found for prompt in self.terms.prompts):
            found = self._sample(side, path)
        self.borrowed[side] = sum(found.get(key) == group for key, group in known.items())
        self.answers[side] = found

    def _sample(self, side: str, path: Path) -> dict[str, list[Candidate]]:
        at = self.terms.models[side]
        stage = AnswerStage(
            self.model.sampler(at.folder_or_name),
            self.terms.sampling,
            DEFAULT_RUBRIC,
            None,
            path,
            JUDGES[self.terms.kind].files(self.out)[0],
        )
        self.show(f"answers of {side.upper()}", stage, self.terms.prompts)
        self.too_long[side] = len(set(stage.too_long))
        return stage.candidates

    def show(self, title: str, stage: AnswerStage, prompts: Sequence[Prompt]) -> None:
        show_judging(self.display, self.stop, stage, list(prompts), title)
