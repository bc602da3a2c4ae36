"""EFT from the user's ranked answers, before M1 is taught (arXiv 2401.10020, section 3.1): the
IFT-only model (M0 taught the IFT rows) judges them, and what agrees with people is kept.

Each step is a stage of the run: it goes on where it was broken off, and its rows stay in `m1/`.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from srlm_fast.judge import EftSet, Ranked, build_eft
from srlm_fast.model.load import find_folder
from srlm_fast.records import Judgement, Prompt

from .answers import read_records
from .judging import judge_given, ranked_id, status_counts
from .readers import Reader, make_reader
from .round_answers import show_answers
from .state import ModelFolder
from .stopping import StoppedError, cure, reasons

if TYPE_CHECKING:
    from .loop import Run

FOLDER = "ift"


class IftFolder(ModelFolder):
    """`m1/ift/`: the model that is taught the IFT rows alone, the paper's SFT baseline."""

    def __init__(self, run: Path) -> None:
        super().__init__(run, 1)
        self.name = "M1 (IFT only)"
        self.path = self.path / FOLDER
        self.path.mkdir(exist_ok=True)
        self.model = self.path / "model"
        self.checkpoint = self.path / "checkpoint.pt"
        self.sft = self.path / "sft.jsonl"

    def stage(self, name: str) -> str:
        return f"m1/{FOLDER}/{name}"


class EftBuilding:
    """The stages that end in `m1/eft.jsonl`; afterwards the run's weights are M0's again."""

    def __init__(self, run: Run, folder: ModelFolder) -> None:
        self.run, self.folder = run, folder
        self.judgements = folder.path / "eft_judgements.jsonl"
        self.rows = folder.path / "eft.jsonl"
        self.taught = IftFolder(run.out) if run.material.ift else None

    def build(self) -> list[dict[str, Any]]:
        """The rows. Raises StoppedError when no judgement agrees with people."""
        run = self.run
        version = run.model.weights_version
        if self.taught is None:
            run.display.note("no --ift: the given model itself judges the ranked answers of --eft")
        else:
            run.stage(self.taught, "train", partial(run.teaching.seeds, eft=[]))
        run.stage(self.folder, "eft_judge", self.judge)
        run.stage(self.folder, "eft", self.select)
        if run.model.weights_version != version:
            run.model.load_weights(find_folder(run.config.model))
        return run.rows_of(self.folder, self.rows, "eft", "kept")

    def judge(self, folder: ModelFolder) -> dict[str, Any]:
        """Judgements of all ranked answers by the IFT-only model, sampled as `config.judge` says,
        always written out: they are what M1 is to write.
        """
        run = self.run
        if self.taught is not None:
            run.model.load_weights(self.taught.model)
        name = f"{folder.name} EFT judgements"
        stage = judge_given(
            run.sampler,
            run.material.rubric,
            self.reader(),
            run.material.ranked,
            self.judgements,
            partial(show_answers, run, name),
            run.ranks,
        )
        return {
            "judgements": sum(len(group) for group in stage.judgements.values()),
            "statuses": status_counts(stage.judgements),
            "too_long": len(set(stage.too_long)),
        }

    def reader(self) -> Reader:
        run = self.run
        sampling = dataclasses.replace(run.config.judge.sampling, seed=run.seed("eft", "judge"))
        return make_reader(run.model, run.material.rubric, "sampled", sampling)

    def select(self, folder: ModelFolder) -> dict[str, Any]:
        run = self.run
        run.rows_of(folder, self.judgements, "eft_judge", "judgements")
        ranked = [
            Ranked(Prompt(ranked_id(i), row["prompt"], "seed"), row["responses"], row["scores"])
            for i, row in enumerate(run.material.ranked)
        ]
        judgements = read_records(self.judgements, Judgement)
        found = build_eft(ranked, judgements, run.seed("eft", "flatten"), run.config.num_eft)
        if not found.rows:
            self.stop_for_lack_of_rows(found)
        run.ranks.write(self.rows, found.rows)
        counts = found.counts
        run.display.note(
            f"EFT: {counts.kept} rows of {counts.agreeing} prompts whose judgements agree with "
            f"people's order, of {counts.prompts}; {counts.flattened} of the most common score "
            "left out"
        )
        return found.figures()

    def stop_for_lack_of_rows(self, found: EftSet) -> NoReturn:
        statuses = self.run.state.figures[self.folder.stage("eft_judge")]["statuses"]
        raise StoppedError(
            f"{self.folder.name}: no judgement of --eft's ranked answers agrees with people's "
            f"order (prompts: {reasons(found.counts.dropped)}; judgements: {reasons(statuses)}); "
            "--eft takes rows with a `judgement` too"
            + cure(statuses, self.run.config.judge.sampling.max_tokens)
        )
