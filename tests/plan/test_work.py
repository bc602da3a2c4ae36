"""Tokens of the stages, by hand: 10 prompts of 64 tokens, 2 answers of 100, judgements of 40."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from srlm_fast.config import Config, recipe
from srlm_fast.plan.work import Work, first_work, round_work

BASE = Config(model="llama-3-8b", num_prompts=10)
CONFIG = dataclasses.replace(
    BASE,
    candidates=dataclasses.replace(BASE.candidates, n=2, max_tokens=200),
    judge=dataclasses.replace(
        BASE.judge, sampling=dataclasses.replace(BASE.judge.sampling, n=3, max_tokens=80)
    ),
    dpo=dataclasses.replace(BASE.dpo, batch_pairs=5),
    evaluation=dataclasses.replace(BASE.evaluation, num_prompts=4, samples=1),
)


def stages(**changes: Any) -> dict[str, Work]:
    return {work.name: work for work in round_work(dataclasses.replace(CONFIG, **changes))}


def judged(mode: str) -> Work:
    return stages(judge=dataclasses.replace(CONFIG.judge, mode=mode))["judge"]


def test_answers_share_their_prompt_and_pairs_theirs():
    found = stages()
    assert list(found) == ["prompts", "answers", "judge", "reference", "train", "measure"]
    assert (found["answers"].read, found["answers"].generated) == (640, 2000)
    assert found["train"].trained == found["reference"].scored == 7.5 * (64 + 200)
    assert found["train"].steps == 1.5


def test_judgements_share_rubric_question_and_answer():
    read = 400 + 10 * 64 + 20 * (100 + 60)
    sampled, expected, direct = (judged(mode) for mode in ("sampled", "expected", "direct"))
    assert sampled.read == expected.read == direct.read == read
    assert sampled.generated == 20 * 3 * 40
    assert expected.generated == 20 * 40
    assert direct.generated == 0


@pytest.mark.parametrize("reward", ["self", "frozen", "best-of-n"])
def test_rewards_that_are_judged(reward: str):
    assert stages(reward=reward)["judge"] == stages()["judge"]


@pytest.mark.parametrize("reward", ["random", "gold"])
def test_controls_judge_nothing(reward: str):
    assert list(stages(reward=reward)) == ["prompts", "answers", "reference", "train", "measure"]


def test_pairwise_reads_both_orders_and_writes_nothing():
    found = stages(reward="pairwise")["compare"]
    assert found.read == 400 + 10 * (64 + 2 * 100 + 2 * 160)
    assert found.generated == 0


def test_a_constitution_writes_critiques_and_revisions():
    found = stages(reward="constitution", revisions=2)
    assert found["answers"].generated == 10 * 100
    assert found["revise"].generated == 20 * (40 + 100)
    assert found["revise"].read == 20 * (2 * (80 + 64 + 100) + 40)


def test_a_reward_model_reads_whole_conversations():
    assert stages(reward="model", reward_model="x/y")["reward"].scored == 20 * 164


def test_best_of_n_learns_from_one_answer_and_needs_no_reference():
    found = stages(reward="best-of-n")
    assert "reference" not in found
    assert found["train"].trained == CONFIG.sft.epochs * 10 * 164


def test_prompts_of_the_user_are_not_made():
    assert "prompts" not in stages(prompts_file="/p.jsonl")
    made = stages()["prompts"]
    assert (made.generated, made.sequences) == (20 * 64, 20)


def test_held_out_answers_are_judged_where_no_program_scores_them():
    assert stages()["measure"].generated == 4 * 100 + 4 * 3 * 40


def test_seeds_are_counted_in_the_files(tmp_path: Path):
    ift, eft = tmp_path / "ift.jsonl", tmp_path / "eft.jsonl"
    ift.write_text('{"prompt": "a", "response": "b"}\n' * 6)
    ranked = {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 3]}
    eft.write_text((json.dumps(ranked) + "\n") * 4)
    assert first_work(CONFIG) == []
    config = dataclasses.replace(CONFIG, ift_file=str(ift), eft_file=str(eft))
    alone, judge, sft = first_work(config)
    epochs = CONFIG.sft.epochs
    assert (alone.name, alone.trained) == ("IFT alone", epochs * 6 * 164)
    assert (judge.name, judge.generated) == ("EFT judge", 12 * 3 * 40)
    assert sft.trained == epochs * (6 * 164 + 6 * (400 + 64 + 100 + 60 + 40))
    fewer = dataclasses.replace(config, eft_file=None, num_ift=2)
    assert [work.trained for work in first_work(fewer)] == [epochs * 2 * 164]
    assert [work.name for work in first_work(recipe("default", "tiny"))] == [
        "SFT"
    ]  # the tiny world's own


def test_rows_of_earlier_rounds_and_peoples_rows_are_trained_on_too(tmp_path: Path):
    """7.5 pairs of 264 tokens a round; in three rounds 0, 1 and 2 earlier ones."""
    changes: dict[str, Any] = {"iterations": 3, "accumulate": "yes"}
    found = stages(**changes)
    assert found["reference"].scored == found["train"].trained == 2 * 7.5 * 264
    assert found["train"].steps == 3.0
    drawn = stages(**changes | {"accumulate": "subsample"})
    assert drawn["train"] == stages()["train"]  # none, 1/2 and 2/3 of them of earlier rounds
    assert drawn["reference"].scored == pytest.approx((1 + (1 / 2 + 2 / 3) / 3) * 7.5 * 264)
    ift = tmp_path / "ift.jsonl"
    ift.write_text('{"prompt": "a", "response": "b"}\n' * 6)
    mixed = stages(**changes, mix_real=0.25, ift_file=str(ift))["train"]
    assert (mixed.trained, mixed.steps) == (2 * 7.5 * 264 + 5 * 164, 3.0)
    best: dict[str, Any] = {"reward": "best-of-n", "ift_file": str(ift)}
    epochs = CONFIG.sft.epochs
    assert stages(**best, mix_real=0.5)["train"].trained == epochs * (10 + 10) * 164
    assert stages(**best, **changes)["train"].trained == epochs * (2 * 10 + 6) * 164
