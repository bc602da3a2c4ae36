"""Answers to conversations as human text: measured turn by turn, whatever file they come from."""

from __future__ import annotations

import pytest

from srlm_fast.data.oasst import OasstConfig, make_seeds
from srlm_fast.loop.token_rows import prompt_ids
from srlm_fast.model import load_model
from srlm_fast.records import asked_row, conversation_text, write_jsonl
from tests.data.oasst_trees import TREES
from tests.loop.test_human_text import ift_rows, material, prompts_of

SPOKEN = [
    {"role": "user", "content": "Name a lake."},
    {"role": "assistant", "content": "Garda."},
    {"role": "user", "content": "Another?"},
]
FORMS = {
    "turns before the prompt": {"turns": SPOKEN[:2], "prompt": "Another?"},
    "a prompt of messages": {"prompt": SPOKEN},
    "as it is written down": asked_row(SPOKEN),
}


@pytest.mark.parametrize("form", FORMS)
def test_ranked_answers_to_a_conversation_go_through_the_chat_template(tmp_path, form):
    """The judge reads one text; the conversation is measured turn by turn."""
    ranked = FORMS[form] | {"responses": ["Rhine.", "Como."], "scores": [1, 2]}
    alone = {"prompt": "Another?", "response": "One more."}  # the same last turn, something else
    found = material(
        tmp_path, ift=[*ift_rows(9), alone], eft_eval=[ranked], prompts=[{"prompt": "Task"}] * 2
    )
    assert [row["prompt"] for row in found.eft_eval] == [conversation_text(SPOKEN)]
    assert found.human_text == [
        {"prompt": "Another?", "response": "Como.", "turns": SPOKEN[:2]},
    ]
    assert alone in found.ift
    tiny = load_model("tiny", "cpu")
    written = tiny.tokenizer.apply_chat_template(SPOKEN, add_generation_prompt=True, tokenize=False)
    ids = tiny.tokenizer(written, add_special_tokens=False)["input_ids"]
    assert prompt_ids(tiny, found.human_text[0]) == ids


def test_later_turns_of_open_assistant_are_conversations(tmp_path):
    write_jsonl(tmp_path / "trees.jsonl", TREES)
    config = OasstConfig(ift=0, eft_train=0, eft_eval=9)
    rows = make_seeds([tmp_path / "trees.jsonl"], config).eft_eval
    found = material(tmp_path, ift=ift_rows(9), eft_eval=rows, prompts=[{"prompt": "Task"}] * 2)
    later = {row["prompt"]: row for row in found.human_text if row.get("turns")}
    assert later.keys() == {"Why?", "Another?", "Three?"}
    assert later["Another?"]["turns"] == SPOKEN[:2]
    assert len(later["Three?"]["turns"]) == 4


def test_judgements_of_a_conversation_are_measured_as_one(tmp_path):
    rows = [
        {"turns": SPOKEN[:2], "prompt": f"Q{i}?", "response": f"{n}", "score": n, "judgement": said}
        for i in range(10)
        for n, said in ((1, "Poor.\nScore: 1"), (4, "Good.\nScore: 4"))
    ]
    found = material(tmp_path, ift=ift_rows(9), eft=rows, prompts=[{"prompt": "Task"}] * 2)
    (row,) = found.human_text
    assert (row["turns"], row["response"]) == (SPOKEN[:2], "4") and row["prompt"][0] == "Q"


def test_a_conversation_that_begins_as_a_measured_one_is_not_judged_in_training(tmp_path):
    ranked = FORMS["as it is written down"] | {"responses": ["Rhine.", "Como."], "scores": [1, 2]}
    other = {"prompt": "Else?", "responses": ["a", "b"], "scores": [1, 2]}
    measured = [{"prompt": "Name a lake."}]
    found = material(tmp_path, ift=ift_rows(9), eft=[ranked, other], eval_prompts=measured)
    assert prompts_of(found.ranked) == {"Else?"}
