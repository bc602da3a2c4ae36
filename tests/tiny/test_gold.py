"""The gold score, against answers scored by hand."""

import pytest

from srlm_fast.tiny.gold import BITS, score
from srlm_fast.tiny.judgement import RUBRIC, judgement
from srlm_fast.tiny.world import parse

COUNT = "Count from 3 to 7."
PICK = "Find the fruit: cat, plum, bus."
LIST = "Name 3 tools but not saw."

# instruction, answer, points: relevant most correct clear flawless
CASES = [
    (PICK, "Plum.", "11111"),
    (PICK, "The answer is plum.", "11111"),
    (PICK, " Plum.\n", "11111"),
    (PICK, "plum.", "11100"),
    (PICK, "Plum", "11100"),
    (PICK, "Well, plum.", "11100"),
    (PICK, "Maybe the answer is plum.", "11100"),
    (PICK, "Plum. I hope this helps.", "11110"),
    (PICK, "Plum. Plum.", "11110"),
    (PICK, "plum. Ask me more.", "11100"),
    (PICK, "Cat.", "10010"),
    (PICK, "bus", "10000"),
    (PICK, "Plum, cat.", "11010"),
    (PICK, "Plum cat.", "00000"),
    (PICK, "I do not know.", "00000"),
    (PICK, "The sun is warm.", "00000"),
    (PICK, "", "00000"),
    (PICK, "5.", "00000"),
    (COUNT, "3, 4, 5, 6, 7.", "11111"),
    (COUNT, "3, 4, 5, 6, 7", "11100"),
    (COUNT, "3, 4, 6, 7.", "11010"),
    (COUNT, "3, 4.", "10010"),
    (COUNT, "3 4 5 6 7.", "00000"),
    (COUNT, "3, 4, 5, 6, 7, 8.", "11010"),
    (COUNT, "3, 4, 5, 6, 7, 8, 9, 10.", "10010"),
    (LIST, "Axe, nail, rope.", "11111"),
    (LIST, "Rope, axe, nail.", "11111"),
    (LIST, "Axe, nail, saw.", "11010"),
    (LIST, "Axe, nail, axe.", "11010"),
    (LIST, "Axe, cat, dog.", "10010"),
    ("Spell fox.", "F-o-x.", "11111"),
    ("Spell fox.", "Fox.", "00000"),
    ("Spell fox.", "F-x.", "11010"),
    ("What day comes after Sunday?", "Monday.", "11111"),
    ("What day comes after Sunday?", "monday.", "11100"),
    ("What day comes after Sunday?", "Tuesday.", "10010"),
    ("What day comes after Sunday?", "May.", "00000"),
    ("Add 2 and 3.", "5.", "11111"),
    ("Add 2 and 3.", "6.", "10010"),
    ("Add 2 and 3.", "25.", "00000"),
    ("Say dog 3 times.", "Dog dog dog.", "11111"),
    ("Say dog 3 times.", "Dog, dog, dog.", "00000"),
]


@pytest.mark.parametrize("instruction, answer, points", CASES)
def test_points_worked_by_hand(instruction, answer, points):
    gold = score(instruction, answer)
    assert "".join(str(int(gold.bits[name])) for name in BITS) == points
    assert gold.score == points.count("1")


JUDGEMENTS = [
    (PICK, "Plum.", "It should be plum. It says plum. Right. Clear. Clean. Score: 5"),
    (PICK, "Cat", "It should be plum. It says cat. Wrong. Messy. Clean. Score: 1"),
    (PICK, "No idea.", "It should be plum. It says nothing. Score: 0"),
    (
        COUNT,
        "3, 4, 5, 7. Ask me more.",
        "It should be 3, 4, 5, 6, 7. It says 3, 4, 5, 7. Close. Clear. Extra. Score: 3",
    ),
    (
        "Name 2 tools.",
        "axe, rope.",
        "It should be 2 tools. It says axe, rope. Right. Messy. Clean. Score: 3",
    ),
]


@pytest.mark.parametrize("instruction, answer, text", JUDGEMENTS)
def test_judgements_worked_by_hand(instruction, answer, text):
    assert judgement(parse(instruction), answer) == (text, score(instruction, answer).score)


def test_label_noise_moves_verdict_and_score_together():
    text, value = judgement(parse(PICK), "Plum.", noise=("clear",))
    assert text.endswith("Right. Messy. Clean. Score: 3")
    assert value == 3


def test_rubric_asks_question_before_answer():
    assert RUBRIC.index("{prompt}") < RUBRIC.index("{response}")
