"""`python -m srlm_fast.run`: options in, the loop, a table and a report out.

Exit status: 0 done; 1 a fault of ours; 2 the input cannot be used (one line on stderr); 3 the run
stopped by itself and says why; 130 interrupted. Only the standard library is imported before the
options have been read.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from srlm_fast import __version__, run_folder
from srlm_fast.options import GROUPS, OPTIONS, Option, nearest
from srlm_fast.records import InputError

if TYPE_CHECKING:
    from srlm_fast.config import Config, Difference
    from srlm_fast.report.display import Display

DONE, FAULT, UNUSABLE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130
RUNS = Path("runs")

DESCRIPTION = """\
Trains a self-rewarding language model: it answers prompts, judges its own answers, and learns from
the pairs by DPO, round after round (M0 -> M1 -> M2 -> M3). Without options it runs the embedded
tiny model. The same command again goes on with a run that was stopped."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are InputErrors of one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m srlm_fast.run",
        description=DESCRIPTION,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=32, width=100
        ),
        allow_abbrev=False,
        add_help=False,
        usage="%(prog)s [options]",
    )
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            group.add_argument(option.name, metavar=option.metavar, help=option.help)
        if title == "the run":
            group.add_argument(
                "--out",
                metavar="FOLDER",
                help="where everything is written (default: runs/<model>-<date>); "
                "a run that is not finished there goes on",
            )
    other = parser.add_argument_group("instead of running")
    other.add_argument(
        "--plan", action="store_true", help="memory and time per stage, for this model and machine"
    )
    other.add_argument(
        "--devices", metavar="LIST", help="with --plan: devices to plan for, such as 8xH100-80"
    )
    other.add_argument("--version", action="version", version=f"srlm_fast {__version__}")
    other.add_argument("-h", "--help", action="help", help="show this help")
    return parser


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options as values, None where not given. Raises InputError naming the option."""
    arguments = parsed(make_parser(), argv, OPTIONS)
    if arguments.devices and not arguments.plan:
        raise InputError("--devices: found without --plan, wanted both (a run takes --device)")
    if arguments.out is not None and not arguments.out.strip():
        raise InputError("--out: found '', wanted a folder")
    return arguments


def parsed(
    parser: argparse.ArgumentParser, argv: Sequence[str], options: Sequence[Option]
) -> argparse.Namespace:
    """What the parser reads, `options` as their values. Raises InputError naming the option."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(unknown_message(unknown[0], parser))
    for option in options:
        given = getattr(arguments, option.key)
        if given is not None:
            setattr(arguments, option.key, option.parse(given))
    return arguments


def unknown_message(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"found {word!r}, wanted options only; a model is given as --model {word}"
    name = word.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    near = nearest(name, known)
    return f"{name}: no such option; " + (f"did you mean {near}?" if near else "--help lists all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv))


def end_of(work: Callable[[], int]) -> int:
    """The exit status of a command, whatever way it ends."""
    try:
        return work()
    except InputError as error:
        return complain(str(error), UNUSABLE)
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
        return complain(f"{error.filename}: {error.strerror}", UNUSABLE)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)


def command(argv: Sequence[str]) -> int:
    arguments = read_options(argv)
    if arguments.out is not None:
        run_folder.check_out(Path(arguments.out))
    # From here on torch is needed, which takes seconds to import.
    from srlm_fast.config import from_options
    from srlm_fast.model import ModelError

    try:
        config = from_options(arguments)
        if arguments.plan:
            from srlm_fast.plan import print_plan

            print_plan(config, arguments.devices)
            return DONE
        return train(config, None if arguments.out is None else Path(arguments.out))
    except ModelError as error:
        raise InputError(str(error)) from error


def train(config: Config, out: Path | None) -> int:
    """Find the folder, hold it, run the loop in it, and leave a report behind."""
    from srlm_fast.plan import check_fits
    from srlm_fast.report.display import Display

    check_fits(config)
    folder = out or choose_folder(config)
    config = dataclasses.replace(config, out=str(folder))
    display = Display(sys.stdout)
    run_folder.check_out(folder)
    try:
        return hold_and_run(config, folder, display)
    except InputError:
        raise
    except Exception as error:
        display.close()
        message = resource_message(error, folder)
        if message is None:
            raise
        return complain(message, UNUSABLE)


def hold_and_run(config: Config, folder: Path, display: Display) -> int:
    """Run the loop in a folder that no other process holds and that belongs to these options."""
    from srlm_fast.config import differences, read_config, versions

    with run_folder.Lock(folder):
        if run_folder.is_run_folder(folder) and run_folder.is_started(folder):
            refuse_other_run(folder, differences(read_config(folder), config))
            display.note(f"going on in {folder}")
        else:
            run_folder.write_config(folder, config.to_json(), versions())
            display.note(f"writing to {folder}")
        return run_loop(config, folder, display)


def choose_folder(config: Config) -> Path:
    """The latest unfinished run of these very options, or a new name."""
    from srlm_fast.config import differences, read_config

    for folder in run_folder.earlier_runs(RUNS, config.model):
        blank = not run_folder.is_started(folder)
        same = not differences(read_config(folder), config)
        if blank or (same and not run_folder.is_finished(folder)):
            return folder
    return run_folder.new_folder(RUNS, config.model, datetime.date.today())


def refuse_other_run(folder: Path, different: list[Difference]) -> None:
    if different:
        first = different[0]
        raise InputError(
            f"--out {folder}: belongs to a run with {first.option} {first.there}, found "
            f"{first.option} {first.here}; wanted the same options, or another folder"
        )


def run_loop(config: Config, folder: Path, display: Display) -> int:
    from srlm_fast.loop import StoppedError, run
    from srlm_fast.report import write_report

    try:
        with stop_on_interrupt(display) as stop:
            summary = run(config, display, stop=stop)
        report = write_report(folder)
    except StoppedError as error:
        display.close()
        write_report(folder)
        return complain(f"{error}; all rows are kept in {folder}", STOPPED)
    except KeyboardInterrupt:
        display.close()
        kept = f"interrupted; everything finished is kept in {folder}"
        return complain(f"{kept}: the same command goes on from there", INTERRUPTED)
    display.table(summary)
    display.note(f"report: {report}")
    return DONE


@contextlib.contextmanager
def stop_on_interrupt(display: Display) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks for a stop at the next safe point, the second one stops at once."""
    asked = threading.Event()

    def ask(_signal: int, _frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        display.note("stopping at the next safe point; Ctrl-C again stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def resource_message(error: BaseException, folder: Path) -> str | None:
    """One line for what the machine ran out of, None for anything else."""
    again = "nothing that was finished is lost, and the same command goes on from there"
    words = f"{type(error).__name__}: {error}"
    if is_disk_full(error):
        return f"{folder}: no space left on the disk; free some: {again}"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EDQUOT):
        return f"{error.filename or folder}: {error.strerror}; wanted to write there: {again}"
    if "OutOfMemoryError" in words or "can't allocate memory" in words or "MemoryError" in words:
        return f"out of memory ({first_line(error)}); --plan tells what fits: {again}"
    return None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether the disk being full is what went wrong, here or in a library that wraps it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return True
        # safetensors and torch.save raise kinds of their own and keep only the words.
        if "No space left on device" in str(error) or "PytorchStreamWriter failed" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def complain(message: str, status: int) -> int:
    sys.stdout.flush()
    print(f"srlm_fast: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def console() -> NoReturn:
    """The entry point of the `srlm-fast` command."""
    sys.exit(main())


if __name__ == "__main__":
    console()
