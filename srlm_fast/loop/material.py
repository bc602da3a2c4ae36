"""What a run learns from and is measured on: the tiny world's own, or the user's files."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from srlm_fast.config import TINY, Config
from srlm_fast.data import read_eft_or_ranked, read_ift, read_prompts, same_text
from srlm_fast.judge import DEFAULT_RUBRIC, Rubric, read_rubric
from srlm_fast.records import InputError, Prompt

from .human_text import MOST_ROWS, split_human_text
from .state import derive_seed

HELD_OUT_SHARE = 0.1
Row = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """ift: {"prompt", "response"}. eft: {"prompt", "response", "judgement", "score"}. eft_eval:
    {"prompt", "responses", "scores"}. ranked: rows of that form from which EFT is still to be
    built. held_out: prompts that are never trained on. prompts: the
    user's own, empty when the model makes them. score_bits: a program's score of an answer with the
    points it is made of, where the world has one (used to measure, and by `--reward gold`).
    human_text: {"prompt", "response"} that people wrote and no model learns from. notes: what a
    user should know of all this.
    """

    ift: list[Row]
    eft: list[Row]
    eft_eval: list[Row]
    held_out: list[Prompt]
    prompts: list[Prompt]
    rubric: Rubric
    score_bits: Callable[[str, str], tuple[float, dict[str, bool]]] | None
    ranked: list[Row] = field(default_factory=list)
    human_text: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def has_seeds(self) -> bool:
        return bool(self.ift or self.eft)

    @property
    def demonstrations(self) -> list[str]:
        """Instructions shown to the model when it makes prompts."""
        return [row["prompt"] for row in self.ift]

    @property
    def measured_on(self) -> list[str]:
        """Prompts that must never be trained on."""
        return [prompt.text for prompt in self.held_out] + [row["prompt"] for row in self.eft_eval]


def gather(config: Config) -> Material:
    """Read what the options name; `--model tiny` brings what they do not. Raises InputError."""
    eft, ranked = read_eft_or_ranked(Path(config.eft_file)) if config.eft_file else ([], [])
    seeds = _rows(read_ift, config.ift_file)
    given = Given(
        ift=seeds[: config.num_ift],
        eft=[dict(row) for row in eft[: config.num_eft]],
        ranked=[dict(row) for row in ranked],
        held_out=_prompts(config.eval_prompts_file)[: config.evaluation.num_prompts],
        prompts=_prompts(config.prompts_file),
        human_text=_rows(read_ift, config.human_text_file),
    )
    found = _tiny(config, given) if config.model == TINY else _users(config, given)
    text = given.human_text or found.human_text
    found = split_human_text(found, text, seeds, derive_seed(config.seed, "human text"))
    _check_left(config, found)
    return found


@dataclass(frozen=True)
class Given:
    """The rows of the user's files, empty where none was named."""

    ift: list[Row]
    eft: list[Row]
    ranked: list[Row]
    held_out: list[Prompt]
    prompts: list[Prompt]
    human_text: list[Row]


def _users(config: Config, given: Given) -> Material:
    if not given.prompts and not given.ift:
        raise InputError(
            "--prompts: not given, and no --ift to make prompts from; wanted a JSONL file with a "
            "`prompt` field"
        )
    seed = derive_seed(config.seed, "material")
    pool = given.prompts or [Prompt(row["prompt"], row["prompt"], "file") for row in given.ift]
    held_out = given.held_out or _hold_out(pool, config.evaluation.num_prompts, seed)
    eft, eft_eval = _split_eft(given.eft, seed)
    ranked, ranked_eval = _split_ranked(given.ranked, seed)
    return _apart(
        Material(
            ift=given.ift,
            eft=eft,
            eft_eval=(eft_eval + ranked_eval)[: config.evaluation.num_judged],
            ranked=ranked,
            held_out=held_out,
            prompts=given.prompts,
            rubric=rubric_of(config, DEFAULT_RUBRIC),
            score_bits=None,
        )
    )


