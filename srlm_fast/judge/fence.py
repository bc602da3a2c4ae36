"""Keeping a text in its place inside a prompt: it cannot end its fence or spell what is special."""

from __future__ import annotations

import re
from collections.abc import Iterable


def fenced(text: str, fence: str) -> str:
    """`text` between lines of one repeated character, longer than any such run inside it; as it
    is where `fence` is empty.
    """
    if not fence:
        return text
    runs = re.findall(rf"{re.escape(fence[0])}+", text)
    longest = max(map(len, runs), default=0)
    line = fence[0] * max(len(fence), longest + 1)
    return f"{line}\n{text}\n{line}"


def defused(text: str, reserved: Iterable[str]) -> str:
    """`text` with a space behind the first character of every reserved string, such as the
    tokenizer's special tokens, so that none reaches the tokenizer whole.
    """
    strings = [re.escape(string) for string in reserved if len(string) > 1]
    if not strings:
        return text
    # Looking ahead finds overlapping strings too.
    return re.sub(rf"(?s)(?={'|'.join(strings)})(.)", r"\1 ", text)
