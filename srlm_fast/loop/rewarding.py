"""What each kind of `--reward` makes of a round: one small class for each, chosen in one table."""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast.data import read_principles
from srlm_fast.judge import (
    DEFAULT_PRINCIPLES,
    Comparison,
    JudgedReward,
    PairSet,
    PairwiseReward,
    Principle,
    RandomReward,
    RevisedReward,
    Reward,
    ScorerReward,
    best_rows,
    with_labels,
)
from srlm_fast.model.load import find_folder
from srlm_fast.model.reward_model import check_reward_folder
from srlm_fast.records import Candidate, InputError, Judgement, Prompt
from srlm_fast.sampler import Progress

from .answers import AnswerStage, load_candidates, read_records
from .comparing import CompareStage
from .contest_judges import check_gold
from .judging import status_counts
from .revisions import RevisionStage, load_chains
from .reward_model import scored_in_run, split_preferences
from .round_answers import RoundAnswers, answer_params, note_too_long, round_prompts
from .state import ModelFolder
from .weights import WeightsOf

if TYPE_CHECKING:
    from .loop import Run

Figures = dict[str, Any]
Work = Callable[[ModelFolder], Figures]  # does a stage and returns its figures


class Rewarding(ABC):
    """Answers that nothing judges in the batch, learnt from by DPO; a kind changes what is its own.

    Making one reads what the kind needs, so that a mistake in it is told before anything is done.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def first_stages(self) -> dict[str, Work]:
        """Stages behind those of M1, by name."""
        return {}

    def round_stages(self) -> dict[str, Work]:
        """Stages of a round between its answers and its pairs, by name."""
        return {}

    def answer(self, folder: ModelFolder) -> Figures:
        """The answer stage of a round."""
        answers = RoundAnswers(self.run, folder)
        answers.show("answers", self.stage(answers))
        return answers.finish()

    def stage(self, answers: RoundAnswers) -> AnswerStage:
        return answers.stage(judged=False)

    def answers_each(self) -> int:
        """Candidates of a prompt."""
        return self.run.config.candidates.n

    def sampled(self, folder: ModelFolder) -> dict[str, list[Candidate]]:
        """The candidates of the finished answer stage, all of them."""
        self.run.rows_of(folder, folder.candidates, "answers", "candidates")
        return load_candidates(folder.candidates, self.answers_each())

    def verdicts(self, folder: ModelFolder) -> Path:
        """The rows that the judge leaves."""
        return folder.judgements

    @abstractmethod
    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        """What scores the candidates."""

    def completed(self, folder: ModelFolder, found: PairSet) -> PairSet:
        """The pairs with labels or reasons of this kind."""
        return found

    def best(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        scores: Mapping[tuple[str, int], Sequence[float | None]],
    ) -> list[dict[str, Any]] | None:
        """The best answers as SFT rows, None where the round is learnt from pairs."""
        return None

    def learn(self, folder: ModelFolder) -> Figures:
        """The training stage of a round."""
        return self.run.teaching.pairs(folder)


class RandomRewarding(Rewarding):
    """A control."""

    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        run = self.run
        return RandomReward(run.seed(folder.name, "random"), run.config.judge.sampling.n)


class GoldRewarding(Rewarding):
    """The score of the tiny world's program. Raises InputError for a prompt it cannot read."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        check_gold(run.material.prompts, "--reward")

    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        program = self.run.material.score_bits
        assert program is not None
        return ScorerReward(lambda prompt, response: program(prompt, response)[0])


class JudgedRewarding(Rewarding):
    """Every candidate gets rows of scores."""

    judged_in = "answers"  # the stage that counts the rows

    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        self.run.rows_of(folder, folder.judgements, self.judged_in, "judgements")
        return JudgedReward(read_records(folder.judgements, Judgement))


class SelfRewarding(JudgedRewarding):
    """The live model judges, in the batch that it answers in."""

    def stage(self, answers: RoundAnswers) -> AnswerStage:
        return answers.stage(judged=True)


class FrozenRewarding(SelfRewarding):
    """M1 judges, in every round."""

    def answer(self, folder: ModelFolder) -> Figures:
        first = self.run.folders[0]
        if folder.number == first.number + 1:  # M1 is the live model
            return super().answer(folder)
        answers = RoundAnswers(self.run, folder)
        answers.show("answers", answers.stage(judged=False))
        with WeightsOf(self.run, first):
            answers.show("frozen judge", answers.stage(judged=True))
        return answers.finish()


class BestOfNRewarding(SelfRewarding):
    """As `self`, but learnt from by SFT on the best answers."""

    def best(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        scores: Mapping[tuple[str, int], Sequence[float | None]],
    ) -> list[dict[str, Any]]:
        least = self.run.config.pairs.min_judgements
        return best_rows(prompts, candidates, scores, least)

    def learn(self, folder: ModelFolder) -> Figures:
        return self.run.teaching.best(folder)


