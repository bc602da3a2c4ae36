"""The settings of a run by the options that set them, as a user types them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from srlm_fast.options import GROUPS, Option

INPUTS, OUT = "inputs.", "out"
OTHER = "without an option"


@dataclass(frozen=True)
class Setting:
    """path: its field of the run's configuration, dotted. name: the option that sets it; the path
    where none does. words: its value as it is typed.
    """

    path: str
    name: str
    words: str
    help: str = ""


def option_of(path: str) -> Option | None:
    """The option that sets a field."""
    options = (option for group in GROUPS.values() for option in group)
    return next((option for option in options if path in option.paths), None)


def settings(config: Mapping[str, Any]) -> dict[str, list[Setting]]:
    """All that a flat configuration holds but where it is written, by the group of its option. A
    field that an option sets beside others has a row of its own where it differs from them.
    """
    groups = {title: list(rows(config, options)) for title, options in GROUPS.items()}
    optional = {path for group in GROUPS.values() for option in group for path in option.paths}
    groups[OTHER] = [
        Setting(path, name_of(path), words(value))
        for path, value in config.items()
        if path not in optional and path != OUT
    ]
    return {title: found for title, found in groups.items() if found}


def rows(config: Mapping[str, Any], options: tuple[Option, ...]) -> Iterator[Setting]:
    for option in options:
        usual = config.get(option.path)
        for path in option.paths:
            value = config.get(path)
            if value is not None and (path == option.path or value != usual):
                yield Setting(path, name_of(path), words(value), option.help)


def name_of(path: str) -> str:
    """`--lr`; `--dropout (sft)` of a field that an option sets beside another."""
    option = option_of(path)
    if path.startswith(INPUTS):
        return f"SHA-256 of {name_of(path.removeprefix(INPUTS))}"
    if option is None:
        return path
    return option.name if path == option.path else f"{option.name} ({path.partition('.')[0]})"


def words(value: Any) -> str:
    """yes and no, numbers in few characters, lists parted by commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(words, value)) if isinstance(value, list | tuple) else str(value)
