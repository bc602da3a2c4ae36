"""Each form with all fields of its real files: what it is recognised as, and what every option has
of it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from srlm_fast.data import (
    read_eft_eval,
    read_eft_or_ranked,
    read_ift,
    read_preferences,
    read_prompts,
    read_ranked,
)
from srlm_fast.data.fields import Line
from srlm_fast.data.formats import FORMATS, USES, recognise
from srlm_fast.data.prompts import recognised_prompts
from srlm_fast.records import InputError


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM, RAIN = said("system", "Be kind."), said("user", "What is rain?")
WATER, SAND = said("assistant", "Water."), said("assistant", "Sand.")
WHERE, CLOUDS = said("user", "From where?"), said("assistant", "Clouds.")
FIRST, SECOND = [RAIN], [RAIN, WATER, WHERE]  # what is asked in a conversation of two turns


def parts(message: dict[str, str]) -> dict[str, Any]:
    """Its content as LLaMA-Factory's v1 has it."""
    return message | {"content": [{"type": "text", "value": message["content"]}], "loss_weight": 1}


ALPACA = {"instruction": "What is rain?", "input": "", "output": "Water."}
SHAREGPT: dict[str, Any] = {
    "id": "QWJhYvA_0",
    "conversations": [
        {"from": "human", "value": "What is rain?"},
        {"from": "gpt", "value": "Water."},
        {"from": "human", "value": "From where?"},
        {"from": "gpt", "value": "Clouds."},
    ],
    "system": "",
    "tools": "[]",
    "images": {},
}


def rated(response: str, overall: float, aspects: str) -> dict[str, Any]:
    """A completion of UltraFeedback with its four aspects."""
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    return {
        "annotations": {name: {"Rating": aspects, "Rationale": "Because."} for name in names},
        "custom_system_prompt": "You are helpful.",
        "model": "ultralm-13b",
        "principle": "helpfulness",
        "response": response,
        "critique": "A critique.",
        "overall_score": overall,
        "fine-grained_score": float(aspects),
    }


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "What is rain?",
    "models": ["ultralm-13b", "bard"],
    "completions": [rated("Sand.", 3.0, "2"), rated("Water.", 8.5, "5")],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}
BINARISED = {
    "prompt": "What is rain?",
    "prompt_id": "f0e3",
    "chosen": [RAIN, WATER],
    "rejected": [RAIN, SAND],
    "messages": [RAIN, WATER],
    "score_chosen": 8.5,
    "score_rejected": 3.0,
}
RUN_PAIR = BINARISED | {"all_responses": ["Water.", "Sand."], "scores": [[4], [2]], "round": 1}
JUDGED = {"prompt": "What is rain?", "response": "Water.", "judgement": "Score: 4", "score": 4}
RANKED = {"prompt": "What is rain?", "responses": ["Sand.", "Water."], "scores": [0, 1]}
PAIR = {"prompt": "What is rain?", "chosen": "Water.", "rejected": "Sand."}
ALPACA_EVAL = {
    "instruction": "What is rain?",
    "output_1": "Sand.",
    "generator_1": "a",
    "output_2": "Water.",
    "generator_2": "b",
    "annotator": "c",
    "preference": 1.98,
}
LABELLED = {"prompt": "What is rain?", "completion": "Water.", "label": True}
WORSE = LABELLED | {"completion": "Sand.", "label": False}
MULTI: dict[str, Any] = {"messages": [SYSTEM, *SECOND, CLOUDS], "prompt": None}

