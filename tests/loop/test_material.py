"""What a run learns from never holds what it is measured on, whoever brought the rows."""

from __future__ import annotations

import json

import pytest

from srlm_fast import config as configs
from srlm_fast.loop.material import gather, round_prompts
from srlm_fast.loop.measuring import Scored, evaluation_figures
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


def ranked(text, scores=(1, 4)):
    return {"prompt": text, "responses": ["a", "b"], "scores": list(scores)}


@pytest.mark.parametrize("form", ["ranked", "judgements"])
@pytest.mark.parametrize("model", ["m", "tiny"])
def test_a_file_to_measure_the_judge_on_is_held_apart(tmp_path, model, form):
    texts = [f"Tell me about number {i}." for i in range(40)]
    rows = [ranked(text) for text in texts]
    if form == "judgements":
        rows = [
            {"prompt": t, "response": f"r{k}", "judgement": f"Score: {k}", "score": k}
            for t in texts
            for k in (1, 4)
        ]
    known = write(tmp_path / "eval", [ranked(text.upper()) for text in texts[:5]])
    base = configs.tiny() if model == "tiny" else configs.Config(model=model)
    changes = {
        "eft_file": write(tmp_path / "eft", rows),
        "eft_eval_file": known,
        "prompts_file": write(tmp_path / "p", [{"prompt": text} for text in texts]),
        "eval_prompts_file": write(tmp_path / "e", [{"prompt": "Held out."}]),
        "num_eft": None,
    }
    for name, value in changes.items():
        base = configs.put(base, name, value)
    found = gather(base)
    assert [row["prompt"] for row in found.eft_eval] == [text.upper() for text in texts[:5]]
    learned = found.ranked if form == "ranked" else found.eft
    assert {row["prompt"] for row in learned} == set(texts[5:])  # nothing else is held out
    assert [prompt.text for prompt in found.prompts] == texts[5:]
    assert found.account["--eft-eval"]["rows"] == 5


@pytest.mark.parametrize("option", ["eft", "eft_eval", "reward_pairs"])
def test_ranked_answers_without_any_order_are_refused(tmp_path, option):
    tied = [ranked("q", scores=(2, 2)), ranked("p", scores=(2, 2))]
    config = configs.put(configs.tiny(), f"{option}_file", write(tmp_path / "tied", tied))
    name = "--" + option.replace("_", "-")
    with pytest.raises(InputError, match=f"{name} .*: .*no two answers of different score"):
        gather(config)


def test_a_file_to_measure_on_must_measure_in_the_rows_that_are_taken(tmp_path):
    known = write(tmp_path / "eval", [ranked("q", scores=(2, 2)), ranked("p")])
    config = configs.put(configs.tiny(), "eft_eval_file", known)
    assert "2 rows, 1 with answers of one score alone" in gather(config).notes[0]
    with pytest.raises(InputError, match="--eft-eval .*: no prompt has answers of different score"):
        gather(configs.put(config, "evaluation.num_judged", 1))


OWN_RUBRIC = (
    "{% set high = 3 %}{% set pattern = 'Grade ([0-9]) of' %}{% set score_prefix = 'Grade ' %}"
    "{{ prompt }}{{ response }}Say: Grade <number> of 3"
)


