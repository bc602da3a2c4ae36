"""`export mt-bench`: a model's answers to MT-Bench's questions, as FastChat's judge reads them.

Rows of {question_id, answer_id, model_id, choices: [{index, turns}], tstamp}, by question
(lm-sys/FastChat, fastchat/llm_judge). The second turn is asked with the first answer before it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srlm_fast.options import Option, real, whole
from srlm_fast.records import write_jsonl
from srlm_fast.run import DONE
from srlm_fast.run_models import find_model, label

from .answering import Dialogue
from .command import MODEL, Command, check_new_file, file_option, naming, out_option
from .generating import DEFAULTS, DEVICE, NAME, SAMPLING, generate, inputs
from .made import rows_of

Row = dict[str, Any]
FORM = '{"question_id": 81, "category": "writing", "turns": ["...", "..."]}'
# FastChat's temperatures (llm_judge/common.py); 0 is greedy.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE, MAX_TOKENS = 0.7, 1024


def run(arguments: argparse.Namespace) -> int:
    source, out = find_model(arguments.what), Path(arguments.out).expanduser()
    check_new_file(out)
    with naming("--questions"):
        questions = read_questions(arguments.questions)
    answered = generate(COMMAND, arguments, lambda: dialogues(questions, arguments))
    name, num = arguments.name or label(source), arguments.choices
    groups = [answered[i : i + num] for i in range(0, len(answered), num)]
    write_jsonl(out, [answer(q, g, name) for q, g in zip(questions, groups, strict=True)])
    rows_of(out).unlink()
    print(f"{len(questions)} answers of {name}: {out}")
    return DONE


def dialogues(questions: Sequence[Row], arguments: argparse.Namespace) -> list[Dialogue]:
    """Of each question its choices, which differ in their seed."""
    from srlm_fast.sampler import SamplingParams

    num, seed = arguments.choices, arguments.seed
    return [
        Dialogue(
            f"{question['question_id']}/{choice}",
            question["turns"],
            SamplingParams(
                temperature=temperature(question, arguments.temperature),
                top_p=arguments.top_p,
                max_tokens=arguments.max_tokens,
                seed=choice_seed(seed, choice),
            ),
        )
        for question in questions
        for choice in range(num)
    ]


def choice_seed(seed: int, choice: int) -> int:
    """63 bits; those of other seeds and choices are unrelated."""
    digest = hashlib.sha256(f"{seed}/{choice}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def temperature(question: Row, given: float | None) -> float:
    if given is not None:
        return given
    return TEMPERATURES.get(question["category"], OTHER_TEMPERATURE)


def answer(question: Row, rows: Sequence[Row], name: str) -> Row:
    choices = [{"index": i, "turns": row["answers"]} for i, row in enumerate(rows)]
    content = repr((name, question["question_id"], choices)).encode(errors="surrogatepass")
    return {
        "question_id": question["question_id"],
        "answer_id": hashlib.sha256(content).hexdigest()[:22],
        "model_id": name,
        "choices": choices,
        "tstamp": max(row["time"] for row in rows),
    }


def read_questions(path: str) -> list[Row]:
    """question_id, category and turns of each line, in the order of the ids. Raises InputError
    naming line and field.
    """
    from srlm_fast.data.fields import Line, check_text, read_lines

    def row(line: Line) -> Row:
        turns = line.items("turns")
        if not turns:
            raise line.error("turns", "is an empty list", "at least one question")
        texts = [check_text(line, f"turns[{i}]", turn) for i, turn in enumerate(turns)]
        category = line.fields.get("category")
        kind = "" if category is None else check_text(line, "category", category)
        return {"question_id": number(line), "category": kind, "turns": texts}

    def number(line: Line) -> int:
        found = line.number_of("question_id")
        if found != int(found):
            raise line.error("question_id", f"is {found:g}", "a whole number")
        if found in seen:
            raise line.error("question_id", f"is {found:g}, which came before", "each id once")
        seen.add(found)
        return int(found)

    seen: set[float] = set()
    rows = [row(line) for line in read_lines(path, FORM)]
    return sorted(rows, key=lambda each: each["question_id"])


COMMAND = Command(
    name="mt-bench",
    help="a model's answers to MT-Bench in FastChat's form; the same command goes on after a kill",
    what=("MODEL", MODEL),
    options=(
        file_option(
            "--questions",
            "FastChat's question.jsonl: `question_id`, `category`, `turns`",
        ),
        out_option("a new file for the answers (model_answer/<model>.jsonl)"),
        NAME,
        Option(
            "--temperature",
            "temperature",
            real(0.0),
            "T",
            "of every answer (default: by category, as FastChat has it)",
        ),
        Option("--max-tokens", "max_tokens", whole(1), "N", "longest answer (default: 1024)"),
        Option("--choices", "choices", whole(1), "N", "answers to each question (default: 1)"),
        *SAMPLING,
        *DEVICE,
    ),
    needed=("--questions", "--out"),
    defaults=DEFAULTS | {"--max-tokens": MAX_TOKENS, "--choices": 1},
    inputs=lambda arguments: inputs(arguments, "--questions"),
    run=run,
)
