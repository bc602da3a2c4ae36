"""How good a model is: its held-out score, how well it judges, what it thinks of itself."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from srlm_fast.config import Config
from srlm_fast.eval import collapse_figures, mean_interval
from srlm_fast.judge import collect_scores, mean_score
from srlm_fast.records import Candidate, Judgement, Prompt
from srlm_fast.sampler import SamplingParams

from .answers import AnswerStage
from .human_text import human_text_figures
from .judging import judge_figures, judge_given, top_score
from .material import Material
from .own_score import PURPOSE, own_score
from .round_answers import reader, show_answers
from .state import ModelFolder, derive_seed
from .stopping import reasons
from .weights import WeightsOf

if TYPE_CHECKING:
    from .loop import Run


def answer_sampling(config: Config, samples: int) -> SamplingParams:
    """Of held-out answers, the same for every model."""
    seed = derive_seed(config.seed, PURPOSE, "answers")
    return dataclasses.replace(config.candidates, n=samples, seed=seed)


class Measuring:
    """The stage that measures a model. Held-out answers are scored by the world's program or, where
    there is none, by M1: one judge for all models, so that their scores can be compared.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def measure(self, folder: ModelFolder) -> dict[str, Any]:
        # First, while the KV pool is not there.
        human_text = self.human_text(folder)
        by_program = self.run.material.score_bits is not None
        own = folder.number == 1 and not by_program
        stage = self.answer(f"{folder.name} held-out", folder, judged=own)
        judge = self.judge(folder)
        praise = own_score(self.run, folder, stage)
        if not own and not by_program:
            with WeightsOf(self.run, self.run.folders[0]):
                stage = self.answer(f"{folder.name} by M1", folder, judged=True)
        answers = [c for group in stage.candidates.values() for c in group]
        return {
            "eval": evaluation_figures(
                self.scored(folder, stage), "program" if by_program else "M1", self.scale
            ),
            "judge": judge,
            "own_score": praise,
            "collapse": collapse_figures(answers),
            "human_text": human_text,
        }

    @property
    def scale(self) -> tuple[float, float]:
        """The lowest and the highest score."""
        rubric = self.run.material.rubric
        return float(rubric.low), float(rubric.high)

    def human_text(self, folder: ModelFolder) -> dict[str, Any] | None:
        """Perplexity of what people wrote; None where there is nothing of it."""
        run, rows = self.run, self.run.material.human_text
        if not rows:
            return None
        run.sampler.release()
        counting = run.counting(f"{folder.name} human text", len(rows), "rows", in_step=True)
        with run.memory.phase("perplexity"), counting as progress:
            tokens = run.config.dpo.micro_batch_tokens
            return human_text_figures(run.model, rows, tokens, progress, **run.ranks.over_mesh)

    def answer(self, title: str, folder: ModelFolder, judged: bool) -> AnswerStage:
        """The live model's answers to the held-out prompts, those on disk included."""
        run = self.run
        params = answer_sampling(run.config, run.config.evaluation.samples)
        judge = reader(run, PURPOSE) if judged else None
        files = (folder.evaluation, folder.evaluation_judged)
        stage = AnswerStage(run.sampler, params, run.material.rubric, judge, *files, run.ranks)
        show_answers(run, title, stage, run.material.held_out)
        return stage

    def scored(self, folder: ModelFolder, stage: AnswerStage) -> list[Scored]:
        material = self.run.material
        if material.score_bits is not None:
            return score_by_program(material, stage.candidates)
        scored = score_by_judge(material.held_out, stage.candidates, stage.judgements)
        if material.held_out and not scored:
            found = Counter(j.status.lower() for group in stage.judgements.values() for j in group)
            self.run.display.note(
                f"{folder.name}: no score, none of M1's judgements held one ({reasons(found)})"
            )
        return scored

    def judge(self, folder: ModelFolder) -> dict[str, Any] | None:
        """Judge answers whose order is known."""
        run, rows = self.run, self.run.material.eft_eval
        if not rows:
            return None
        stage = judge_given(
            run.sampler,
            run.material.rubric,
            reader(run, PURPOSE),
            rows,
            folder.judge_evaluation,
            partial(show_answers, run, f"{folder.name} as judge"),
            run.ranks,
        )
        return judge_figures(
            rows, stage.judgements, top_score(run.material.rubric.high, run.config.judge.mode)
        )


@dataclass(frozen=True)
class Scored:
    """A held-out answer with its score, and the points the score is made of where a program gave
    it.
    """

    prompt_id: str
    text: str
    score: float
    bits: dict[str, bool]


def score_by_program(material: Material, candidates: dict[str, list[Candidate]]) -> list[Scored]:
    assert material.score_bits is not None
    return [
        Scored(p.prompt_id, c.text, *material.score_bits(p.text, c.text))
        for p in material.held_out
        for c in candidates.get(p.prompt_id, [])
    ]


def score_by_judge(
    prompts: Sequence[Prompt],
    candidates: dict[str, list[Candidate]],
    judgements: dict[tuple[str, int], list[Judgement]],
) -> list[Scored]:
    """Answers whose judgements held no score are left out."""
    scores = collect_scores(j for group in judgements.values() for j in group)
    means = {key: mean_score(samples) for key, samples in scores.items()}
    return [
        Scored(p.prompt_id, c.text, score, {})
        for p in prompts
        for c in candidates.get(p.prompt_id, [])
        if (score := means.get((p.prompt_id, c.index))) is not None
    ]


def evaluation_figures(
    scored: Sequence[Scored], judged_by: str, scale: tuple[float, float]
) -> dict[str, Any]:
    """Mean score with its 95 % interval over prompts (a prompt's answers are not independent),
    which ends where the scale does.
    """
    by_prompt: dict[str, list[float]] = {}
    for row in scored:
        by_prompt.setdefault(row.prompt_id, []).append(row.score)
    means = [fmean(scores) for scores in by_prompt.values()]
    if not means:
        return {"score": None, "n": 0, "interval": None, "judged_by": judged_by}
    mean, low, high = mean_interval(means)
    bits = {name: fmean(row.bits[name] for row in scored) for name in scored[0].bits}
    interval = [max(low, min(scale[0], mean)), min(high, max(scale[1], mean))]
    figures = {"score": mean, "n": len(means), "interval": interval, "judged_by": judged_by}
    return figures | ({"bits": bits} if bits else {})
