"""The prompts of a round: dealt from the user's, or made by a model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from srlm_fast.data import make_prompts
from srlm_fast.data.selfmade import MadePrompts, Progress
from srlm_fast.records import Prompt, read_jsonl, read_object, write_json_atomic

from .material import round_prompts
from .prompt_model import check_prompt_model, prompt_author
from .reward_model import free_memory
from .state import ModelFolder, derive_seed
from .stopping import StoppedError, reasons

if TYPE_CHECKING:
    from .loop import Run


class Prompting:
    """The stage that leaves `prompts.jsonl`. Making one looks for the model that it will need."""

    def __init__(self, run: Run) -> None:
        self.run, self.other = run, run.config.other_prompt_model
        if self.other is not None:
            check_prompt_model(self.other)

    def prompts(self, folder: ModelFolder) -> dict[str, Any]:
        if self.run.material.prompts:
            return self.deal(folder)
        figures = PromptMaking(self.run, folder).make()
        if self.other is not None:
            free_memory(self.run.model.device)
        return figures | {"prompt_model": self.run.config.prompt_model}

    def deal(self, folder: ModelFolder) -> dict[str, Any]:
        run, number = self.run, folder.number - 2
        dealt = round_prompts(
            run.material.prompts, number, run.config.num_prompts, run.seed("prompts")
        )
        run.ranks.write(folder.prompts, dealt)
        return {"prompts": len(dealt)}


class PromptMaking:
    """A model makes a round's prompts; goes on behind those that are there.

    Of many ranks each samples a share of every batch of requests and gets what the others sampled:
    all filter the same outputs in the same order, and the first one writes.
    """

    def __init__(self, run: Run, folder: ModelFolder) -> None:
        self.run, self.folder = run, folder
        self.seed = run.seed(folder.name, "prompts")
        self.account = folder.path / "prompts_progress.json"
        self.accepted = folder.read_prompts()
        self.done, self.tokens = len(self.accepted), 0

    def make(self) -> dict[str, Any]:
        """The stage's figures. Raises StoppedError when no prompt passes the filters."""
        run, name = self.run, self.folder.name
        before = read_object(self.account)
        run.ranks.wait()  # until all have read what is there
        progress = Progress(**before) if before else None
        shown = run.display.stage(f"{name} prompts", run.config.num_prompts, "prompts", self.done)
        with shown as self.shown, prompt_author(run, self.folder) as self.author:
            with run.ranks.writing(self.folder.prompts) as self.writer:
                made = self.made(progress)
        rejects = made.progress.rejects
        if not made.prompts:
            raise StoppedError(
                f"{name}: the model made no prompt that passes the filters ({reasons(rejects)}); "
                "--prompts takes a file of your own"
            )
        return {"prompts": len(made.prompts), "rejected": rejects}

    def made(self, progress: Progress | None) -> MadePrompts:
        run = self.run
        earlier = run.folders[: self.folder.number - 1]
        return make_prompts(
            self.generate,
            run.material.demonstrations,
            run.config.num_prompts,
            self.author.layout(run.config.prompts),
            self.seed,
            exclude=run.material.measured_on,
            pool=[row["text"] for folder in earlier for row in read_jsonl(folder.prompts)],
            accepted=self.accepted,
            progress=progress,
            on_batch=self.on_batch,
        )

    def generate(self, requests: list[tuple[int, str]]) -> list[str | None]:
        """What the model writes behind each (request's number, text), None where it was cut off."""
        run = self.run
        run.ranks.check_stop_in_step()
        params = self.author.params(run.config.prompt_sampling)
        ids = [self.author.ids(text) for _, text in requests]
        # The same demonstrations drawn twice must not bring the same prompt twice.
        keyed = [dataclasses.replace(params, seed=derive_seed(self.seed, i)) for i, _ in requests]
        found = [g.samples[0] for g in run.ranks.generate(self.author.sampler, ids, keyed)]
        self.tokens += sum(len(sample.token_ids) for sample in found)
        return [sample.text if sample.finish_reason == "stop" else None for sample in found]

    def on_batch(self, prompts: list[Prompt], progress: Progress) -> None:
        self.writer.write(*prompts)
        if self.run.ranks.first:
            write_json_atomic(self.account, dataclasses.asdict(progress))
        self.done += len(prompts)
        self.shown.update(self.done, tokens=self.tokens)
