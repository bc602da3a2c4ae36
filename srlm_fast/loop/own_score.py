"""The own score of a model: what the loop itself thinks of its answers to held-out prompts. Where
it rises while a probe from outside falls, the loop praises itself (`eval/alarms.py`).

By the kind of `--reward`:

    self, frozen, best-of-n,   the live model grades its own answers by the rubric
    constitution
    pairwise                   the live model compares them with those of the model before, in both
                               orders: P(its own is better), 0.5 where nothing has changed
    model                      the reward model scores both: its own, and the difference from those
                               of the model before to the same prompts
    random, gold               none: no judge has a part in it, or the probe is the score itself

The first answer to each of at most 128 held-out prompts is looked at. The last two compare with the
model before, so that M1 has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from srlm_fast.config import OWN_ANSWERS
from srlm_fast.eval import mean_interval
from srlm_fast.judge import collect_scores, matched, mean_score
from srlm_fast.judge.duels import Match
from srlm_fast.records import Candidate, Judgement, Prompt
from srlm_fast.sampler import SamplingParams

from .answers import AnswerStage, load_candidates
from .comparing import DuelStage
from .human_text import spread
from .reward_model import scored_in_run
from .round_answers import reader, show_answers
from .state import ModelFolder

if TYPE_CHECKING:
    from .loop import Run

PURPOSE = "measure"  # of the seeds: all models are measured with the same ones
EVEN = 0.5  # preference between answers that are equally good

Figures = dict[str, Any]
Answers = Mapping[str, Sequence[Candidate]]  # prompt_id -> one answer


def own_score(run: Run, folder: ModelFolder, answered: AnswerStage) -> Figures | None:
    """The figures of a model whose held-out answers are there; None where it has no own score.

    {"kind": of `KINDS`, "score": mean, "interval": its 95 % one over prompts, "n": prompts}, and
    where it was held against the model before {"change", "change_interval", "against"}.
    """
    measure = OWN_SCORES.get(run.config.reward)
    there = [p for p in run.material.held_out if p.prompt_id in answered.candidates]
    prompts = spread(there, OWN_ANSWERS)
    found = measure(run, folder, answered, prompts) if measure and prompts else None
    return {"kind": KINDS[measure], **found} if measure and found else None


def by_rubric(
    run: Run, folder: ModelFolder, answered: AnswerStage, prompts: Sequence[Prompt]
) -> Figures | None:
    stage, own = answered, first_answers(answered.candidates, prompts)
    if answered.reader is None:  # else it was the model itself that judged all of them
        judge, rubric, file = reader(run, PURPOSE), run.material.rubric, folder.own_judged
        stage = AnswerStage(run.sampler, SamplingParams(), rubric, judge, None, file, run.ranks)
        stage.candidates = dict(own)
        show_answers(run, f"{folder.name} of itself", stage, prompts)
    scores = collect_scores(j for group in stage.judgements.values() for j in group)
    means = [mean_score(scores.get((key, c.index), ())) for key, (c,) in own.items()]
    return figures_of([mean for mean in means if mean is not None])


def by_preference(
    run: Run, folder: ModelFolder, answered: AnswerStage, prompts: Sequence[Prompt]
) -> Figures | None:
    """Answers that are the same are even."""
    before = answers_before(run, folder)
    if before is None:
        return None
    own = first_answers(answered.candidates, prompts)
    met = matched(own, first_answers(before, prompts))
    stage = DuelStage(run.sampler, folder.own_compared, met, run.ranks)
    show_answers(run, f"{folder.name} against {former(folder)}", stage, prompts)
    found = [preference(stage, match) for match in met]
    read = [value for value in found if value is not None]
    return against(folder, figures_of(read), figures_of([value - EVEN for value in read]))


def preference(stage: DuelStage, match: Match) -> float | None:
    """P(the first answer is better), None where it could not be read."""
    own, other = match
    if own.text == other.text:
        return EVEN
    rows = stage.judgements.get((own.prompt_id, own.index, other.index))
    return rows[0].score if rows else None


def by_reward_model(
    run: Run, folder: ModelFolder, answered: AnswerStage, prompts: Sequence[Prompt]
) -> Figures | None:
    """Both answers to a prompt are scored together: the candidates 0, of the model before, and 1.
    A reward model that the run trains is there behind M1's figures only.
    """
    before = answers_before(run, folder)
    if before is None:
        return None
    own = first_answers(answered.candidates, prompts)
    both = {
        c.prompt_id: [replace(earlier, index=0), replace(c, index=1)]
        for c, earlier in matched(own, first_answers(before, prompts))
    }
    title = f"{folder.name} own reward"
    scores = both_scores(scored_in_run(run, title, prompts, both, folder.own_judged))
    changes = [after - earlier for earlier, after in scores]
    return against(folder, figures_of([after for _, after in scores]), figures_of(changes))


def both_scores(rows: Sequence[Judgement]) -> list[tuple[float, float]]:
    """The scores of the candidates 0 and 1 of each prompt, where both have one."""
    scores = {(row.prompt_id, row.candidate): row.score for row in rows}
    pairs = [(scores[key, 0], score) for (key, k), score in scores.items() if k]
    return [(one, other) for one, other in pairs if one is not None and other is not None]


def answers_before(run: Run, folder: ModelFolder) -> dict[str, list[Candidate]] | None:
    """The held-out answers of the model before."""
    if folder.number == 1:
        return None
    path = run.folders[folder.number - 2].evaluation
    return load_candidates(path, run.config.evaluation.samples)


def former(folder: ModelFolder) -> str:
    return f"M{folder.number - 1}"


def first_answers(candidates: Answers, prompts: Sequence[Prompt]) -> dict[str, list[Candidate]]:
    found = {p.prompt_id: list(candidates.get(p.prompt_id, ())[:1]) for p in prompts}
    return {key: group for key, group in found.items() if group}


def figures_of(values: Sequence[float]) -> Figures | None:
    """Mean over one answer of each prompt, with its 95 % interval; None where none has a score."""
    if not values:
        return None
    mean, low, high = mean_interval(values)
    return {"score": mean, "interval": [low, high], "n": len(values)}


def against(folder: ModelFolder, own: Figures | None, change: Figures | None) -> Figures | None:
    if own is None or change is None:
        return None
    moved = {"change": change["score"], "change_interval": change["interval"]}
    return own | moved | {"against": former(folder)}


OwnScore = Callable[["Run", ModelFolder, AnswerStage, Sequence[Prompt]], Figures | None]
OWN_SCORES: dict[str, OwnScore] = {
    **dict.fromkeys(("self", "frozen", "best-of-n", "constitution"), by_rubric),
    "pairwise": by_preference,
    "model": by_reward_model,
}
KINDS: dict[OwnScore, str] = {
    by_rubric: "rubric",
    by_preference: "preference",
    by_reward_model: "reward",
}
