"""Pairs of a better and a worse answer (TRL's preference form, UltraFeedback binarised,
RewardBench, HH-RLHF): texts or messages, the prompt in a field or at the beginning of both sides.
"""

from __future__ import annotations

import re
from itertools import takewhile

from srlm_fast.data.conversations import (
    Exchange,
    Ordered,
    as_messages,
    assistant,
    check_order,
    user,
)
from srlm_fast.data.fields import Line, check_text
from srlm_fast.data.forms import alpaca, chat, own
from srlm_fast.records import Message

# What a pair is an answer to, by the field that holds it.
PROMPTS = {
    "prompt": own.prompt,
    "conversations": chat.sharegpt,
    **dict.fromkeys(alpaca.ASKED, alpaca.asked),
}
SIDES = ("chosen", "rejected")
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")  # HH-RLHF's transcripts


def ordered(line: Line) -> Ordered:
    """The better answer with score 1, the worse with 0. A side may be a conversation of its own, or
    go on from the prompt.
    """
    turns, chosen, rejected = _parts(line)
    sides = {
        name: side if side[0]["role"] != "assistant" else [*turns, *side]
        for name, side in (("chosen", chosen), ("rejected", rejected))
    }
    for name, side in sides.items():
        if side[0]["role"] == "assistant":
            raise line.error("prompt", "is missing", "one, or the same turns before both answers")
        check_order(line, name, side)
        if side[-1]["role"] != "assistant":
            raise line.error(name, f"ends in a turn of the {side[-1]['role']}", "an answer")
    (*shared, better), (*others, worse) = sides.values()
    if shared != others:
        raise line.error("rejected", "has other turns before its answer than 'chosen'", "the same")
    return Ordered(shared, [better["content"], worse["content"]], [1.0, 0.0])


def compared(line: Line) -> Ordered:
    """AlpacaFarm's and AlpacaEval's two outputs: `preference` is 1 for the first, 2 for the second,
    a number between as a probability has it; 0 for a draw."""
    preference = line.number_of("preference")
    if preference != 0 and not 1 <= preference <= 2:
        raise line.error("preference", f"is {preference:g}", "0, or a number from 1 to 2")
    second = preference - 1 if preference else 0.5
    outputs = [line.text("output_1"), line.text("output_2")]
    return Ordered(alpaca.asked(line), outputs, [1 - second, second])


def preferred(line: Line) -> list[Exchange]:
    """The better output, the first of equal ones."""
    found = compared(line)
    return [(found.turns, found.responses[found.scores.index(max(found.scores))])]


def asked(line: Line) -> list[Message]:
    return ordered(line).turns


def answered(line: Line) -> list[Exchange]:
    found = ordered(line)
    return [(found.turns, found.responses[0])]


def _parts(line: Line) -> tuple[list[Message], list[Message], list[Message]]:
    """(turns before both sides, chosen, rejected), as far as they are apart in the row."""
    fields = [name for name in PROMPTS if line.fields.get(name) is not None]
    texts = [line.fields.get(name) for name in SIDES]
    if not fields and all(isinstance(text, str) for text in texts):
        return _split(line, line.text("chosen"), line.text("rejected"))
    chosen, rejected = (as_messages(line, name, "assistant") for name in SIDES)
    # A prompt beside two whole conversations says again what they begin with.
    whole = all(side[0]["role"] != "assistant" for side in (chosen, rejected))
    return PROMPTS[fields[0]](line) if fields and not whole else [], chosen, rejected


def _split(
    line: Line, chosen: str, rejected: str
) -> tuple[list[Message], list[Message], list[Message]]:
    """Texts that begin with their prompt: transcripts, or whatever both begin with (TRL's rule)."""
    if all(SPEAKER.match(text) for text in (chosen, rejected)):
        return [], _transcript(line, "chosen", chosen), _transcript(line, "rejected", rejected)
    both = zip(chosen, rejected, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], both)))
    shared = chosen[:same].removesuffix(" ")
    if not shared.strip() or shared in (chosen, rejected):
        raise line.error("prompt", "is missing", "one, or the same beginning of both answers")
    return (
        [user(shared)],
        [assistant(chosen[len(shared) :])],
        [assistant(rejected[len(shared) :])],
    )


def _transcript(line: Line, field: str, text: str) -> list[Message]:
    roles = {"Human": user, "Assistant": assistant}
    _, *parts = SPEAKER.split(text)
    return [
        roles[name](check_text(line, field, said))
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    ]
