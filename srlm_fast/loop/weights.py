"""One set of weight tensors for every model of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .state import ModelFolder

if TYPE_CHECKING:
    from .loop import Run


class WeightsOf:
    """Another model's weights in the run's own tensors for a while: no second copy in memory.

    back: whose come back afterwards; those of the last model that is there, unless said.
    """

    def __init__(self, run: Run, folder: ModelFolder, back: ModelFolder | None = None) -> None:
        self.run, self.folder = run, folder
        self.back = back or [f for f in run.folders if f.model.is_dir()][-1]

    def __enter__(self) -> None:
        self.run.model.load_weights(self.folder.model)

    def __exit__(self, *exc: object) -> None:
        self.run.model.load_weights(self.back.model)
