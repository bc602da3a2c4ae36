"""`python -m srlm_fast.run`: options in, the loop, a table and a report out.

Exit status: 0 done; 1 a fault of ours; 2 the input cannot be used (one line on stderr); 3 the run
stopped by itself and says why; 130 interrupted. Only the standard library is imported before the
options have been read. Of the ranks of a torchrun start one tells what went wrong, and all end with
its status.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import errno
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from srlm_fast import __version__, run_folder
from srlm_fast.damage import check_going_on, forget_removed
from srlm_fast.defaults import help_of
from srlm_fast.options import GROUPS, OPTIONS, Option, nearest
from srlm_fast.provenance import told_apart
from srlm_fast.records import InputError

if TYPE_CHECKING:
    from srlm_fast.config import Config, Difference
    from srlm_fast.loop.ranks import ManyRanks, Ranks
    from srlm_fast.report.display import Display

Tell = Callable[[int], bool]  # exit status -> whether this process says why

DONE, FAULT, UNUSABLE, STOPPED, INTERRUPTED = 0, 1, 2, 3, 130
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # ask for a stop at the next safe point
PARTING_SECONDS = {UNUSABLE: 2.0, FAULT: 2.0}  # that ranks wait for each other; others may write
LONGEST_PARTING = 60.0
RUNS = Path("runs")

DESCRIPTION = """\
Trains a self-rewarding language model: it answers prompts, judges its own answers, and learns from
the pairs by DPO, round after round (M0 -> M1 -> M2 -> M3). Without options it runs the embedded
tiny model. The same command again goes on with a run that was stopped."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are InputErrors of one line. extra_word: what is said of a
    word too many.
    """

    extra_word = "wanted options only; a model is given as --model {word}"

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m srlm_fast.run",
        description=DESCRIPTION,
        formatter_class=lambda prog: argparse.HelpFormatter(
            prog, max_help_position=32, width=min(100, shutil.get_terminal_size().columns)
        ),
        allow_abbrev=False,
        add_help=False,
        usage="%(prog)s [options]",
    )
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for option in options:
            group.add_argument(option.name, **option.for_parser | {"help": help_of(option)})
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


def parsed(parser: Parser, argv: Sequence[str], options: Sequence[Option]) -> argparse.Namespace:
    """What the parser reads, `options` as their values. Raises InputError naming the option."""
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(unknown_message(unknown[0], parser))
    for option in options:
        given = getattr(arguments, option.key)
        if given is not None:
            setattr(arguments, option.key, option.parse(given))
    return arguments


def unknown_message(word: str, parser: Parser) -> str:
    if not word.startswith("-"):
        return f"found {word!r}, {parser.extra_word.format(word=word)}"
    name = word.partition("=")[0]
    known = [name for action in parser._actions for name in action.option_strings]
    near = nearest(name, known)
    return f"{name}: no such option; " + (f"did you mean {near}?" if near else "--help lists all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. Every mistake ends as one line on stderr."""
    # What is wrong with the options all ranks see alike.
    return end_of(lambda: command(sys.argv[1:] if argv is None else argv), tells_of_options)


def tells(status: int) -> bool:
    """One process tells everything."""
    return True


def tells_of_options(status: int) -> bool:
    return os.environ.get("RANK", "0") == "0"


def end_of(work: Callable[[], int], tell: Tell = tells) -> int:
    """The exit status of a command, whatever way it ends."""
    try:
        return work()
    except InputError as error:
        return complain(str(error), UNUSABLE, tell)
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
        return complain(f"{error.filename}: {error.strerror}", UNUSABLE, tell)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED, tell)


def command(argv: Sequence[str]) -> int:
    arguments = read_options(argv)
    if arguments.out is not None:
        run_folder.check_out(Path(arguments.out))
    if arguments.plan and not tells_of_options(DONE):
        return DONE
    # From here on torch is needed, which takes seconds to import.
    ranks = None if arguments.plan else launched(arguments)
    if ranks is not None:
        return end_together(ranks, lambda: run_as(ranks, arguments))
    return run_as(None, arguments)


