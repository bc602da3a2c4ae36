"""What is compared and how: the options, the run of both models, and defaults together."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from srlm_fast.judge_options import drawn
from srlm_fast.options import JUDGES
from srlm_fast.records import InputError

from .judge import check_kind, chosen_judge, chosen_kind
from .models import Models, all_tiny, shared_run
from .options import MATCHES, OF_RUN, SAMPLES
from .prompts import prompts_of

if TYPE_CHECKING:
    from srlm_fast.config import Config
    from srlm_fast.loop.contest import Terms


def terms_of(arguments: argparse.Namespace, models: Models) -> Terms:
    """Raises InputError for whatever cannot be compared so, before anything is
    written.
    """
    from srlm_fast.loop.contest import Terms
    from srlm_fast.loop.contest_judges import check_gold

    kind = chosen_kind(arguments, models)
    check_kind(arguments, kind)
    config = config_of(arguments, models, kind)
    prompts = prompts_of(arguments.prompts, models, config)
    if kind == "gold":
        try:
            check_gold(prompts)
        except InputError as error:
            raise InputError(
                f"{error}; a model judges any with --judge-kind sampled or pairwise"
            ) from None
    terms = Terms(
        models,
        chosen_judge(arguments, models, kind),
        kind,
        config,
        drawn(prompts, arguments.limit, config.seed),
        of_run=arguments.prompts is None and shared_run(models) is not None,
        match=arguments.match or MATCHES[0],
        tie_within=arguments.tie_within or 0.0,
        limit=arguments.limit if (arguments.limit or 0) < len(prompts) else None,
    )
    check_models(terms)
    check_pairing(terms)
    return terms


def check_pairing(terms: Terms) -> None:
    """Refuse a model against itself, and pairs of answers where each has one."""
    a, b = terms.models["a"].folder_or_name, terms.models["b"].folder_or_name
    if a == b:
        raise InputError(f"B: found {b}, which is A too, wanted two models")
    if terms.match == "same" and terms.sampling.n == 1:
        raise InputError(
            "--match: found 'same' with one answer of each model, wanted --samples 2 or more"
        )


def config_of(arguments: argparse.Namespace, models: Models, kind: str) -> Config:
    """What the run of both models was made with, or the tiny model's or the default numbers; then
    the options. How answers are sampled and judged is all that counts of it.
    """
    from srlm_fast.config import Config, absolute, from_json, put_option, tiny

    if shared_run(models) is not None:
        config = from_json(models["a"].run_config or {})
    else:
        config = tiny() if all_tiny(models) else Config()
    for option in (*OF_RUN, SAMPLES):
        value = getattr(arguments, option.key)
        if value is not None:
            config = put_option(config, option, value)
    judge = config.judge
    if kind in JUDGES:
        stop = judge.stop if kind == "sampled" else "end"
        judge = dataclasses.replace(judge, mode=kind, stop=stop)
    return dataclasses.replace(config, judge=judge, rubric_file=absolute(config.rubric_file))


def check_models(terms: Terms) -> None:
    """Read the configurations, so that a wrong name or length is told before anything is done."""
    from srlm_fast.loop.alone import default_rubric
    from srlm_fast.loop.material import rubric_of
    from srlm_fast.model import find_folder
    from srlm_fast.model.reward_model import check_reward_folder
    from srlm_fast.plan import check_lengths, model_config

    longest = {at.folder_or_name: ["--max-tokens"] for at in terms.models.values()}
    if terms.kind == "model":
        check_reward_folder(find_folder(terms.judge_name))
    elif terms.judge is not None:
        asked = longest.setdefault(terms.judge_name, [])
        asked += ["--judge-max-tokens"] if terms.kind in ("sampled", "expected") else []
    if terms.kind in JUDGES:
        rubric_of(terms.config, default_rubric(terms.judge_name))
    for name, options in longest.items():
        config = dataclasses.replace(terms.config, model=name)
        check_lengths(config, model_config(name), options)
