"""`comparison.json`: all figures, and what made them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from srlm_fast.options import JUDGES
from srlm_fast.run_models import ModelAt

if TYPE_CHECKING:
    from srlm_fast.loop.contest import Outcome, Terms


def figures_of(terms: Terms, outcome: Outcome) -> dict[str, Any]:
    from srlm_fast.config import versions
    from srlm_fast.eval import win_rate
    from srlm_fast.report.compare_text import judge_sentence

    made = {
        **{side: provenance(at) for side, at in terms.models.items()},
        "prompts": len(terms.prompts),
        "samples": terms.sampling.n,
        "match": terms.match,
        "tie_within": terms.tie_within,
        "judge": judge_of(terms, outcome),
        "figures": win_rate(outcome.duels),
        "judgements": outcome.judgements,
        **outcome.audits,
        "too_long": outcome.too_long,
        "unanswered": outcome.unanswered,
        "borrowed": outcome.borrowed,
        "sampling": dataclasses.asdict(terms.sampling),
        "seed": terms.config.seed,
        "device": terms.config.device,
        "dtype": terms.config.dtype,
        "versions": versions(),
    }
    return made | {"judge_is": judge_sentence(made)}


def judge_of(terms: Terms, outcome: Outcome) -> dict[str, Any]:
    """The judge's provenance. is: the sides that it is itself."""
    name = terms.judge_name
    own = provenance(terms.judge) if terms.judge is not None else {}
    made = {"kind": terms.kind, **own, "asked_with": outcome.asked_with}
    made["is"] = [side for side, at in terms.models.items() if at.folder_or_name == name]
    if terms.kind in JUDGES:
        made["stop"] = terms.config.judge.stop
        made["sampling"] = dataclasses.asdict(terms.config.judge.sampling)
    return made


def provenance(at: ModelAt) -> dict[str, Any]:
    """weights: a hash of all that the folder's safetensors files hold."""
    from srlm_fast.loop.state import weights_hash
    from srlm_fast.model import find_folder

    run = None if at.run is None else str(at.run)
    weights = weights_hash(find_folder(at.folder_or_name))
    return {"name": at.name, "model": at.folder_or_name, "run": run, "weights": weights}
