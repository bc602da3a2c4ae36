"""Seed data and evaluation sets of the tiny world. Standard library only.

The instruction seed (IFT) is mediocre on purpose, like answers of a crowd: a clean one would leave
a model whose answers differ too little for its judge to learn from. The evaluation seed (EFT) has
labels with a few errors and as many rows of each score 0..5. Held-out instructions appear in the
evaluation sets only.
"""

import random
from collections.abc import Iterable
from itertools import islice
from typing import Any

from srlm_fast.tiny.answers import CLEAN, Flaws, compose
from srlm_fast.tiny.gold import read
from srlm_fast.tiny.judgement import judgement
from srlm_fast.tiny.settings import SETTINGS
from srlm_fast.tiny.world import draw_distinct

CROWD = Flaws(
    off_topic=0.05, refusal=0.04, wrong=0.45, hedge=0.35, style=0.40, extra=0.40, doubled=0.06
)
LABEL_NOISE = 0.05
NUM_SCORES = 6
NUM_EFT_EVAL, NUM_ANSWERS = SETTINGS.num_eft_eval, SETTINGS.num_eft_answers
_NOISY = ("most", "correct", "clear", "clean")

Row = dict[str, Any]


def ift(seed: int, n: int = 256) -> list[Row]:
    """`n` rows {"prompt", "response"} of mediocre answers to different instructions."""
    rng = random.Random(f"ift-{seed}")
    tasks = list(islice(draw_distinct(rng), n))
    return [{"prompt": t.instruction, "response": compose(t, CROWD, rng)} for t in tasks]


def eft(seed: int, n: int = 384, exclude: Iterable[str] = ()) -> list[Row]:
    """`n` rows {"prompt", "response", "judgement", "score"}, the scores 0..5 balanced to one row.

    exclude: instructions that must not occur, those of the IFT rows among them.
    """
    rng = random.Random(f"eft-{seed}")
    seen = set(exclude)
    wanted = [n // NUM_SCORES + (k < n % NUM_SCORES) for k in range(NUM_SCORES)]
    rows: list[Row] = []
    for task in draw_distinct(rng):
        if task.instruction in seen:
            continue
        answer = compose(task, CROWD, rng)
        noise = tuple(name for name in _NOISY if rng.random() < LABEL_NOISE)
        text, value = judgement(task, answer, noise)
        if wanted[value]:
            wanted[value] -= 1
            rows.append(_eft_row(task.instruction, answer, text, value))
        if not any(wanted):
            break
    rng.shuffle(rows)
    return rows


def _eft_row(prompt: str, response: str, text: str, value: int) -> Row:
    return {"prompt": prompt, "response": response, "judgement": text, "score": value}


def eft_eval(n: int = NUM_EFT_EVAL) -> list[Row]:
    """Held-out rows {"prompt", "responses", "scores"}: four answers each with their gold scores."""
    rng = random.Random("eft-eval")
    source = draw_distinct(rng, held_out=True)
    rows: list[Row] = []
    while len(rows) < n:
        task = next(source)
        answers = list(dict.fromkeys(compose(task, CROWD, rng) for _ in range(2 * NUM_ANSWERS)))
        scores = [read(task, answer).score for answer in answers[:NUM_ANSWERS]]
        if len(scores) == NUM_ANSWERS and len(set(scores)) > 1:
            responses = answers[:NUM_ANSWERS]
            rows.append({"prompt": task.instruction, "responses": responses, "scores": scores})
    return rows


def heldout(n: int = 400) -> list[str]:
    """`n` different held-out instructions for the gold score of a model; fewer where the world has
    not as many.
    """
    source = draw_distinct(random.Random("held-out"), held_out=True)
    return [task.instruction for task in islice(source, n)]


def human_text(n: int = 256) -> list[Row]:
    """Rows {"prompt", "response"}: the instructions of `heldout` with an answer each as the world's
    people give it at their best; fewer where the world has not as many.
    """
    source = draw_distinct(random.Random("held-out"), held_out=True)
    rng = random.Random("human-text")
    return [
        {"prompt": task.instruction, "response": compose(task, CLEAN, rng)}
        for task in islice(source, n)
    ]
