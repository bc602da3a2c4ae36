"""The collapse watch: the warnings of each round, and the end of the run where they end it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from srlm_fast.eval import alarms

from .own_score import OWN_SCORES
from .state import ModelFolder
from .stopping import StoppedError
from .summary import model_rows, round_rows

if TYPE_CHECKING:
    from .loop import Run


class Watching:
    """The stage behind a round. What it finds is kept with the finished stages, so that the same
    command stops where it has stopped before.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def notes(self) -> list[str]:
        """Of warnings that cannot come up in this run, and why."""
        run = self.run
        has_probe = run.material.score_bits is not None or run.material.eft_eval
        why = {
            f"--reward {run.config.reward} has no own score": run.config.reward not in OWN_SCORES,
            "there are no answers of known order (--eft, --eft-eval) to probe it on": not has_probe,
        }
        found = next((reason for reason, holds in why.items() if holds), None)
        return [f"no warning self_praise: {found}"] if found and run.config.iterations else []

    def watch(self, folder: ModelFolder) -> dict[str, Any]:
        """The warnings of the round that made a model, told as they come up."""
        run = self.run
        found = run.ranks.from_first(lambda: self.found(folder))
        for row in found:
            run.display.note(f"{folder.name}: warning {row['name']}: {row['text']}")
        return {"warnings": found}

    def found(self, folder: ModelFolder) -> list[dict[str, Any]]:
        run = self.run
        made = run.folders[: folder.number]
        return [asdict(a) for a in alarms(model_rows(run.state, made), round_rows(run.state, made))]

    def check(self, folder: ModelFolder) -> None:
        """Raises StoppedError for a round with warnings where the options say so."""
        figures = self.run.state.figures.get(folder.stage("watch"), {})
        if self.run.config.stop_on_collapse and figures.get("warnings"):
            told = "; ".join(f"{row['name']}: {row['text']}" for row in figures["warnings"])
            raise StoppedError(
                f"{folder.name}: stopped on signs of collapse ({told}); --stop-on-collapse no goes "
                "on"
            )

    def check_finished(self) -> None:
        """All rounds that are finished, before anything is loaded."""
        for folder in self.run.folders:
            self.check(folder)
