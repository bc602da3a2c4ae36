"""Options that a run as it was asked for can never use, and why: one table.

Only what the user gave is looked at, never a preset's or a default's value, and of it nothing that
says "off" (`no`, 0). What a value alone makes impossible is refused in `config.check`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srlm_fast.config import ROW_FILES, TINY, Config, option_at
from srlm_fast.options import GROUPS, MADE_PROMPTS, OPTIONS, Option
from srlm_fast.records import InputError


@dataclass(frozen=True)
class Unused:
    """options: by name. when: of a run that cannot use them. why: what stands behind "found"; it
    may name fields of the run.
    """

    options: tuple[str, ...]
    when: Callable[[Config], bool]
    why: str


def has_seeds(run: Config) -> bool:
    return run.model == TINY or bool(run.ift_file or run.eft_file)


def has_known(run: Config) -> bool:
    """Whether there may be answers of known order."""
    return run.model == TINY or bool(run.eft_file or run.eft_eval_file)


def has_earlier(run: Config) -> bool:
    """Whether a round has rows of earlier ones; under best-of-n the seeds are the first of them."""
    seeds_count = run.reward == "best-of-n" and has_seeds(run) and not run.mix_real
    return run.iterations > 1 or (run.iterations == 1 and seeds_count)


def names(group: str, *left_out: str) -> tuple[str, ...]:
    return tuple(option.name for option in GROUPS[group] if option.name not in left_out)


DPO = (
    *("--lr", "--beta", "--loss", "--label-smoothing", "--gamma", "--nll-weight", "--epochs"),
    *("--batch-pairs", "--reference", "--held-out-pairs", "--evaluate-every", "--patience"),
)
ROUND = (
    *names(MADE_PROMPTS),
    *("--num-prompts", "--candidates", "--reward-model", "--constitution", "--revisions"),
    *names("pairs"),
    *DPO,
    *("--accumulate", "--mix-real", "--real-weight", "--stop-on-collapse"),
)
ROW_OPTIONS = ", ".join(map(option_at, ROW_FILES[:-1])) + f" or {option_at(ROW_FILES[-1])}"

TABLE = (
    Unused(
        ("--skip-bad",),
        lambda run: not any(getattr(run, name) for name in ROW_FILES),
        f"without a file of rows, wanted {ROW_OPTIONS}: their lines are what is passed over",
    ),
    Unused(
        names(MADE_PROMPTS),
        lambda run: run.prompts_file is not None,
        "with --prompts, wanted one of the two: the prompts of a file are taken as they are",
    ),
    Unused(
        ROUND,
        lambda run: run.iterations == 0,
        "with --iterations 0, wanted a round at least: this run makes M1 and measures it",
    ),
    Unused(
        DPO,
        lambda run: run.reward == "best-of-n",
        "with --reward best-of-n, wanted another reward: the best answers are taught by SFT "
        "(--sft-lr, --sft-epochs), without pairs",
    ),
    Unused(
        ("--min-margin", "--length-control"),
        lambda run: run.reward == "best-of-n",
        "with --reward best-of-n, wanted another reward: it makes no pairs",
    ),
    Unused(
        ("--candidates",),
        lambda run: run.reward == "constitution",
        "with --reward constitution, wanted another reward: it revises one answer to each prompt "
        "(--revisions)",
    ),
    Unused(
        ("--accumulate",),
        lambda run: not has_earlier(run),
        "with --iterations {iterations}, wanted two rounds at least: the first has no earlier one",
    ),
    Unused(
        ("--reference",),
        lambda run: run.reference == "sft" and run.iterations < 2,
        "with --iterations {iterations}, wanted two rounds at least: the first starts from M1 "
        "anyway",
    ),
    Unused(
        ("--judge-samples",),
        lambda run: run.judge.mode != "sampled" and run.reward != "random" and not run.eft_file,
        "with --judge {judge.mode}, wanted --judge sampled: the others read one score of an answer",
    ),
    Unused(
        ("--judge-temperature", "--judge-max-tokens"),
        lambda run: (
            run.judge.mode == "direct" and run.reward != "constitution" and not run.eft_file
        ),
        "with --judge direct, wanted --judge sampled or expected: it writes nothing",
    ),
    Unused(
        ("--eval-judged",),
        lambda run: not has_known(run),
        "without --eft and --eft-eval, wanted one of them: the judge is measured on their answers",
    ),
    Unused(
        ("--reward-lr", "--reward-epochs"),
        lambda run: run.reward_pairs_file is None,
        "without --reward-pairs, wanted both: no reward model is trained",
    ),
    Unused(
        ("--sft-lr", "--sft-epochs"),
        lambda run: not has_seeds(run) and not (run.reward == "best-of-n" and run.iterations),
        "without --ift and --eft, wanted one of them: the given model is taken as M1",
    ),
    Unused(
        (*names("every training", "--micro-batch-tokens"), "--lora-rank", "--base-dtype"),
        lambda run: not (run.iterations or has_seeds(run) or run.reward_pairs_file),
        "with --iterations 0 and without --ift and --eft, wanted something to train on",
    ),
    Unused(
        ("--final-fraction",),
        lambda run: run.dpo.schedule == run.sft.schedule == "constant",
        "with --schedule constant, wanted linear or cosine: it has no end of its own",
    ),
)


def check_used(run: Config, arguments: Namespace) -> None:
    """Raise InputError for the first option given that this run cannot use."""
    given = {option.name: option for option in OPTIONS if is_asked(option, arguments)}
    for unused in TABLE:
        for name in unused.options:
            if name in given and unused.when(run):
                why = unused.why.format(iterations=run.iterations, judge=run.judge)
                raise InputError(f"{name}: found {why}")


def is_asked(option: Option, arguments: Namespace) -> bool:
    value: Any = getattr(arguments, option.key, None)
    return value is not None and (value not in (0, "no") or option.name.endswith("temperature"))
