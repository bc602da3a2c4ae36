"""Answers of a model to a list of questions, row by row, so that a command that was killed goes on.

A question may be a dialogue: its turns are asked one after the other, each with what was said
before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srlm_fast.records import Message, RowWriter, read_jsonl

if TYPE_CHECKING:
    from srlm_fast.report.display import Display
    from srlm_fast.sampler import Generation, Progress, Request, Sampler, SamplingParams


@dataclass(frozen=True)
class Dialogue:
    """key: its name in the file. questions: the user's turns in their order."""

    key: str
    questions: Sequence[str]
    params: SamplingParams


@dataclass(frozen=True)
class Asked:
    """A turn that the model is answering, and its answers before."""

    dialogue: Dialogue
    answers: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        return self.dialogue.questions[len(self.answers)]

    @property
    def turns(self) -> list[Message]:
        """What was said before."""
        said = zip(self.dialogue.questions, self.answers, strict=False)
        return [
            message
            for question, answer in said
            for message in (
                Message(role="user", content=question),
                Message(role="assistant", content=answer),
            )
        ]


class Answering:
    """Answers into a file, a row for each dialogue: "key", "answers", "time" (seconds since 1970);
    goes on from what the file holds. An answer is as long as its context allows; where that is
    nothing at all it is "" and counted in `too_long`.
    """

    def __init__(self, sampler: Sampler, path: Path) -> None:
        self.sampler, self.path = sampler, path
        self.rows = {row["key"]: row for row in read_jsonl(path)}
        self.too_long = 0

    def run(
        self,
        dialogues: Sequence[Dialogue],
        display: Display,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[list[str]]:
        """The answers of each dialogue. Raises KeyboardInterrupt after `stop()` is true."""
        left = [dialogue for dialogue in dialogues if dialogue.key not in self.rows]
        done = len(dialogues) - len(left)
        stage = display.stage("answers", len(dialogues), "questions", done)
        with stage as shown, RowWriter(self.path) as writer:
            self._write = writer.write

            def progress(p: Progress) -> None:
                if stop():
                    display.note(f"{len(self.rows)} are kept: the same command goes on from there")
                    raise KeyboardInterrupt
                shown.update(len(self.rows), tokens=p.generated_tokens)

            first = (request for each in left for request in self._ask(Asked(each)))
            self.sampler.run(first, self._finished, progress)
        if self.too_long:
            display.note(f"left empty, longer than the model's context: {self.too_long} answers")
        return [self.rows[dialogue.key]["answers"] for dialogue in dialogues]

    def _ask(self, asked: Asked) -> list[Request]:
        """The next turn as a request; none where the dialogue is finished."""
        from srlm_fast.model import chat
        from srlm_fast.sampler import Request

        if len(asked.answers) == len(asked.dialogue.questions):
            self._keep(asked)
            return []
        ids = chat.encode(self.sampler.model.tokenizer, asked.question, asked.turns)
        room = min(asked.dialogue.params.max_tokens, self.sampler.longest - len(ids))
        if room < 1:
            self.too_long += 1
            return self._ask(replace(asked, answers=(*asked.answers, "")))
        return [Request(ids, replace(asked.dialogue.params, max_tokens=room), tag=asked)]

    def _finished(self, generation: Generation) -> Iterable[Request]:
        asked: Asked = generation.tag
        answer = generation.samples[0].text.strip()
        return self._ask(replace(asked, answers=(*asked.answers, answer)))

    def _keep(self, asked: Asked) -> None:
        key = asked.dialogue.key
        row: dict[str, Any] = {"key": key, "answers": list(asked.answers), "time": time.time()}
        self._write(row)
        self.rows[key] = row
