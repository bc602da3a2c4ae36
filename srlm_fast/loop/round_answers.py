"""The answers of a round: answer stages on its prompts, with the run's seeds, on screen."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srlm_fast.records import Prompt
from srlm_fast.sampler import Progress, SamplingParams

from .answers import AnswerStage
from .judging import audit_counts, status_counts
from .readers import Reader, make_reader
from .row_stage import Tokens
from .state import ModelFolder

if TYPE_CHECKING:
    from .loop import Run


class RoundAnswers:
    """One or more answer stages over the same prompts and files, the later ones judging what the
    earlier ones sampled.
    """

    def __init__(self, run: Run, folder: ModelFolder) -> None:
        self.run, self.folder = run, folder
        self.prompts = round_prompts(run, folder)
        self.too_long: set[str] = set()
        self.tokens = Tokens()
        self.start = time.perf_counter()

    def stage(self, judged: bool) -> AnswerStage:
        """Candidates, with judgements by the weights in place that join the running batch."""
        run, folder = self.run, self.folder
        judge = reader(run, folder.name) if judged else None
        files = (folder.candidates, folder.judgements)
        params = answer_params(run, folder)
        return AnswerStage(run.sampler, params, run.material.rubric, judge, *files, run.ranks)

    def show(self, title: str, stage: AnswerStage) -> None:
        """Run a stage on screen."""
        show_answers(self.run, f"{self.folder.name} {title}", stage, self.prompts)
        self.last = stage
        self.too_long |= set(stage.too_long)
        self.tokens.answers += stage.tokens.answers
        self.tokens.judgements += stage.tokens.judgements

    def finish(self) -> dict[str, Any]:
        """Note what was left out; the figures of the round's answers."""
        note_too_long(self.run, self.folder, len(self.too_long), len(self.prompts))
        candidates, judgements = self.last.candidates, self.last.judgements
        return {
            "candidates": sum(len(group) for group in candidates.values()),
            "judgements": sum(len(group) for group in judgements.values()),
            "unparsed": sum(j.score is None for group in judgements.values() for j in group),
            "statuses": status_counts(judgements),
            **audit_counts(judgements),
            "too_long": len(self.too_long),
            "tokens": dataclasses.asdict(self.tokens),
            "seconds_here": time.perf_counter() - self.start,
        }


def round_prompts(run: Run, folder: ModelFolder) -> list[Prompt]:
    """The prompts of a round, all of them. Raises InputError where some have been lost."""
    return [Prompt(**row) for row in run.rows_of(folder, folder.prompts, "prompts", "prompts")]


def answer_params(run: Run, folder: ModelFolder) -> SamplingParams:
    return dataclasses.replace(run.config.candidates, seed=run.seed(folder.name, "candidates"))


def reader(run: Run, purpose: str) -> Reader:
    """The judge of the run's options; its seeds are those of `purpose`."""
    judge = run.config.judge
    sampling = dataclasses.replace(judge.sampling, seed=run.seed(purpose, "judge"))
    return make_reader(run.model, run.material.rubric, judge.mode, sampling, judge.stop)


def show_answers(run: Run, name: str, stage: AnswerStage, prompts: Sequence[Prompt]) -> None:
    """Run an answer stage on screen, counted in requests of this rank: one per prompt and one per
    judged text.
    """
    own = len(run.ranks.share(prompts))
    with run.display.stage(name, own, "requests") as shown, run.sampling():

        def progress(p: Progress) -> None:
            run.check_stop()
            shown.update(
                p.requests_done,
                p.requests_total,
                tokens=p.generated_tokens,
                answers=len(stage.candidates),
                judged=len(stage.judgements),
            )

        stage.run(prompts, progress)


def note_too_long(run: Run, folder: ModelFolder, too_long: int, prompts: int) -> None:
    if too_long:
        run.display.note(
            f"{folder.name}: {too_long} of {prompts} prompts are left out, wholly or in part: "
            "longer than the model's context with their answers"
        )
