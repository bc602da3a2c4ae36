"""The judge measured alone: a model, ranked answers, and nothing else of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from srlm_fast.config import TINY, Config, fingerprint
from srlm_fast.judge import DEFAULT_RUBRIC, Rubric, read_rubric
from srlm_fast.model import load_model
from srlm_fast.records import InputError, Prompt
from srlm_fast.run_models import resolve_model
from srlm_fast.sampler import Progress, Sampler

from .answers import AnswerStage
from .judging import audit_counts, judge_given, judged_rows, status_counts
from .material import rubric_of
from .readers import make_reader
from .screen import Screen
from .state import derive_seed

RUBRIC_FILE = "rubric_file"


@dataclass(frozen=True)
class Judged:
    """rows: the ranked rows with the judge's mean scores as "judged". samples: judgements of each
    answer. statuses: judgements by what could be read. too_long: rows left out, wholly or in part,
    because they are longer than the model's context. audits: as `judging.audit_counts` has them.
    """

    rows: list[dict[str, Any]]
    rubric: Rubric
    samples: int
    statuses: dict[str, int]
    too_long: int
    audits: dict[str, int]


def judge_alone(
    config: Config,
    rows: list[dict[str, Any]],
    judgements: Path,
    display: Screen,
    stop: Callable[[], bool] = lambda: False,
) -> Judged:
    """Let the model of `config` judge ranked rows, as a run measures its own models with the same
    seed; goes on from the judgements that the file holds. Raises InputError, ModelError, and
    KeyboardInterrupt at the next safe point after `stop()` is true.
    """
    expected = config.judge.mode != "sampled"
    own = None if config.rubric_file else default_rubric(config.model, expected)
    rubric = rubric_of(config, own or DEFAULT_RUBRIC)
    model = load_model(config.model, config.device, config.dtype)
    seed = derive_seed(config.seed, "measure", "judge")
    sampling = dataclasses.replace(config.judge.sampling, seed=seed)
    reader = make_reader(model, rubric, config.judge.mode, sampling, config.judge.stop)
    show = partial(show_judging, display, stop)
    stage = judge_given(Sampler(model), rubric, reader, rows, judgements, show)
    return Judged(
        judged_rows(rows, stage.judgements),
        rubric,
        reader.n,
        status_counts(stage.judgements),
        len(set(stage.too_long)),
        audit_counts(stage.judgements),
    )


def default_rubric(model: str, expected: bool = False) -> Rubric:
    """The rubric that a model was taught: the tiny world's for its M0 and for what a run made of
    it, that of the run's own `--rubric` for what such a run made. expected: as `read_rubric` has
    it. Raises InputError where that file is no longer what it was.
    """
    from srlm_fast.tiny.rubric import RUBRIC

    run = resolve_model(model).run_config or {}
    if file := run.get(RUBRIC_FILE):
        if not Path(file).is_file() or fingerprint("--rubric", file) != run["inputs"][RUBRIC_FILE]:
            raise InputError(
                f"{model}: its run judged by the rubric {file}, which is gone or has changed "
                "since; wanted --rubric with what it was"
            )
        return read_rubric(file, expected)
    return RUBRIC if TINY in (model, run.get("model")) else DEFAULT_RUBRIC


def show_judging(
    display: Screen,
    stop: Callable[[], bool],
    stage: AnswerStage,
    prompts: list[Prompt],
    title: str = "judging",
) -> None:
    with display.stage(title, len(prompts), "requests") as shown:

        def progress(p: Progress) -> None:
            if stop():
                raise KeyboardInterrupt
            shown.update(p.requests_done, p.requests_total, tokens=p.generated_tokens)

        stage.run(prompts, progress)
