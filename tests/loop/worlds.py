"""Small runs: the tiny world with few rows, and a foreign model with random weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from srlm_fast import config as configs
from srlm_fast import run_folder
from srlm_fast.loop import run

SMALL = {
    "num_ift": 24,
    "num_eft": 192,
    "num_prompts": 20,
    "evaluation.num_prompts": 24,
    "evaluation.num_judged": 8,
    "judge.sampling.n": 2,
    "dpo.batch_pairs": 4,
    "judge.sampling.max_tokens": 40,
    "sft.learning_rate": 2e-3,
    "sft.epochs": 2,
}


class Silent:
    """A screen that shows nothing and remembers the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.stages: list[str] = []

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> Silent:
        self.stages.append(name)
        return self

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: Any) -> None:
        pass

    def update(self, done: int, total: int | None = None, **figures: Any) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def small_config(out: Path, **changes: Any) -> configs.Config:
    config = configs.tiny()
    for path, value in (SMALL | changes).items():
        config = configs.put(config, path, value)
    return dataclasses.replace(config, out=str(out))


def small_run(out: Path, **changes: Any) -> dict[str, Any]:
    return run(small_config(out, **changes), Silent())


def configured_run(out: Path, **changes: Any) -> None:
    """A run whose folder has its config.json, as the command writes it."""
    run_folder.write_config(out, small_config(out, **changes).to_json(), configs.versions())
    small_run(out, **changes)


def share_first_model(source: Path, out: Path) -> None:
    """Start a run with the M1 of a finished one that has the same seed."""
    shutil.copytree(source / "m1", out / "m1")
    state = json.loads((source / "state.json").read_text("utf-8"))
    kept = {
        part: {name: value for name, value in stages.items() if name.startswith("m1/")}
        for part, stages in state.items()
    }
    (out / "state.json").write_text(json.dumps(kept), "utf-8")


def forget_own_score(out: Path, rows: str) -> None:
    """Of M2 of a finished run: its figures, and of the file `rows`, if there is one, all but one
    row and a torn one.
    """
    state = json.loads((out / "state.json").read_text("utf-8"))
    for name in ("m2/measure", "m2/watch"):
        state["stages"].pop(name, None)
    (out / "state.json").write_text(json.dumps(state), "utf-8")
    path = out / "m2" / rows
    if path.exists():
        first, second, *_ = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(first + second[:-9])


# What must be the same however often a run was broken off. Seconds are not among it.
RESULTS = (
    "sft.jsonl",
    "prompts.jsonl",
    "candidates.jsonl",
    "judgements.jsonl",
    "comparisons.jsonl",
    "pairs.jsonl",
    "dropped.jsonl",
    "evaluation.jsonl",
    "own_judged.jsonl",
    "own_compared.jsonl",
    "judge_evaluation.jsonl",
)


def results(out: Path) -> dict[str, Any]:
    """The content of a finished run: rows in an order of their own, weights byte for byte,
    scores.
    """
    found: dict[str, Any] = {}
    for folder in sorted(out.glob("m[0-9]*")):
        for name in RESULTS:
            path = folder / name
            if path.exists():
                found[f"{folder.name}/{name}"] = sorted(path.read_text("utf-8").splitlines())
        found[f"{folder.name}/weights"] = (folder / "model" / "model.safetensors").read_bytes()
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    found["models"] = [
        {name: model[name] for name in ("eval", "judge", "own_score", "model_hash")}
        for model in summary["models"]
    ]
    return found


def same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name] == right[name], name
