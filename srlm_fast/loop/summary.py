"""`summary.json`: the figures of all models and rounds, from what the finished stages left in the
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from srlm_fast.config import Config

from .state import ModelFolder, RunState
from .stopping import StoppedError

SUMMARY_FILE = "summary.json"


def summarize_stopped(
    config: Config, state: RunState, folders: Sequence[ModelFolder], error: StoppedError
) -> dict[str, Any]:
    """The summary of a run that stopped by itself: what it has, and why there is no more."""
    whole = [folder for folder in folders if state.finished(folder.stage("measure"))]
    summary = summarize(config, state, whole) if whole else {"models": [], "rounds": []}
    return summary | {"finished": False, "stopped": {"reason": str(error), **error.counts}}


def summarize(config: Config, state: RunState, folders: Sequence[ModelFolder]) -> dict[str, Any]:
    """The summary of a finished run."""
    trained_reward = state.figures.get(folders[0].stage("reward_model"))
    return {
        "finished": True,
        "model": config.model,
        "reward": config.reward,
        "seed": config.seed,
        "models": model_rows(state, folders),
        "rounds": round_rows(state, folders),
        "seconds": sum(state.seconds.values()),
    } | ({"reward_model": trained_reward} if trained_reward else {})


def model_rows(state: RunState, folders: Sequence[ModelFolder]) -> list[dict[str, Any]]:
    return [_model(state, folder) for folder in folders]


def round_rows(state: RunState, folders: Sequence[ModelFolder]) -> list[dict[str, Any]]:
    """The rounds behind M1. score_change: of `score_mean`, against the round before."""
    rows = [_round(state, folder) for folder in folders[1:]]
    for before, row in zip([None, *rows], rows, strict=False):
        scores = (None if before is None else before["score_mean"]), row["score_mean"]
        row["score_change"] = None if None in scores else scores[1] - scores[0]
    return rows


def _model(state: RunState, folder: ModelFolder) -> dict[str, Any]:
    measured = state.figures[folder.stage("measure")]
    trained = state.figures[folder.stage("train")]
    return {
        "name": folder.name,
        "eval": measured["eval"],
        "judge": measured["judge"],
        "own_score": measured.get("own_score"),
        "length_mean": measured["collapse"]["length_mean"],
        "collapse": measured["collapse"],
        "human_text": measured.get("human_text"),
        "model_hash": trained["model_hash"],
        "seconds": {
            "train": state.seconds.get(folder.stage("train"), 0.0),
            "measure": state.seconds.get(folder.stage("measure"), 0.0),
        },
    } | {**_eft(state, folder), **_trained(trained)}


def _trained(trained: dict[str, Any]) -> dict[str, int]:
    """How many weights the training moved, where there was one."""
    kept = ("trained_parameters",)
    return {name: trained[name] for name in kept if name in trained}


def _eft(state: RunState, folder: ModelFolder) -> dict[str, Any]:
    """How EFT was built, where it was: every step counted."""
    built = state.figures.get(folder.stage("eft"))
    if built is None:
        return {}
    judged = state.figures[folder.stage("eft_judge")]
    return {"eft": built | {"statuses": judged["statuses"], "too_long": judged["too_long"]}}


def _round(state: RunState, folder: ModelFolder) -> dict[str, Any]:
    prompts, answers, pairs, train = (
        state.figures[folder.stage(name)] for name in ("prompts", "answers", "pairs", "train")
    )
    # A reward model scores in a stage of its own.
    answers = answers | state.figures.get(folder.stage("reward"), {})
    some = [(pairs, "sft_rows"), (pairs, "unread"), (answers, "audited"), (answers, "differ")]
    some += [(train, "held_out_pairs"), (train, "best_step"), (train, "mixed")]
    own = {name: figures[name] for figures, name in some if name in figures}
    return own | {
        "name": folder.name,
        "prompts": prompts["prompts"],
        "rejected_prompts": prompts.get("rejected", {}),
        "candidates": answers["candidates"],
        "judgements": answers["judgements"],
        "unparsed": answers["unparsed"],
        "statuses": answers.get("statuses", {}),
        "too_long": answers["too_long"],
        "pairs": pairs["pairs"],
        "ties": pairs["ties"],
        "dropped": pairs["dropped"],
        "judge_on_own": pairs["judge_on_own"],
        "score_mean": pairs.get("score_mean"),
        "score_interval": pairs.get("score_interval"),
        "collapse": pairs["collapse"],
        "logratios": train.get("logratios"),
        "warnings": state.figures.get(folder.stage("watch"), {}).get("warnings", []),
        "seconds": _seconds(state, folder, answers),
        "tokens_per_second": _rates(answers),
        "peak_bytes": train["peak_bytes"],
        "skipped_steps": train["skipped_steps"],
    }


def _seconds(state: RunState, folder: ModelFolder, answers: dict[str, Any]) -> dict[str, float]:
    """Seconds per phase. Sampling and judging share one batch: its time is split by generated
    tokens.
    """
    spent = {
        name: state.seconds.get(folder.stage(name), 0.0)
        for name in ("prompts", "answers", "reward", "pairs", "train")
    }
    tokens = answers["tokens"]
    all_tokens = tokens["answers"] + tokens["judgements"]
    share = tokens["answers"] / all_tokens if all_tokens else 1.0
    return {
        "prompts": spent["prompts"],
        "sample": spent["answers"] * share,
        "judge": spent["answers"] * (1 - share) + spent["reward"],
        "train": spent["pairs"] + spent["train"],
    }


def _rates(answers: dict[str, Any]) -> dict[str, float]:
    """Generated tokens per second of the batch that samples and judges, in the process that
    finished it.
    """
    tokens, seconds = answers["tokens"], answers["seconds_here"]
    return {"sample_and_judge": (tokens["answers"] + tokens["judgements"]) / max(seconds, 1e-9)}
