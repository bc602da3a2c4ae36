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
from srlm_fast.damage import Lost
from srlm_fast.model import Model, load_model
from srlm_fast.records import InputError, read_jsonl, write_json_atomic
from srlm_fast.run_folder import is_started
from srlm_fast.sampler import Sampler

from .eft_building import EftBuilding
from .few_rows import few_rows
from .head_to_head import HeadToHead
from .material import Material, gather
from .measuring import Measuring
from .memory_trace import MemoryTrace, memory_figures
from .pairing import Pairing
from .prompting import Prompting
from .ranks import Ranks
from .reward_model import free_memory
from .rewarding import REWARDINGS, Work
from .screen import Screen
from .state import ModelFolder, RunState, derive_seed, weights_hash
from .stopping import StoppedError
from .summary import SUMMARY_FILE, summarize, summarize_stopped
from .teaching import Teaching
from .tracking import open_trackers
from .watching import Watching

Stop = Callable[[], bool]
OnModel = Callable[[int], None]


def run(
    config: Config,
    display: Screen,
    stop: Stop = lambda: False,
    ranks: Ranks | None = None,
    on_model: OnModel = lambda number: None,
) -> dict[str, Any]:
    """Run, or go on with, the run in `config.out` and return its summary.

    ranks: the processes that do it together, each with a call of its own; None: this one alone.
    on_model: called on the first of them with the number of each model that has its figures.
    Raises InputError for what the user gave, StoppedError when a round gives nothing
    to learn from, KeyboardInterrupt at the next safe point after `stop()` is true, on one rank or
    several, and RankEndedError where another rank raised something.
    """
    return Run(config, display, stop, ranks or Ranks(), on_model).go()


