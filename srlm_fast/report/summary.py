"""The figures of a run, finished or not, in the layout of `summary.json`.

A run that goes on, was interrupted or stopped has its latest figures in `state.json` alone: what
each finished stage has left.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srlm_fast.damage import read_state
from srlm_fast.records import InputError, read_object

Row = dict[str, Any]
MODEL = ("train", "measure")
ROUND = ("prompts", "answers", "reward", "pairs", "train", "watch")


def read_summary(folder: Path) -> Row:
    """`summary.json`, completed by the models, rounds and files that `state.json` alone knows of.
    Raises InputError naming the file that cannot be read.
    """
    found, state = read_object(folder / "summary.json"), read_state(folder)
    stages = state.get("stages") or {}
    models = {row["name"]: row for row in objects(found, "models", folder)}
    rounds = {row["name"]: row for row in objects(found, "rounds", folder)}
    for number in sorted({int(n) for stage in stages if (n := stage.split("/")[0][1:]).isdigit()}):
        own = {stage.partition("/")[2]: r for stage, r in stages.items() if of(stage, number)}
        if own.keys() & set(MODEL):
            models.setdefault(f"M{number}", model_row(number, own))
        if number > 1:
            rounds.setdefault(f"M{number}", round_row(number, own))
    data = found.get("data") or state.get("data") or {}
    return found | {"models": [*models.values()], "rounds": [*rounds.values()], "data": data}


def of(stage: str, number: int) -> bool:
    return stage.startswith(f"m{number}/")


def model_row(number: int, stages: Mapping[str, Row]) -> Row:
    """A row of `models` from what the stages of M_number left."""
    row: Row = {"name": f"M{number}"}
    for name in MODEL:
        row |= stages.get(name) or {}
    row["length_mean"] = (row.get("collapse") or {}).get("length_mean")
    if "eft" in stages:
        judged = stages.get("eft_judge") or {}
        row["eft"] = stages["eft"] | {name: judged.get(name) for name in ("statuses", "too_long")}
    return row


def round_row(number: int, stages: Mapping[str, Row]) -> Row:
    """A row of `rounds` from what the stages of the round that makes M_number left."""
    row: Row = {"name": f"M{number}"}
    for name in ROUND:
        row |= stages.get(name) or {}
    row["rejected_prompts"] = row.pop("rejected", {})
    tokens, seconds = row.get("tokens"), row.get("seconds_here")
    if isinstance(tokens, dict) and seconds:
        row["tokens_per_second"] = {"answers": sum(tokens.values()) / seconds}
    return row


def objects(summary: Mapping[str, Any], key: str, folder: Path) -> list[Row]:
    """The named objects of a list in the summary. Raises InputError."""
    found = summary.get(key) or []
    if not isinstance(found, list) or not all(isinstance(o, dict) and "name" in o for o in found):
        path = folder / "summary.json"
        raise InputError(f"{path}: found no list of named objects under {key!r}, wanted one")
    return found
