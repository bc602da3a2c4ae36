"""`python -m srlm_fast.data oasst FILE... --out FOLDER`: seeds from Open Assistant's files.

Writes `ift.jsonl`, `eft_train.jsonl`, `eft_eval.jsonl` and `account.json`, and prints how many
trees, prompts and replies were left out for what reason. `python -m srlm_fast.data check FILE...`:
what files of any form hold, and which options of a run they can serve. Exit status as
`srlm_fast.run` has it.
"""

from __future__ import annotations

import argparse
import hashlib
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast.options import Option, nearest, shown, text, whole
from srlm_fast.records import InputError, dump_row, write_json_atomic, write_text_atomic
from srlm_fast.run import (
    DONE,
    UNUSABLE,
    Parser,
    complain,
    end_of,
    resource_message,
    unknown_message,
)
from srlm_fast.run_folder import check_place, read_json

if TYPE_CHECKING:
    from srlm_fast.data.fields import Skipped
    from srlm_fast.data.oasst import OasstConfig, OasstSeeds
    from srlm_fast.report.display import Display

COMMANDS = ("oasst", "check")
ROW_FILES, ACCOUNT_FILE = ("ift", "eft_train", "eft_eval"), "account.json"
OPTIONS = (
    Option("--out", "out", text("a folder"), "FOLDER", "where the rows and the account go"),
    Option("--seed", "seed", whole(0), "N", "which trees are taken comes from it (default: 0)"),
    Option("--lang", "lang", text("a language"), "CODE", "of all messages (default: en)"),
    Option("--ift", "ift", whole(0), "N", "first turns with their best reply (default: 3200)"),
    Option(
        "--eft-train",
        "eft_train",
        whole(0),
        "N",
        "prompts with ranked replies to learn judging from (default: 1630)",
    ),
    Option(
        "--eft-eval",
        "eft_eval",
        whole(0),
        "N",
        "prompts with ranked replies to measure judging on, of other trees (default: 541)",
    ),
)
DESCRIPTION = """\
Seeds from Open Assistant's files: trees, messages or threads (JSON lines, gzip, parquet). Writes
ift.jsonl (for --ift of a run), eft_train.jsonl (for --eft) and eft_eval.jsonl (for --eft-eval, or
--data of srlm_fast.judge), which have no prompt in common.
"""


OVERVIEW = """\
  oasst FILE... --out FOLDER  seeds from Open Assistant's files: rows for --ift, --eft, --eft-eval
  check FILE...               what files of any form hold, and how many rows each option of a run
                              would have of them

python -m srlm_fast.data COMMAND --help tells the options of a command."""


def make_overview() -> Parser:
    return Parser(
        prog="python -m srlm_fast.data",
        description=OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s COMMAND ...",
    )


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m srlm_fast.data oasst",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s FILE... --out FOLDER [options]",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="all that belong together")
    for option in OPTIONS:
        parser.add_argument(option.name, metavar=option.metavar, help=option.help)
    parser.add_argument(
        "--skip-bad", action="store_true", help="count lines that cannot be read and go on"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what other options wrote to --out"
    )
    return parser


