"""Options that a run cannot use: refused where the user gave them, never where a default did."""

from __future__ import annotations

import itertools

import pytest

from srlm_fast import run
from srlm_fast.config import FILES, ROW_FILES, from_options
from srlm_fast.loop.material import READERS
from srlm_fast.options import OPTIONS, RECIPES, REWARDS
from srlm_fast.records import InputError
from srlm_fast.run import read_options
from srlm_fast.unused import TABLE, check_used

ROWS = '{"prompt": "a", "response": "b", "judgement": "Score: 1", "score": 1}\n'
FOREIGN = ["--model", "llama-3-8b"]
PAIRS = ["--reward", "model", "--reward-pairs", "FILE"]


def check(argv: list[str], file: str = "") -> None:
    arguments = read_options([file if word == "FILE" else word for word in argv])
    check_used(from_options(arguments), arguments)


REFUSED = [
    ("--skip-bad", "without a file of rows", ["--skip-bad"], ["--prompts", "FILE"]),
    ("--similarity", "with --prompts", ["--similarity", ".8", "--prompts", "FILE"], None),
    ("--mix-real", "with --iterations 0", ["--mix-real", ".1", "--iterations", "0"], None),
    ("--prompt-model", "with --iterations 0", ["--prompt-model", "m1", "--iterations", "0"], None),
    ("--stop-on-collapse", "a round", ["--stop-on-collapse", "yes", "--iterations", "0"], None),
    ("--lr", "with --reward best-of-n", ["--reward", "best-of-n", "--lr", "1e-5"], None),
    ("--reference", "without pairs", ["--reward", "best-of-n", "--reference", "sft"], None),
    ("--min-margin", "makes no pairs", ["--reward", "best-of-n", "--min-margin", ".2"], None),
    ("--reference", "two rounds", ["--reference", "sft", "--iterations", "1"], None),
    ("--candidates", "one answer", ["--reward", "constitution", "--candidates", "6"], None),
    (
        "--accumulate",
        "with --iterations 1",
        ["--iterations", "1", "--accumulate", "yes"],
        ["--reward", "best-of-n"],
    ),
    (
        "--judge-samples",
        "with --judge expected",
        ["--judge", "expected", "--judge-samples", "4"],
        ["--eft", "FILE"],
    ),
    (
        "--judge-max-tokens",
        "with --judge direct",
        ["--judge", "direct", "--judge-max-tokens", "64"],
        ["--reward", "constitution"],
    ),
    (
        "--eval-judged",
        "without --eft and --eft-eval",
        [*FOREIGN, "--ift", "FILE", "--eval-judged", "9"],
        ["--eft-eval", "FILE"],
    ),
    ("--reward-epochs", "without --reward-pairs", ["--reward-epochs", "2"], PAIRS),
    ("--sft-lr", "taken as M1", [*FOREIGN, "--sft-lr", "1e-5"], ["--ift", "FILE"]),
    (
        "--optimizer",
        "something to train on",
        [*FOREIGN, "--iterations", "0", "--optimizer", "adamw-8bit"],
        PAIRS,
    ),
    (
        "--final-fraction",
        "with --schedule constant",
        ["--schedule", "constant", "--final-fraction", ".5"],
        None,
    ),
]


@pytest.mark.parametrize(("option", "said", "argv", "use"), REFUSED, ids=[r[0] for r in REFUSED])
def test_an_option_without_use_is_refused_in_a_line(option, said, argv, use, tmp_path):
    """use: further options under which the run can use it."""
    file = tmp_path / "rows.jsonl"
    file.write_text(ROWS)
    with pytest.raises(InputError, match=f"^{option}: found .*{said}") as found:
        check(argv, str(file))
    assert ", wanted " in str(found.value) and "{" not in str(found.value)
    if use:
        check([*argv, *use], str(file))


def test_what_recipes_and_defaults_make_is_never_refused():
    for recipe, reward, rounds in itertools.product(RECIPES, REWARDS, "012"):
        wanted = ["--reward-model", "m"] if reward == "model" and rounds != "0" else []
        if reward == "model" and not wanted:
            continue
        check(["--recipe", recipe, "--reward", reward, "--iterations", rounds, *wanted])


def test_what_is_off_needs_no_use():
    check(["--skip-bad", "no", "--iterations", "0", "--mix-real", "0", "--accumulate", "no"])
    with pytest.raises(InputError, match="--judge-temperature: found"):
        check(["--judge", "direct", "--judge-temperature", "0"])  # greedy, not off


def test_the_table_names_options_and_files_that_there_are():
    assert {name for row in TABLE for name in row.options} <= {option.name for option in OPTIONS}
    assert set(READERS) == set(ROW_FILES) < set(FILES)


def test_the_command_ends_with_2_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--skip-bad"]) == run.UNUSABLE
    assert capsys.readouterr().err.startswith("srlm_fast: --skip-bad: found without")
    assert not list(tmp_path.iterdir())
