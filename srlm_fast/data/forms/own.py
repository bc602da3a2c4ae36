"""Rows with a `prompt` of their own: this project's, and TRL's prompt-only, prompt-completion and
unpaired ones.
"""

from __future__ import annotations

from typing import Any

from srlm_fast.data.conversations import (
    Exchange,
    Ordered,
    as_messages,
    exchanges,
    messages,
    question,
    system,
    user,
)
from srlm_fast.data.fields import Line, check_number, check_text, kind
from srlm_fast.records import Message, asked_row, conversation_text

SAID = {"true": True, "1": True, "false": False, "0": False}  # a `label` as text, in any case


def before(line: Line) -> list[Message]:
    """The `turns` of a row, said before its `prompt`."""
    value = line.fields.get("turns")
    return messages(line, "turns", value) if value else []


def prompt(line: Line) -> list[Message]:
    """`prompt`, a text or messages, behind the `turns`; in any order. Where `prompt` is all of a
    conversation as one text (`records.AskedRow`), the last turn is the `text`.
    """
    turns, text = before(line), line.fields.get("text")
    if turns and isinstance(text, str):
        whole = [*turns, user(text)]
        if conversation_text(whole) == line.text("prompt"):
            return whole
    asked = [*turns, *as_messages(line, "prompt", "user")]
    return asked if asked[0]["role"] == "system" else [*system(line), *asked]


def asked(line: Line) -> list[Message]:
    return question(line, "prompt", prompt(line))


def asked_text(line: Line) -> list[Message]:
    """`text` in the place of `prompt`, as a run writes down its prompts, and Vicuna's questions."""
    return question(line, "turns", [*before(line), user(line.text("text"))])


def asked_first(line: Line) -> list[Message]:
    """The first of the questions in `turns`, texts or (Arena-Hard) {"content": ...}: the next ones
    need an answer to it."""
    first = next(iter(line.items("turns")), None)
    text = first.get("content") if isinstance(first, dict) else first
    return [user(check_text(line, "turns[0]", text))]


def answered(line: Line) -> list[Exchange]:
    return [(asked(line), line.either("response", "answer"))]


def judged(line: Line) -> dict[str, Any]:
    return {
        **asked_row(asked(line)),
        "response": line.text("response"),
        "judgement": line.text("judgement"),
        "score": line.number_of("score"),
    }


def scored(line: Line) -> Ordered:
    """One answer with its score, to be grouped."""
    return Ordered(asked(line), [line.text("response")], [line.number_of("score")])


def ranked(line: Line) -> Ordered:
    """At least two `responses` and as many `scores`."""
    responses, scores = line.items("responses"), line.items("scores")
    if len(responses) < 2:
        raise line.error("responses", f"has {len(responses)} entries", "at least two")
    if len(scores) != len(responses):
        raise line.error("scores", f"has {len(scores)} entries", f"{len(responses)} as 'responses'")
    return Ordered(
        asked(line),
        [check_text(line, f"responses[{i}]", r) for i, r in enumerate(responses)],
        [check_number(line, f"scores[{i}]", s) for i, s in enumerate(scores)],
    )


def best(line: Line) -> list[Exchange]:
    """The best of the ranked answers, the first of equal ones."""
    found = ranked(line)
    return [(found.turns, found.responses[found.scores.index(max(found.scores))])]


def completed(line: Line) -> list[Exchange]:
    """The answers in `completion`, a text or messages."""
    turns = prompt(line)
    whole = [*turns, *as_messages(line, "completion", "assistant")]
    return exchanges(line, "completion", whole, start=len(turns))


def liked(line: Line) -> list[Exchange]:
    """The answers in `completion` where `label` is true."""
    found = completed(line)
    return found if label(line) else []


def labelled(line: Line) -> Ordered:
    """The last answer in `completion` with 1 or 0 for its `label`, to be grouped."""
    turns, answer = completed(line)[-1]
    return Ordered(turns, [answer], [float(label(line))])


def label(line: Line) -> bool:
    """Whether the answer of a row is liked: true or 1, false or 0, as text too. Raises InputError
    for another `label`.
    """
    value = line.fields.get("label")
    if isinstance(value, str):
        value = SAID.get(value.strip().lower(), value)
    if value not in (True, False):
        found = f"is {kind(value)}" if "label" in line.fields else "is missing"
        raise line.error("label", found, "true or false")
    return bool(value)
