"""What a run learns from never holds what it is measured on, whoever brought the rows."""

from __future__ import annotations

import json

import pytest

from srlm_fast import config as configs
from srlm_fast.loop.material import gather, round_prompts
from srlm_fast.records import InputError, Prompt
from srlm_fast.tiny import seeds


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def check_apart(found):
    measured = {" ".join(text.casefold().split()) for text in found.measured_on}
    learned = [row["prompt"] for row in (*found.ift, *found.eft)]
    learned += [prompt.text for prompt in found.prompts] + found.demonstrations
    assert learned
    assert not measured & {" ".join(text.casefold().split()) for text in learned}


def test_users_rows(tmp_path):
    texts = [f"Tell me about number {i}." for i in range(40)]
    shouted = [text.upper() + " " for text in texts]
    ift = write(tmp_path / "ift", [{"prompt": t, "response": "So."} for t in texts])
    eft = [
        {"prompt": t, "response": f"r{k}", "judgement": f"Score: {k}", "score": k}
        for t in texts
        for k in (1, 4)
    ]
    eft = write(tmp_path / "eft", eft)
    prompts = write(tmp_path / "prompts", [{"prompt": t} for t in texts + shouted])
    config = configs.Config(model="m", prompts_file=prompts, ift_file=ift, eft_file=eft)
    found = gather(config)
    assert len(found.held_out) == 4
    assert len(found.eft_eval) == 4
    assert all(len(row["responses"]) == 2 for row in found.eft_eval)
    check_apart(found)


def test_users_rows_for_the_tiny_model(tmp_path):
    """The world's held-out instructions in the user's files are left out."""
    held_out = seeds.heldout(400)[:3]
    ift = write(
        tmp_path / "ift", [{"prompt": t, "response": "R."} for t in [*held_out, "Spell it."]]
    )
    rows = [{"prompt": held_out[0].lower(), "response": "x", "judgement": "Score: 1", "score": 1}]
    rows.append(rows[0] | {"prompt": "Spell it."})
    config = configs.tiny()
    config = configs.put(config, "ift_file", ift)
    config = configs.put(config, "eft_file", write(tmp_path / "eft", rows))
    found = gather(config)
    assert [row["prompt"] for row in found.ift] == ["Spell it."]
    assert [row["prompt"] for row in found.eft] == ["Spell it."]
    check_apart(found)


def test_the_worlds_own_seeds_are_apart_at_any_size():
    config = configs.put(configs.put(configs.tiny(), "num_ift", 900), "num_eft", 300)
    found = gather(config)
    assert len(found.ift) == 900
    assert not {row["prompt"] for row in found.ift} & {row["prompt"] for row in found.eft}
    check_apart(found)


@pytest.mark.parametrize("model", ["m", "tiny"])
def test_nothing_left_to_learn_from_is_refused(tmp_path, model):
    path = write(tmp_path / "p", [{"prompt": "One question?"}, {"prompt": "Another question?"}])
    base = configs.tiny() if model == "tiny" else configs.Config(model=model)
    config = configs.put(configs.put(base, "prompts_file", path), "eval_prompts_file", path)
    with pytest.raises(InputError, match="--prompts .* is held out"):
        gather(config)


def test_rounds_deal_different_prompts_until_the_deck_is_used_up():
    prompts = [Prompt(str(i), f"Question {i}", "file") for i in range(10)]
    first, second = (round_prompts(prompts, number, 5, seed=3) for number in (0, 1))
    assert sorted(p.prompt_id for p in first + second) == sorted(p.prompt_id for p in prompts)
    third = round_prompts(prompts, 2, 5, seed=3)
    assert len({p.prompt_id for p in third}) == 5
    assert round_prompts(prompts, 1, 5, seed=3) == second


@pytest.mark.parametrize("model", ["m", "tiny"])
def test_a_rubric_of_ones_own(tmp_path, model):
    prompts = write(tmp_path / "p", [{"prompt": f"Question {i}?"} for i in range(9)])
    base = configs.tiny() if model == "tiny" else configs.Config(model=model)
    config = configs.put(base, "prompts_file", prompts)
    path = tmp_path / "r.jinja"
    path.write_text("{% set high = 3 %}Q {{ prompt }} A {{ response }}")
    config = configs.put(config, "rubric_file", str(path))
    assert gather(config).rubric.high == 3
    path.write_text("Q {{ prompt }} A {{ answer }}")
    with pytest.raises(InputError, match=f"--rubric {path} line 1: answer is not known"):
        gather(config)
