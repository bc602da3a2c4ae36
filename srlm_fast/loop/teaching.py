"""Training in a run: SFT on the seeds, DPO on a round's pairs or SFT on its best answers, and a
reward model on the user's pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from srlm_fast.data import PreferenceRow
from srlm_fast.model import with_score_head
from srlm_fast.records import Candidate, InputError
from srlm_fast.train import (
    CheckpointError,
    SftRow,
    StepReport,
    TokenPair,
    TrainReport,
    pair_accuracy,
    train_dpo,
    train_reward_model,
    train_sft,
)

from .reward_model import FOLDER, accuracy_note, reward_pairs
from .state import ModelFolder
from .token_rows import best_sft_rows, fitting, sft_rows, token_pair

if TYPE_CHECKING:
    from .loop import Run

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
        """SFT on the round's best answers."""
        run = self.run
        best = run.rows_of(folder, folder.sft, "pairs", "sft_rows")
        rows = best_sft_rows(run.model, best, run.rewarding.sampled(folder))
        return self.sft(folder, rows, run.seed(folder.name, "sft"))

    def sft(self, folder: ModelFolder, rows: Sequence[SftRow], seed: int) -> dict[str, Any]:
        model, config = self.run.model, self.run.config.sft
        return self.train(
            folder, "SFT", lambda **keep: train_sft(model, rows, config, seed=seed, **keep)
        )

    def pairs(self, folder: ModelFolder) -> dict[str, Any]:
        """DPO on the round's own pairs; the reference is the round's start."""
        run = self.run
        rows = run.rows_of(folder, folder.pairs, "pairs", "pairs")
        candidates = run.rewarding.sampled(folder)
        try:
            pairs, reference = self.dpo_rows(rows, candidates)
        except KeyError as error:
            raise InputError(f"{folder.pairs}: found a row without {error}, wanted pairs") from None
        seed = run.seed(folder.name, "dpo")
        return self.train(
            folder,
            "DPO",
            lambda **keep: train_dpo(
                run.model, pairs, run.config.dpo, reference, seed=seed, **keep
            ),
        )

    def dpo_rows(
        self, rows: Sequence[dict[str, Any]], candidates: Mapping[str, Sequence[Candidate]]
    ) -> tuple[list[TokenPair], tuple[torch.Tensor, torch.Tensor]]:
        """(pairs as tokens, their reference log-probs: chosen and rejected, float [pairs] each)."""
        pairs = [token_pair(self.run.model, row, candidates) for row in rows]
        chosen, rejected = (
            torch.tensor([row["ref_logps"][side] for row in rows])
            for side in ("chosen", "rejected")
        )
        return pairs, (chosen, rejected)

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
        run.ranks.remove(checkpoint)
        run.model.load_weights(folder.model)
        run.display.note(accuracy_note(figures))
        return figures | self.figures(report, run.out / FOLDER)

    def train(self, folder: ModelFolder, kind: str, work: Train) -> dict[str, Any]:
        """Train, then save the model and drop the checkpoint."""
        title = f"{folder.name} {kind}"
        report = self.steps(folder.stage("train"), title, folder.checkpoint, work)
        self.run.ranks.save(self.run.model, folder.model)
        self.run.ranks.remove(folder.checkpoint)
        return self.figures(report, folder.model)

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
        return {
            "model_hash": self.run.weights_hash(folder),
            "steps": len(report.losses),
            "skipped_steps": report.skipped_steps,
            "peak_bytes": report.peak_bytes,
        }


def all_too_long(pairs: int, context: int) -> InputError:
    return InputError(
        f"--reward-pairs: found {pairs} pairs to train on, all longer than the model's context of "
        f"{context} tokens"
    )
