"""Every form of rows that a user's file may have, told by the fields a row holds, and what each can
serve.

The table is read from above: the first form whose fields are all there (and not null) is the row's.
So a row with `prompt`, `chosen` and `rejected` is a pair, and `prompt` alone makes it a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from srlm_fast.data.conversations import Exchange, Ordered
from srlm_fast.data.fields import Line, kind
from srlm_fast.data.forms import alpaca, chat, own, preference, ultrafeedback
from srlm_fast.records import InputError, Message

# Names that the sides of a pair have elsewhere (LLaMA-Factory, Argilla).
ALIASES = {f"{side}_{what}": side for side in preference.SIDES for what in ("messages", "response")}
OASST = "wanted the seeds that `python -m srlm_fast.data oasst` makes of them"


@dataclass(frozen=True)
class Format:
    """One form. needs: the fields it is told by, the telling one first; without: those that none of
    its rows has. What a row of it can give, None where it cannot: asked, a conversation up to the
    user's last turn; answered, answers to imitate; ordered, answers whose order is known (grouped:
    one a row, to be put together by what they answer); judged, a judgement to imitate. left_out:
    answers of a row that are not used. refused: what to do with files of it instead.
    """

    words: str
    needs: tuple[str, ...]
    asked: Callable[[Line], list[Message]] | None = None
    answered: Callable[[Line], list[Exchange]] | None = None
    ordered: Callable[[Line], Ordered] | None = None
    judged: Callable[[Line], dict[str, Any]] | None = None
    without: tuple[str, ...] = ()
    grouped: bool = False
    left_out: Callable[[Line], int] | None = None
    unit: str = "lines"
    refused: str = ""
    fields: str = ""  # for messages, where it is not `needs`

    def fits(self, there: set[str]) -> bool:
        """there: as of `given`."""
        return there.issuperset(self.needs) and there.isdisjoint(self.without)


PROMPTS_ALONE = Format("prompts", ("prompt",), own.asked)
PLAIN = Format("plain text, a prompt a line", ("prompt",), own.asked)
FORMATS: tuple[Format, ...] = (
    Format("Open Assistant messages", ("message_id", "text", "role"), refused=OASST),
    # The rows that are made of them name their tree too.
    Format(
        "Open Assistant trees",
        ("message_tree_id",),
        without=("response", "responses"),
        refused=OASST,
    ),
    Format(
        "stepwise supervision",
        ("labels", "completions"),
        refused="wanted answers as a whole: nothing here learns from labels of steps",
    ),
    Format(
        "judgements",
        ("judgement", "prompt", "response"),
        own.asked,
        ordered=own.scored,
        judged=own.judged,
        grouped=True,
    ),
    Format("ranked answers", ("responses", "prompt"), own.asked, own.best, own.ranked),
    Format(
        "UltraFeedback's rated completions",
        ("completions", "instruction"),
        ultrafeedback.asked,
        ultrafeedback.answered,
        ultrafeedback.ordered,
        left_out=ultrafeedback.left_out,
    ),
    Format(
        "preference pairs",
        ("chosen",),
        preference.asked,
        preference.answered,
        preference.ordered,
        fields="prompt + chosen + rejected",
    ),
    Format(
        "compared outputs",
        ("output_1", "output_2", "preference", "instruction"),
        alpaca.asked,
        preference.preferred,
        preference.compared,
    ),
    Format(
        "labelled completions",
        ("label", "completion", "prompt"),
        own.asked,
        own.liked,
        own.labelled,
        grouped=True,
    ),
    Format("prompts with completions", ("completion", "prompt"), own.asked, own.completed),
    Format("instructions with answers", ("response", "prompt"), own.asked, own.answered),
    Format("prompts with answers", ("answer", "prompt"), own.asked, own.answered),
    *(
        Format(
            "labelled conversations",
            ("label", field),
            asked,
            chat.liked,
            chat.labelled,
            grouped=True,
            unit="conversations",
        )
        for field, asked in (("conversations", chat.sharegpt_asked), ("messages", chat.asked))
    ),
    Format(
        "ShareGPT conversations",
        ("conversations",),
        chat.sharegpt_asked,
        chat.sharegpt_answered,
        unit="conversations",
    ),
    Format("conversations", ("messages",), chat.asked, chat.answered, unit="conversations"),
    Format("Alpaca instructions", ("output", "instruction"), alpaca.asked, alpaca.answered),
    Format("Dolly instructions", ("response", "instruction"), alpaca.asked, alpaca.answered),
    Format(
        "Self-Instruct tasks",
        ("instances", "instruction"),
        alpaca.task_asked,
        alpaca.task_answered,
        unit="tasks",
    ),
    Format("questions with answers", ("answer", "question"), alpaca.asked, alpaca.answered),
    Format("queries with responses", ("response", "query"), alpaca.asked, alpaca.answered),
    Format("a run's prompts", ("text", "prompt_id", "source"), own.asked_text),
    PROMPTS_ALONE,
    Format("instructions without answers", ("instruction",), alpaca.asked),
    Format("questions in turns, the first of each", ("turns", "question_id"), own.asked_first),
    Format("Vicuna questions", ("text", "question_id"), own.asked_text),
    Format("questions without answers", ("question",), alpaca.asked),
    Format("token ids", ("input_ids",), refused="wanted the texts that they were made of"),
    Format(
        "texts of language modelling",
        ("text",),
        refused="wanted prompts apart from answers: where each text is a prompt, name it 'prompt'",
    ),
)


@dataclass(frozen=True)
class Use:
    """What options make of a file. wanted: in words; example: an object that serves."""

    wanted: str
    options: tuple[str, ...]
    takes: Callable[[Format], bool]
    example: str

    def forms(self) -> str:
        """The fields of all forms that serve."""
        served = [form for form in FORMATS if self.takes(form)]
        least = [f for f in served if not any(set(o.needs) < set(f.needs) for o in served)]
        return "; ".join(form.fields or " + ".join(reversed(form.needs)) for form in least)


ORDER = "answers whose order is known"
JUDGEMENT = '{"prompt": "...", "response": "...", "judgement": "... Score: 4", "score": 4}'
ANSWERS = '{"prompt": "...", "responses": ["...", "..."], "scores": [4, 2]}'
PAIR = '{"prompt": "...", "chosen": "...", "rejected": "..."}'

PROMPTS = Use(
    "prompts",
    ("--prompts", "--eval-prompts"),
    lambda form: form.asked is not None,
    '{"prompt": "..."}',
)
IFT = Use(
    "instructions with answers",
    ("--ift",),
    lambda form: form.answered is not None,
    '{"prompt": "...", "response": "..."}',
)
JUDGED = Use("judgements", ("--eft",), lambda form: form.judged is not None, JUDGEMENT)
RANKED = Use(ORDER, ("--eft-eval", "--data"), lambda form: form.ordered is not None, ANSWERS)
PAIRS = Use(ORDER, ("--reward-pairs",), RANKED.takes, PAIR)
EFT = Use(
    f"judgements or {ORDER}",
    ("--eft",),
    lambda form: JUDGED.takes(form) or RANKED.takes(form),
    f"{JUDGEMENT} or {ANSWERS}",
)
USES = (PROMPTS, IFT, EFT, RANKED, PAIRS)


def named(line: Line) -> Line:
    """The row with its fields by the names of the table: by `ALIASES`, and in lower case where no
    form knows them otherwise (Instruction, Prompt)."""
    line = _renamed(line, ALIASES)
    if all(map(str.islower, line.fields)) or recognise(line) is not None:
        return line
    low = _renamed(line, {name: name.lower() for name in line.fields})
    return line if recognise(low) is None else low


def _renamed(line: Line, names: Mapping[str, str]) -> Line:
    """Fields with a name in `names` under that, where it is free."""
    if names.keys().isdisjoint(line.fields):
        return line
    there = line.fields
    new = {name: to for name in there if (to := names.get(name, name)) not in there}
    return replace(line, fields={new.get(name, name): value for name, value in there.items()})


def recognise(line: Line) -> Format | None:
    """The form of a row, None for none that is known."""
    there = given(line)
    return next((form for form in FORMATS if form.fits(there)), None)


def given(line: Line) -> set[str]:
    """The fields of a row that are not null."""
    return {name for name, value in line.fields.items() if value is not None}


def unknown(line: Line, use: Use) -> InputError:
    """Of a row that has no known form."""
    given = line.fields
    found = f"is {kind(given['prompt'])}" if "prompt" in given else "is missing"
    names = ", ".join(repr(name[:20]) for name in list(given)[:6]) or "no field"
    return line.error("prompt", f"{found} (found {names})", f"{use.wanted}: {use.forms()}")


def unfit(line: Line, form: Format, use: Use) -> InputError:
    """Of a row whose form cannot serve."""
    place = line.place or f"line {line.number}"
    wanted = form.refused or f"wanted {use.wanted} ({use.forms()})"
    return InputError(f"{line.path} {place}: found {form.words}, {wanted}")
