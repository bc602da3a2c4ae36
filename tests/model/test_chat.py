"""Conversations through chat templates: the model's own, one that refuses system messages, the
default.
"""

from __future__ import annotations

import pytest

from srlm_fast.model import ModelError, chat
from tests.model.test_load import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('must alternate') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "Plum."},
]


def tokenizer(template):
    made = byte_tokenizer()
    made.chat_template = template
    return made


def test_turns_stand_before_the_prompt():
    text = chat.render(tokenizer(CHATML), "Another.", [SYSTEM, *TURNS])
    assert text == (
        "<|system|>Be brief.\n<|user|>Name a fruit.\n<|assistant|>Plum.\n<|user|>Another.\n"
        "<|assistant|>"
    )


def test_the_default_template_keeps_all_turns():
    made = tokenizer(None)
    assert chat.ensure_chat_template(made)
    text = chat.render(made, "Another.", [SYSTEM, *TURNS])
    asked = [text.index(part) for part in ("Be brief.", "Name a fruit.", "Plum.", "Another.")]
    assert asked == sorted(asked)
    assert text.endswith("### Response:\n")


def test_a_refused_system_message_opens_the_first_user_turn():
    made = tokenizer(STRICT)
    assert chat.render(made, "Another.", [SYSTEM, *TURNS]) == (
        "[user]Be brief.\n\nName a fruit.[assistant]Plum.[user]Another."
    )
    assert chat.render(made, "Name a fruit.", [SYSTEM]) == "[user]Be brief.\n\nName a fruit."


def test_what_a_template_cannot_render_is_said_in_one_line():
    with pytest.raises(ModelError) as caught:
        chat.encode(tokenizer(STRICT), "Another.", TURNS[:1])
    assert str(caught.value) == (
        "the chat template cannot render a conversation of user, user (must alternate)"
    )
