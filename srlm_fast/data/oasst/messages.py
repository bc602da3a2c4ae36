"""Open Assistant's forms as messages of one form: a line is a tree, a message (with or without the
replies below it and the id of its tree) or a thread, messages that each answer the one before.

Fields: message_id, parent_id (null at the root), text, role (prompter or assistant), lang, deleted,
review_result, rank (0 = best; only where siblings were ranked), synthetic, labels, message_tree_id,
tree_state. Labels are name -> {value, count} or lists {name, value, count}. What may be missing or
null is so in the exports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from srlm_fast.data.fields import Line, check_text, kind
from srlm_fast.records import InputError

FORM = (
    '{"message_tree_id": "...", "prompt": {..., "replies": [...]}} or '
    '{"message_id": "...", "parent_id": null, "role": "prompter", ...}'
)
COLUMNS = (
    *("message_id", "parent_id", "message_tree_id", "tree_state", "text", "role", "lang"),
    *("deleted", "review_result", "rank", "synthetic", "labels", "prompt", "replies", "thread"),
)
UNKNOWN = ""  # a tree that is found when the parents are known
PROMPTER, ASSISTANT = "prompter", "assistant"
READY = "ready_for_export"
# Why a message is left out, in the order in which they are looked for.
NOT_READY, DELETED, REVIEW = "not ready for export", "deleted", "review failed"
SYNTHETIC, LANGUAGE, EMPTY = "synthetic", "other language", "empty text"
FLAWS = (DELETED, REVIEW, SYNTHETIC, LANGUAGE, EMPTY)


class TreeMessage(NamedTuple):
    """A message of a tree. flaw: why it is left out, "" where it is not; then its text is kept.
    labels: those of an answer as a JSON object, name -> mean value."""

    tree: str
    id: str
    parent: str | None
    role: str
    flaw: str
    rank: int | None
    text: str
    labels: str


def tree_messages(line: Line, lang: str) -> Iterator[TreeMessage]:
    """The messages of one object, told by its content. lang: the language wanted.

    Raises InputError naming file, line and field.
    """
    outer = _Fields(line, "", line.fields)
    if "message_id" in line.fields:
        return _placed(outer, _is_ready(outer), lang)
    if "thread" in line.fields:
        return _thread(outer, lang)
    if "prompt" in line.fields and "message_tree_id" in line.fields:
        return _tree(outer, lang)
    raise _other(line)


def _placed(fields: _Fields, ready: bool, lang: str) -> Iterator[TreeMessage]:
    """A message that says itself where it belongs, and what is nested below it."""
    parent, tree = fields.named("parent_id"), fields.named("message_tree_id")
    if tree is None:
        tree = fields.text("message_id") if parent is None else UNKNOWN
    return _walk(fields, tree, parent, ready, lang)


def _thread(outer: _Fields, lang: str) -> Iterator[TreeMessage]:
    ready, last, line = _is_ready(outer), None, outer.line
    if not (values := line.items("thread")):
        raise line.error("thread", "is an empty list", "at least one message")
    for i, value in enumerate(values):
        fields = outer.inner(f"thread[{i}]", value)
        if last is None:
            last = next(_placed(fields, ready, lang))
        else:
            last = fields.message(last.tree, last.id, ready, lang)
        yield last


def _tree(outer: _Fields, lang: str) -> Iterator[TreeMessage]:
    tree, ready = outer.text("message_tree_id"), _is_ready(outer)
    prompt = outer.optional("prompt", dict, "a message")
    if prompt is None:
        yield TreeMessage(tree, tree, None, PROMPTER, EMPTY if ready else NOT_READY, None, "", "")
    else:
        yield from _walk(outer.inner("prompt", prompt), tree, None, ready, lang)


def _walk(
    root: _Fields, tree: str, parent: str | None, ready: bool, lang: str
) -> Iterator[TreeMessage]:
    stack = [(root, parent)]
    while stack:
        fields, parent = stack.pop()
        message = fields.message(tree, parent, ready, lang)
        yield message
        replies = fields.optional("replies", list, "a list of messages") or ()
        stack += [(fields.inner(f"replies[{i}]", r), message.id) for i, r in enumerate(replies)]


def _other(line: Line) -> InputError:
    names = ", ".join(map(repr, list(line.fields)[:6])) or "no field"
    if any(isinstance(line.fields.get(name), str) for name in ("prompt", "text")):
        found = "prompts or texts without message ids, which have no replies"
        wanted = f"{FORM}; prompts can serve as they are, by --prompts of srlm_fast.run"
        return InputError(f"{line.where}: found {found}, wanted {wanted}")
    return InputError(f"{line.where}: found {names[:180]}, wanted {FORM}")


def _is_ready(fields: _Fields) -> bool:
    """Also where no state is given."""
    return fields.optional("tree_state", str, "a string or null") in (None, READY)


class _Fields:
    """The fields of one message; mistakes name the place in the line."""

    def __init__(self, line: Line, path: str, fields: dict[str, Any]) -> None:
        self.line, self.path, self.fields = line, path, fields

    def optional(self, name: str, wanted: type, words: str) -> Any:
        """None where the field is missing or null."""
        value = self.fields.get(name)
        if value is None or type(value) is wanted:
            return value
        raise self.line.error(self.path + name, f"is {kind(value)}", words)

    def inner(self, name: str, value: Any) -> _Fields:
        if not isinstance(value, dict):
            raise self.line.error(self.path + name, f"is {kind(value)}", "a message")
        return _Fields(self.line, f"{self.path}{name}.", value)

    def named(self, name: str) -> str | None:
        """An id, None where the field is missing or null."""
        given = self.optional(name, str, "a string or null")
        return None if given is None else self.text(name)

    def text(self, name: str) -> str:
        if name not in self.fields:
            raise self.line.error(self.path + name, "is missing", "a string")
        return check_text(self.line, self.path + name, self.fields[name])

    def message(self, tree: str, parent: str | None, ready: bool, lang: str) -> TreeMessage:
        own, role = self.text("message_id"), self.text("role")
        if role not in (PROMPTER, ASSISTANT):
            raise self.line.error(
                f"{self.path}role", f"is {role[:40]!r}", f"{PROMPTER!r} or {ASSISTANT!r}"
            )
        flaw = self.flaw(lang) if ready else NOT_READY
        text = "" if flaw else self.text("text")
        labels = self.labels() if role == ASSISTANT and not flaw else ""
        return TreeMessage(tree, own, parent, role, flaw, self.rank(), text, labels)

    def flaw(self, lang: str) -> str:
        if self.optional("deleted", bool, "true, false or null"):
            return DELETED
        if self.optional("review_result", bool, "true, false or null") is False:
            return REVIEW
        if self.optional("synthetic", bool, "true, false or null"):
            return SYNTHETIC
        if self.optional("lang", str, "a string or null") != lang:
            return LANGUAGE
        text = self.fields.get("text")
        return EMPTY if isinstance(text, str) and not text.strip() else ""

    def rank(self) -> int | None:
        """Columns with gaps make floats of whole numbers and NaN of null."""
        value = self.fields.get("rank")
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not whole or not 0 <= value < 2**31 or value != int(value):
            raise self.line.error(
                f"{self.path}rank", f"is {kind(value)}", "a whole number of at least 0, or null"
            )
        return int(value)

    def labels(self) -> str:
        value = self.fields.get("labels")
        if value is None:
            return ""
        try:
            values = dict(_label_values(value))
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            wanted = 'a map name -> {"value", "count"} or lists "name", "value", "count"'
            raise self.line.error(f"{self.path}labels", "has another form", wanted) from None
        return json.dumps({name: v for name, v in sorted(values.items()) if v is not None})


def _label_values(labels: Any) -> Iterator[tuple[str, float | None]]:
    """Raises one of Python's errors where the form is another."""
    if isinstance(labels, list):
        pairs = [(label["name"], label["value"]) for label in labels]
    elif isinstance(labels.get("name"), list):
        pairs = list(zip(labels["name"], labels["value"], strict=True))
    else:
        pairs = [(name, label["value"]) for name, label in labels.items()]
    for name, value in pairs:
        if value is not None and math.isinf(value):
            raise ValueError
        yield "" + name, None if value is None or math.isnan(value) else float(value)