class PairwiseRewarding(Rewarding):
    """The live model compares the answers two by two; the pairs get its probability as label."""

    def stage(self, answers: RoundAnswers) -> AnswerStage:
        run, folder = self.run, answers.folder
        params = answer_params(run, folder)
        files = (folder.candidates, folder.comparisons)
        return CompareStage(run.sampler, params, *files, ranks=run.ranks)

    def verdicts(self, folder: ModelFolder) -> Path:
        return folder.comparisons

    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        self.run.rows_of(folder, folder.comparisons, "answers", "judgements")
        return PairwiseReward(candidates, read_records(folder.comparisons, Comparison))

    def completed(self, folder: ModelFolder, found: PairSet) -> PairSet:
        return with_labels(found, read_records(folder.comparisons, Comparison))


class ModelRewarding(JudgedRewarding):
    """A reward model scores, in a stage of its own. One is trained behind M1 where the user gave
    pairs.
    """

    judged_in = "reward"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        config = run.config
        if config.reward_model:
            check_reward_folder(find_folder(config.reward_model))
        if config.reward_pairs_file and run.ranks.splits_weights:
            raise InputError(
                "--reward-pairs: found weights split over ranks, wanted them whole on each "
                "(--tensor-parallel 1, --shard no), or --reward-model"
            )
        if config.reward_pairs_file:
            self.preferences = split_preferences(
                run.material.preferences,
                run.material.measured_on,
                run.seed("preferences"),
            )

    def first_stages(self) -> dict[str, Work]:
        return {"reward_model": self.teach} if self.run.config.reward_pairs_file else {}

    def round_stages(self) -> dict[str, Work]:
        return {"reward": self.score}

    def teach(self, folder: ModelFolder) -> Figures:
        return self.run.teaching.reward_model(folder, self.preferences)

    def score(self, folder: ModelFolder) -> Figures:
        """The score of each candidate."""
        prompts, groups = folder.read_prompts(), self.sampled(folder)
        title = f"{folder.name} reward"
        rows = scored_in_run(self.run, title, prompts, groups, folder.judgements)
        return {
            "judgements": len(rows),
            "unparsed": sum(row.score is None for row in rows),
            "statuses": status_counts({"all": rows}),
        }


class ConstitutionRewarding(Rewarding):
    """An answer to each prompt, its critiques and its revisions, in place of candidates; the last
    revision is preferred to the answer.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        given = run.config.constitution_file
        self.principles: Sequence[Principle] = (
            [Principle(**row) for row in read_principles(given)] if given else DEFAULT_PRINCIPLES
        )

    def answer(self, folder: ModelFolder) -> Figures:
        run, prompts = self.run, round_prompts(self.run, folder)
        stage = self.revision_stage(folder)
        start = time.perf_counter()
        own, title = len(run.ranks.share(prompts)), f"{folder.name} revisions"
        with run.display.stage(title, own, "requests") as shown, run.sampling():

            def progress(p: Progress) -> None:
                run.check_stop()
                shown.update(p.requests_done, p.requests_total, tokens=p.generated_tokens)

            stage.run(prompts, progress)
        figures = stage.figures()
        note_too_long(run, folder, figures["too_long"], len(prompts))
        return figures | {"seconds_here": time.perf_counter() - start}

    def revision_stage(self, folder: ModelFolder) -> RevisionStage:
        run, judge = self.run, self.run.config.judge.sampling
        return RevisionStage(
            run.sampler,
            answer_params(run, folder),
            dataclasses.replace(judge, seed=run.seed(folder.name, "critiques")),
            self.principles,
            run.config.revisions,
            folder.candidates,
            folder.revisions,
            run.ranks,
        )

    def answers_each(self) -> int:
        return self.run.config.revisions + 1

    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        self.run.rows_of(folder, folder.revisions, "answers", "chains")
        chains = load_chains(folder.revisions)
        return RevisedReward({c.prompt_id: len(c.critiques) for c in chains if not c.reason})

    def completed(self, folder: ModelFolder, found: PairSet) -> PairSet:
        """With the reason for which a prompt's chain of revisions ended."""
        own = {chain.prompt_id: chain.reason for chain in load_chains(folder.revisions)}
        reasons = {key: own.get(key) or reason for key, reason in found.reasons.items()}
        return dataclasses.replace(found, reasons=reasons)


REWARDINGS: dict[str, type[Rewarding]] = {
    "self": SelfRewarding,
    "frozen": FrozenRewarding,
    "model": ModelRewarding,
    "pairwise": PairwiseRewarding,
    "constitution": ConstitutionRewarding,
    "best-of-n": BestOfNRewarding,
    "random": RandomRewarding,
    "gold": GoldRewarding,
}