@pytest.mark.parametrize(
    ("own", "judgement", "score", "said"),
    [
        (False, "Fine.\nScore: 3", 3, None),
        (False, "Fine.\n**Score: 3/5**.\n", 3, None),
        (False, "Fine.\nScore: 9", 9, "'judgement' ends in the score 9, wanted a line 'Score: N'"),
        (False, "Score: 3", 4, "'score' is 4, wanted 3, in which the judgement ends"),
        (False, "Fine.", 3, "'judgement' has no score, wanted a line 'Score: N' at its end"),
        (False, "Score: 3\nand more", 3, "'judgement' goes on behind its score"),
        (True, "Grade 3 of 3, since it is right", 3, None),
        (True, "Grade 4 of 3", 4, "'judgement' ends in the score 4, wanted a score that the rub"),
        (True, "Fine.\nScore: 3", 3, "'judgement' has no score"),
    ],
)
def test_judgements_that_are_taught_must_be_readable(tmp_path, own, judgement, score, said):
    row = {"prompt": "q", "response": "r", "judgement": judgement, "score": score}
    rubric = tmp_path / "own.jinja"
    rubric.write_text(OWN_RUBRIC)
    config = configs.put(configs.tiny(), "eft_file", write(tmp_path / "eft", [row]))
    config = configs.put(config, "rubric_file", str(rubric) if own else None)
    if said is None:
        assert gather(config).eft[0]["judgement"] == judgement
    else:
        with pytest.raises(InputError) as error:
            gather(config)
        assert f"--eft {tmp_path / 'eft'} line 1: field {said}" in str(error.value)


def says(role, content):
    return {"role": role, "content": content}


def test_a_measured_conversation_is_not_learned_from_at_any_turn(tmp_path):
    """Not the held-out prompt, not a later turn of its conversation, not its opening."""
    opened = [says("user", "Hi"), says("assistant", "Hello")]
    whole = [*opened, says("user", "Go on"), says("assistant", "So."), says("user", "More")]
    other = [says("user", "Ho"), says("assistant", "Hello"), says("user", "More")]
    ift = [{"messages": [*turns, says("assistant", "end")]} for turns in (whole, other)]
    held = write(tmp_path / "held", [{"messages": [*opened, says("user", "Go  on")]}])
    config = configs.Config(
        model="m", ift_file=write(tmp_path / "ift", ift), eval_prompts_file=held
    )
    found = gather(config)
    assert [row["prompt"] for row in found.ift] == ["Ho", "More"]
    assert found.ift[1]["turns"] == other[:2]
    assert found.demonstrations == ["Ho"]  # the other means nothing by itself
    pairs = [
        {"chosen": [*turns, says("assistant", "a")], "rejected": [*turns, says("assistant", "b")]}
        for turns in (whole, other)
    ]
    path = write(tmp_path / "pairs", pairs)
    (pair,) = gather(configs.put(config, "reward_pairs_file", path)).preferences
    assert pair["chosen"] == pairs[1]["chosen"]
    config = configs.put(config, "eval_prompts_file", None)
    (held_out,) = gather(configs.put(config, "evaluation.num_prompts", 1)).held_out
    assert held_out.messages[0]["content"] in ("Hi", "Ho")  # with its turns


def test_files_are_told_by_option_and_mistakes_too(tmp_path):
    rows = [{"instruction": f"Say {i}.", "input": "", "output": "So."} for i in range(9)]
    ift = write(tmp_path / "ift", rows)
    found = gather(configs.Config(model="m", ift_file=ift, num_ift=4))
    assert found.notes == [f"--ift {ift}: recognised as Alpaca instructions, 9 rows"]
    assert len(found.ift) + len(found.held_out) == 4
    bad = write(tmp_path / "bad", [*rows, {"instruction": "q", "output": ""}])
    with pytest.raises(InputError, match=f"--ift {bad} line 10: field 'output' is blank"):
        gather(configs.Config(model="m", ift_file=bad))
    found = gather(configs.Config(model="m", ift_file=bad, skip_bad=True))
    assert found.notes[0].endswith("9 rows, 1 line skipped") and "line 10" in found.notes[1]
    with pytest.raises(InputError, match="--reward-pairs .* line 1: found Alpaca instructions, wa"):
        gather(configs.Config(model="m", ift_file=ift, reward_pairs_file=ift))


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


def test_an_interval_ends_where_the_scale_does():
    scored = [Scored(str(i), "", score, {}) for i, score in enumerate((5.0, 0.0, 5.0))]
    figures = evaluation_figures(scored, "M1", (0.0, 5.0))
    assert figures["interval"] == [0.0, 5.0]
    assert figures["score"] == pytest.approx(10 / 3)
