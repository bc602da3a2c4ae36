"""How many prompts and answers a run takes from the user's files, counted in them.

What is held out is left out as the loop does it (`loop/material.py`), but for rows that stand in
several files. A file is read once: it is taken to stay as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from srlm_fast.config import TINY, Config
from srlm_fast.data.fields import Skipped
from srlm_fast.data.held_out import HELD_OUT_SHARE, held_out_count
from srlm_fast.data.prompts import recognised_prompts
from srlm_fast.data.seeds import recognised_eft, recognised_eft_eval, recognised_ift
from srlm_fast.tiny.settings import SETTINGS


def counted(config: Config) -> Config:
    """The run with the prompts of a round, and those held out, that there are."""
    held = held_out(config)
    made = replace(config, evaluation=replace(config.evaluation, num_prompts=held))
    if config.prompts_file is None:
        return made
    taken = 0 if config.eval_prompts_file or config.model == TINY else held
    left = different_prompts(config.prompts_file, config.skip_bad) - taken
    return replace(made, num_prompts=max(1, min(config.num_prompts, left)))


def held_out(config: Config) -> int:
    """Prompts that each model's answers to are measured on."""
    most = config.evaluation.num_prompts
    if config.eval_prompts_file:
        return min(most, different_prompts(config.eval_prompts_file, config.skip_bad))
    pool = config.prompts_file or config.ift_file
    if config.model == TINY or pool is None:
        return most
    return held_out_count(different_prompts(pool, config.skip_bad), most)


@cache
def different_prompts(path: str, skip_bad: bool) -> int:
    return len({prompt.prompt_id for prompt in recognised_prompts(path, skipped(skip_bad)).rows})


@dataclass(frozen=True)
class Known:
    """Prompts whose answers have a known order, and those answers."""

    prompts: float = 0
    answers: float = 0


def known(config: Config) -> Known:
    """That each model's judge is measured on: of --eft a tenth."""
    most = config.evaluation.num_judged
    if config.eft_eval_file:
        return known_of_eft_eval(config.eft_eval_file, config.skip_bad, most)
    if config.eft_file:
        found = counted_eft(config.eft_file, config.skip_bad)
        taken = min(most, found.prompts * HELD_OUT_SHARE)
        return Known(taken, taken * found.answers / max(1, found.prompts))
    prompts = min(most, SETTINGS.num_eft_eval) if config.model == TINY else 0
    return Known(prompts, prompts * SETTINGS.num_eft_answers)


@cache
def known_of_eft_eval(path: str, skip_bad: bool, most: int) -> Known:
    rows = recognised_eft_eval(path, skipped(skip_bad)).rows[:most]
    return Known(len(rows), sum(len(row["responses"]) for row in rows))


@dataclass(frozen=True)
class Eft:
    """What a file of --eft holds. judged: judgements, else ranked answers to build them from."""

    judged: bool
    rows: int
    prompts: int
    answers: int


@cache
def counted_eft(path: str, skip_bad: bool) -> Eft:
    found = recognised_eft(path, skipped(skip_bad))
    prompts = len({row["prompt"] for row in found.rows})
    answers = sum(len(row.get("responses", "1")) for row in found.rows)
    return Eft(found.form.judged is not None, len(found.rows), prompts, answers)


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
        ift = len(recognised_ift(config.ift_file, skipped(config.skip_bad)).rows)
    ift = min(ift, config.num_ift or ift)
    if config.eft_file:
        found = counted_eft(config.eft_file, config.skip_bad)
        eft, ranked = (found.rows, 0) if found.judged else (0, found.answers)
    # Of ranked answers about half are kept: those whose judgement agrees with people.
    eft += ranked // 2
    return Seeds(ift, min(eft, config.num_eft or eft), ranked)


def skipped(skip_bad: bool) -> Skipped | None:
    return Skipped() if skip_bad else None
