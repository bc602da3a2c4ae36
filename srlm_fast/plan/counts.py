"""How many prompts and answers a run takes from the user's files, counted in them.

What is held out is left out as the loop does it (`loop/material.py`), but for rows that stand in
several files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from srlm_fast.config import TINY, Config
from srlm_fast.data.fields import Skipped
from srlm_fast.data.prompts import recognised_prompts
from srlm_fast.data.seeds import recognised_eft, recognised_eft_eval, recognised_ift
from srlm_fast.tiny.settings import SETTINGS

HELD_OUT_SHARE = 0.1


def counted(config: Config) -> Config:
    """The run with the prompts of a round, and those held out, that there are."""
    held = held_out(config)
    made = replace(config, evaluation=replace(config.evaluation, num_prompts=held))
    if config.prompts_file is None:
        return made
    taken = 0 if config.eval_prompts_file or config.model == TINY else held
    left = different_prompts(config.prompts_file, config) - taken
    return replace(made, num_prompts=max(1, min(config.num_prompts, left)))


def held_out(config: Config) -> int:
    """Prompts that each model's answers to are measured on."""
    most = config.evaluation.num_prompts
    if config.eval_prompts_file:
        return min(most, different_prompts(config.eval_prompts_file, config))
    pool = config.prompts_file or config.ift_file
    if config.model == TINY or pool is None:
        return most
    count = different_prompts(pool, config)
    return min(most, max(1, round(count * HELD_OUT_SHARE))) if count > 1 else 0


def different_prompts(path: str, config: Config) -> int:
    return len({prompt.prompt_id for prompt in recognised_prompts(path, skipped(config)).rows})


@dataclass(frozen=True)
class Known:
    """Prompts whose answers have a known order, and those answers."""

    prompts: float = 0
    answers: float = 0


def known(config: Config) -> Known:
    """That each model's judge is measured on: of --eft a tenth."""
    most = config.evaluation.num_judged
    if config.eft_eval_file:
        rows = recognised_eft_eval(config.eft_eval_file, skipped(config)).rows[:most]
        return Known(len(rows), sum(len(row["responses"]) for row in rows))
    if config.eft_file:
        return known_of_eft(config.eft_file, config)
    prompts = min(most, SETTINGS.num_eft_eval) if config.model == TINY else 0
    return Known(prompts, prompts * SETTINGS.num_eft_answers)


def known_of_eft(path: str, config: Config) -> Known:
    found = recognised_eft(path, skipped(config))
    prompts = len({row["prompt"] for row in found.rows})
    answers = sum(len(row.get("responses", "1")) for row in found.rows)
    taken = min(config.evaluation.num_judged, prompts * HELD_OUT_SHARE)
    return Known(taken, taken * answers / max(1, prompts))


@dataclass(frozen=True)
class Seeds:
    """Rows that M1 is taught: of instructions and of judgements, and ranked answers to build the
    latter from.
    """

    ift: int = 0
    eft: int = 0
    ranked: int = 0


def seeds_of(config: Config) -> Seeds:
    """Counted in the files. Raises InputError."""
    own = config.model == TINY
    ift, eft, ranked = (config.num_ift or 0) * own, (config.num_eft or 0) * own, 0
    if config.ift_file:
        ift = len(recognised_ift(config.ift_file, skipped(config)).rows)
    ift = min(ift, config.num_ift or ift)
    if config.eft_file:
        found = recognised_eft(config.eft_file, skipped(config))
        judged = found.form.judged is not None
        eft = len(found.rows) if judged else 0
        ranked = 0 if judged else sum(len(row["responses"]) for row in found.rows)
    # Of ranked answers about half are kept: those whose judgement agrees with people.
    eft += ranked // 2
    return Seeds(ift, min(eft, config.num_eft or eft), ranked)


def skipped(config: Config) -> Skipped | None:
    return Skipped() if config.skip_bad else None
