"""Rows in TRL's forms: what `datasets` and TRL itself make of a file is what is read here, and chat
templates of several families write the same text for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from srlm_fast import tiny
from srlm_fast.data import read_ift, read_preferences, read_prompts
from srlm_fast.model import chat

datasets = pytest.importorskip("datasets")
trl = pytest.importorskip("trl.data_utils")

# As the families write them: ChatML, Llama 3's headers, Mistral's brackets (which insist on user
# and assistant in turn and have no system turn), Gemma's turns (which refuse a system turn).
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "headers": (
        "{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
    ),
    "brackets": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
        "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "turns": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] }}</turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
    "default": chat.DEFAULT_TEMPLATE,
}


def says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [says("user", "q"), says("assistant", "a"), says("user", "And?")]
SYSTEM = says("system", "Be kind.")
PREFERENCES: list[dict[str, Any]] = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"prompt": ASKED, "chosen": [says("assistant", "b")], "rejected": [says("assistant", "c")]},
    {"chosen": [*ASKED, says("assistant", "b")], "rejected": [*ASKED, says("assistant", "c")]},
    {
        "prompt": "And?",
        "chosen": [*ASKED, says("assistant", "b")],
        "rejected": [*ASKED, says("assistant", "c")],
    },
]


@pytest.fixture
def write(tmp_path):
    def to_file(rows: list[Any]):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return to_file


@pytest.fixture
def load(tmp_path):
    def loaded(path):
        return datasets.load_dataset(
            "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )

    return loaded


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(Path(tiny.__file__).parent / "m0")


def turns(value: Any, role: str) -> list[dict[str, str]]:
    return [says(role, value)] if isinstance(value, str) else value


@pytest.mark.parametrize("row", PREFERENCES, ids=range(len(PREFERENCES)))
def test_preferences_as_trl_takes_them_apart(write, load, row):
    path = write([row])
    theirs = trl.maybe_extract_prompt(load(path)[0])
    before = turns(theirs["prompt"], "user")
    assert read_preferences(path) == [
        {
            "prompt": before[-1]["content"],
            "chosen": [*before, *turns(theirs["chosen"], "assistant")],
            "rejected": [*before, *turns(theirs["rejected"], "assistant")],
        }
    ]


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.parametrize("before", [[], [SYSTEM]], ids=["plain", "system"])
def test_templates_write_the_same_prompt(write, load, tokenizer, family, before):
    tokenizer.chat_template = TEMPLATES[family]
    path = write([{"prompt": [*before, *ASKED]}])
    (ours,) = read_prompts(path)
    theirs = load(path)[0]
    if before and family in ("brackets", "turns"):  # refuse a system turn: it leads the first one
        theirs = {"prompt": [says("user", "Be kind.\n\nq"), *ASKED[1:]]}
    assert (
        chat.render(tokenizer, ours.text, ours.turns)
        == trl.apply_chat_template(theirs, tokenizer)["prompt"]
    )


@pytest.mark.parametrize("family", ["chatml", "headers", "turns", "default"])
def test_templates_write_the_same_rows_of_many_turns(write, load, tokenizer, family):
    """Each answer of a conversation is learnt behind the text that TRL's template has before it."""
    tokenizer.chat_template = TEMPLATES[family]
    path = write([{"messages": [*ASKED, says("assistant", "b")]}])
    whole = trl.apply_chat_template(load(path)[0], tokenizer)["text"]
    for row in read_ift(path):
        learnt = chat.render(tokenizer, row["prompt"], row.get("turns", ())) + row["response"]
        assert whole.startswith(learnt)
    assert len(read_ift(path)) == 2


def test_prompt_completion(write, load, tokenizer):
    tokenizer.chat_template = TEMPLATES["chatml"]
    path = write([{"prompt": ASKED, "completion": [says("assistant", "b")]}])
    (row,) = read_ift(path)
    theirs = trl.apply_chat_template(load(path)[0], tokenizer)
    assert chat.render(tokenizer, row["prompt"], row["turns"]) == theirs["prompt"]
    assert theirs["completion"].startswith(row["response"])


def test_unpaired(write, load):
    rows = [{"prompt": "q", "completion": str(i), "label": i != 1} for i in range(3)]
    path = write(rows)
    liked = [row["completion"] for row in load(path) if row["label"]]
    assert [row["response"] for row in read_ift(path)] == liked
