"""Seeds and evaluation sets: form, balance, determinism, and what must never meet."""

from collections import Counter

from srlm_fast.tiny import seeds
from srlm_fast.tiny.gold import score
from srlm_fast.tiny.rubric import RUBRIC
from srlm_fast.tiny.world import is_held_out, parse


def test_ift_rows_are_mediocre_and_valid():
    rows = seeds.ift(1)
    assert len(rows) == 256
    assert all(set(row) == {"prompt", "response"} for row in rows)
    assert all(parse(row["prompt"]) for row in rows)
    mean = sum(score(row["prompt"], row["response"]).score for row in rows) / len(rows)
    assert 2.2 < mean < 3.2


def test_eft_scores_are_balanced_and_end_the_judgement():
    rows = seeds.eft(1, 384)
    assert Counter(row["score"] for row in rows) == dict.fromkeys(range(6), 64)
    assert all(row["judgement"].endswith(f"Score: {row['score']}") for row in rows)


def test_an_uneven_number_of_eft_rows_is_as_balanced_as_can_be():
    counts = Counter(row["score"] for row in seeds.eft(2, 20))
    assert sum(counts.values()) == 20
    assert set(counts.values()) == {3, 4}


def test_eft_labels_agree_mostly_but_not_always_with_gold():
    rows = seeds.eft(1, 384)
    same = [score(row["prompt"], row["response"]).score == row["score"] for row in rows]
    assert 0.8 < sum(same) / len(same) < 1


def test_seeds_depend_on_the_seed_alone():
    assert seeds.ift(3) == seeds.ift(3)
    assert seeds.eft(3) == seeds.eft(3)
    assert seeds.ift(3) != seeds.ift(4)
    assert seeds.eft(3) != seeds.eft(4)
    assert seeds.heldout() == seeds.heldout()
    assert seeds.eft_eval() == seeds.eft_eval()


def test_training_and_evaluation_instructions_never_meet():
    held_out = {*seeds.heldout(), *(row["prompt"] for row in seeds.eft_eval())}
    assert all(is_held_out(prompt) for prompt in held_out)
    for seed in range(4):
        instructions = {row["prompt"] for row in seeds.ift(seed)}
        judged = {row["prompt"] for row in seeds.eft(seed, exclude=instructions)}
        assert not instructions & judged
        assert not any(is_held_out(prompt) for prompt in instructions | judged)


def test_heldout_prompts_are_distinct_and_valid():
    prompts = seeds.heldout(400)
    assert len(set(prompts)) == 400
    assert all(parse(prompt) for prompt in prompts)


def test_eft_eval_rows_have_four_answers_that_gold_tells_apart():
    rows = seeds.eft_eval()
    assert len(rows) >= 120
    for row in rows:
        assert len(set(row["responses"])) == 4
        assert row["scores"] == [score(row["prompt"], answer).score for answer in row["responses"]]
        assert len(set(row["scores"])) > 1


def test_judge_prompt_holds_question_then_answer():
    text = RUBRIC.render("Spell fox.", "F-o-x.")
    assert text.index("Spell fox.") < text.index("F-o-x.")
