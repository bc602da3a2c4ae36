"""The prompts that both models answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from srlm_fast.records import InputError, Prompt

from .models import Models, all_tiny, shared_run

if TYPE_CHECKING:
    from srlm_fast.config import Config

# Files of a run that its held-out prompts come from.
HELD_OUT_OF = ("eval_prompts_file", "prompts_file", "ift_file", "eft_file")


def prompts_of(file: str | None, models: Models, config: Config) -> list[Prompt]:
    """Those of the file, or those that are held out from both models. Raises InputError."""
    return held_out(models, config) if file is None else read(file)


def read(file: str) -> list[Prompt]:
    from srlm_fast.data import read_prompts

    try:
        prompts = read_prompts(file)
    except InputError as error:
        raise InputError(f"--prompts {error}") from None
    if not prompts:
        raise InputError(f"--prompts {file}: found no prompt, wanted some")
    return prompts


def held_out(models: Models, config: Config) -> list[Prompt]:
    from srlm_fast.config import from_json
    from srlm_fast.loop.material import gather

    run = shared_run(models)
    if run is None and not all_tiny(models):
        raise InputError(
            "--prompts: not given, wanted a file of prompts: only models of one run have held-out "
            "prompts in common"
        )
    own = config if run is None else from_json(models["a"].run_config or {})
    check_unchanged(own)
    prompts = list(gather(own).held_out)
    if not prompts:
        raise InputError(f"--prompts: not given, and {run} holds no prompt out; wanted a file")
    return prompts


def check_unchanged(config: Config) -> None:
    """Refuse held-out prompts of a run whose files have changed since: they would be others."""
    from srlm_fast.config import fingerprint, option_at

    for name in HELD_OUT_OF:
        path, known = getattr(config, name), config.inputs.get(name)
        if path is not None and known is not None:
            if fingerprint(f"{option_at(name)} of the run:", path) != known:
                raise InputError(
                    f"--prompts: not given, and {path} ({option_at(name)} of the run) has changed "
                    "since; wanted a file of prompts"
                )
