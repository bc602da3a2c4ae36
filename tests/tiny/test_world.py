"""The world: every template is read back, and knows what it wants."""

import random

import pytest

from srlm_fast.tiny import world
from srlm_fast.tiny.answers import CLEAN, Flaws, compose, right_items, wrong_items
from srlm_fast.tiny.gold import is_right, score

TEMPLATES = [(family, template) for family in world.FAMILIES for template in family.templates]


@pytest.mark.parametrize("family, template", TEMPLATES, ids=[t for _, t in TEMPLATES])
def test_each_template_is_read_back_by_its_family(family, template):
    rng = random.Random(template)
    for _ in range(50):
        instruction = template.format(**family.draw(rng, template))
        task = world.parse(instruction)
        assert task is not None, instruction
        assert task.family == family.name
        assert task.instruction == instruction
        assert task.is_open or task.gold


@pytest.mark.parametrize("family, template", TEMPLATES, ids=[t for _, t in TEMPLATES])
def test_a_clean_answer_is_worth_five_and_a_wrong_one_at_most_three(family, template):
    rng = random.Random(template)
    for _ in range(50):
        task = world.parse(template.format(**family.draw(rng, template)))
        assert score(task.instruction, compose(task, CLEAN, rng)).score == 5
        wrong = score(task.instruction, compose(task, Flaws(wrong=1.0), rng))
        assert wrong.score <= 3
        assert not wrong.bits["correct"]


WANTED = {
    "Count from 3 to 6.": "3, 4, 5, 6",
    "Write the numbers 18 to 20.": "18, 19, 20",
    "Count back from 4 to 1.": "4, 3, 2, 1",
    "Say dog 3 times.": "dog dog dog",
    "Name 2 tools but not saw.": "2 tools but not saw",
    "What day comes after Sunday?": "Monday",
    "Name the month before January.": "December",
    "Which number is before 1?": "0",
    "What is the third word: cat, hot, bus, pie?": "bus",
    "Copy the last word: cat, hot, bus.": "bus",
    "Give the opposite of shut.": "open",
    "Find the fruit: cat, plum, bus.": "plum",
    "Add 9 and 10.": "19",
    "What is 7 minus 7?": "0",
    "Which is smaller, 12 or 9?": "9",
    "Leave out cat: cat, hot, bus.": "hot, bus",
    "How do you spell frog?": None,
    "Spell fox.": "f-o-x",
}


@pytest.mark.parametrize("instruction, wanted", WANTED.items())
def test_wanted_content_worked_by_hand(instruction, wanted):
    task = world.parse(instruction)
    assert (task.wanted() if task else None) == wanted


INVALID = (
    "",
    "Count from 6 to 3.",
    "Count from 1 to 2.",
    "Count from 1 to 9.",
    "Count from 19 to 22.",
    "Count from 03 to 6.",
    "Count down from 3 to 6.",
    "Say dog 9 times.",
    "Say dig 3 times.",
    "Name 4 tools.",
    "Name 2 tools but not cat.",
    "Name 2 cats.",
    "What day comes after May?",
    "What number comes after 20?",
    "What number is before 0?",
    "What is the first word: cat, cat, bus?",
    "What is the first word: cat, bus?",
    "Find the fruit: cat, plum, pear.",
    "Find the fruit: cat, bus, saw.",
    "Add 9 and 11.",
    "What is 3 minus 7?",
    "Which is larger, 7 or 7?",
    "Remove pig: cat, hot, bus.",
    "Spell monday.",
    "Please spell fox.",
    "Spell fox. Spell fox.",
)


@pytest.mark.parametrize("instruction", INVALID)
def test_what_the_world_does_not_know_is_none(instruction):
    assert world.parse(instruction) is None
    assert score(instruction, "Dog.").score == 0


def test_drawn_tasks_keep_to_their_class():
    rng = random.Random(1)
    assert not any(world.is_held_out(world.draw(rng).instruction) for _ in range(500))
    assert all(world.is_held_out(world.draw(rng, held_out=True).instruction) for _ in range(50))


def test_every_family_has_held_out_instructions():
    rng = random.Random(2)
    drawn = {world.draw(rng, held_out=True).family for _ in range(600)}
    assert drawn == {family.name for family in world.FAMILIES}


def test_distinct_tasks_do_not_repeat():
    source = world.draw_distinct(random.Random(3))
    instructions = [next(source).instruction for _ in range(300)]
    assert len(set(instructions)) == 300


def test_wrong_items_are_never_right_and_right_ones_always():
    rng = random.Random(4)
    for _ in range(500):
        task = world.draw(rng)
        assert is_right(task, right_items(task, rng))
        assert not is_right(task, wrong_items(task, rng))


def test_words_are_unambiguous():
    assert len(set(world.WORDS)) == len(world.WORDS)
    assert not set(world.WORDS) & {word.lower() for word in world.DAYS + world.MONTHS}