# name -> (rows, form, conversations asked, [(asked, answer)] to imitate or None, whether an order
# of "Water." before "Sand." is known)
CASES: dict[str, tuple[list[dict[str, Any]], str, Any, Any, bool]] = {
    "own prompts": ([{"prompt": "What is rain?"}], "prompts", [FIRST], None, False),
    "own prompts of turns": (
        [{"prompt": "From where?", "turns": [RAIN, WATER]}],
        "prompts",
        [SECOND],
        None,
        False,
    ),
    "prompt-only, messages": ([{"prompt": SECOND}], "prompts", [SECOND], None, False),
    "prompts of a run": (
        [{"prompt_id": "a", "text": "What is rain?", "source": "self-made"}],
        "a run's prompts",
        [FIRST],
        None,
        False,
    ),
    "own IFT": (
        [{"prompt": "What is rain?", "response": "Water."}],
        "instructions with answers",
        [FIRST],
        [(FIRST, "Water.")],
        False,
    ),
    "seeds of Open Assistant": (
        [
            {
                "prompt": "What is rain?",
                "response": "Water.",
                "message_tree_id": "t",
                "message_id": "m",
            }
        ],
        "instructions with answers",
        [FIRST],
        [(FIRST, "Water.")],
        False,
    ),
    "own IFT of turns": (
        [{"prompt": "From where?", "response": "Clouds.", "turns": [RAIN, WATER]}],
        "instructions with answers",
        [SECOND],
        [(SECOND, "Clouds.")],
        False,
    ),
    "own EFT": (
        [JUDGED, JUDGED | {"response": "Sand.", "score": 1}],
        "judgements",
        [FIRST],
        None,
        True,
    ),
    "own ranked": ([RANKED], "ranked answers", [FIRST], [(FIRST, "Water.")], True),
    "alpaca": ([ALPACA], "Alpaca instructions", [FIRST], [(FIRST, "Water.")], False),
    "alpaca without answers": (
        [{"instruction": "What is rain?", "input": ""}],
        "instructions without answers",
        [FIRST],
        None,
        False,
    ),
    "alpaca with history": (
        [
            {
                "instruction": "From where?",
                "input": None,
                "output": "Clouds.",
                "system": "Be kind.",
                "history": [["What is rain?", "Water."]],
            }
        ],
        "Alpaca instructions",
        [[SYSTEM, *SECOND]],
        [([SYSTEM, RAIN], "Water."), ([SYSTEM, *SECOND], "Clouds.")],
        False,
    ),
    "dolly": (
        [
            {
                "instruction": "What is",
                "context": "rain?",
                "response": "Water.",
                "category": "closed_qa",
            }
        ],
        "Dolly instructions",
        [[said("user", "What is\nrain?")]],
        [([said("user", "What is\nrain?")], "Water.")],
        False,
    ),
    "sharegpt": (
        [SHAREGPT],
        "ShareGPT conversations",
        [SECOND],
        [(FIRST, "Water."), (SECOND, "Clouds.")],
        False,
    ),
    "messages": (
        [MULTI],
        "conversations",
        [[SYSTEM, *SECOND]],
        [([SYSTEM, RAIN], "Water."), ([SYSTEM, *SECOND], "Clouds.")],
        False,
    ),
    "prompt-completion": (
        [{"prompt": "What is rain?", "completion": "Water."}],
        "prompts with completions",
        [FIRST],
        [(FIRST, "Water.")],
        False,
    ),
    "prompt-completion, messages": (
        [{"prompt": SECOND, "completion": [CLOUDS]}],
        "prompts with completions",
        [SECOND],
        [(SECOND, "Clouds.")],  # not the answer that stands in the prompt
        False,
    ),
    "preference": ([PAIR], "preference pairs", [FIRST], [(FIRST, "Water.")], True),
    "preference, implicit": (
        [{"chosen": [RAIN, WATER], "rejected": [RAIN, SAND]}],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "preference, alpaca": (
        [{"instruction": "What is rain?", "input": "", "chosen": "Water.", "rejected": "Sand."}],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "preference, sharegpt": (
        [
            {
                "conversations": [{"from": "human", "value": "What is rain?"}],
                "chosen": {"from": "gpt", "value": "Water."},
                "rejected": {"from": "gpt", "value": "Sand."},
            }
        ],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "transcripts": (
        [
            {
                "chosen": "\n\nHuman: What is rain?\n\nAssistant: Water.",
                "rejected": "\n\nHuman: What is rain?\n\nAssistant: Sand.",
            }
        ],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "reward bench": (
        [PAIR | {"chosen_model": "a", "rejected_model": "b", "subset": "hep-js", "id": 3}],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "ultrafeedback": (
        [ULTRAFEEDBACK],
        "UltraFeedback's rated completions",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "ultrafeedback, binarised": (
        [BINARISED],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "pairs of a run": ([RUN_PAIR], "preference pairs", [FIRST], [(FIRST, "Water.")], True),
    "strings": (["What is rain?"], "prompts", [FIRST], None, False),
    "capital letters": (
        [{"idx": 1, "Skill": "Science", "Instruction": "What is rain?"}],
        "instructions without answers",
        [FIRST],
        None,
        False,
    ),
    "MT-Bench": (
        [{"question_id": 81, "category": "stem", "turns": ["What is rain?", "Shorter."]}],
        "questions in turns, the first of each",
        [FIRST],
        None,
        False,
    ),
    "Arena-Hard": (
        [{"question_id": "3a", "cluster": "Weather", "turns": [{"content": "What is rain?"}]}],
        "questions in turns, the first of each",
        [FIRST],
        None,
        False,
    ),
    "Vicuna": (
        [{"question_id": 1, "text": "What is rain?", "category": "generic"}],
        "Vicuna questions",
        [FIRST],
        None,
        False,
    ),
    "questions": (
        [{"question": "What is rain?"}],
        "questions without answers",
        [FIRST],
        None,
        False,
    ),
    "GSM8K": (
        [{"question": "What is rain?", "answer": "Water."}],
        "questions with answers",
        [FIRST],
        [(FIRST, "Water.")],
        False,
    ),
    "prompt and answer": (
        [{"prompt": "What is rain?", "answer": "Water."}],
        "prompts with answers",
        [FIRST],
        [(FIRST, "Water.")],
        False,
    ),
    "ms-swift": (
        [{"query": "From where?", "response": "Clouds.", "history": [["What is rain?", "Water."]]}],
        "queries with responses",
        [SECOND],
        [(FIRST, "Water."), (SECOND, "Clouds.")],
        False,
    ),
    "Self-Instruct": (
        [
            {
                "id": "seed_task_0",
                "name": "what_is",
                "instruction": "What is",
                "instances": [
                    {"input": "rain?", "output": "Water."},
                    {"input": "a dune?", "output": "Sand."},
                ],
                "is_classification": False,
            }
        ],
        "Self-Instruct tasks",
        [[said("user", "What is\nrain?")]],
        [
            ([said("user", "What is\nrain?")], "Water."),
            ([said("user", "What is\na dune?")], "Sand."),
        ],
        False,
    ),
    "AlpacaEval, compared": (
        [ALPACA_EVAL],
        "compared outputs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "KTO, messages": (
        [{"messages": [RAIN, SAND], "label": False}, {"messages": [RAIN, WATER], "label": True}],
        "labelled conversations",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "preference, LLaMA-Factory's parts": (
        [
            {
                "chosen_messages": [parts(RAIN), parts(WATER)],
                "rejected_messages": [parts(RAIN), parts(SAND)],
            }
        ],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "preference, question": (
        [{"system": "", "question": "What is rain?", "chosen": "Water.", "rejected": "Sand."}],
        "preference pairs",
        [FIRST],
        [(FIRST, "Water.")],
        True,
    ),
    "unpaired": ([WORSE, LABELLED], "labelled completions", [FIRST], [(FIRST, "Water.")], True),
}


@pytest.fixture
def write(tmp_path):
    def to_file(rows: list[Any], name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return to_file


def case(name: str) -> tuple[list[dict[str, Any]], str, Any, Any, bool]:
    return CASES[name]


@pytest.mark.parametrize("name", CASES)
def test_recognised_and_asked(name, write):
    rows, form, asked, _, _ = case(name)
    found = recognised_prompts(write(rows))
    assert found.form.words == form
    assert [prompt.messages for prompt in found.rows] == asked


@pytest.mark.parametrize("name", CASES)
def test_answers_to_imitate(name, write):
    rows, form, _, wanted, _ = case(name)
    path = write(rows)
    if wanted is None:
        with pytest.raises(InputError, match=f"line 1: found {form}, wanted instructions with"):
            read_ift(path)
        return
    found = read_ift(path)
    assert [
        ([*row.get("turns", []), said("user", row["prompt"])], row["response"]) for row in found
    ] == wanted
    assert all(row.keys() <= {"prompt", "response", "turns"} for row in found)


@pytest.mark.parametrize("name", CASES)
def test_answers_in_order(name, write):
    rows, form, _, _, ordered = case(name)
    path = write(rows)
    if not ordered:
        for read in (read_ranked, read_eft_eval, read_preferences, read_eft_or_ranked):
            with pytest.raises(InputError, match=f"line 1: found {form}, wanted"):
                read(path)
        return
    (row,) = read_ranked(path)
    scores = dict(zip(row["responses"], row["scores"], strict=True))
    assert row["prompt"] == "What is rain?" and scores["Water."] > scores["Sand."]
    assert len(scores) == 2 and row["subset"] == rows[0].get("subset", "")
    assert read_eft_eval(path) == [{k: v for k, v in row.items() if k != "subset"}]
    assert read_preferences(path) == [
        {"prompt": "What is rain?", "chosen": [RAIN, WATER], "rejected": [RAIN, SAND]}
    ]
    judged, ranked = read_eft_or_ranked(path)
    assert (judged, ranked) == (([*rows], []) if name == "own EFT" else ([], read_eft_eval(path)))


def test_every_form_has_a_case_or_is_refused():
    named = {form for _, form, *_ in CASES.values()}
    assert {form.words for form in FORMATS if not form.refused} == named
    assert all(any(use.takes(form) for use in USES) != bool(form.refused) for form in FORMATS)


def test_many_turns_are_one_text_where_a_judge_reads_them(write):
    (row,) = read_ranked(write([{"prompt": SECOND, "chosen": "Clouds.", "rejected": "Taps."}]))
    assert row["prompt"] == "User: What is rain?\n\nAssistant: Water.\n\nUser: From where?"


AMBIGUOUS = [
    # A pair is a pair, whatever else names its prompt or repeats its answer.
    ({"prompt": "q", "chosen": "a", "rejected": "b", "response": "c"}, "preference pairs"),
    ({"prompt": "q", "messages": [RAIN, WATER]}, "conversations"),
    ({"prompt": "q", "messages": None, "response": None}, "prompts"),
    ({"prompt": "q", "completion": "a", "label": None}, "prompts with completions"),
    ({"prompt": "q", "completion": "a", "label": False}, "labelled completions"),
    ({"prompt": "q", "instruction": "i", "output": "o"}, "Alpaca instructions"),
    ({"prompt": "q", "response": "a", "instruction": "i"}, "instructions with answers"),
    ({"instruction": "i", "completions": [], "labels": [1]}, "stepwise supervision"),
    ({"text": "q"}, "texts of language modelling"),
    ({"instruction": "i", "output_1": "a", "output_2": "b"}, "instructions without answers"),
    ({"completion": "a"}, None),
]


@pytest.mark.parametrize(("row", "words"), AMBIGUOUS)
def test_the_rule_for_rows_of_several_forms(row, words, tmp_path):
    found = recognise(Line(tmp_path, 1, row))
    assert (found and found.words) == words


def test_one_row_serves_each_option_in_its_own_way(write):
    path = write([PAIR])
    assert [p.text for p in read_prompts(path)] == ["What is rain?"]
    assert read_ift(path) == [{"prompt": "What is rain?", "response": "Water."}]
    assert read_eft_or_ranked(path) == (
        [],
        [{"prompt": "What is rain?", "responses": ["Water.", "Sand."], "scores": [1.0, 0.0]}],
    )


def test_only_liked_completions_are_imitated_and_groups_need_two(write):
    lonely = LABELLED | {"prompt": "Alone?"}
    path = write([WORSE, LABELLED, lonely])
    assert [row["response"] for row in read_ift(path)] == ["Water.", "Water."]
    assert [row["prompt"] for row in read_ranked(path)] == ["What is rain?"]
    with pytest.raises(InputError, match="labelled completions, each of another prompt, wanted"):
        read_ranked(write([WORSE, lonely]))


def test_equal_answers_or_scores_are_no_pair(write):
    tie = {"prompt": "q", "responses": ["a", "b"], "scores": [2, 2]}
    assert read_preferences(write([RANKED, tie])) == read_preferences(write([RANKED]))
    assert len(read_ranked(write([RANKED, tie]))) == 2


@pytest.mark.parametrize("aspects", ["fine-grained_score", "annotations"])
def test_a_top_score_that_its_aspects_contradict_is_not_believed(write, aspects):
    """The fault of UltraFeedback's first release: a bad answer with an overall score of 10."""
    bad, good, middle = rated("Sand.", 10, "1"), rated("Water.", 10, "5"), rated("Wet.", 7, "2")
    for completion in (bad, good, middle):
        if aspects == "annotations":
            del completion["fine-grained_score"]
    path = write([ULTRAFEEDBACK | {"completions": [bad, good, middle]}])
    (row,) = read_ranked(path)
    assert (row["responses"], row["scores"]) == (["Water.", "Wet."], [10.0, 7.0])
    assert read_ift(path)[0]["response"] == "Water."
    path = write([ULTRAFEEDBACK | {"completions": [bad, middle]}])
    with pytest.raises(InputError, match="line 1: field 'completions' has 1 answers with a score"):
        read_ranked(path)


def test_a_top_score_without_aspects_stands(write):
    bare = [{"response": text, "overall_score": score} for text, score in (("a", 10), ("b", 2))]
    unread = {"annotations": {"honesty": {"Rating": "²"}, "helpfulness": {"Rating": "N/A"}}}
    for first in (bare[0], bare[0] | unread):
        (row,) = read_ranked(write([{"instruction": "q", "completions": [first, bare[1]]}]))
        assert row["scores"] == [10.0, 2.0]


@pytest.mark.parametrize(
    ("preference", "scores", "best"),
    [
        (1, [1, 0], "Sand."),
        (2, [0, 1], "Water."),
        (0, [0.5, 0.5], "Sand."),
        (1.75, [0.25, 0.75], "Water."),
    ],
)
def test_a_preference_is_the_probability_of_the_second(write, preference, scores, best):
    path = write([ALPACA_EVAL | {"preference": given} for given in (preference, 1)])
    row, _ = read_ranked(path)
    assert (row["responses"], row["scores"]) == (["Sand.", "Water."], scores)
    assert [row["response"] for row in read_ift(path)] == [best, "Sand."]
    assert len(read_preferences(path)) == 1 + (preference != 0)


def test_a_label_that_is_none_of_liking_leaves_the_answers(write):
    path = write([{"messages": [RAIN, WATER], "label": "weather"}])
    assert [row["response"] for row in read_ift(path)] == ["Water."]
    with pytest.raises(InputError, match="line 1: field 'label' is a string, wanted true or false"):
        read_ranked(path)


@pytest.mark.parametrize("no", [0, 0.0, False, "false", "0"])
def test_a_label_of_dislike_leaves_no_answer(write, no):
    """Numbers as tables have them; text that says no."""
    yes = {int: 1, float: 1.0, bool: True}.get(type(no), "True")
    path = write(
        [{"messages": [RAIN, SAND], "label": no}, {"messages": [RAIN, WATER], "label": yes}]
    )
    assert [row["response"] for row in read_ift(path)] == ["Water."]
    assert [row["scores"] for row in read_ranked(path)] == [[0.0, 1.0]]


def test_a_label_of_some_number_is_refused(write):
    path = write([{"messages": [RAIN, SAND], "label": 2}])
    with pytest.raises(InputError, match="field 'label' is the number 2, wanted true or false"):
        read_ift(path)


def test_a_system_prompt_beside_a_prompt_is_a_turn(write):
    path = write([PAIR | {"system": "Be kind."}])
    assert read_prompts(path)[0].messages == [SYSTEM, RAIN]
    assert read_preferences(path)[0]["chosen"] == [SYSTEM, RAIN, WATER]
