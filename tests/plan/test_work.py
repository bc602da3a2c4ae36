"""Tokens of the stages, by hand: 10 prompts of 64 tokens, 2 answers of 100, judgements of 40."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from srlm_fast.config import Config, recipe
from srlm_fast.plan import counts
from srlm_fast.plan.choice import as_given
from srlm_fast.plan.devices import parse_devices
from srlm_fast.plan.page import rates_of, unknown_prompt_model
from srlm_fast.plan.shape import model_config
from srlm_fast.plan.times import Rates
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


def test_prompts_of_the_user_are_counted_and_not_made(tmp_path: Path, monkeypatch):
    """Eight lines of seven prompts, of which one is held out; read once, however many stages."""
    file = tmp_path / "p.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"q{i % 7}"}) + "\n" for i in range(8)))
    read = Mock(wraps=counts.recognised_prompts)
    monkeypatch.setattr(counts, "recognised_prompts", read)
    found = stages(prompts_file=str(file))
    assert "prompts" not in found and read.call_count == 1
    assert (found["answers"].read, found["answers"].generated) == (6 * 64, 6 * 200)
    assert found["train"].trained == 0.75 * 6 * 264
    assert found["measure"].generated == 100 + 2 * 3 * 40  # judged by M1, and by itself
    apart = stages(prompts_file=str(file), eval_prompts_file=str(file))
    assert (apart["answers"].read, apart["measure"].generated) == (7 * 64, 4 * (100 + 2 * 3 * 40))
    assert stages(prompts_file=str(file), num_prompts=3)["answers"].read == 3 * 64
    made = stages()["prompts"]
    assert (made.generated, made.sequences) == (20 * 64, 20)


@pytest.mark.parametrize(
    ("reward", "generated", "read", "scored"),
    [
        ("self", 480, 400 + 4 * 64 + 4 * 160, 0),
        ("constitution", 480, 400 + 4 * 64 + 4 * 160, 0),
        ("random", 0, 0, 0),
        ("pairwise", 0, 400 + 4 * (64 + 2 * 100 + 2 * 160), 0),
        ("model", 0, 0, 8 * 164),
    ],
)
def test_held_out_answers_are_judged_by_m1_and_by_the_model(reward, generated, read, scored):
    """M1 judges all of its own anyway."""
    by_m1 = 400 + 4 * 64 + 4 * 160
    found = stages(reward=reward)["measure"]
    assert found.generated == 4 * 100 + 4 * 3 * 40 + generated
    assert (found.read, found.scored) == (4 * 64 + by_m1 + read, scored)
    (first,) = first_work(dataclasses.replace(CONFIG, reward=reward))
    assert (first.name, first.generated, first.scored) == ("measure", 880, 0)
    assert first.read == 4 * 64 + by_m1


def test_answers_of_known_order_are_counted(tmp_path: Path):
    file = tmp_path / "known.jsonl"
    ranked = {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 3]}
    file.write_text((json.dumps(ranked) + "\n") * 4)
    apart = stages()["measure"].generated
    assert stages(eft_eval_file=str(file))["measure"].generated - apart == 12 * 3 * 40


def test_seeds_are_counted_in_the_files(tmp_path: Path):
    ift, eft = tmp_path / "ift.jsonl", tmp_path / "eft.jsonl"
    ift.write_text('{"prompt": "a", "response": "b"}\n' * 6)
    ranked = {"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 3]}
    eft.write_text((json.dumps(ranked) + "\n") * 4)
    config = dataclasses.replace(CONFIG, ift_file=str(ift), eft_file=str(eft))
    alone, judge, sft, _ = first_work(config)
    epochs = CONFIG.sft.epochs
    assert (alone.name, alone.trained) == ("IFT alone", epochs * 6 * 164)
    assert (judge.name, judge.generated) == ("EFT judge", 12 * 3 * 40)
    assert sft.trained == epochs * (6 * 164 + 6 * (400 + 64 + 100 + 60 + 40))
    fewer = dataclasses.replace(config, eft_file=None, num_ift=2)
    assert [work.trained for work in first_work(fewer)] == [epochs * 2 * 164, 0]
    own = first_work(recipe("default", "tiny"))  # the tiny world's own
    assert [work.name for work in own] == ["SFT", "measure"]


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


def test_a_prompt_model_is_timed_by_its_own_size():
    """On a device that waits for the weights of each step: twelve times the weights."""
    devices = parse_devices("1xH100")
    times = []
    for name in ("live", "qwen2.5-7b"):
        config = dataclasses.replace(CONFIG, model="qwen2.5-0.5b", prompt_model=name)
        model = model_config(config.model)
        rates = Rates(model, as_given(model, config, devices), devices, 64)
        (work,) = [each for each in round_work(config) if each.name == "prompts"]
        times.append(rates_of(work, rates, config).time(work).spent["weight stream"])
        answers = round_work(config)[1]
        assert rates_of(answers, rates, config) is rates
    sizes = [model_config(name).num_parameters() for name in ("qwen2.5-0.5b", "qwen2.5-7b")]
    assert times[1] / times[0] == pytest.approx(sizes[1] / sizes[0])
    unknown = dataclasses.replace(CONFIG, prompt_model="some/model")
    assert "--prompt-model some/model: not on this machine" in unknown_prompt_model(unknown)
    assert not unknown_prompt_model(CONFIG)
