"""`export alpaca-eval`: a model's answers in the form of AlpacaEval's outputs.

A JSON list of {instruction, output, generator, dataset, datasplit} (tatsu-lab/alpaca_eval), other
fields of the input kept; answers without white space at their ends, as its own decoding has them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from srlm_fast.options import Option, real, whole
from srlm_fast.run import DONE
from srlm_fast.run_models import find_model, label

from .answering import Dialogue
from .command import MODEL, Command, check_new_file, file_option, naming, out_option
from .generating import DEFAULTS, DEVICE, NAME, SAMPLING, generate, inputs
from .made import rows_of
from .row_file import write_list

Row = dict[str, Any]
FORM = '{"instruction": "..."}'
TEMPERATURE, MAX_TOKENS = 0.7, 2048


def run(arguments: argparse.Namespace) -> int:
    source, out = find_model(arguments.what), Path(arguments.out).expanduser()
    check_new_file(out)
    with naming("--prompts"):
        rows = read_instructions(Path(arguments.prompts).expanduser())
    answered = generate(COMMAND, arguments, lambda: dialogues(rows, arguments))
    name = arguments.name or label(source)
    write_list(out, [output(r, a["answers"][0], name) for r, a in zip(rows, answered, strict=True)])
    rows_of(out).unlink()
    print(f"{len(rows)} outputs of {name}: {out}")
    return DONE


def dialogues(rows: list[Row], arguments: argparse.Namespace) -> list[Dialogue]:
    from srlm_fast.sampler import SamplingParams

    params = SamplingParams(
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
    )
    return [Dialogue(str(i), (question(row),), params) for i, row in enumerate(rows)]


def question(row: Row) -> str:
    """The instruction, with the input behind it where there is one."""
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


def output(row: Row, answer: str, name: str) -> Row:
    own = {"instruction": row["instruction"], "output": answer, "generator": name}
    place = {"dataset": row.get("dataset") or "alpaca_eval", "datasplit": "eval"}
    return own | place | {key: value for key, value in row.items() if key not in own and value}


def read_instructions(path: Path) -> list[Row]:
    """The objects of a JSON list or of a JSONL file. Raises InputError naming the row's field."""
    from srlm_fast.data.fields import check_text, read_lines

    lines = list(read_lines(path, FORM))
    for line in lines:
        line.text("instruction")
        if line.fields.get("input"):
            check_text(line, "input", line.fields["input"])
    return [line.fields for line in lines]


COMMAND = Command(
    name="alpaca-eval",
    help="a model's answers as AlpacaEval's outputs JSON; the same command goes on after a kill",
    what=("MODEL", MODEL),
    options=(
        file_option(
            "--prompts",
            "the evaluation set (alpaca_eval.json): a JSON list or JSONL with `instruction`",
        ),
        out_option("a new file for the outputs, a JSON list"),
        NAME,
        Option("--temperature", "temperature", real(0.0), "T", "0 is greedy (default: 0.7)"),
        Option("--max-tokens", "max_tokens", whole(1), "N", "longest answer (default: 2048)"),
        *SAMPLING,
        *DEVICE,
    ),
    needed=("--prompts", "--out"),
    defaults=DEFAULTS | {"--temperature": TEMPERATURE, "--max-tokens": MAX_TOKENS},
    inputs=lambda arguments: inputs(arguments, "--prompts"),
    run=run,
)
