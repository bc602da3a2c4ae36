"""`--reward model`: one trained on the user's pairs, and the stage in which it scores."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from srlm_fast.data import PreferenceRow, same_text
from srlm_fast.judge.fence import defused
from srlm_fast.model import Model, RewardModel, chat, load_reward_model
from srlm_fast.model.reward_model import Messages, conversation_ids
from srlm_fast.records import Candidate, InputError, Judgement, Message, Prompt
from srlm_fast.train import RewardPair

from .answers import load_judgements
from .ranks import ALONE, Ranks

if TYPE_CHECKING:
    from .loop import Run

FOLDER = "reward_model"  # in the run folder: the one that the run has trained
HELD_OUT_SHARE = 0.1
PROMPTS_AT_ONCE = 16  # whose answers are scored together and written together
TOO_LONG, NOT_FINITE = "TOO_LONG", "NOT_FINITE"


def scored_in_run(
    run: Run,
    title: str,
    prompts: Sequence[Prompt],
    groups: Mapping[str, Sequence[Candidate]],
    path: Path,
) -> list[Judgement]:
    """`score_answers` by the reward model of a run, which is in memory for it alone."""
    run.sampler.release()
    config = run.config
    source = run.out / FOLDER if config.reward_pairs_file else str(config.reward_model)
    model = load_reward_model(source, config.device, config.dtype)
    counting = run.counting(title, sum(map(len, groups.values())), "answers")
    with counting as progress, run.memory.phase("scoring"):
        rows = score_answers(model, prompts, groups, path, progress, run.ranks)
    del model
    free_memory(run.model.device)
    return rows


def score_answers(
    reward_model: RewardModel,
    prompts: Sequence[Prompt],
    groups: Mapping[str, Sequence[Candidate]],
    path: Path,
    progress: Callable[[int], None],
    ranks: Ranks = ALONE,
) -> list[Judgement]:
    """One row per candidate in `path`: its score, or None and why. Goes on from what is there.

    Rows are written in whole groups of prompts, and a row without its group is scored again: sums
    are rounded in the same company as in an unbroken run. Of many ranks each scores some groups.
    """
    answered = [p for p in prompts if groups.get(p.prompt_id)]
    chunks = [answered[i : i + PROMPTS_AT_ONCE] for i in range(0, len(answered), PROMPTS_AT_ONCE)]
    keys = [
        [(c.prompt_id, c.index) for p in chunk for c in groups[p.prompt_id]] for chunk in chunks
    ]
    ranks.collect(path)
    known = load_judgements(path, 1)
    ranks.wait()  # until all have read it
    whole = [all(key in known for key in chunk) for chunk in keys]
    done = sum(len(chunk) for chunk, is_whole in zip(keys, whole, strict=True) if is_whole)
    kept = [known[key][0] for chunk, ok in zip(keys, whole, strict=True) if ok for key in chunk]
    ranks.write(path, kept)
    left = [chunk for chunk, is_whole in zip(chunks, whole, strict=True) if not is_whole]
    with ranks.appending(path) as writer:
        for chunk in ranks.share(left):
            scored = _score(reward_model, chunk, groups)
            writer.write(*scored)
            done += len(scored)
            progress(done)
    ranks.join([path], [p.prompt_id for p in answered])
    found = load_judgements(path, 1)
    return [found[key][0] for chunk in keys for key in chunk]


def _score(
    reward_model: RewardModel, prompts: Sequence[Prompt], groups: Mapping[str, Sequence[Candidate]]
) -> list[Judgement]:
    """The rows of some prompts. Equal answers to one prompt are scored once."""
    candidates = [(p, c) for p in prompts for c in groups[p.prompt_id]]
    asked = {(p.conversation, c.text): (p, c.text) for p, c in candidates}
    reserved = chat.reserved_strings(reward_model.tokenizer)
    scores = reward_model.scores([conversation(*each, reserved) for each in asked.values()])
    found = dict(zip(asked, scores, strict=True))
    return [_row(c, found[p.conversation, c.text]) for p, c in candidates]


def _row(candidate: Candidate, score: float | None) -> Judgement:
    status = "OK"
    if score is None or not math.isfinite(score):
        status = TOO_LONG if score is None else NOT_FINITE
    value = score if status == "OK" else None
    return Judgement(candidate.prompt_id, candidate.index, 0, "", value, status)


def conversation(prompt: Prompt, answer: str, reserved: Sequence[str]) -> Messages:
    """A prompt and its answer; neither can spell a special token of the reward model."""
    turns: list[Message] = [*prompt.messages, {"role": "assistant", "content": answer}]
    return [{"role": m["role"], "content": defused(m["content"], reserved)} for m in turns]


def split_preferences(
    rows: Sequence[PreferenceRow], measured_on: Sequence[str], seed: int
) -> tuple[list[PreferenceRow], list[PreferenceRow]]:
    """(rows to train on, rows to measure on): those of a tenth of the prompts, at least one of two.

    Prompts that the run's models are measured on take no part. Raises InputError where no row is
    left to train on.
    """
    left = {same_text(text) for text in measured_on}
    by_prompt: dict[str, list[PreferenceRow]] = {}
    for row in rows:
        key = same_text(row["prompt"])
        if key not in left:
            by_prompt.setdefault(key, []).append(row)
    if not by_prompt:
        raise InputError(
            f"--reward-pairs: found {len(rows)} pairs of different answers, all to prompts that "
            "the models are measured on, wanted pairs of other prompts"
        )
    count = max(1, round(len(by_prompt) * HELD_OUT_SHARE)) if len(by_prompt) > 1 else 0
    held = set(random.Random(seed).sample(sorted(by_prompt), count))
    apart: tuple[list[PreferenceRow], list[PreferenceRow]] = ([], [])
    for key, group in by_prompt.items():
        apart[key in held].extend(group)
    return apart


def reward_pairs(model: Model, rows: Sequence[PreferenceRow]) -> list[RewardPair]:
    """Rows as tokens, without those of which one side is longer than the model's context."""
    reserved = chat.reserved_strings(model.tokenizer)

    def ids(messages: Sequence[Message]) -> list[int]:
        safe = [{"role": m["role"], "content": defused(m["content"], reserved)} for m in messages]
        try:
            return conversation_ids(model, safe)
        except Exception as error:  # jinja raises many kinds
            reason = str(error).strip().split("\n")[0]
            roles = ", ".join(m["role"] for m in messages)
            raise InputError(
                f"--reward-pairs: found a conversation of {roles} that the chat template cannot "
                f"render ({reason})"
            ) from None

    pairs = [RewardPair(ids(row["chosen"]), ids(row["rejected"])) for row in rows]
    longest = model.config.max_position_embeddings
    return [p for p in pairs if max(len(p.chosen_ids), len(p.rejected_ids)) <= longest]


def free_memory(device: torch.device) -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def accuracy_note(figures: Mapping[str, Any]) -> str:
    """The trained reward model in a line."""
    held = figures["held_out"]
    share = "unknown" if held["accuracy"] is None else f"{held['accuracy']:.1%}"
    return f"reward model: {share} of {held['n']} held-out pairs ordered as in --reward-pairs"
