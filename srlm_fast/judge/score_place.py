"""The place where a judge writes a number: the ids that lead up to it, and those that spell it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from srlm_fast.kernels.token_bytes import token_bytes


class ScorePlace:
    """Directly behind `prefix` and a space, where one of `values` is written.

    score_ids: for each value all ids that spell it there: the one that the tokenizer itself would
    take, and every other whose bytes lead to the same text but for blanks before the number ("4"
    and " 4" behind "Score:"). Raises ValueError for a tokenizer that writes a value in more than
    one token (then its first token says too little), or whose tokens cannot be turned into bytes.
    """

    def __init__(self, tokenizer: Any, prefix: str, values: Sequence[int]) -> None:
        self._tokenizer, self._prefix, self._values = tokenizer, prefix, tuple(values)
        rows = self._rows("")
        lead = _common_start(rows)
        first = [row[-1] for row in rows if len(row) == len(lead) + 1]
        if len(first) != len(values):
            raise ValueError(f"no token of its own for each of {values[0]}..{values[-1]}")
        self.score_ids = self._spellings(lead, dict(zip(values, first, strict=True)))

    def lead_up(self, text: str = "") -> list[int]:
        """Ids of `text`, the prefix, and what stands between it and the number."""
        return _common_start(self._rows(text))

    def _rows(self, text: str) -> list[list[int]]:
        texts = [f"{text}{self._prefix} {value}" for value in self._values]
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _spellings(self, lead: list[int], own: dict[int, int]) -> dict[int, tuple[int, ...]]:
        data = token_bytes(self._tokenizer)
        begun = b"".join(data[i] for i in lead).lstrip()
        prefix, numbers = self._prefix.encode(), {str(value).encode(): value for value in own}
        found = {value: {i} for value, i in own.items()}
        for i, token in enumerate(data):
            if not token[-1:].isdigit():
                continue
            written = begun + token if begun else token.lstrip()
            value = numbers.get(written[len(prefix) :].lstrip(b" \t"))
            if value is not None and written.startswith(prefix) and i not in own.values():
                found[value].add(i)
        return {value: tuple(sorted(ids)) for value, ids in found.items()}


def _common_start(rows: Sequence[list[int]]) -> list[int]:
    together = zip(*rows, strict=False)
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, together)]