class Run:
    """One run: its material, its model, its folder, and the order of its stages.

    What a stage does is in the file beside this one that bears its name; each takes the run.
    """

    def __init__(
        self, config: Config, display: Screen, stop: Stop, ranks: Ranks, on_model: OnModel
    ) -> None:
        self.config, self.display, self.ranks = config, display, ranks
        self.on_model = on_model if ranks.first else lambda number: None
        self.ranks.asked = stop
        self.out = Path(config.out)
        self.going_on = is_started(self.out)
        self.material: Material = gather(config)
        self.rewarding = REWARDINGS[config.reward](self)
        self.prompting, self.pairing = Prompting(self), Pairing(self)
        self.teaching, self.measuring = Teaching(self), Measuring(self)
        self.watching = Watching(self)
        self.ranks.wait()  # whatever another process left is read before anything is written
        self.state = RunState(self.out, ranks.first, self.material.account)
        if ranks.first and config.log:
            lines = self.state.measured()
            self.state.trackers = open_trackers(config.log, self.out, config.to_json(), lines)
        self.memory = MemoryTrace(self.state)
        self.folders = [ModelFolder(self.out, t) for t in range(1, config.iterations + 2)]

    def go(self) -> dict[str, Any]:
        try:
            few = few_rows(self.config, self.material)
            for note in self.material.notes + few + self.watching.notes:
                self.display.note(note)
            if not self.material.held_out:
                self.display.note("no prompt is left to hold out: the models get no score")
            self.watching.check_finished()
            self.load()
            self.display.note(f"{'going on in' if self.going_on else 'writing to'} {self.out}")
            self.first_model(self.folders[0])
            for folder in self.folders[1:]:
                self.round(folder)
            summary = summarize(self.config, self.state, self.folders)
            summary["rubric"] = self.material.rubric.provenance
            self.write_summary(summary)
            return summary
        except StoppedError as error:
            self.write_summary(summarize_stopped(self.config, self.state, self.folders, error))
            raise
        finally:
            self.state.close()

    def load(self) -> None:
        """Load the last model that is finished, or the one the run starts from, and make its
        sampler: the only time that memory is taken for weights.
        """
        config, ranks = self.config, self.ranks
        made = [f for f in self.folders if self.state.finished(f.stage("train"))]
        lora = config.lora
        source: Any = made[-1].model if made else config.model
        self.model: Model = load_model(
            source,
            config.device,
            config.dtype,
            ranks.split,
            base_dtype=lora.base_dtype,
            adapter=lora.fresh(self.seed("lora")),
        )
        if self.material.chat_template is not None:
            self.model.tokenizer.chat_template = self.material.chat_template
        self.sampler = Sampler(self.model, self.kv_bytes)
        self.memory.of(self.model, self.sampler)
        self.memory.record("load", "loaded")

    @property
    def kv_bytes(self) -> int | None:
        """Of a sampler's pool; None: its default."""
        return None if self.config.kv_gb is None else int(self.config.kv_gb * 1e9)

    def write_summary(self, summary: dict[str, Any]) -> None:
        if self.ranks.first:
            HeadToHead(self).add(summary)
            summary["data"] = self.material.account
            summary["memory"] = memory_figures(self.state.measured())
            write_json_atomic(self.out / SUMMARY_FILE, summary)

    def first_model(self, folder: ModelFolder) -> None:
        """M1: the seeds taught by SFT, or the given model where there are none."""
        if self.material.ranked and not self.state.finished(folder.stage("train")):
            eft = EftBuilding(self, folder).build()
            self.material = dataclasses.replace(self.material, eft=eft)
        teaching = self.teaching
        self.stage(folder, "train", teaching.seeds if self.material.has_seeds else teaching.adopt)
        self.stage(folder, "measure", self.measuring.measure)
        self.on_model(folder.number)
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
        self.stage(folder, "watch", self.watching.watch)
        self.on_model(folder.number)
        self.watching.check(folder)

    def stage(self, folder: ModelFolder, name: str, work: Work) -> None:
        """Do a stage unless it is finished, and mark it."""
        if self.state.finished(folder.stage(name)):
            return
        self.ranks.wait()
        self.memory.begin(folder.stage(name))
        with self.state.timed(folder.stage(name)):
            figures = work(folder)
        self.memory.end()
        self.state.finish(folder.stage(name), figures)

    def check_stop(self) -> None:
        self.ranks.check_stop()

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """A sampling phase: the weights are whole on each data rank, the KV pool is there."""
        with self.ranks.whole(self.model), self.memory.phase("sampling"):
            yield

    @contextmanager
    def training(self) -> Iterator[Callable[[], None]]:
        """A training phase: the KV pool, captured graphs and packed weights have made room. What
        is yielded is to be called behind each step.
        """
        self.sampler.release()
        with self.memory.phase("training") as record_once:
            yield record_once
        free_memory(self.model.device)

    def weights_hash(self, folder: Path) -> str:
        """Of a model folder that is there for all ranks; all call it together."""
        return self.ranks.from_first(lambda: weights_hash(folder))

    def seed(self, *parts: Any) -> int:
        return derive_seed(self.config.seed, *parts)

    def rows_of(
        self, folder: ModelFolder, path: Path, stage: str, figure: str
    ) -> list[dict[str, Any]]:
        """The rows that a finished stage left. Raises InputError when some have been lost since."""
        rows = read_jsonl(path)
        wanted = self.state.figures[folder.stage(stage)][figure]
        if len(rows) != wanted:
            raise InputError(str(Lost(path, len(rows), wanted)))
        return rows

    @contextmanager
    def counting(
        self, name: str, total: int, unit: str, in_step: bool = False
    ) -> Iterator[Callable[[int], None]]:
        """Something on screen that is told how many are done, and can be stopped then; in_step: all
        ranks tell it together.
        """
        check = self.ranks.check_stop_in_step if in_step else self.ranks.check_stop
        with self.display.stage(name, total, unit) as shown:

            def progress(done: int) -> None:
                shown.update(done)
                check()

            yield progress