def _tiny(config: Config, given: Given) -> Material:
    """The embedded world; the user's files stand in for its own where they are given."""
    from srlm_fast.tiny import gold, seeds
    from srlm_fast.tiny.rubric import RUBRIC
    from srlm_fast.tiny.settings import SETTINGS

    def score_bits(prompt: str, response: str) -> tuple[float, dict[str, bool]]:
        found = gold.score(prompt, response)
        return float(found.score), found.bits

    seed = derive_seed(config.seed, "tiny")
    ift = given.ift or seeds.ift(seed, config.num_ift or SETTINGS.num_ift)
    taught = [row["prompt"] for row in ift]
    num_eft = 0 if given.ranked else config.num_eft or SETTINGS.num_eft
    eft = given.eft or seeds.eft(seed, num_eft, exclude=taught)
    count = config.evaluation.num_prompts
    held_out = seeds.heldout(count)
    if len(held_out) < count:
        raise InputError(
            f"--eval-count: found {count}, wanted at most {len(held_out)}: "
            "the tiny world has no more held-out instructions"
        )
    return _apart(
        Material(
            ift=ift,
            eft=eft,
            eft_eval=seeds.eft_eval()[: config.evaluation.num_judged],
            ranked=given.ranked,
            held_out=given.held_out
            or [Prompt(f"held-out-{i}", text, "seed") for i, text in enumerate(held_out)],
            prompts=given.prompts,
            rubric=rubric_of(config, RUBRIC),
            score_bits=score_bits,
            human_text=seeds.human_text(min(count, MOST_ROWS)),
        )
    )


def rubric_of(config: Config, default: Rubric) -> Rubric:
    """The user's own rubric, or `default`. Raises InputError."""
    if config.rubric_file is None:
        return default
    try:
        return read_rubric(config.rubric_file, expected=config.judge.mode != "sampled")
    except InputError as error:
        raise InputError(f"--rubric {error}") from None


def _apart(found: Material) -> Material:
    """Without the rows whose prompt a model is measured on, but for case and white space."""
    measured = {same_text(text) for text in found.measured_on}

    def kept(rows: list[Row]) -> list[Row]:
        return [row for row in rows if same_text(row["prompt"]) not in measured]

    prompts = [prompt for prompt in found.prompts if same_text(prompt.text) not in measured]
    return replace(
        found,
        ift=kept(found.ift),
        eft=kept(found.eft),
        ranked=kept(found.ranked),
        prompts=prompts,
    )


def _check_left(config: Config, found: Material) -> None:
    """Refuse files of which nothing is left to learn from."""
    files = {"--prompts": config.prompts_file, "--ift": config.ift_file, "--eft": config.eft_file}
    rows = {"--prompts": found.prompts, "--ift": found.ift, "--eft": found.eft or found.ranked}
    for option, path in files.items():
        if path and not rows[option]:
            raise InputError(
                f"{option} {path}: every prompt in it is held out for measuring, "
                "wanted more of them"
            )


def _prompts(path: str | None) -> list[Prompt]:
    return read_prompts(Path(path)) if path else []


def _rows(read: Callable[[Path], Sequence[Mapping[str, Any]]], path: str | None) -> list[Row]:
    return [dict(row) for row in read(Path(path))] if path else []


def _hold_out(pool: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    """A tenth of the different prompts, at most `most`, at least one where two are there."""
    unique = list({same_text(prompt.text): prompt for prompt in pool}.values())
    count = min(most, max(1, round(len(unique) * HELD_OUT_SHARE))) if len(unique) > 1 else 0
    return random.Random(seed).sample(unique, count)


def _split_eft(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """(rows to train on, groups to measure the judge on): a tenth of the prompts that have answers
    of different score.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row)
    ranked = [p for p, group in groups.items() if len({row["score"] for row in group}) > 1]
    count = round(len(ranked) * HELD_OUT_SHARE)
    measured = set(random.Random(seed).sample(ranked, count))
    eval_rows = [
        {
            "prompt": prompt,
            "responses": [row["response"] for row in groups[prompt]],
            "scores": [row["score"] for row in groups[prompt]],
        }
        for prompt in groups
        if prompt in measured
    ]
    return [row for row in rows if row["prompt"] not in measured], eval_rows


def _split_ranked(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """(rows to build EFT from, rows to measure the judge on): a tenth of the prompts whose answers
    people score apart. Rows of the same prompt stay together.
    """
    keys = [same_text(row["prompt"]) for row in rows]
    apart = {key: None for key, row in zip(keys, rows, strict=True) if len(set(row["scores"])) > 1}
    count = round(len(apart) * HELD_OUT_SHARE)
    measured = set(random.Random(seed).sample(list(apart), count))
    both = list(zip(keys, rows, strict=True))
    return (
        [row for key, row in both if key not in measured],
        [row for key, row in both if key in measured],
    )


def round_prompts(prompts: Sequence[Prompt], number: int, count: int, seed: int) -> list[Prompt]:
    """The user's prompts of round `number` (0, 1, …): the next `count` of a shuffled deck that is
    dealt again when used up.
    """
    deck: list[Prompt] = []
    deal = 0
    while len(deck) < (number + 1) * count:
        shuffled = list(prompts)
        random.Random(derive_seed(seed, "deal", deal)).shuffle(shuffled)
        deck += shuffled
        deal += 1
    dealt = deck[number * count : (number + 1) * count]
    return list({prompt.prompt_id: prompt for prompt in dealt}.values())
