"""The shipped weights: they load everywhere, and know and judge the world as the README says."""

import math
import re

import pytest
import torch

from srlm_fast.judge import ScoreStatus, compile_pattern
from srlm_fast.model import PackedContext, chat, load_model
from srlm_fast.tiny import seeds
from srlm_fast.tiny.gold import score
from srlm_fast.tiny.rubric import RUBRIC


@pytest.fixture(scope="module")
def m0():
    return load_model("tiny", dtype=torch.float32)


@torch.inference_mode()
def greedy(model, text, most=40):
    """Continue a text greedily, without a cache: slow and simple."""
    ids = model.tokenizer(text)["input_ids"]
    start = len(ids)
    while len(ids) < start + most:
        context = PackedContext([len(ids)], model.config.windows)
        hidden = model(torch.tensor(ids), context.positions, context)
        ids.append(int((model.head @ hidden[-1]).argmax()))
        if ids[-1] in model.eos_token_ids:
            break
    return model.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_it_is_small(m0):
    assert m0.config.num_parameters() < 1_300_000
    assert m0.config.family == "llama"


def test_it_answers_held_out_instructions(m0):
    prompts = seeds.heldout(40)
    answers = [greedy(m0, chat.render(m0.tokenizer, prompt)) for prompt in prompts]
    gold = [score(p, a) for p, a in zip(prompts, answers, strict=True)]
    assert sum(g.score for g in gold) / len(gold) > 4.3
    assert sum(g.bits["correct"] for g in gold) / len(gold) > 0.75


def test_it_reviews_answers_but_does_not_know_the_judge_format(m0):
    row = seeds.eft_eval()[0]
    form = "Task: {}\nAnswer:\n{}\nReview:\n"
    review = greedy(m0, form.format(row["prompt"], row["responses"][0]), 64)
    assert re.match(r"It should be .+\. It says .+\.", review)
    asked = RUBRIC.render(row["prompt"], row["responses"][0])
    judged = greedy(m0, chat.render(m0.tokenizer, asked), 64)
    assert "Score:" not in judged


def test_judgements_of_the_seed_are_read_by_the_rubric(m0):
    table = compile_pattern(m0.tokenizer, RUBRIC.pattern)
    for row in seeds.eft(1, 24):
        ids = m0.tokenizer(row["judgement"])["input_ids"]
        assert table.read(table.text(ids), True) == (row["score"], ScoreStatus.OK)


def test_transformers_agrees(m0):
    transformers = pytest.importorskip("transformers")
    from srlm_fast.model import find_folder

    other = transformers.AutoModelForCausalLM.from_pretrained(
        find_folder("tiny"), dtype=torch.float32
    ).eval()
    ids = m0.tokenizer(chat.render(m0.tokenizer, "Spell fox.") + "F-o-x.")["input_ids"]
    context = PackedContext([len(ids)], m0.config.windows)
    with torch.inference_mode():
        ours = m0(torch.tensor(ids), context.positions, context) @ m0.head.T
        theirs = other(torch.tensor([ids])).logits[0]
    assert math.isclose((ours - theirs).abs().max().item(), 0.0, abs_tol=1e-4)