def make_check_parser() -> Parser:
    parser = Parser(
        prog="python -m srlm_fast.data check",
        description="What files hold, and how many rows each option of a run would have of them.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="*", metavar="FILE", help="of any form")
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options as values, None where not given. Raises InputError naming the option."""
    if not argv:
        raise InputError(f"no command given, wanted one of {', '.join(COMMANDS)}")
    name, *rest = argv
    if name in ("-h", "--help"):
        make_overview().parse_args([name])
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        hint = f"; did you mean {near}?" if near else ""
        raise InputError(f"found {shown(name)}, wanted a command: {', '.join(COMMANDS)}{hint}")
    parser = make_check_parser() if name == "check" else make_parser()
    arguments, unknown = parser.parse_known_intermixed_args(rest)
    if unknown:
        raise InputError(unknown_message(unknown[0], parser))
    arguments.command = name
    if name == "check":
        if not arguments.files:
            raise InputError("FILE: none given, wanted files to look at")
        return arguments
    for option in OPTIONS:
        if (given := getattr(arguments, option.key)) is not None:
            setattr(arguments, option.key, option.parse(given))
    check_named(arguments)
    return arguments


def check_named(arguments: argparse.Namespace) -> None:
    """Raise InputError where files or the folder are not given or cannot be what they must be."""
    if not arguments.files:
        raise InputError("FILE: none given, wanted Open Assistant's trees or messages")
    if arguments.out is None:
        raise InputError("--out: not given, wanted a folder")
    for name in arguments.files:
        check_file(Path(name))
    check_place(Path(arguments.out))


def check_file(path: Path) -> None:
    """What is read twice, to tell its content and to take rows from it, cannot be a pipe."""
    if not path.is_file():
        found = "a device or a pipe" if path.exists() else "no such file"
        found = "a folder" if path.is_dir() else found
        raise InputError(f"{path}: {found}, wanted a file of Open Assistant's")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def command(argv: Sequence[str]) -> int:
    arguments = read_options(argv)
    if arguments.command == "check":
        from srlm_fast.data.check import check_files

        for line in check_files(arguments.files, fault_by_default):
            print(line)
        return DONE
    from srlm_fast.report.display import Display

    folder, display = Path(arguments.out), Display(sys.stdout)
    try:
        return oasst(arguments, folder, display)
    except InputError:
        raise
    except Exception as error:
        message = full_message(error) or resource_message(error, folder)
        if message is None:
            raise
        return complain(message, UNUSABLE)
    finally:
        display.close()


def fault_by_default(judgement: str, score: float) -> tuple[str, str, str] | None:
    """What the default rubric finds wrong with a judgement; only then is the judge imported."""
    from srlm_fast.judge import DEFAULT_RUBRIC
    from srlm_fast.judge.taught import fault_of

    return fault_of(DEFAULT_RUBRIC, judgement, score)


def full_message(error: Exception) -> str | None:
    if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
        return "no space left for temporary files; free some, or name a folder by SQLITE_TMPDIR"
    return None


def oasst(arguments: argparse.Namespace, folder: Path, display: Display) -> int:
    from srlm_fast.data.fields import Skipped
    from srlm_fast.data.oasst import OasstConfig

    given = {name: getattr(arguments, name) for name in ("seed", "lang", *ROW_FILES)}
    config = OasstConfig(**{name: value for name, value in given.items() if value is not None})
    if not config.ift + config.eft_train + config.eft_eval:
        raise InputError("--ift 0 --eft-train 0 --eft-eval 0: nothing to take, wanted rows of one")
    skipped = Skipped() if arguments.skip_bad else None
    made_by = settings(arguments.files, config, arguments.skip_bad)
    if not arguments.overwrite:
        hold_folder(folder, made_by)
    seeds = read(arguments.files, config, skipped, display)
    if not (seeds.ift or seeds.eft_train or seeds.eft_eval):
        raise InputError(nothing_message(arguments.files, seeds, config))
    display.note("\n".join(account_lines(seeds, config, skipped)))
    write(folder, seeds, made_by, skipped)
    display.note(f"written to {folder}")
    return DONE


def read(
    files: Sequence[str], config: OasstConfig, skipped: Skipped | None, display: Display
) -> OasstSeeds:
    from srlm_fast.data.oasst import make_seeds

    sizes = [Path(name).stat().st_size for name in files]
    if not megabytes(sum(sizes)):
        return make_seeds(files, config, skipped)
    with display.stage("reading", megabytes(sum(sizes)), "MB") as stage:
        seeds = make_seeds(
            files,
            config,
            skipped,
            lambda index, done: stage.update(megabytes(sum(sizes[:index]) + done)),
        )
        stage.update(megabytes(sum(sizes)))
    return seeds


def megabytes(size: int) -> int:
    return round(size / 1e6)


def settings(files: Sequence[str], config: OasstConfig, skip_bad: bool) -> dict[str, Any]:
    """What the rows depend on, by the option that sets it. Files by their content, in any order."""
    return {
        "FILE (the files' content)": sorted(digest(name) for name in files),
        "--seed": config.seed,
        "--lang": config.lang,
        "--ift": config.ift,
        "--eft-train": config.eft_train,
        "--eft-eval": config.eft_eval,
        "--skip-bad": skip_bad,
    }


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def hold_folder(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Raise InputError where rows lie that something else has made."""
    there = [name for name in (*row_names(), ACCOUNT_FILE) if (folder / name).exists()]
    if not there:
        return
    found = read_json(folder / ACCOUNT_FILE).get("made_by", {})
    different = [name for name in wanted if found.get(name) != wanted[name]]
    if different:
        name = different[0]
        raise InputError(
            f"--out {folder}: holds {there[0]} made with {name} {found.get(name, 'unknown')}, "
            f"found {wanted[name]}; wanted the same, another folder, or --overwrite"
        )


def row_names() -> list[str]:
    return [f"{name}.jsonl" for name in ROW_FILES]


def write(
    folder: Path, seeds: OasstSeeds, made_by: dict[str, Any], skipped: Skipped | None
) -> None:
    """Each file atomically. What is made by which options is noted first, so that the same command
    goes on with a folder in which only some of the files are new."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: {error.strerror}, wanted a folder to write") from None
    write_json_atomic(folder / ACCOUNT_FILE, {"made_by": made_by, "finished": False})
    for name in ROW_FILES:
        rows = "".join(f"{dump_row(row)}\n" for row in getattr(seeds, name))
        write_text_atomic(folder / f"{name}.jsonl", rows)
    account: dict[str, Any] = {"made_by": made_by, "finished": True, "account": seeds.account}
    if skipped is not None:
        account["skipped"] = {"count": skipped.count, "messages": skipped.messages}
    write_json_atomic(folder / ACCOUNT_FILE, account)


TITLES = {
    "messages": "messages",
    "trees": "trees",
    "ift": "of the usable trees, for following instructions (IFT)",
    "eft": "prompts of the trees that are ready, for judging (EFT)",
    "replies": "replies to the prompts that can be used",
}
ALWAYS = ("read", "prompts", "usable", "candidates", "taken", "ranked")


def account_lines(seeds: OasstSeeds, config: OasstConfig, skipped: Skipped | None) -> Iterator[str]:
    """Every filter with what it left out; those that left out nothing are not shown."""
    from srlm_fast.data.oasst.trees import OF_IFT

    for section, title in TITLES.items():
        yield f"{title}:"
        for reason, count in seeds.account[section].items():
            if count or reason.startswith(ALWAYS):
                yield f"  {reason:<28}{count:>9,}"
    if skipped is not None:
        yield from skipped.lines()
    spare = seeds.account["eft"][OF_IFT]
    for name in ROW_FILES:
        found, wanted = len(getattr(seeds, name)), getattr(config, name)
        yield f"{name}.jsonl: {found:,} rows{fewer(name, found, wanted, spare)}"


def fewer(name: str, found: int, wanted: int, spare: int) -> str:
    """Why there are fewer rows than asked for; spare: prompts for EFT that IFT has."""
    if found >= wanted:
        return ""
    if name == "ift" or not spare:
        return f", {wanted:,} were asked for: there are no more"
    return (
        f", {wanted:,} were asked for: there are no more but {spare:,} that IFT took (a smaller "
        "--ift leaves some)"
    )


def nothing_message(files: Sequence[str], seeds: OasstSeeds, config: OasstConfig) -> str:
    trees = seeds.account["trees"]
    names = files[0] + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    return (
        f"{names}: no row to take (of {trees['read']} trees {trees['usable']} can be used), wanted "
        f"trees in the language {config.lang!r} with ranked replies"
    )


if __name__ == "__main__":
    sys.exit(main())
