"""What the commands that let a model answer share: options, what they read, and the doing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from srlm_fast.options import OPTIONS, Option, real, text, whole
from srlm_fast.run import in_one_line, stop_on_interrupt
from srlm_fast.run_models import find_model

from .answering import Answering, Dialogue
from .command import Command
from .made import digest, note, rows_of

NAME = Option(
    "--name", "name", text("a name"), "NAME", "of the model in the file (default: its own)"
)
SAMPLING = (
    Option("--top-p", "top_p", real(0.0, 1.0, above=True), "P", "of the answers (default: 1)"),
    Option("--seed", "seed", whole(0), "N", "of the answers (default: 0)"),
)
DEFAULTS = {"--top-p": 1.0, "--seed": 0}
DEVICE = tuple(o for o in OPTIONS if o.name in ("--device", "--dtype", "--kv-gb"))


def inputs(arguments: argparse.Namespace, file: str) -> dict[str, Any]:
    """What is read: the model, and the questions of the option `file`. Raises InputError."""
    from srlm_fast.config import model_fingerprint

    name, questions = find_model(arguments.what).folder_or_name, getattr(arguments, file[2:])
    with in_one_line(Path(arguments.out)):
        from srlm_fast.model import find_folder

        folder = find_folder(name)
    return {
        "MODEL": name,
        "MODEL (its content)": model_fingerprint("MODEL", folder)[:16],
        f"{file} (the file's content)": digest(file, Path(questions).expanduser()),
    }


def generate(
    command: Command, arguments: argparse.Namespace, dialogues: Callable[[], Sequence[Dialogue]]
) -> list[dict[str, Any]]:
    """The rows of the answers, in the order of the dialogues. Raises InputError."""
    out = Path(arguments.out).expanduser()
    with in_one_line(out):
        from srlm_fast.model import load_model
        from srlm_fast.report.display import Display
        from srlm_fast.sampler import Sampler

        asked = dialogues()
        note(command, arguments)
        display = Display(sys.stdout)
        try:
            name = find_model(arguments.what).folder_or_name
            model = load_model(name, arguments.device, arguments.dtype)
            kv_bytes = None if arguments.kv_gb is None else int(arguments.kv_gb * 1e9)
            answering = Answering(Sampler(model, kv_bytes), rows_of(out))
            with stop_on_interrupt(display) as stop:
                answering.run(asked, display, stop)
        finally:
            display.close()
    return [answering.rows[each.key] for each in asked]