def launched(arguments: argparse.Namespace) -> ManyRanks | None:
    """This process as one of those that torchrun started; None where it is alone. Raises
    InputError.
    """
    tensor, world = arguments.tensor_parallel or 1, int(os.environ.get("WORLD_SIZE", "1"))
    if world % tensor:
        raise InputError(
            f"--tensor-parallel: found {tensor}, wanted a divisor of the {world} ranks of this "
            "start (torchrun --nproc-per-node N -m srlm_fast.run ...)"
        )
    if arguments.shard == "yes" and world == tensor:
        raise InputError(
            "--shard: found 'yes' without ranks that prompts are split over, wanted more of them "
            "(torchrun --nproc-per-node N -m srlm_fast.run ...)"
        )
    if world == 1:
        return None
    if arguments.device not in (None, "cpu", "cuda"):
        raise InputError(
            f"--device: found {arguments.device} with {world} ranks, wanted cpu or cuda: each "
            "rank takes the device that has its number"
        )
    from srlm_fast.loop.ranks import join_ranks

    return join_ranks(tensor, arguments.device)


def end_together(ranks: ManyRanks, work: Callable[[], int]) -> int:
    """The exit status of work that all ranks do: that of the rank which ended first, by itself. The
    others end because of it and have nothing to tell.
    """
    try:
        status = end_of(work, ranks.tell)
    except Exception as error:
        status = end_by(error, ranks)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends those that are left
    ranks.leave(PARTING_SECONDS.get(status, LONGEST_PARTING))
    return status


def end_by(error: Exception, ranks: ManyRanks) -> int:
    """The status after an error that is none of the user's; told, unless another rank's end is
    behind it.
    """
    told = ranks.told()
    if told is not None or not ranks.tell(FAULT):
        return FAULT if told is None else told
    if is_lost(error):
        return complain(f"another rank has ended without a word ({first_line(error)})", FAULT)
    traceback.print_exception(error)
    return FAULT


def run_as(ranks: ManyRanks | None, arguments: argparse.Namespace) -> int:
    """The run, alone or as one of its ranks; or its plan."""
    from srlm_fast.config import from_options
    from srlm_fast.unused import check_used

    config = from_options(arguments)
    check_used(config, arguments)
    if arguments.plan:
        from srlm_fast.plan import print_plan

        print_plan(dataclasses.replace(config, out=arguments.out or ""), arguments.devices)
        return DONE
    return train(config, None if arguments.out is None else Path(arguments.out), ranks)


def train(config: Config, out: Path | None, ranks: Ranks | None) -> int:
    """Find the folder, hold it, run the loop in it, and leave a report behind."""
    from srlm_fast.loop.ranks import Ranks
    from srlm_fast.report.display import Display

    ranks = ranks or Ranks()
    # Of the first rank: what is free, and with it the answer, differs between ranks.
    ranks.sharded = ranks.from_first(lambda: checked_shards(config))
    folder = ranks.from_first(lambda: out or choose_folder(config))
    config = dataclasses.replace(config, out=str(folder))
    display = Display(sys.stdout if ranks.first else open(os.devnull, "w"))
    run_folder.check_out(folder)
    try:
        return hold_and_run(config, folder, display, ranks)
    except InputError:
        raise
    except Exception as error:
        display.close()
        message = resource_message(error, folder)
        if message is None:
            raise
        return complain(message, UNUSABLE, ranks.tell)


def checked_shards(config: Config) -> bool:
    """Whether weights are sharded over data ranks: as --shard says; auto: where training would not
    fit with a copy on each. Raises InputError for a model that does not fit either way.
    """
    from srlm_fast.plan import check_fits

    if config.shard == "auto":
        try:
            check_fits(dataclasses.replace(config, shard="no"))
            return False
        except InputError:
            config = dataclasses.replace(config, shard="yes")
    check_fits(config)
    return config.shard == "yes"


def hold_and_run(config: Config, folder: Path, display: Display, ranks: Ranks) -> int:
    """Run the loop in a folder that no other run holds and that belongs to these options."""
    if not ranks.first:
        ranks.wait()
        return run_loop(config, folder, display, ranks)
    start = run_folder.FirstStart(folder)
    with run_folder.Lock(folder):
        try:
            take_folder(config, folder, display)
            ranks.wait()
            return run_loop(config, folder, display, ranks)
        except Exception as error:
            if is_refused(error, ranks):
                start.undo()
            raise


