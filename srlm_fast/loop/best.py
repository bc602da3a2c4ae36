"""Best of n at inference: several answers, one judge, the answer that it likes most."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from srlm_fast.judge import DEFAULT_RUBRIC, Rubric, collect_scores, mean_score, rank
from srlm_fast.model import Model, RewardModel
from srlm_fast.records import Candidate, Prompt
from srlm_fast.sampler import Sampler, SamplingParams

from .answers import AnswerStage
from .readers import make_reader
from .reward_model import score_answers

JUDGE = SamplingParams(n=3, temperature=0.7, top_p=0.9, max_tokens=256)
ANSWERS = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=512)


@dataclass(frozen=True)
class BestOfN:
    """The best answer to a prompt, and all of them with their mean scores.

    score is None where no score could be read of any answer; text is then the first one. No texts
    at all: the prompt is longer than the model's context, and text is "".
    """

    text: str
    score: float | None
    texts: list[str]
    scores: list[float | None]


def best_of_n(
    model: Model,
    prompts: Sequence[str],
    n: int = 4,
    *,
    params: SamplingParams = ANSWERS,
    reward_model: RewardModel | None = None,
    judge: str = "sampled",
    judge_params: SamplingParams = JUDGE,
    rubric: Rubric = DEFAULT_RUBRIC,
    sampler: Sampler | None = None,
) -> list[BestOfN]:
    """Draw `n` answers to each prompt and keep the one that is scored highest.

    The judge is the model itself, with `rubric`, `judge_params` and the reading `judge` ("sampled",
    "expected" or "direct"), or a reward model from `load_reward_model`. Prompts are put through the
    model's chat template. Equal means are settled as in `judge.rank`. The same seed in `params`
    gives the same answers. sampler: one of this model's to go on with; else one is made and
    released.

    The distribution that comes out is at most log n - (n - 1) / n nats away from the model's own
    (KL divergence; the formula is that of arXiv 2009.01325, appendix G.3, and arXiv 2401.01879
    shows that it is an upper bound): 0.64 nats for n = 4, 1.84 for n = 16.
    Raises ValueError for an n below 1, prompts that are one string, and an unknown `judge`.
    """
    if n < 1:
        raise ValueError(f"n: {n}, wanted at least 1")
    if isinstance(prompts, str):
        raise ValueError("prompts: a string, wanted a list of them")
    asked = [Prompt(str(i), text, "file") for i, text in enumerate(prompts)]
    own = sampler or Sampler(model)
    reader = None if reward_model else make_reader(model, rubric, judge, judge_params)
    with tempfile.TemporaryDirectory() as folder:
        files = (Path(folder) / "candidates.jsonl", Path(folder) / "judgements.jsonl")
        stage = AnswerStage(own, replace(params, n=n), rubric, reader, *files)
        stage.run(asked)
        judged = [j for group in stage.judgements.values() for j in group]
        if reward_model:
            judged = score_answers(reward_model, asked, stage.candidates, files[1], _silent)
    if sampler is None:
        own.release()
    scores = collect_scores(judged)
    return [_best(stage.candidates.get(prompt.prompt_id, []), scores) for prompt in asked]


def _best(
    group: Sequence[Candidate], scores: Mapping[tuple[str, int], list[float | None]]
) -> BestOfN:
    samples = [scores.get((c.prompt_id, c.index), []) for c in group]
    texts, means = [c.text for c in group], [mean_score(each) for each in samples]
    order = rank(samples)
    if not order:
        return BestOfN(texts[0] if texts else "", None, texts, means)
    return BestOfN(texts[order[0]], means[order[0]], texts, means)


def _silent(done: int) -> None:
    """Progress that nobody watches."""
