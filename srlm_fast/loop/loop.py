"""The loop: M0 -> SFT -> M1 -> { prompts -> candidates and judgements -> pairs -> DPO } -> M2 -> M3
(arXiv 2401.10020).

Each stage is a function of the seed, the options and what earlier stages left in the run folder, so
a run that was broken off goes on where it was and ends with the same rows and the same weights. One
set of weight tensors serves sampling, judging, reference and policy; the KV pool is given back
while training needs the memory.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch

from srlm_fast.config import Config
from srlm_fast.data import make_prompts, read_preferences, read_principles
from srlm_fast.data.selfmade import Progress as PromptProgress
from srlm_fast.eval import collapse_figures, judge_table
from srlm_fast.judge import (
    DEFAULT_PRINCIPLES,
    Comparison,
    JudgedReward,
    PairSet,
    PairwiseReward,
    Principle,
    RandomReward,
    RevisedReward,
    Reward,
    ScorerReward,
    best_rows,
    make_pairs,
    mean_score,
    score_candidates,
    with_labels,
)
from srlm_fast.model import Model, load_model, load_reward_model, with_score_head
from srlm_fast.model.load import find_folder
from srlm_fast.model.reward_model import check_reward_folder
from srlm_fast.records import (
    Candidate,
    InputError,
    Judgement,
    Prompt,
    RowWriter,
    read_jsonl,
    write_json_atomic,
    write_jsonl,
)
from srlm_fast.sampler import Progress, Sampler, SamplingParams
from srlm_fast.train import (
    CheckpointError,
    StepReport,
    TrainReport,
    pair_accuracy,
    train_dpo,
    train_reward_model,
    train_sft,
)

from .answers import AnswerStage, load_candidates, read_records
from .comparing import CompareStage
from .eft_building import EftBuilding
from .learning import best_sft_rows, fitting, sft_rows, token_pair, write_reference
from .material import Material, gather, round_prompts
from .measuring import (
    audit_counts,
    evaluation_figures,
    judge_figures,
    judge_given,
    score_by_judge,
    score_by_program,
)
from .readers import Reader, make_reader
from .revisions import RevisionStage, load_chains
from .reward_model import (
    FOLDER,
    accuracy_note,
    free_memory,
    reward_pairs,
    score_answers,
    split_preferences,
)
from .state import ModelFolder, RunState, derive_seed, read_object, weights_hash
from .summary import SUMMARY_FILE, summarize

Stop = Callable[[], bool]


class StoppedError(RuntimeError):
    """The run stopped by itself; the message says why."""


class Shown(Protocol):
    """One stage on screen (`report.display.Stage`)."""

    def __enter__(self) -> Shown: ...
    def __exit__(self, *exc: Any) -> None: ...
    def update(self, done: int, total: int | None = None, **figures: Any) -> None: ...


class Screen(Protocol):
    """What the loop shows itself on (`report.display.Display`)."""

    def stage(self, name: str, total: int | None, unit: str, done: int = 0) -> Shown: ...
    def note(self, text: str) -> None: ...


def run(config: Config, display: Screen, stop: Stop = lambda: False) -> dict[str, Any]:
    """Run, or go on with, the run in `config.out` and return its summary.

    Raises InputError and ModelError for what the user gave, StoppedError when a round gives nothing
    to learn from, KeyboardInterrupt at the next safe point after `stop()` is true.
    """
    return Run(config, display, stop).go()


class Run:
    """One run: its material, its model, its folder."""

    def __init__(self, config: Config, display: Screen, stop: Stop) -> None:
        self.config, self.display, self.stop = config, display, stop
        self.out = Path(config.out)
        self.material: Material = gather(config)
        self.check_reward()
        self.state = RunState(self.out)
        self.folders = [ModelFolder(self.out, t) for t in range(1, config.iterations + 2)]

    def go(self) -> dict[str, Any]:
        try:
            if not self.material.held_out:
                self.display.note("no prompt is left to hold out: the models get no score")
            self.load()
            self.first_model(self.folders[0])
            for before, after in zip(self.folders, self.folders[1:], strict=False):
                self.round(before, after)
            summary = summarize(self.config, self.state, self.folders)
            summary["rubric"] = self.material.rubric.provenance
            write_json_atomic(self.out / SUMMARY_FILE, summary)
            return summary
        finally:
            self.state.close()

    def check_reward(self) -> None:
        """Read what the reward needs, so that a mistake in it is told before anything is done."""
        if self.config.reward_model:
            check_reward_folder(find_folder(self.config.reward_model))
        if self.config.reward_pairs_file:
            self.preferences = split_preferences(
                read_preferences(self.config.reward_pairs_file),
                self.material.measured_on,
                self.seed("preferences"),
            )
        given = self.config.constitution_file
        self.principles = (
            [Principle(**row) for row in read_principles(given)] if given else DEFAULT_PRINCIPLES
        )

    def load(self) -> None:
        """Load the last model that is finished, or the one the run starts from, and make its
        sampler.
        """
        made = [f for f in self.folders if self.state.finished(f.stage("train"))]
        source: Any = made[-1].model if made else self.config.model
        self.model: Model = load_model(source, self.config.device, self.config.dtype)
        self.sampler = Sampler(self.model)

    def seed(self, *parts: Any) -> int:
        return derive_seed(self.config.seed, *parts)

    def first_model(self, folder: ModelFolder) -> None:
        """M1: the seeds taught by SFT, or the given model where there are none."""
        if self.material.ranked and not self.state.finished(folder.stage("train")):
            eft = EftBuilding(self, folder).build()
            self.material = dataclasses.replace(self.material, eft=eft)
        self.stage(folder, "train", self.teach if self.material.has_seeds else self.adopt)
        self.stage(folder, "measure", self.measure)
        if self.config.reward_pairs_file:
            self.stage(folder, "reward_model", self.teach_reward)

    def teach_reward(self, folder: ModelFolder) -> dict[str, Any]:
        """A reward model from M1's weights, in M1's own tensors; M1 is put back afterwards."""
        model = with_score_head(self.model, self.seed("score head"))
        pairs, held_out = (reward_pairs(model, rows) for rows in self.preferences)
        if not pairs:
            raise InputError(
                f"--reward-pairs: found {len(self.preferences[0])} pairs to train on, all longer "
                f"than the model's context of {model.config.max_position_embeddings} tokens"
            )
        checkpoint = folder.path / "reward_checkpoint.pt"
        report = self.steps(
            folder.stage("reward_model"),
            "reward model",
            checkpoint,
            lambda **keep: train_reward_model(
                model, pairs, self.config.reward_training, seed=self.seed("reward"), **keep
            ),
        )
        figures = {"pairs": len(pairs), "held_out": pair_accuracy(model, held_out)}
        model.save(self.out / FOLDER)
        checkpoint.unlink(missing_ok=True)
        self.model.load_weights(folder.model)
        self.display.note(accuracy_note(figures))
        return figures | _training_figures(report, self.out / FOLDER)

    def adopt(self, folder: ModelFolder) -> dict[str, Any]:
        self.display.note("no --ift and no --eft: the given model is taken as M1")
        self.model.save(folder.model)
        return {"model_hash": weights_hash(folder.model)}

    def teach(
        self, folder: ModelFolder, eft: Sequence[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """SFT on the seeds; `eft` in place of the material's own."""
        eft = self.material.eft if eft is None else eft
        texts, rows = sft_rows(self.model, self.material.rubric, self.material.ift, eft)
        write_jsonl(folder.sft, texts)
        fit = fitting(rows, self.model.config.max_position_embeddings)
        if not fit:
            raise InputError(
                f"--ift, --eft: found {len(rows)} rows, all longer than the model's context of "
                f"{self.model.config.max_position_embeddings} tokens, wanted at least one that fits"
            )
        report = self.train(
            folder,
            "SFT",
            lambda **keep: train_sft(
                self.model, fit, self.config.sft, seed=self.seed("sft"), **keep
            ),
        )
        return {"rows": len(fit), "too_long": len(rows) - len(fit)} | report

    def stop_for_lack_of_eft(self, figures: dict[str, Any]) -> NoReturn:
        statuses = self.state.figures["m1/eft_judge"]["statuses"]
        raise StoppedError(
            f"M1: no judgement of --eft's ranked answers agrees with people's order (prompts: "
            f"{_reasons(figures['dropped'])}; judgements: {_reasons(statuses)}); --eft takes rows "
            "with a `judgement` too"
        )

    def round(self, before: ModelFolder, after: ModelFolder) -> None:
        """M_t -> M_t+1."""
        self.stage(after, "prompts", self.prompts)
        revised = self.config.reward == "constitution"
        self.stage(after, "answers", self.revise if revised else self.answers)
        if self.config.reward == "model":
            self.stage(after, "reward", self.score)
        self.stage(after, "pairs", self.pairs)
        self.stage(after, "train", self.learn)
        self.stage(after, "measure", self.measure)

    def stage(
        self, folder: ModelFolder, name: str, work: Callable[[ModelFolder], dict[str, Any]]
    ) -> None:
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

    def prompts(self, folder: ModelFolder) -> dict[str, Any]:
        """The round's prompts: dealt from the user's, or made by the live model."""
        number = folder.number - 2
        if self.material.prompts:
            dealt = round_prompts(
                self.material.prompts, number, self.config.num_prompts, self.seed("prompts")
            )
            write_jsonl(folder.prompts, dealt)
            return {"prompts": len(dealt)}
        return self.make_prompts(folder)

    def make_prompts(self, folder: ModelFolder) -> dict[str, Any]:
        account = folder.path / "prompts_progress.json"
        accepted = [Prompt(**row) for row in read_jsonl(folder.prompts)]
        before = read_object(account)
        progress = PromptProgress(**before) if before else None
        earlier = [
            row["text"] for f in self.folders[: folder.number - 1] for row in read_jsonl(f.prompts)
        ]
        count, seed = self.config.num_prompts, self.seed(folder.name, "prompts")
        params = self.config.prompt_sampling
        shown = self.display.stage(f"{folder.name} prompts", count, "prompts", len(accepted))
        with shown, RowWriter(folder.prompts) as writer:
            done, tokens = len(accepted), 0

            def generate(requests: list[tuple[int, str]]) -> list[str | None]:
                nonlocal tokens
                self.check_stop()
                ids = [_request_ids(self.model, text) for _, text in requests]
                # The same demonstrations drawn twice must not bring the same prompt twice.
                keyed = [
                    dataclasses.replace(params, seed=derive_seed(seed, i)) for i, _ in requests
                ]
                found = self.sampler.generate(ids, keyed)
                tokens += sum(len(g.samples[0].token_ids) for g in found)
                return [
                    s.text if s.finish_reason == "stop" else None
                    for s in (g.samples[0] for g in found)
                ]

            def on_batch(prompts: list[Prompt], progress: PromptProgress) -> None:
                nonlocal done
                writer.write(*prompts)
                write_json_atomic(account, dataclasses.asdict(progress))
                done += len(prompts)
                shown.update(done, tokens=tokens)

            made = make_prompts(
                generate,
                self.material.demonstrations,
                count,
                self.config.prompts,
                seed,
                exclude=self.material.measured_on,
                pool=earlier,
                accepted=accepted,
                progress=progress,
                on_batch=on_batch,
            )
        if not made.prompts:
            raise StoppedError(
                f"{folder.name}: the model made no prompt that passes the filters "
                f"({_reasons(made.progress.rejects)}); --prompts takes a file of your own"
            )
        return {"prompts": len(made.prompts), "rejected": made.progress.rejects}

    def answers(self, folder: ModelFolder) -> dict[str, Any]:
        """Candidates, and where the reward asks for it, judgements that join the running batch."""
        rows = self.rows_of(folder, folder.prompts, "prompts", "prompts")
        prompts = [Prompt(**row) for row in rows]
        first = self.folders[0]
        swap = self.config.reward == "frozen" and folder.number > 2
        judged = self.config.reward in ("self", "frozen", "best-of-n")
        stage = self.answer_stage(folder, self.reader(folder) if judged and not swap else None)
        start = time.perf_counter()
        self.show_answers(f"{folder.name} answers", stage, prompts)
        too_long, tokens = set(stage.too_long), stage.tokens
        if swap:
            with WeightsOf(self, first):
                stage = self.answer_stage(folder, self.reader(folder))
                self.show_answers(f"{folder.name} frozen judge", stage, prompts)
            too_long |= set(stage.too_long)
            tokens.judgements = stage.tokens.judgements
        self.note_too_long(folder, len(too_long), len(prompts))
        return {
            "candidates": sum(len(group) for group in stage.candidates.values()),
            "judgements": sum(len(group) for group in stage.judgements.values()),
            "unparsed": sum(j.score is None for group in stage.judgements.values() for j in group),
            **audit_counts(stage.judgements),
            "too_long": len(too_long),
            "tokens": dataclasses.asdict(tokens),
            "seconds_here": time.perf_counter() - start,
        }

    def note_too_long(self, folder: ModelFolder, too_long: int, prompts: int) -> None:
        if too_long:
            self.display.note(
                f"{folder.name}: {too_long} of {prompts} prompts are left out, wholly or in part: "
                "longer than the model's context with their answers"
            )

    def revise(self, folder: ModelFolder) -> dict[str, Any]:
        """An answer to each prompt, its critiques and its revisions, in place of candidates."""
        rows = self.rows_of(folder, folder.prompts, "prompts", "prompts")
        answers, judge = self.config.candidates, self.config.judge.sampling
        stage = RevisionStage(
            self.sampler,
            dataclasses.replace(answers, seed=self.seed(folder.name, "candidates")),
            dataclasses.replace(judge, seed=self.seed(folder.name, "critiques")),
            self.principles,
            self.config.revisions,
            folder.candidates,
            folder.revisions,
        )
        start = time.perf_counter()
        with self.display.stage(f"{folder.name} revisions", len(rows), "requests") as shown:

            def progress(p: Progress) -> None:
                self.check_stop()
                shown.update(p.requests_done, p.requests_total, tokens=p.generated_tokens)

            stage.run([Prompt(**row) for row in rows], progress)
        figures = stage.figures()
        self.note_too_long(folder, figures["too_long"], len(rows))
        return figures | {"seconds_here": time.perf_counter() - start}

    def score(self, folder: ModelFolder) -> dict[str, Any]:
        """The reward model's score of each candidate. It is in memory for this stage alone."""
        prompts = [Prompt(**row) for row in read_jsonl(folder.prompts)]
        groups = self.sampled(folder)
        self.sampler.release()
        trained = self.out / FOLDER if self.config.reward_pairs_file else None
        source = trained or str(self.config.reward_model)
        model = load_reward_model(source, self.config.device, self.config.dtype)
        total = sum(len(group) for group in groups.values())
        with self.display.stage(f"{folder.name} reward", total, "answers") as shown:

            def progress(done: int) -> None:
                shown.update(done)
                self.check_stop()

            rows = score_answers(model, prompts, groups, folder.judgements, progress)
        del model
        free_memory(self.model.device)
        return {"judgements": len(rows), "unparsed": sum(row.score is None for row in rows)}

    def answer_stage(self, folder: ModelFolder, reader: Reader | None) -> AnswerStage:
        params = dataclasses.replace(
            self.config.candidates, seed=self.seed(folder.name, "candidates")
        )
        if self.config.reward == "pairwise":
            return CompareStage(self.sampler, params, folder.candidates, folder.comparisons)
        return AnswerStage(
            self.sampler,
            params,
            self.material.rubric,
            reader,
            folder.candidates,
            folder.judgements,
        )

    def reader(self, folder: ModelFolder | None = None) -> Reader:
        name = "measure" if folder is None else folder.name
        sampling = dataclasses.replace(self.config.judge.sampling, seed=self.seed(name, "judge"))
        judge, rubric = self.config.judge, self.material.rubric
        return make_reader(self.model, rubric, judge.mode, sampling, judge.stop)

    def show_answers(self, name: str, stage: AnswerStage, prompts: Sequence[Prompt]) -> None:
        """Run an answer stage on screen, counted in requests: one per prompt and one per judged
        text.
        """
        with self.display.stage(name, len(prompts), "requests") as shown:

            def progress(p: Progress) -> None:
                self.check_stop()
                shown.update(
                    p.requests_done,
                    p.requests_total,
                    tokens=p.generated_tokens,
                    answers=len(stage.candidates),
                    judged=len(stage.judgements),
                )

            stage.run(prompts, progress)

    def pairs(self, folder: ModelFolder) -> dict[str, Any]:
        """Best against worst of each prompt, with the log-probs of the weights that sampled
        them.
        """
        prompts = [Prompt(**row) for row in read_jsonl(folder.prompts)]
        groups = self.sampled(folder)
        candidates = [c for p in prompts for c in groups.get(p.prompt_id, [])]
        scores = score_candidates(self.reward(folder, candidates), prompts, candidates)
        found = make_pairs(
            prompts,
            candidates,
            scores,
            round_name=folder.name,
            seed=self.config.seed,
            sampling=_sampling_row(self.config.candidates),
            config=self.config.pairs,
        )
        best = self.config.reward == "best-of-n"
        found = self.with_chain_reasons(folder, found)
        if self.config.reward == "pairwise":
            found = with_labels(found, read_records(folder.comparisons, Comparison))
        top = best_rows(prompts, candidates, scores) if best else []
        if not found.pairs and not top:
            statuses = Counter(row["status"].lower() for row in read_jsonl(self.verdicts(folder)))
            raise StoppedError(
                f"{folder.name}: the round gave no pair to learn from (prompts: "
                f"{_reasons(found.dropped)}; judgements: {_reasons(statuses)})"
            )
        origin = {
            "model_hash": weights_hash(self.folders[folder.number - 2].model),
            "rubric": self.material.rubric.provenance,
        }
        if best:
            write_jsonl(folder.sft, top)
            origin["objective"] = "sft"  # these pairs are for the reader; no DPO is done with them
        rows = [row | origin for row in found.pairs]
        pairs = [token_pair(self.model, row, groups) for row in rows]
        self.sampler.release()
        with self.display.stage(f"{folder.name} reference", len(pairs), "pairs") as shown:

            def progress(done: int) -> None:
                shown.update(done)
                self.check_stop()

            write_reference(self.model, folder, rows, pairs, progress)
        return {
            "pairs": len(rows),
            "dropped": found.dropped,
            "ties": found.ties,
            "collapse": collapse_figures(candidates),
            "judge_on_own": self.judge_on_own(prompts, groups, scores),
        } | ({"sft_rows": len(top), "unread": len(prompts) - len(top)} if best else {})

    def with_chain_reasons(self, folder: ModelFolder, found: PairSet) -> PairSet:
        """Under a constitution the reason for which a prompt's chain of revisions ended."""
        if self.config.reward != "constitution":
            return found
        own = {chain.prompt_id: chain.reason for chain in load_chains(folder.revisions)}
        reasons = {key: own.get(key) or reason for key, reason in found.reasons.items()}
        return dataclasses.replace(found, reasons=reasons)

    def judge_on_own(
        self,
        prompts: Sequence[Prompt],
        candidates: dict[str, list[Candidate]],
        scores: Any,
    ) -> dict[str, Any] | None:
        """The judge's order of the round's own answers against the world's program, where there
        is one.
        """
        program = self.material.score_bits
        if program is None:
            return None
        rows = [
            {
                "prompt": p.text,
                "responses": [c.text for c in group],
                "scores": [program(p.text, c.text)[0] for c in group],
                "judged": [mean_score(scores[c.prompt_id, c.index]) for c in group],
            }
            for p in prompts
            if (group := candidates.get(p.prompt_id))
        ]
        return judge_table(rows, self.material.rubric.high)

    def sampled(self, folder: ModelFolder) -> dict[str, list[Candidate]]:
        """The candidates of the finished answer stage, all of them."""
        self.rows_of(folder, folder.candidates, "answers", "candidates")
        revised = self.config.reward == "constitution"
        number = self.config.revisions + 1 if revised else self.config.candidates.n
        return load_candidates(folder.candidates, number)

    def rows_of(
        self, folder: ModelFolder, path: Path, stage: str, figure: str
    ) -> list[dict[str, Any]]:
        """The rows that a finished stage left. Raises InputError when some have been lost since."""
        rows = read_jsonl(path)
        wanted = self.state.figures[folder.stage(stage)][figure]
        if len(rows) != wanted:
            raise InputError(f"{path}: found {len(rows)} rows, wanted the {wanted} of the stage")
        return rows

    def verdicts(self, folder: ModelFolder) -> Path:
        """The rows that the judge of this run's reward leaves."""
        return folder.comparisons if self.config.reward == "pairwise" else folder.judgements

    def reward(self, folder: ModelFolder, candidates: Sequence[Candidate]) -> Reward:
        if self.config.reward == "random":
            return RandomReward(self.seed(folder.name, "random"), self.config.judge.sampling.n)
        if self.config.reward == "gold":
            program = self.material.score_bits
            assert program is not None
            return ScorerReward(lambda prompt, response: program(prompt, response)[0])
        if self.config.reward == "constitution":
            self.rows_of(folder, folder.revisions, "answers", "chains")
            chains = load_chains(folder.revisions)
            return RevisedReward({c.prompt_id: len(c.critiques) for c in chains if not c.reason})
        stage = "reward" if self.config.reward == "model" else "answers"
        self.rows_of(folder, self.verdicts(folder), stage, "judgements")
        if self.config.reward == "pairwise":
            return PairwiseReward(candidates, read_records(folder.comparisons, Comparison))
        return JudgedReward(read_records(folder.judgements, Judgement))

    def learn(self, folder: ModelFolder) -> dict[str, Any]:
        """DPO on the round's own pairs; the reference is the round's start. Best of n is taught by
        SFT."""
        if self.config.reward == "best-of-n":
            return self.learn_best(folder)
        rows = self.rows_of(folder, folder.pairs, "pairs", "pairs")
        candidates = self.sampled(folder)
        try:
            pairs = [token_pair(self.model, row, candidates) for row in rows]
            chosen, rejected = (
                torch.tensor([row["ref_logps"][side] for row in rows])
                for side in ("chosen", "rejected")
            )
        except KeyError as error:
            raise InputError(f"{folder.pairs}: found a row without {error}, wanted pairs") from None
        seed = self.seed(folder.name, "dpo")
        return self.train(
            folder,
            "DPO",
            lambda **keep: train_dpo(
                self.model, pairs, self.config.dpo, (chosen, rejected), seed=seed, **keep
            ),
        )

    def learn_best(self, folder: ModelFolder) -> dict[str, Any]:
        top = self.rows_of(folder, folder.sft, "pairs", "sft_rows")
        rows = best_sft_rows(self.model, top, self.sampled(folder))
        seed = self.seed(folder.name, "sft")
        return self.train(
            folder,
            "SFT",
            lambda **keep: train_sft(self.model, rows, self.config.sft, seed=seed, **keep),
        )

    def train(
        self, folder: ModelFolder, kind: str, work: Callable[..., TrainReport]
    ) -> dict[str, Any]:
        """Train, then save the model and drop the checkpoint."""
        title = f"{folder.name} {kind}"
        report = self.steps(folder.stage("train"), title, folder.checkpoint, work)
        self.model.save(folder.model)
        folder.checkpoint.unlink(missing_ok=True)
        self.sampler.acquire()
        return _training_figures(report, folder.model)

    def steps(
        self, stage: str, title: str, checkpoint: Path, work: Callable[..., TrainReport]
    ) -> TrainReport:
        """Train with the KV pool's memory given back."""
        self.sampler.release()
        with self.display.stage(title, None, "steps") as shown:

            def on_step(step: StepReport) -> None:
                self.state.measure({"stage": stage, **step.to_row()})
                shown.update(step.step + 1, step.num_steps, loss=step.loss)

            try:
                return work(checkpoint=checkpoint, on_step=on_step, stop=self.stop)
            except CheckpointError as error:
                raise InputError(f"{error}; delete it to train this stage from its start") from None

    def measure(self, folder: ModelFolder) -> dict[str, Any]:
        """The held-out score of a model, and how well it judges."""
        program = self.material.score_bits is not None
        params = dataclasses.replace(
            self.config.candidates,
            n=self.config.evaluation.samples,
            seed=self.seed("measure", "answers"),
        )
        files = (folder.evaluation, folder.evaluation_judged)
        rubric, held_out = self.material.rubric, self.material.held_out

        def held_out_stage(reader: Reader | None) -> AnswerStage:
            return AnswerStage(self.sampler, params, rubric, reader, *files)

        own = folder.number == 1 and not program
        stage = held_out_stage(self.reader() if own else None)
        self.show_answers(f"{folder.name} held-out", stage, held_out)
        judge = self.measure_judge(folder)
        if program:
            scored = score_by_program(self.material, stage.candidates)
        else:
            if not own:
                # One judge for all models, so that their scores can be compared: M1.
                with WeightsOf(self, self.folders[0]):
                    stage = held_out_stage(self.reader())
                    self.show_answers(f"{folder.name} by M1", stage, held_out)
            scored = score_by_judge(held_out, stage.candidates, stage.judgements)
            if held_out and not scored:
                found = Counter(
                    j.status.lower() for group in stage.judgements.values() for j in group
                )
                self.display.note(
                    f"{folder.name}: no score, none of M1's judgements held one ({_reasons(found)})"
                )
        answers = [c for group in stage.candidates.values() for c in group]
        return {
            "eval": evaluation_figures(scored, "program" if program else "M1"),
            "judge": judge,
            "collapse": collapse_figures(answers),
        }

    def measure_judge(self, folder: ModelFolder) -> dict[str, Any] | None:
        """Judge answers whose order is known."""
        rows = self.material.eft_eval
        if not rows:
            return None
        stage = judge_given(
            self.sampler,
            self.material.rubric,
            self.reader(),
            rows,
            folder.judge_evaluation,
            partial(self.show_answers, f"{folder.name} as judge"),
        )
        return judge_figures(rows, stage.judgements, self.material.rubric.high)


class WeightsOf:
    """Another model's weights in the run's own tensors for a while: no second copy in memory."""

    def __init__(self, run: Run, folder: ModelFolder) -> None:
        self.run, self.folder = run, folder

    def __enter__(self) -> None:
        made = [f for f in self.run.folders if f.model.is_dir()]
        self.back = made[-1]
        self.run.model.load_weights(self.folder.model)

    def __exit__(self, *exc: object) -> None:
        self.run.model.load_weights(self.back.model)


def _request_ids(model: Model, text: str) -> list[int]:
    """A request for new prompts is plain text, not a chat turn; it is cut from the left where it
    is too long.
    """
    ids = model.tokenizer(text)["input_ids"]
    return ids[-model.config.max_position_embeddings // 2 :]


def _sampling_row(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in ("n", "temperature", "top_p", "max_tokens")}


def _training_figures(report: TrainReport, folder: Path) -> dict[str, Any]:
    return {
        "model_hash": weights_hash(folder),
        "steps": len(report.losses),
        "skipped_steps": report.skipped_steps,
        "peak_bytes": report.peak_bytes,
    }


def _reasons(counts: Mapping[str, int]) -> str:
    found = [f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count]
    return ", ".join(found) or "nothing was counted"
