"""The pairs of a round, with the log-probs of their reference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import fmean
from typing import TYPE_CHECKING, Any, NoReturn

from srlm_fast.eval import collapse_figures, judge_table, mean_interval
from srlm_fast.judge import PairSet, make_pairs, mean_score, score_candidates
from srlm_fast.records import Candidate, Prompt, read_jsonl
from srlm_fast.sampler import SamplingParams

from .judging import top_score
from .mixing import Mixing
from .reference import Progress, Reference
from .state import ModelFolder
from .stopping import StoppedError, cure, reasons
from .token_rows import token_pair

if TYPE_CHECKING:
    from .loop import Run

Groups = Mapping[str, Sequence[Candidate]]  # prompt_id -> candidates
Scores = Mapping[tuple[str, int], Sequence[float | None]]  # (prompt_id, candidate) -> samples


class Pairing:
    """The stage that leaves `pairs.jsonl`, in `dropped.jsonl` why other prompts gave none, and the
    best answers where they are learnt from.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def pairs(self, folder: ModelFolder) -> dict[str, Any]:
        """Best against worst of each prompt. Raises StoppedError when there is nothing to learn."""
        rewarding, prompts = self.run.rewarding, folder.read_prompts()
        groups = rewarding.sampled(folder)
        candidates = [c for p in prompts for c in groups.get(p.prompt_id, [])]
        scores = score_candidates(rewarding.reward(folder, candidates), prompts, candidates)
        found = rewarding.completed(folder, self.paired(folder, prompts, candidates, scores))
        dropped = [{"prompt_id": key, "reason": why} for key, why in found.reasons.items()]
        self.run.ranks.write(folder.dropped, dropped)
        best = rewarding.best(prompts, candidates, scores)
        if not found.pairs and not best:
            self.stop_for_lack_of_pairs(folder, found)
        origin, figures = self.origin(folder), {}
        if best is not None:
            self.run.ranks.write(folder.sft, best)
            figures = {"sft_rows": len(best), "unread": len(prompts) - len(best)}
            origin["objective"] = "sft"  # the pairs are for the reader; no DPO is done with them
        figures |= self.write(folder, [row | origin for row in found.pairs], groups)
        return {
            "pairs": len(found.pairs),
            "dropped": found.dropped,
            "ties": found.ties,
            "collapse": collapse_figures(candidates),
            **score_figures(scores),
            "judge_on_own": self.judge_on_own(prompts, groups, scores),
        } | figures

    def paired(
        self,
        folder: ModelFolder,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        scores: Scores,
    ) -> PairSet:
        config = self.run.config
        return make_pairs(
            prompts,
            candidates,
            scores,
            round_name=folder.name,
            seed=config.seed,
            sampling=sampling_row(config.candidates),
            config=config.pairs,
        )

    def stop_for_lack_of_pairs(self, folder: ModelFolder, found: PairSet) -> NoReturn:
        verdicts = read_jsonl(self.run.rewarding.verdicts(folder))
        statuses = Counter(row["status"].lower() for row in verdicts)
        raise StoppedError(
            f"{folder.name}: the round gave no pair to learn from (prompts: "
            f"{reasons(found.dropped)}; judgements: {reasons(statuses)})"
            + cure(statuses, self.run.config.judge.sampling.max_tokens),
            dropped=found.dropped,
            judgements=statuses,
        )

    def origin(self, folder: ModelFolder) -> dict[str, Any]:
        """What every pair row says of the weights that answered and of the rubric."""
        before = self.run.folders[folder.number - 2]
        return {
            "model_hash": self.run.weights_hash(before.model),
            "rubric": self.run.material.rubric.provenance,
        }

    def write(
        self, folder: ModelFolder, rows: list[dict[str, Any]], groups: Groups
    ) -> dict[str, Any]:
        """The pairs with their reference, and that of the earlier ones that are learnt from too."""
        run = self.run
        pairs = [token_pair(run.model, row, groups) for row in rows]
        run.sampler.release()

        def shown(what: str, count: int) -> AbstractContextManager[Progress]:
            return run.counting(f"{folder.name} {what}", count, "pairs", in_step=True)

        with run.memory.phase("reference"):
            with shown("reference", len(pairs)) as progress:
                Reference(run, folder).write(rows, pairs, progress)
            if run.config.reward == "best-of-n":
                return {}
            return Mixing(run, folder).write_references(len(pairs), shown)

    def judge_on_own(
        self, prompts: Sequence[Prompt], groups: Groups, scores: Scores
    ) -> dict[str, Any] | None:
        """The judge's order of the round's own answers against the world's program, where there
        is one.
        """
        program = self.run.material.score_bits
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
            if (group := groups.get(p.prompt_id))
        ]
        return judge_table(
            rows, top_score(self.run.material.rubric.high, self.run.config.judge.mode)
        )


def score_figures(scores: Scores) -> dict[str, Any]:
    """Mean score of the candidates that have one, with its 95 % interval over prompts."""
    by_prompt: dict[str, list[float]] = {}
    for (prompt_id, _), samples in scores.items():
        if (score := mean_score(samples)) is not None:
            by_prompt.setdefault(prompt_id, []).append(score)
    if not by_prompt:
        return {"score_mean": None, "score_interval": None}
    found = [score for group in by_prompt.values() for score in group]
    _, low, high = mean_interval(fmean(group) for group in by_prompt.values())
    return {"score_mean": fmean(found), "score_interval": [low, high]}


def sampling_row(params: SamplingParams) -> dict[str, Any]:
    return {name: getattr(params, name) for name in ("n", "temperature", "top_p", "max_tokens")}
