"""Prompts out of what models write: outputs by hand, in the manner of base and chat models."""

import pytest

from srlm_fast.data.made_text import is_refusal, own_mark, split_output

HEADER = "Come up with a series of tasks:\n\n"

PLAIN = {
    " Name a river\n": ["Name a river"],
    "Task 9: Name a river": ["Name a river"],
    "说出一条河的名字": ["说出一条河的名字"],
    "": [],
    "Order these:\n1. a\n2. b": ["Order these:\n1. a\n2. b"],
    "Sort by name:\n- pears\n- apples": ["Sort by name:\n- pears\n- apples"],
    "Why?\n\nThink of Task 3 too.": ["Why?\n\nThink of Task 3 too."],
}
LISTS = {
    " Name a river\nTask 10: Name a lake\nTask 11: x": ["Name a river", "Name a lake", "x"],
    "Name a river\n\n task 10 - Name a lake": ["Name a river", "Name a lake"],
    "1. Name a river\n2. Name a lake\n": ["Name a river", "Name a lake"],
    "(1) Name a river\n(2) Name a lake": ["Name a river", "Name a lake"],
    "- Name a river": ["Name a river"],
    "- Name a river\n- Name a lake": ["Name a river", "Name a lake"],
    "Prompt: Name a river\nPrompt: Name a lake": ["Name a river", "Name a lake"],
    "Instruction: Translate it.\nInput: Hallo": ["Translate it.\nInput: Hallo"],
}
ANSWERED = {
    "Name a river\nAnswer: The Rhine": ["Name a river"],
    "Name a river\n  output : Rhine\nTask 10: Name a lake": ["Name a river", "Name a lake"],
    "Answer: 4": [],
    "Name a river\n\n### Response:\nThe Rhine": ["Name a river"],
    "Name a river\n\n## Sample answer\nThe Rhine": ["Name a river"],
    "Name a river\n**Answer:** The Rhine\n**Task 10:** x y": ["Name a river", "x y"],
    # A list of prompts, then a list of answers (appendix A.5).
    "Name a river\nTask 10: Name a lake\n\nAnswers:\nTask 9: Rhine\nTask 10: Como": [
        *("Name a river", "Name a lake")
    ],
    "Task 9: Name a river\nTask 10: Name a lake\nTask 9: Rhine\nTask 10: Como": [
        *("Name a river", "Name a lake")
    ],
    "1. Name a river\n2. Name a lake\n\n1. Rhine\n2. Como": ["Name a river", "Name a lake"],
}
FORMATTED = {
    '"Name a river"': ["Name a river"],
    "“Name a river”": ["Name a river"],
    '**"Name a river"**': ["Name a river"],
    "*Name a river*": ["Name a river"],
    'Say "hi" and "bye"': ['Say "hi" and "bye"'],
    '"Rhine" or "Elbe"': ['"Rhine" or "Elbe"'],
    "Name *a* river": ["Name *a* river"],
    "**Task 9:** Name a river": ["Name a river"],
    "**Task 9**: Name a river": ["Name a river"],
    "**Task 9: Name a river**": ["Name a river"],
    "### Task 9: Name a river\n\n### Task 10: Name a lake": ["Name a river", "Name a lake"],
    "1. **Geography:** Name a river\n2. **Lakes**: Name a lake": ["Name a river", "Name a lake"],
    "**1.** Name a river\n**2.** Name a lake": ["Name a river", "Name a lake"],
    "Name a river\n\n---\n\nTask 10: Name a lake": ["Name a river", "Name a lake"],
    "```\nTask 9: Name a river\n```": ["Name a river"],
    "What does this do?\n```python\nx = 1\n```": ["What does this do?\n```python\nx = 1\n```"],
}
CHATTY = {
    "Sure! Here is a new task:\n\nTask 9: Name a river\n\nLet me know if you want more!": [
        "Name a river"
    ],
    "Sure, here's Task 9: Name a river": ["Name a river"],
    "Here is Task 9: Name a river": ["Name a river"],
    "Certainly! Here are some tasks for you:\n1. Name a river\n2. Name a lake": [
        *("Name a river", "Name a lake")
    ],
    "Of course!\n\nName a river\n\nI hope this helps.": ["Name a river"],
    "Sure! Here is the task:\n```text\nTask 9: Name a river\n```": ["Name a river"],
    HEADER + "Task 1: Name a river": ["Name a river"],
    "Sure! Here is a task:": [],
    # Prompts that only look like talk.
    "Here is a question: what is rain?": ["Here is a question: what is rain?"],
    "Okay, so I have two cats. What now?": ["Okay, so I have two cats. What now?"],
    "Great ideas take time. Why?": ["Great ideas take time. Why?"],
}


@pytest.mark.parametrize(
    ("output", "want"),
    [each for group in (PLAIN, LISTS, ANSWERED, FORMATTED, CHATTY) for each in group.items()],
)
def test_prompts_are_found(output, want):
    assert split_output(output, header=HEADER) == want


def test_the_mark_is_that_of_the_layout():
    assert split_output(" a b\nTask: c d", "Task: {prompt}\n") == ["a b", "c d"]
    assert split_output(" a b\n3) c d\n2. e", "{n}. {prompt}\n") == ["a b", "c d"]
    assert own_mark("{prompt}\n") == ""
    assert split_output("a b\nc d", "{prompt}\n") == ["a b\nc d"]


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I have no tasks.", True),
        ("I cannot generate more tasks.", True),
        ("I cannot find my keys. Where are they?", False),
        ("Sorry to ask again: what is rain?", False),
        ("Asian food is what?", False),
    ],
)
def test_refusals(text, refuses):
    assert is_refusal(text) is refuses
