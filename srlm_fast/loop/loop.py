"""The loop: M0 -> SFT -> M1 -> { prompts -> candidates and judgements -> pairs -> DPO } -> M2 -> M3
(arXiv 2401.10020).

Each stage is a function of the seed, the options and what earlier stages left in the run folder, so
a run that was broken off goes on where it was and ends with the same rows and the same weights. One
set of weight tensors serves sampling, judging, reference and policy; the KV pool is given back
while training needs the memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from srlm_fast.config import Config
from srlm_fast.model import Model, load_model
from srlm_fast.records import InputError, read_jsonl, write_json_atomic
from srlm_fast.sampler import Sampler

from .eft_building import EftBuilding
from .material import Material, gather
from .measuring import Measuring
from .pairing import Pairing
from .prompting import Prompting
from .rewarding import REWARDINGS, Work
from .screen import Screen
from .state import ModelFolder, RunState, derive_seed
from .stopping import StoppedError
from .summary import SUMMARY_FILE, summarize, summarize_stopped
from .teaching import Teaching

Stop = Callable[[], bool]


def run(config: Config, display: Screen, stop: Stop = lambda: False) -> dict[str, Any]:
    """Run, or go on with, the run in `config.out` and return its summary.

    Raises InputError and ModelError for what the user gave, StoppedError when a round gives nothing
    to learn from, KeyboardInterrupt at the next safe point after `stop()` is true.
    """
    return Run(config, display, stop).go()


class Run:
    """One run: its material, its model, its folder, and the order of its stages.

    What a stage does is in the file beside this one that bears its name; each takes the run.
    """

    def __init__(self, config: Config, display: Screen, stop: Stop) -> None:
        self.config, self.display, self.stop = config, display, stop
        self.out = Path(config.out)
        self.material: Material = gather(config)
        self.rewarding = REWARDINGS[config.reward](self)
        self.prompting, self.pairing = Prompting(self), Pairing(self)
        self.teaching, self.measuring = Teaching(self), Measuring(self)
        self.state = RunState(self.out)
        self.folders = [ModelFolder(self.out, t) for t in range(1, config.iterations + 2)]

    def go(self) -> dict[str, Any]:
        try:
            if not self.material.held_out:
                self.display.note("no prompt is left to hold out: the models get no score")
            self.load()
            self.first_model(self.folders[0])
            for folder in self.folders[1:]:
                self.round(folder)
            summary = summarize(self.config, self.state, self.folders)
            summary["rubric"] = self.material.rubric.provenance
            write_json_atomic(self.out / SUMMARY_FILE, summary)
            return summary
        except StoppedError as error:
            stopped = summarize_stopped(self.config, self.state, self.folders, error)
            write_json_atomic(self.out / SUMMARY_FILE, stopped)
            raise
        finally:
            self.state.close()

    def load(self) -> None:
        """Load the last model that is finished, or the one the run starts from, and make its
        sampler.
        """
        made = [f for f in self.folders if self.state.finished(f.stage("train"))]
        source: Any = made[-1].model if made else self.config.model
        config, lora = self.config, self.config.lora
        self.model: Model = load_model(
            source,
            config.device,
            config.dtype,
            base_dtype=lora.base_dtype,
            adapter=lora.fresh(self.seed("lora")),
        )
        self.sampler = Sampler(self.model)

    def first_model(self, folder: ModelFolder) -> None:
        """M1: the seeds taught by SFT, or the given model where there are none."""
        if self.material.ranked and not self.state.finished(folder.stage("train")):
            eft = EftBuilding(self, folder).build()
            self.material = dataclasses.replace(self.material, eft=eft)
        teaching = self.teaching
        self.stage(folder, "train", teaching.seeds if self.material.has_seeds else teaching.adopt)
        self.stage(folder, "measure", self.measuring.measure)
        for name, work in self.rewarding.first_stages().items():
            self.stage(folder, name, work)

    def round(self, folder: ModelFolder) -> None:
        """M_t -> M_t+1, whose folder is given."""
        self.stage(folder, "prompts", self.prompting.prompts)
        self.stage(folder, "answers", self.rewarding.answer)
        for name, work in self.rewarding.round_stages().items():
            self.stage(folder, name, work)
        self.stage(folder, "pairs", self.pairing.pairs)
        self.stage(folder, "train", self.rewarding.learn)
        self.stage(folder, "measure", self.measuring.measure)

    def stage(self, folder: ModelFolder, name: str, work: Work) -> None:
        """Do a stage unless it is finished, and mark it."""
        if self.state.finished(folder.stage(name)):
            return
        self.check_stop()
        with self.state.timed(folder.stage(name)):
            figures = work(folder)
        self.state.finish(folder.stage(name), figures)

    def check_stop(self) -> None:
        if self.stop():
            raise KeyboardInterrupt

    def seed(self, *parts: Any) -> int:
        return derive_seed(self.config.seed, *parts)

    def rows_of(
        self, folder: ModelFolder, path: Path, stage: str, figure: str
    ) -> list[dict[str, Any]]:
        """The rows that a finished stage left. Raises InputError when some have been lost since."""
        rows = read_jsonl(path)
        wanted = self.state.figures[folder.stage(stage)][figure]
        if len(rows) != wanted:
            raise InputError(f"{path}: found {len(rows)} rows, wanted the {wanted} of the stage")
        return rows

    @contextmanager
    def counting(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Something on screen that is told how many are done, and can be stopped then."""
        with self.display.stage(name, total, unit) as shown:

            def progress(done: int) -> None:
                shown.update(done)
                self.check_stop()

            yield progress
