"""A chat template of one's own: saved with every model, tried before anything is loaded."""

from __future__ import annotations

import json

import pytest

from srlm_fast.loop import run
from srlm_fast.loop.chat_template import read_chat_template
from srlm_fast.records import InputError
from tests.loop.worlds import Silent, small_config

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "chat.jinja"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return to_file


def test_no_file_is_no_template(write):
    assert read_chat_template(None) is None
    assert read_chat_template(write(TEMPLATE)) == TEMPLATE
    marked = "{% generation %}" + TEMPLATE + "{% endgeneration %}"
    assert read_chat_template(write(marked)) == marked  # as transformers has it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% for m in messages %}\n{{ m['content'] }}\n{% endif %}", "chat.jinja line 3: "),
        ("a\n{{ messages[0]['content' }}", "chat.jinja line 2: "),
        ("{{ raise_exception('no users') }}", "chat.jinja: no users, wanted a Jinja template"),
        ("{{ messages[7]['content'] }}", "chat.jinja: "),
        ("always the same", "leaves out what the user says"),
        ("", "leaves out what the user says"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_broken_template_is_one_line(write, text, message):
    with pytest.raises(InputError) as caught:
        read_chat_template(write(text))
    assert message in str(caught.value) and str(caught.value).startswith("--chat-template ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_it_is_saved_with_the_models_and_the_data_is_told(write, tmp_path):
    """M1 learns a conversation of the user's behind the template."""
    ift = tmp_path / "ift.json"
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Spell it."), ("assistant", "I, t.")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in turns]},
        {"messages": 3},
    ]
    ift.write_text(json.dumps([*rows, rows[0]]))
    changes = {"ift_file": str(ift), "skip_bad": True, "chat_template_file": write(TEMPLATE)}
    few = {"num_eft": 4, "sft.epochs": 1}
    few |= {"evaluation.num_prompts": 1, "evaluation.num_judged": 1, "judge.sampling.n": 1}
    screen, out = Silent(), tmp_path / "run"
    summary = run(small_config(out, iterations=0, **few, **changes), screen)
    saved = (out / "m1" / "model" / "chat_template.jinja").read_text()
    assert saved == TEMPLATE
    notes = "\n".join(screen.notes)
    assert f"--ift {ift}: recognised as conversations, 4 rows of 2 conversations, 1 line" in notes
    assert "field 'messages' is the number 3" in notes
    assert screen.notes.index(f"writing to {out}") > 0  # behind what the data have to say
    assert summary["data"]["--ift"]["skipped"] == 1
    taught = [json.loads(line) for line in (out / "m1" / "sft.jsonl").read_text().splitlines()]
    assert taught[1] == {
        "kind": "ift",
        "prompt": "Spell it.",
        "response": "I, t.",
        "turns": rows[0]["messages"][:2],
    }
