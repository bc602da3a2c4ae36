"""Keeping a text in its place inside a prompt: it cannot end its fence or spell what is special."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable


def fenced(text: str, fence: str) -> str:
    """`text` between lines of one repeated character, longer than any such run inside it or its
    look-alikes; as it is where `fence` is empty.
    """
    if not fence:
        return text
    sign = re.escape(fence[0])
    runs = re.findall(f"{sign}+", text) + re.findall(f"{sign}+", _folded(text))
    longest = max(map(len, runs), default=0)
    line = fence[0] * max(len(fence), longest + 1)
    return f"{line}\n{text}\n{line}"


def defused(text: str, reserved: Iterable[str]) -> str:
    """`text` with a space behind the first character of every reserved string, such as the
    tokenizer's special tokens, so that none reaches the tokenizer whole. Where one would only
    appear once a tokenizer has normalised the text, the text is normalised first.
    """
    strings = [re.escape(string) for string in reserved if len(string) > 1]
    if not strings:
        return text
    # Looking ahead finds overlapping strings too.
    anywhere = re.compile(rf"(?s)(?={'|'.join(strings)})(.)")
    broken = anywhere.sub(r"\1 ", text)
    folded = _folded(broken)
    return anywhere.sub(r"\1 ", folded) if anywhere.search(folded) else broken


def _folded(text: str) -> str:
    """Look-alikes as tokenizers with Unicode normalisation read them: compatibility forms as plain
    ones, marks without width left out.
    """
    plain = unicodedata.normalize("NFKC", text)
    return "".join(char for char in plain if unicodedata.category(char) != "Cf")
