"""What one tree could give: its first turn with the best reply (IFT), prompts with ranked replies
(EFT). Everything that is left out is counted by its reason."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from srlm_fast.data.oasst.messages import (
    ASSISTANT,
    FLAWS,
    NOT_READY,
    PROMPTER,
    TreeMessage,
)
from srlm_fast.records import Message, asked_row

SOURCE = "Open Assistant"
NO_ROOT, ROLE, BEHIND = "no first message", "roles out of turn", "behind one left out"
NO_RANK, BEST_OUT, FEW = "no ranked reply", "reply of rank 0 left out", "under two ranked replies"
TWICE, SPARE, OF_IFT = "duplicates of a prompt", "not needed", "first turns of IFT's trees"
TAKEN = (
    *("taken for training", "later turns in training", "of IFT's trees in training"),
    *("taken for evaluation", "later turns in evaluation", "of IFT's trees in evaluation"),
)
SAME_TEXT, UNRANKED = "same text as a better one", "no rank"

Account = dict[str, Counter[str]]


def new_account() -> Account:
    """Counts by section and reason, all at 0, in the order in which they are looked for."""
    names = {
        "messages": ("read", "read twice", "apart from their tree"),
        "trees": ("read", NOT_READY, NO_ROOT, *FLAWS, ROLE, "usable"),
        "ift": (NO_RANK, BEST_OUT, "candidates", TWICE, SPARE, "taken"),
        "eft": ("prompts", *FLAWS, ROLE, BEHIND, FEW, "candidates", OF_IFT, TWICE, SPARE, *TAKEN),
        "replies": ("read", *FLAWS, ROLE, UNRANKED, SAME_TEXT, "ranked"),
    }
    return {section: Counter(dict.fromkeys(of, 0)) for section, of in names.items()}


class Found(NamedTuple):
    """A row that a tree could give. prompt: its text; the id is that of the message."""

    kind: str
    turn: int
    prompt_id: str
    prompt: str
    row: dict[str, Any]


class Step(NamedTuple):
    """A message on the way down a tree, with those before it; None at the root."""

    message: TreeMessage
    before: Step | None
    depth: int
    flaw: str  # of the message or of one before it

    def turns(self) -> list[Message]:
        step: Step | None = self
        found: list[Message] = []
        while step is not None:
            role = "user" if step.message.role == PROMPTER else "assistant"
            found.append({"role": role, "content": step.message.text})
            step = step.before
        return found[::-1]


class Tree:
    """messages: of one tree, by id, as `Store.trees` gives them."""

    def __init__(self, messages: Sequence[TreeMessage], account: Account) -> None:
        self.account = account
        self.id = messages[0].tree
        self.replies: dict[str | None, list[TreeMessage]] = defaultdict(list)
        unique: dict[str, TreeMessage] = {}
        for message in messages:
            if unique.setdefault(message.id, message) is message:
                self.replies[message.parent].append(message)
        roots = self.replies[None]
        self.root = next((m for m in roots if m.id == self.id), roots[0] if roots else None)
        account["messages"]["read twice"] += len(messages) - len(unique)
        self._kept = len(unique)

    def found(self) -> Iterator[Found]:
        """What the tree could give, counted."""
        reason = self._flaw()
        self.account["trees"]["read"] += 1
        self.account["trees"][reason or "usable"] += 1
        if reason == NOT_READY:
            return
        if self.root is not None and not reason:
            yield from self._ift(self.root)
        steps = list(self._walk(self.root)) if self.root is not None else []
        self.account["messages"]["apart from their tree"] += self._kept - len(steps)
        for step in steps:
            if step.message.role == PROMPTER:
                yield from self._eft(step)

    def _flaw(self) -> str:
        if self.root is None:
            return NO_ROOT
        return self.root.flaw or ("" if self.root.role == PROMPTER else ROLE)

    def _ift(self, root: TreeMessage) -> Iterator[Found]:
        replies = self.replies[root.id]
        best = [reply for reply in replies if reply.rank == 0 and not _reply_flaw(reply)]
        if best:
            self.account["ift"]["candidates"] += 1
            row = {
                "prompt": root.text,
                "response": best[0].text,
                "prompt_id": root.id,
                "response_id": best[0].id,
                "message_tree_id": self.id,
                "labels": json.loads(best[0].labels or "{}"),
                "source": SOURCE,
            }
            yield Found("ift", 0, root.id, root.text, row)
        else:
            ranked = any(reply.rank is not None for reply in replies)
            self.account["ift"][BEST_OUT if ranked else NO_RANK] += 1

    def _walk(self, root: TreeMessage) -> Iterator[Step]:
        """All messages below the root and itself; a cycle cannot be reached from there."""
        stack = [Step(root, None, 0, self._flaw())]
        while stack:
            step = stack.pop()
            yield step
            role = (ASSISTANT, PROMPTER)[step.depth % 2]
            for reply in self.replies.get(step.message.id, ()):
                flaw = BEHIND if step.flaw else _flaw_as(reply, role)
                stack.append(Step(reply, step, step.depth + 1, flaw))

    def _eft(self, step: Step) -> Iterator[Found]:
        counts = self.account["eft"]
        counts["prompts"] += 1
        if step.flaw:
            counts[step.flaw] += 1
            return
        replies = self._ranked(step.message)
        ranks = sorted({reply.rank for reply in replies if reply.rank is not None})
        if len(ranks) < 2:
            counts[FEW] += 1
            return
        counts["candidates"] += 1
        asked = asked_row(step.turns())
        row = {
            **asked,
            "responses": [reply.text for reply in replies],
            "scores": [len(ranks) - 1 - ranks.index(reply.rank or 0) for reply in replies],
            "prompt_id": step.message.id,
            "response_ids": [reply.id for reply in replies],
            "message_tree_id": self.id,
            "turn": step.depth // 2,
            "source": SOURCE,
        }
        yield Found("eft", step.depth // 2, step.message.id, asked["prompt"], row)

    def _ranked(self, prompt: TreeMessage) -> list[TreeMessage]:
        """The replies that have a rank and can be used, by id, each text with its best rank."""
        counts, best = self.account["replies"], {}
        for reply in sorted(self.replies.get(prompt.id, ()), key=_by_rank):
            flaw = _reply_flaw(reply) or (UNRANKED if reply.rank is None else "")
            flaw = flaw or (SAME_TEXT if reply.text in best else "")
            counts["read"] += 1
            counts[flaw or "ranked"] += 1
            if not flaw:
                best[reply.text] = reply
        return sorted(best.values())


def _flaw_as(message: TreeMessage, role: str) -> str:
    return message.flaw or ("" if message.role == role else ROLE)


def _reply_flaw(reply: TreeMessage) -> str:
    return _flaw_as(reply, ASSISTANT)


def _by_rank(reply: TreeMessage) -> tuple[bool, int, str]:
    return reply.rank is None, reply.rank or 0, reply.id
