"""What the commands that let a model answer share: options, the file of rows, and the doing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.judge_command import hold_rows, settings_note
from srlm_fast.options import OPTIONS, Option, real, text, whole
from srlm_fast.run import stop_on_interrupt

from .answering import Answering, Dialogue
from .command import in_one_line
from .source import Source

NAME = Option(
    "--name", "name", text("a name"), "NAME", "of the model in the file (default: its own)"
)
SAMPLING = (
    Option("--top-p", "top_p", real(0.0, 1.0, above=True), "P", "of the answers (default: 1)"),
    Option("--seed", "seed", whole(0), "N", "of the answers (default: 0)"),
)
DEVICE = tuple(o for o in OPTIONS if o.name in ("--device", "--dtype", "--kv-gb"))


def rows_file(out: Path) -> Path:
    """Where answers wait until all are there."""
    return out.with_name(f"{out.name}.rows.jsonl")


def settings(
    arguments: argparse.Namespace, source: Source, options: Sequence[Option], file: str
) -> dict[str, Any]:
    """What the answers depend on, by the option that sets it. file: that of the questions."""
    from srlm_fast.config import fingerprint, model_fingerprint
    from srlm_fast.model import find_folder

    found = {
        o.name: getattr(arguments, o.key) for o in options if o.name not in ("--out", "--name")
    }
    content = {
        f"{file} (the file's content)": fingerprint(file, found[file])[:16],
        "MODEL (its content)": model_fingerprint("MODEL", find_folder(source.given))[:16],
    }
    return found | content | {"MODEL": source.given}


def generate(
    arguments: argparse.Namespace,
    source: Source,
    held: Callable[[], dict[str, Any]],
    dialogues: Callable[[], Sequence[Dialogue]],
) -> list[dict[str, Any]]:
    """The rows of the answers, in the order of the dialogues. held: `settings` of the command.
    Raises InputError.
    """
    out = Path(arguments.out).expanduser()
    path = rows_file(out)
    with in_one_line(out):
        from srlm_fast.model import load_model
        from srlm_fast.report.display import Display
        from srlm_fast.sampler import Sampler

        asked = dialogues()
        hold_rows(path, held(), f"--out {out}: {path.name} holds answers")
        display = Display(sys.stdout)
        try:
            model = load_model(source.given, arguments.device, arguments.dtype)
            kv_bytes = None if arguments.kv_gb is None else int(arguments.kv_gb * 1e9)
            answering = Answering(Sampler(model, kv_bytes), path)
            with stop_on_interrupt(display) as stop:
                answering.run(asked, display, stop)
        finally:
            display.close()
    return [answering.rows[each.key] for each in asked]


def finish(out: Path) -> None:
    """Take away the rows behind a file that is whole."""
    path = rows_file(out)
    for each in (path, settings_note(path)):
        each.unlink(missing_ok=True)