def is_refused(error: Exception, ranks: Ranks) -> bool:
    """Whether what the user gave ends the run, as this rank or the one that has ended says."""
    from srlm_fast.loop.boundary import RankEndedError

    if isinstance(error, RankEndedError):
        return ranks.told() == UNUSABLE
    return isinstance(error, InputError)


def take_folder(config: Config, folder: Path, display: Display) -> None:
    """Refuse the folder of another run; write down whose a new one is."""
    from srlm_fast.config import differences, read_config, versions

    if run_folder.is_run_folder(folder) and run_folder.is_started(folder):
        refuse_other_run(folder, differences(read_config(folder), config))
        for note in check_going_on(folder):
            display.note(note)
        run_folder.forget_stop(folder)
    else:
        run_folder.write_config(folder, config.to_json(), versions())
        forget_removed(folder)


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
        told = told_apart((each.option, each.there, each.here) for each in different)
        raise InputError(
            f"--out {folder}: belongs to a run {told}; wanted the same options, or another folder"
        )


def run_loop(config: Config, folder: Path, display: Display, ranks: Ranks) -> int:
    from srlm_fast.loop import StoppedError, run

    many = bool(ranks.over_mesh)

    def on_model(number: int) -> None:
        write_model_card(folder, number, config.model)

    try:
        with stop_on_interrupt(display, at_once=not many) as stop:
            summary = run(config, display, stop=stop, ranks=ranks, on_model=on_model)
        if not ranks.first:
            return DONE
        report = write_pages(folder, config.model)
    except StoppedError as error:
        display.close()
        if ranks.first:
            display.note(f"report: {write_pages(folder, config.model)}")
        return complain(f"{error}; all rows are kept in {folder}", STOPPED, ranks.tell)
    except KeyboardInterrupt:
        display.close()
        kept = f"interrupted; everything finished is kept in {folder}"
        again = f"{kept}: the same command goes on from there"
        return complain(again, INTERRUPTED, ranks.tell)
    display.table(summary)
    display.note(f"report: {report}")
    return DONE


def write_model_card(folder: Path, number: int, model: str) -> None:
    """The card of M_number as far as the run has come; `write_pages` says the rest at the end."""
    from srlm_fast.model import hub_id
    from srlm_fast.report import write_card

    write_card(folder, number, folder / f"m{number}" / "model", hub_id(model))


def write_pages(folder: Path, model: str) -> Path:
    """A card beside each model of a run, and its report, whose path is returned."""
    from srlm_fast.model import hub_id
    from srlm_fast.report import write_cards, write_report

    write_cards(folder, hub_id(model))
    return write_report(folder)


@contextlib.contextmanager
def stop_on_interrupt(display: Display, at_once: bool = True) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C, SIGTERM or SIGUSR1 asks for a stop at the next safe point. at_once: a
    Ctrl-C behind it stops at once; not so under torchrun, which hands on what the terminal has
    already sent.
    """
    asked = threading.Event()
    hint = "; Ctrl-C again stops at once" if at_once else ""

    def ask(number: int, _frame: object) -> None:
        if not asked.is_set():
            asked.set()
            display.note(f"stopping at the next safe point{hint}")
        elif at_once and number == signal.SIGINT:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, ask) for number in STOPS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


@contextlib.contextmanager
def in_one_line(place: Path) -> Iterator[None]:
    """What the machine runs out of, as an InputError. place: where is written."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = resource_message(error, place)
        if message is None:
            raise
        raise InputError(message) from error


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


def is_lost(error: BaseException) -> bool:
    """Whether another process has gone from an exchange."""
    words = str(error)
    return any(
        sign in words for sign in ("Connection closed", "Connection reset", "remote process")
    )


def complain(message: str, status: int, tell: Tell = tells) -> int:
    """Say why the command ends, if this process is the one that `tell` wants it to."""
    if tell(status):
        sys.stdout.flush()
        print(f"srlm_fast: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def console() -> NoReturn:
    """The entry point of the `srlm-fast` command. Until the run listens itself, every signal that
    stops it ends it as Ctrl-C does.
    """
    for each in STOPS:
        signal.signal(each, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    console()
