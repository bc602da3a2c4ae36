"""What the commands that let a model answer share: options, the file of rows, and the doing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srlm_fast import made_by
from srlm_fast.options import OPTIONS, Option, real, text, whole
from srlm_fast.run import stop_on_interrupt
from srlm_fast.run_models import ModelAt

from .answering import Answering, Dialogue
from .command import in_one_line

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


def settings_note(out: Path) -> Path:
    """What made them."""
    return out.with_name(f"{out.name}.settings.json")


def hold(out: Path, wanted: dict[str, Any]) -> None:
    """Refuse to go on with answers that something else has made; note what makes them."""
    rows = rows_file(out)
    made_by.hold(rows, settings_note(out), f"--out {out}: {rows.name} holds answers made", wanted)


def settings(
    arguments: argparse.Namespace, source: ModelAt, options: Sequence[Option], file: str
) -> dict[str, Any]:
    """What the answers depend on, by the option that sets it. file: that of the questions."""
    from srlm_fast.config import fingerprint, model_fingerprint
    from srlm_fast.model import find_folder

    found = {
        o.name: getattr(arguments, o.key) for o in options if o.name not in ("--out", "--name")
    }
    content = {
        f"{file} (the file's content)": fingerprint(file, found[file])[:16],
        "MODEL (its content)": model_fingerprint("MODEL", find_folder(source.folder_or_name))[:16],
    }
    return found | content | {"MODEL": source.folder_or_name}


def generate(
    arguments: argparse.Namespace,
    source: ModelAt,
    held: Callable[[], dict[str, Any]],
    dialogues: Callable[[], Sequence[Dialogue]],
) -> list[dict[str, Any]]:
    """The rows of the answers, in the order of the dialogues. held: `settings` of the command.
    Raises InputError.
    """
    out = Path(arguments.out).expanduser()
    with in_one_line(out):
        from srlm_fast.model import load_model
        from srlm_fast.report.display import Display
        from srlm_fast.sampler import Sampler

        asked = dialogues()
        hold(out, held())
        display = Display(sys.stdout)
        try:
            model = load_model(source.folder_or_name, arguments.device, arguments.dtype)
            kv_bytes = None if arguments.kv_gb is None else int(arguments.kv_gb * 1e9)
            answering = Answering(Sampler(model, kv_bytes), rows_file(out))
            with stop_on_interrupt(display) as stop:
                answering.run(asked, display, stop)
        finally:
            display.close()
    return [answering.rows[each.key] for each in asked]


def finish(out: Path) -> None:
    """Take away the rows behind a file that is whole."""
    for each in (rows_file(out), settings_note(out)):
        each.unlink(missing_ok=True)
