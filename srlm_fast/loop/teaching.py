"""Training in a run: SFT on the seeds, DPO on a round's pairs or SFT on its best answers, and a
reward model on the user's pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from srlm_fast.data import PreferenceRow
from srlm_fast.model import trainable_parameters, with_score_head
from srlm_fast.records import InputError
from srlm_fast.train import (
    CheckpointError,
    SftRow,
    StepReport,
    TokenPair,
    TrainReport,
    pair_accuracy,
    remove_checkpoint,
    train_dpo,
    train_reward_model,
    train_sft,
)

from .held_out import held_out_prompts
from .mixing import Mixing
from .reference import Reference
from .reward_model import FOLDER, accuracy_note, reward_pairs
from .state import ModelFolder
from .token_rows import fitting, sft_rows, token_pairs

if TYPE_CHECKING:
    from .loop import Run

LAST_SHARE = 0.1  # of a training, over which its end is averaged
Train = Callable[..., TrainReport]  # takes checkpoint, on_step, stop and, of many ranks, mesh


class Teaching:
    """The stages that train. Each trains the run's own tensors and leaves a model folder."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def adopt(self, folder: ModelFolder) -> dict[str, Any]:
        """The given model as M1, untrained."""
        self.run.display.note("no --ift and no --eft: the given model is taken as M1")
        self.run.ranks.save(self.run.model, folder.model)
        return {"model_hash": self.run.weights_hash(folder.model)}

    def seeds(
        self, folder: ModelFolder, eft: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """SFT on the seeds; `eft` in place of the material's own."""
        model, material = self.run.model, self.run.material
        eft = material.eft if eft is None else eft
        texts, rows = sft_rows(model, material.rubric, material.ift, eft)
        self.run.ranks.write(folder.sft, texts)
        longest = model.config.max_position_embeddings
        fit = fitting(rows, longest)
        if not fit:
            raise InputError(
                f"--ift, --eft: found {len(rows)} rows, all longer than the model's context of "
                f"{longest} tokens, wanted at least one that fits"
            )
        report = self.sft(folder, fit, self.run.seed("sft"))
        return {"rows": len(fit), "too_long": len(rows) - len(fit)} | report

    def best(self, folder: ModelFolder) -> dict[str, Any]:
        """SFT on the round's best answers, and on what is mixed in."""
        mixing = Mixing(self.run, folder)
        rows = mixing.best_rows()
        return self.sft(folder, rows, self.run.seed(folder.name, "sft")) | mixing.figures

    def sft(self, folder: ModelFolder, rows: Sequence[SftRow], seed: int) -> dict[str, Any]:
        model, config = self.run.model, self.run.config.sft
        return self.train(
            folder, "SFT", lambda **keep: train_sft(model, rows, config, seed=seed, **keep)
        )

    def pairs(self, folder: ModelFolder) -> dict[str, Any]:
        """DPO on the round's own pairs and what is mixed in, some of the pairs held out where
        `--held-out-pairs` says so.
        """
        run, mixing = self.run, Mixing(self.run, folder)
        rows = run.rows_of(folder, folder.pairs, "pairs", "pairs")
        pairs = token_pairs(run.model, rows, run.rewarding.sampled(folder), folder.pairs)
        rows = Reference(run, folder).renewed(rows, pairs)
        rows, pairs = mixing.with_earlier(rows, pairs)
        prompt_ids = [row["prompt_id"] for row in rows]
        share, seed = run.config.held_out_pairs, run.seed(folder.name, "held out")
        apart = held_out_prompts(prompt_ids, share, seed)
        kept = [i for i, prompt_id in enumerate(prompt_ids) if prompt_id in apart]
        learnt = [i for i, prompt_id in enumerate(prompt_ids) if prompt_id not in apart]
        real = mixing.real(len(learnt))
        return self.dpo(folder, rows, pairs, learnt, kept, real) | mixing.figures

    def dpo(
        self,
        folder: ModelFolder,
        rows: Sequence[dict[str, Any]],
        pairs: Sequence[TokenPair],
        learnt: Sequence[int],
        held_out: Sequence[int],
        real: Sequence[SftRow],
    ) -> dict[str, Any]:
        """DPO on the pairs at some places and on real rows, evaluated on pairs at others."""
        run, config = self.run, self.run.config.dpo
        if config.evaluate_every and not held_out:
            run.display.note(f"{folder.name}: one prompt gave pairs, so that none is held out")
            config = dataclasses.replace(config, evaluate_every=0)
        seed = run.seed(folder.name, "dpo")
        figures = self.train(
            folder,
            "DPO",
            lambda **keep: train_dpo(
                run.model,
                [pairs[i] for i in learnt],
                config,
                ref_logps([rows[i] for i in learnt]),
                real=real,
                held_out=[pairs[i] for i in held_out],
                held_out_ref_logps=ref_logps([rows[i] for i in held_out]),
                seed=seed,
                **keep,
            ),
        )
        return figures | ({"held_out_pairs": len(held_out)} if held_out else {})

    def reward_model(
        self,
        folder: ModelFolder,
        preferences: tuple[Sequence[PreferenceRow], Sequence[PreferenceRow]],
    ) -> dict[str, Any]:
        """A reward model from M1's weights, in M1's own tensors; M1 is put back afterwards.

        preferences: rows to train on, rows to measure on.
        """
        run = self.run
        model = with_score_head(run.model, run.seed("score head"))
        pairs, held_out = (reward_pairs(model, rows) for rows in preferences)
        if not pairs:
            raise all_too_long(len(preferences[0]), model.config.max_position_embeddings)
        config, seed = run.config.reward_training, run.seed("reward")
        checkpoint = folder.path / "reward_checkpoint.pt"
        report = self.steps(
            folder.stage("reward_model"),
            "reward model",
            checkpoint,
            lambda **keep: train_reward_model(model, pairs, config, seed=seed, **keep),
        )
        figures = {"pairs": len(pairs), "held_out": pair_accuracy(model, held_out)}
        run.ranks.save(model, run.out / FOLDER)
        self.drop(checkpoint)
        run.model.load_weights(folder.model)
        run.display.note(accuracy_note(figures))
        return figures | self.figures(report, run.out / FOLDER)

    def train(self, folder: ModelFolder, kind: str, work: Train) -> dict[str, Any]:
        """Train, then save the model and drop the checkpoint."""
        title = f"{folder.name} {kind}"
        report = self.steps(folder.stage("train"), title, folder.checkpoint, work)
        self.run.ranks.save(self.run.model, folder.model)
        self.drop(folder.checkpoint)
        trained = {"trained_parameters": trainable_parameters(self.run.model)}
        return self.figures(report, folder.model) | trained

    def drop(self, checkpoint: Path) -> None:
        if self.run.ranks.first:
            remove_checkpoint(checkpoint)

    def steps(self, stage: str, title: str, checkpoint: Path, work: Train) -> TrainReport:
        """Train with the KV pool's memory given back."""
        run = self.run
        with run.display.stage(title, None, "steps") as shown, run.training() as watch:

            def on_step(step: StepReport) -> None:
                run.state.measure({"stage": stage, **step.to_row()})
                shown.update(step.step + 1, step.num_steps, loss=step.loss)
                watch()

            keep = {"checkpoint": checkpoint, "on_step": on_step, "stop": run.ranks.stop_in_step}
            try:
                return work(**keep, **run.ranks.over_mesh)
            except CheckpointError as error:
                raise InputError(f"{error}; delete it to train this stage from its start") from None

    def figures(self, report: TrainReport, folder: Path) -> dict[str, Any]:
        figures = {
            "model_hash": self.run.weights_hash(folder),
            "steps": len(report.losses),
            "skipped_steps": report.skipped_steps,
            "peak_bytes": report.peak_bytes,
        }
        figures |= {"best_step": report.best_step} if report.evaluations else {}
        return figures | ({"logratios": self.logratios(report)} if report.margins else {})

    def logratios(self, report: TrainReport) -> dict[str, float] | None:
        """At the end of a DPO; and at its start where that need not be 0."""
        last = last_logratios(report)
        return last and last | (
            first_logratios(report) if self.run.config.reference == "sft" else {}
        )


def last_logratios(report: TrainReport) -> dict[str, float] | None:
    """Mean log-ratios of chosen and rejected answers and their difference, in nats over the pairs
    of the last tenth of the steps of a DPO that led to the weights kept, a whole batch of pairs at
    least; None where none was finite.
    """
    end = report.best_step or len(report.num_pairs)
    columns = report.chosen_logratios, report.rejected_logratios, report.num_pairs
    steps = list(zip(*columns, strict=True))[:end]
    count = max(1, round(end * LAST_SHARE))
    while sum(report.num_pairs[end - count : end]) < max(report.num_pairs[:end], default=0):
        count += 1  # the last batch of an epoch may hold a pair or two
    finite = [step for step in steps[end - count :] if all(map(math.isfinite, step))]
    total = sum(pairs for _, _, pairs in finite)
    if not total:
        return None
    chosen, rejected = (sum(s[side] * s[2] for s in finite) / total for side in (0, 1))
    return {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}


def first_logratios(report: TrainReport) -> dict[str, float]:
    """Mean log-ratios of chosen and rejected answers over the pairs of the first step whose are
    finite, taken before its update; {} where none is.
    """
    steps = zip(report.chosen_logratios, report.rejected_logratios, strict=True)
    first = next((step for step in steps if all(map(math.isfinite, step))), None)
    return {} if first is None else {"chosen_start": first[0], "rejected_start": first[1]}


def ref_logps(rows: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen and rejected of pair rows: float [rows] each."""
    chosen, rejected = (
        torch.tensor([row["ref_logps"][side] for row in rows]) for side in ("chosen", "rejected")
    )
    return chosen, rejected


def all_too_long(pairs: int, context: int) -> InputError:
    return InputError(
        f"--reward-pairs: found {pairs} pairs to train on, all longer than the model's context of "
        f"{context} tokens"
    )
