"""Rows of text as the token rows that SFT and DPO take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.judge import Rubric
from srlm_fast.model import Model, chat
from srlm_fast.records import Candidate, InputError
from srlm_fast.train import SftRow, TokenPair

from .answers import judge_text

IFT_FIELDS = ("prompt", "response", "turns")


def end_ids(model: Model) -> list[int]:
    """What closes an answer: the tokenizer's end token (that of a chat model ends its turns), else
    the first of the model's.
    """
    end = model.tokenizer.eos_token_id
    return list(model.eos_token_ids[:1]) if end is None else [end]


def sft_rows(
    model: Model, rubric: Rubric, ift: Sequence[dict[str, Any]], eft: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[SftRow]]:
    """(rows as text for the run folder, rows as tokens): instructions with answers, judge prompts
    with judgements.
    """
    texts = [{"kind": "ift"} | {name: r[name] for name in IFT_FIELDS if name in r} for r in ift]
    texts += [
        {
            "kind": "eft",
            "prompt": judge_text(rubric, model.tokenizer, r["prompt"], r["response"]),
            "response": r["judgement"],
        }
        for r in eft
    ]
    return texts, taught_rows(model, texts)


def taught_rows(model: Model, texts: Sequence[dict[str, Any]]) -> list[SftRow]:
    """Rows of the run folder's text as tokens."""
    return [SftRow(prompt_ids(model, t), answer_ids(model, t["response"])) for t in texts]


def prompt_ids(model: Model, row: dict[str, Any]) -> list[int]:
    """Token ids of a row's `prompt`, with the `turns` before it where there are some."""
    return chat.encode(model.tokenizer, row["prompt"], row.get("turns") or ())


def answer_ids(model: Model, text: str) -> list[int]:
    """Token ids of an answer as the model would have written it, its end token included."""
    return [*model.tokenizer(text, add_special_tokens=False)["input_ids"], *end_ids(model)]


def fitting(rows: Sequence[SftRow], longest: int) -> list[SftRow]:
    """Rows no longer than the model's context."""
    return [row for row in rows if len(row.prompt_ids) + len(row.response_ids) <= longest]


def token_pair(
    model: Model, row: dict[str, Any], candidates: Mapping[str, Sequence[Candidate]]
) -> TokenPair:
    """A pair row as tokens: exactly those that were sampled, and the end token where the answer
    ended. `label` of the row, where it has one, is the probability that chosen is the better one.
    """
    group = {candidate.index: candidate for candidate in candidates[row["prompt_id"]]}
    *turns, asked, _ = row["chosen"]
    question = chat.encode(model.tokenizer, asked["content"], turns)
    chosen, rejected = group[row["chosen_index"]], group[row["rejected_index"]]
    responses = response_ids(model, chosen), response_ids(model, rejected)
    return TokenPair(question, *responses, label=row.get("label", 1.0))


def token_pairs(
    model: Model,
    rows: Sequence[dict[str, Any]],
    candidates: Mapping[str, Sequence[Candidate]],
    path: Path,
) -> list[TokenPair]:
    """The pair rows of a file as tokens. Raises InputError for a row that is none."""
    try:
        return [token_pair(model, row, candidates) for row in rows]
    except KeyError as error:
        raise InputError(f"{path}: found a row without {error}, wanted pairs") from None


def best_sft_rows(
    model: Model, rows: Sequence[dict[str, Any]], candidates: Mapping[str, Sequence[Candidate]]
) -> list[SftRow]:
    """The best answers of a round (`judge.best_rows`) as tokens, those that were sampled. Raises
    InputError for a row that names no candidate."""
    found = []
    for row in rows:
        try:
            best = candidates[row["prompt_id"]][row["index"]]
            question = prompt_ids(model, row)
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"sft.jsonl: found a row without {error}, wanted the best") from None
        found.append(SftRow(question, response_ids(model, best)))
    return found


def response_ids(model: Model, candidate: Candidate) -> list[int]:
    ids = list(candidate.token_ids)
    ended = bool(ids) and ids[-1] in model.eos_token_ids
    return ids if ended or candidate.finish_reason != "stop" else ids + end_ids(model)
