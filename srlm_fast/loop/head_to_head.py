"""The models of a run against each other, from the held-out answers and scores that are there.

Nothing is sampled or judged for it: each answer of a model meets each one of another's to the same
prompt, the higher mean score wins, and equal ones are a tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from srlm_fast.eval import win_rate
from srlm_fast.judge import by_score, collect_scores, matched
from srlm_fast.judge.duels import Groups
from srlm_fast.judge.pairs import CandidateKey, Samples
from srlm_fast.records import Judgement

from .answers import load_candidates, read_records
from .state import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .loop import Run

FIGURES = (
    *("win", "tie", "loss", "intervals", "n", "prompts"),
    *("win_rate", "interval", "length_controlled"),
)


class HeadToHead:
    """Reads the evaluation rows of each model once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.texts = {prompt.prompt_id: prompt.text for prompt in run.material.held_out}

    def add(self, summary: dict[str, Any]) -> None:
        """`against_previous` and `against_first` of each model, None for M1."""
        folders = {folder.name: folder for folder in self.run.folders}
        measured = [self.answers(folders[model["name"]]) for model in summary["models"]]
        for i, model in enumerate(summary["models"]):
            model["against_previous"] = against(measured[i], measured[i - 1]) if i else None
            model["against_first"] = against(measured[i], measured[0]) if i else None

    def answers(self, folder: ModelFolder) -> Measured:
        """The held-out answers of a model, with their scores."""
        groups = load_candidates(folder.evaluation, self.run.config.evaluation.samples)
        groups = {key: groups[key] for key in self.texts if key in groups}
        program = self.run.material.score_bits
        if program is None:
            return groups, collect_scores(read_records(folder.evaluation_judged, Judgement))
        return groups, {
            (key, c.index): [program(self.texts[key], c.text)[0]]
            for key, group in groups.items()
            for c in group
        }


Measured = tuple[Groups, "Mapping[CandidateKey, Samples]"]


def against(ours: Measured, theirs: Measured) -> dict[str, Any]:
    """Figures of one model against another, as `eval.win_rate` has them."""
    found = win_rate(by_score(matched(ours[0], theirs[0]), ours[1], theirs[1]))
    return {name: found[name] for name in FIGURES}
