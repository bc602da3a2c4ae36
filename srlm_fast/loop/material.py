"""What a run learns from and is measured on: the tiny world's own, or the user's files."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srlm_fast.config import TINY, Config
from srlm_fast.data import read_eft, read_ift, read_prompts
from srlm_fast.judge import DEFAULT_RUBRIC, Rubric
from srlm_fast.records import InputError, Prompt

from .state import derive_seed

HELD_OUT_SHARE = 0.1
Row = dict[str, Any]


@dataclass(frozen=True)
class Material:
    """ift: {"prompt", "response"}. eft: {"prompt", "response", "judgement", "score"}. eft_eval:
    {"prompt", "responses", "scores"}. held_out: prompts that are never trained on. prompts: the
    user's own, empty when the model makes them. demonstrations: instructions shown to the model
    when it makes prompts. score_bits: a program's score of an answer with the points it is made of,
    where the world has one (used to measure, and by `--reward gold`).
    """

    ift: list[Row]
    eft: list[Row]
    eft_eval: list[Row]
    held_out: list[Prompt]
    prompts: list[Prompt]
    demonstrations: list[str]
    rubric: Rubric
    score_bits: Callable[[str, str], tuple[float, dict[str, bool]]] | None

    @property
    def has_seeds(self) -> bool:
        return bool(self.ift or self.eft)


def gather(config: Config) -> Material:
    """Read what the options name; `--model tiny` brings what they do not. Raises InputError."""
    seed = derive_seed(config.seed, "material")
    prompts = read_prompts(Path(config.prompts_file)) if config.prompts_file else []
    ift = _rows(read_ift, config.ift_file)
    eft = _rows(read_eft, config.eft_file)
    held_out = (
        read_prompts(Path(config.eval_prompts_file))[: config.evaluation.num_prompts]
        if config.eval_prompts_file
        else []
    )
    if config.model == TINY:
        return _tiny(config, ift, eft, held_out, prompts)
    if not prompts and not ift:
        raise InputError(
            "--prompts: not given, and no --ift to make prompts from; wanted a JSONL file with a "
            "`prompt` field"
        )
    if not held_out:
        pool = prompts or [Prompt(row["prompt"], row["prompt"], "file") for row in ift]
        held_out = _hold_out(pool, config.evaluation.num_prompts, seed)
    kept = {prompt.text for prompt in held_out}
    eft, eft_eval = _split_eft([row for row in eft if row["prompt"] not in kept], seed)
    return Material(
        ift=[row for row in ift if row["prompt"] not in kept],
        eft=eft,
        eft_eval=eft_eval[: config.evaluation.num_judged],
        held_out=held_out,
        prompts=[prompt for prompt in prompts if prompt.text not in kept],
        demonstrations=[row["prompt"] for row in ift if row["prompt"] not in kept],
        rubric=DEFAULT_RUBRIC,
        score_bits=None,
    )


def _tiny(
    config: Config, ift: list[Row], eft: list[Row], held_out: list[Prompt], prompts: list[Prompt]
) -> Material:
    """The embedded world; the user's files stand in for its own where they are given."""
    from srlm_fast.tiny import gold, seeds
    from srlm_fast.tiny.rubric import RUBRIC
    from srlm_fast.tiny.settings import SETTINGS

    def score_bits(prompt: str, response: str) -> tuple[float, dict[str, bool]]:
        found = gold.score(prompt, response)
        return float(found.score), found.bits

    seed = derive_seed(config.seed, "tiny")
    ift = ift or seeds.ift(seed, config.num_ift or SETTINGS.num_ift)
    texts = held_out or [
        Prompt(f"held-out-{i}", text, "seed")
        for i, text in enumerate(seeds.heldout(config.evaluation.num_prompts))
    ]
    kept = {prompt.text for prompt in texts}
    return Material(
        ift=[row for row in ift if row["prompt"] not in kept],
        eft=eft or seeds.eft(seed, config.num_eft or SETTINGS.num_eft),
        eft_eval=seeds.eft_eval()[: config.evaluation.num_judged],
        held_out=texts,
        prompts=[prompt for prompt in prompts if prompt.text not in kept],
        demonstrations=[row["prompt"] for row in ift if row["prompt"] not in kept],
        rubric=RUBRIC,
        score_bits=score_bits,
    )


def _rows(read: Callable[[Path], Sequence[Mapping[str, Any]]], path: str | None) -> list[Row]:
    return [dict(row) for row in read(Path(path))] if path else []


def _hold_out(pool: Sequence[Prompt], most: int, seed: int) -> list[Prompt]:
    """A tenth of the different prompts, at most `most`, at least one where two are there."""
    unique = list({prompt.text: prompt for prompt in pool}.values())
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
