"""What a file holds and which options it can serve, for somebody who has just been given it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from srlm_fast.data.fields import Skipped
from srlm_fast.data.formats import EFT, IFT, PAIRS, PROMPTS, RANKED, Use
from srlm_fast.data.preferences import recognised_preferences
from srlm_fast.data.prompts import recognised_prompts
from srlm_fast.data.ranked import recognised_ranked
from srlm_fast.data.recognised import Recognised, form_of
from srlm_fast.data.seeds import Fault, recognised_eft, recognised_ift
from srlm_fast.records import InputError

READERS: tuple[tuple[Use, Callable[..., Recognised[Any]]], ...] = (
    (PROMPTS, recognised_prompts),
    (IFT, recognised_ift),
    (EFT, recognised_eft),
    (RANKED, recognised_ranked),
    (PAIRS, recognised_preferences),
)

UNUSABLE = "cannot be used"
RUBRIC = "was read by the default rubric (`Score: N`, 0 to 5); a run reads it by its --rubric"


def check_files(paths: Sequence[str | Path], fault: Fault | None = None) -> Iterator[str]:
    """Lines about each file: its form, the rows that each option would have of it, and what is
    wrong with the first lines that cannot be read, or with the file. fault: what is wrong with a
    judgement by the default rubric. Raises InputError behind the
    last file where some cannot be read or are of no known form.
    """
    unknown = []
    for path in paths:
        try:
            yield from check_file(path, fault)
        except InputError as error:
            unknown.append(str(error))
            if len(paths) > 1:
                yield str(error)
    if unknown:
        more = f" (and {len(unknown) - 1} more of {len(paths)} files)" if unknown[1:] else ""
        raise InputError(f"{unknown[0]}{more}")


def check_file(path: str | Path, fault: Fault | None = None) -> Iterator[str]:
    """The lines about one file, fault as above. Raises InputError where it has no known form."""
    form = form_of(path)
    yield f"{path}: {form.words}"
    if form.refused:
        yield f"  serves no option: {form.refused}"
        return
    wrong: dict[str, str] = {}
    readers = dict(READERS) | {EFT: partial(recognised_eft, fault=fault)}
    served = [(use, _tried(path, read, wrong)) for use, read in readers.items() if use.takes(form)]
    yield from _together(served)
    if form.judged and fault:
        yield f"  --eft {RUBRIC}"
    unfit = [use for use, _ in READERS if not use.takes(form)]
    if unfit:
        yield f"  not for {', '.join(name for use in unfit for name in use.options)}"
    if wrong:
        yield "  with --skip-bad only, because of:"
    yield from (f"  {message}" for message in wrong.values())


def _together(served: Sequence[tuple[Use, str]]) -> Iterator[str]:
    """A line for each use; those together that cannot use the file for the same reason."""
    groups: dict[object, tuple[list[str], str]] = {}
    for use, found in served:
        reason = found.partition(", wanted ")[0] if found.startswith(UNUSABLE) else use
        groups.setdefault(reason, ([], found))[0].extend(use.options)
    yield from (f"  {', '.join(names)}: {found}" for names, found in groups.values())


def _tried(path: str | Path, read: Callable[..., Recognised[Any]], wrong: dict[str, str]) -> str:
    """The rows of one use in words; the messages of lines that cannot be read go to `wrong`."""
    skipped = Skipped()
    try:
        counted = read(path, skipped).counted()
    except InputError as error:
        return f"{UNUSABLE}: {str(error).removeprefix(f'{path}: ')}"
    for message in skipped.messages:
        wrong.setdefault(message.partition(", wanted ")[0], message)
    return counted
