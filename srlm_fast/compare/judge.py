"""Who judges a comparison, and how."""

from __future__ import annotations

import argparse

from srlm_fast.judge_options import RUBRIC
from srlm_fast.options import JUDGES
from srlm_fast.records import InputError
from srlm_fast.run_models import ModelAt, resolve_model

from .models import Models, all_tiny, shared_run


def chosen_kind(arguments: argparse.Namespace, models: Models) -> str:
    tiny = all_tiny(models)
    if arguments.judge_kind is not None:
        return arguments.judge_kind
    if arguments.rubric is not None or (tiny and arguments.judge is not None):
        return "sampled"
    return "gold" if tiny else "pairwise"


def check_kind(arguments: argparse.Namespace, kind: str) -> None:
    """Refuse options that a kind of judge has no use for."""
    if kind == "gold" and arguments.judge is not None:
        raise InputError("--judge: found with --judge-kind gold, wanted none: a program judges")
    if kind == "model" and arguments.judge is None:
        raise InputError("--judge: not given, wanted the reward model of --judge-kind model")
    given = [name for name in RUBRIC if getattr(arguments, name[2:].replace("-", "_"))]
    if given and kind not in JUDGES:
        raise InputError(
            f"{given[0]}: found with --judge-kind {kind}, wanted {', '.join(JUDGES[:-1])} or "
            f"{JUDGES[-1]}: no other asks with a rubric"
        )
    if arguments.judge_stop == "line" and kind != "sampled":
        raise InputError(
            f"--judge-stop: found 'line' with --judge-kind {kind}, wanted sampled: the others "
            "write no score line"
        )
    if arguments.tie_within and kind == "pairwise":
        raise InputError("--tie-within: found with --judge-kind pairwise, wanted one that scores")


def chosen_judge(arguments: argparse.Namespace, models: Models, kind: str) -> ModelAt | None:
    """None for a program."""
    if kind == "gold":
        return None
    if arguments.judge in ("A", "B"):
        return models[arguments.judge.lower()]
    if arguments.judge is not None:
        return resolve_model(arguments.judge)
    run = shared_run(models)
    return models["b"] if run is None else resolve_model(str(run / "m1"))
