"""What a subcommand is, and how its words are read. Standard library only."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srlm_fast.options import Option, text
from srlm_fast.records import InputError
from srlm_fast.run import Parser, unknown_message
from srlm_fast.run_folder import check_file

MODEL = "a run, one of its models (runs/x/m2), a folder, a hub id or a preset"
PROGRAM = "python -m srlm_fast.export"


@dataclass(frozen=True)
class Command:
    """One subcommand. what: the word behind its name, with its help; flags: options without a
    value, with their help; needed: options that must be given; defaults: of the others that have
    one, by name; inputs: what is read, a digest by name; run: does it, and says the status.
    """

    name: str
    help: str
    what: tuple[str, str]
    options: tuple[Option, ...]
    inputs: Callable[[argparse.Namespace], dict[str, Any]]
    run: Callable[[argparse.Namespace], int]
    flags: tuple[tuple[str, str], ...] = ()
    needed: tuple[str, ...] = ("--out",)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def parser(self) -> Parser:
        metavar, help = self.what
        parser = Parser(prog=f"{PROGRAM} {self.name}", description=self.help, allow_abbrev=False)
        parser.add_argument("what", metavar=metavar, help=help)
        for option in self.options:
            parser.add_argument(option.name, metavar=option.metavar, help=option.help)
        for name, help in self.flags:
            parser.add_argument(name, action="store_true", help=help)
        return parser

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options as values, None where not given and without a default. Raises InputError
        naming the option.
        """
        parser = self.parser()
        arguments, unknown = parser.parse_known_args(argv)
        for word in unknown:
            if word.startswith("-"):
                raise InputError(unknown_message(word, parser))
            raise InputError(
                f"found {word!r} behind {arguments.what!r}, wanted {self.what[0]} once"
            )
        for option in self.options:
            given = getattr(arguments, option.key)
            if given is not None:
                setattr(arguments, option.key, option.parse(given))
            elif option.name in self.needed:
                raise InputError(f"{option.name}: not given, wanted {option.kind.wanted}")
            else:
                setattr(arguments, option.key, self.defaults.get(option.name))
        return arguments


def out_option(help: str, kind: str = "the name of a file") -> Option:
    metavar = "FOLDER" if "folder" in kind else "FILE"
    return Option("--out", "out", text(kind), metavar, help)


def file_option(name: str, help: str) -> Option:
    """Of a file that is read."""
    return Option(name, name.removeprefix("--"), text("the name of a file"), "FILE", help)


def is_there(path: Path) -> bool:
    """Whether there is more than an empty folder."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))


def check_new(path: Path) -> None:
    """Raise InputError unless `--out` can be made: what is there is never written over."""
    if is_there(path):
        raise InputError(f"--out {path}: is there already, wanted a new name")


def check_new_file(path: Path) -> None:
    """Raise InputError unless `--out` can be a new file."""
    if path.exists():
        raise InputError(f"--out {path}: is there already, wanted a new name")
    check_file("--out", path)


@contextmanager
def naming(option: str) -> Iterator[None]:
    """What is wrong with a file, with the option that named it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option} {error}") from None
