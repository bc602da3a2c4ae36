"""Pretraining documents of the tiny world, as weighted pieces of text.

Kinds: questions with answers, reviews of answers, lists of tasks, bare comparisons of two
contents, and copies. The rubric and the word "Score" of the judge do not occur: the
evaluation fine-tuning seed teaches them. Held-out instructions never occur.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from srlm_fast.tiny.answers import CLEAN, Flaws, compose, wrong_items
from srlm_fast.tiny.gold import is_right, read
from srlm_fast.tiny.judgement import pieces
from srlm_fast.tiny.world import KINDS, Task, draw

Document = list[tuple[str, float]]  # (text, weight of its tokens in the loss)

END = "<|end|>"
REVIEWED = Flaws(
    off_topic=0.05, refusal=0.03, wrong=0.5, hedge=0.12, style=0.15, extra=0.18, doubled=0.05
)
FORMATS = (("User: ", "\nBot:\n"), ("Q: ", "\nA:\n"), ("Task: ", "\nAnswer:\n"))
REVIEW_FORMATS = (
    ("Task: ", "\nAnswer:\n", "\nReview:\n"),
    ("Q: ", "\nA:\n", "\nReview:\n"),
    ("User: Check the answer.\nTask: ", "\nAnswer:\n", "\nBot:\n"),
    ("User: Is this right?\nTask: ", "\nAnswer:\n", "\nBot:\n"),
)
LIST_HEADS = ("Here are some tasks.\n", "Tasks:\n", "Some more tasks.\n", "")
LIST_MARKS = ("{i}. ", "- ", "Task {i}: ", "Task: ")
PROMPT_WEIGHT, END_WEIGHT, LIST_WEIGHT = 0.1, 0.5, 0.5
ROLE_WEIGHTS = {"wanted": 1.0, "verdict": 2.5, "form": 0.15, "score": 1.0}
RATED_SHARE = 0.6


@dataclass(frozen=True)
class Mixture:
    """Shares of the kinds of document, the flaws of the answers to questions, and the loss weight
    of what a judgement says that the answer says."""

    question: float
    review: float
    tasks: float
    compare: float
    copy: float
    flaws: Flaws = CLEAN
    given_weight: float = 0.4


def _weight(role: str, mixture: Mixture) -> float:
    return mixture.given_weight if role == "given" else ROLE_WEIGHTS[role]


def question(rng: random.Random, mixture: Mixture) -> Document:
    """An instruction with an answer."""
    task = draw(rng)
    ask, reply = rng.choice(FORMATS) if rng.random() < 0.5 else FORMATS[0]
    answer = compose(task, mixture.flaws, rng)
    head = f"{ask}{task.instruction}{reply}"
    return [(head, PROMPT_WEIGHT), (answer, 1.0), (END, END_WEIGHT)]


def review(rng: random.Random, mixture: Mixture) -> Document:
    """An instruction, an answer of any quality, and a judgement of it."""
    task = draw(rng)
    ask, reply, check = rng.choice(REVIEW_FORMATS)
    answer = compose(task, REVIEWED, rng)
    label = "Rating" if rng.random() < RATED_SHARE else None
    words = pieces(task, read(task, answer), label)
    head = f"{ask}{task.instruction}{reply}{answer}{check}"
    judged = [(text, _weight(role, mixture)) for text, role in words]
    return [(head, 0.0), (judged[0][0].lstrip(), judged[0][1]), *judged[1:], (END, END_WEIGHT)]


def tasks(rng: random.Random, mixture: Mixture) -> Document:
    """A list of instructions; it teaches to make up new ones."""
    mark = rng.choice(LIST_MARKS)
    lines = [mark.format(i=i + 1) + draw(rng).instruction for i in range(rng.randint(4, 10))]
    return [(rng.choice(LIST_HEADS) + "\n".join(lines), LIST_WEIGHT), (END, END_WEIGHT)]


def _content(rng: random.Random) -> tuple[Task, tuple[str, ...]]:
    """A content of any kind, with a task-like holder that knows its near misses."""
    task = draw(rng)
    while task.is_open:
        task = draw(rng)
    items = [rng.choice(KINDS[task.kind]) for _ in task.gold]
    return Task(task.family, "", task.kind, tuple(items), task.joiner), tuple(items)


def compare(rng: random.Random, mixture: Mixture) -> Document:
    """Two contents side by side and whether they agree: the judge's hardest step on its own."""
    task, items = _content(rng)
    given = items if rng.random() < 0.5 else wrong_items(task, rng)
    text = task.joiner.join(given)
    answer = read(task, text[:1].upper() + text[1:] + ".")
    words = pieces(task, answer, None)[:6]
    judged = [(text, 0.0 if role == "wanted" else _weight(role, mixture)) for text, role in words]
    assert answer.correct == is_right(task, given)
    return [*judged, (END, 0.1)]


def copy(rng: random.Random, mixture: Mixture) -> Document:
    """A content said twice."""
    task, items = _content(rng)
    text = task.joiner.join(items)
    return [(f"Words: {text}. Again:", 0.0), (f" {text}.", 1.0), (END, END_WEIGHT)]


_KINDS: dict[str, Callable[[random.Random, Mixture], Document]] = {
    "question": question,
    "review": review,
    "tasks": tasks,
    "compare": compare,
    "copy": copy,
}


def documents(rng: random.Random, mixture: Mixture, count: int) -> list[Document]:
    """`count` random documents of a mixture."""
    shares = [getattr(mixture, name) for name in _KINDS]
    makers = rng.choices(list(_KINDS.values()), shares, k=count)
    return [make(rng, mixture) for make in makers]
