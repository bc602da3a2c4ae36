"""Scores out of judgements, read from the judge's own tokens.

text_b = decode(token_bytes[token_ids[b, :lengths[b]]]);  (score_b, status_b) = read(text_b)

A `ScoreTable` carries the bytes of each
token and the reader, so a text is read the same however a tokenizer splits or merges it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .contracts import check_tensor


class ScoreStatus(IntEnum):
    """What became of one judgement. All but OK come with the score NaN."""

    OK = 0
    MISSING = 1  # it ended without a number
    OUT_OF_RANGE = 2  # the deciding number is not an integer of the range
    TRUNCATED = 3  # the token limit cut it before its score was certain


@dataclass(frozen=True)
class ScoreTable:
    """A score pattern compiled for one tokenizer; made by `srlm_fast.judge.compile_pattern`.

    token_bytes: the bytes that each token id adds to the text; none for special tokens.
    end_ids: ids that end the judge's turn; nothing behind them is read.
    read: (text, finished) -> (score, status); the score is NaN unless the status is OK.
    score_ids: for each score of the range the ids that spell it alone, with or without a space
    before it.
    """

    token_bytes: tuple[bytes, ...]
    end_ids: frozenset[int]
    read: Callable[[str, bool], tuple[float, ScoreStatus]]
    score_ids: dict[int, tuple[int, ...]]

    def text(self, token_ids: Iterable[int], finished: bool = True) -> str:
        """The text of a row. Bytes that are not UTF-8 become U+FFFD; a character cut at the end is
        left out."""
        data = b"".join(self.token_bytes[i] for i in token_ids if 0 <= i < len(self.token_bytes))
        return codecs.getincrementaldecoder("utf-8")("replace").decode(data, finished)

    def turn(self, token_ids: list[int]) -> tuple[list[int], bool]:
        """The ids before the first one that ends the turn, and whether there is such a one."""
        end = next((at for at, i in enumerate(token_ids) if i in self.end_ids), None)
        return (token_ids, False) if end is None else (token_ids[:end], True)


def extract_scores_reference(
    rows: Sequence[list[int]], finished: Sequence[bool], table: ScoreTable
) -> list[tuple[float, ScoreStatus]]:
    """One (score, status) per row of token ids."""
    read = []
    for row, row_finished in zip(rows, finished, strict=True):
        ids, ended = table.turn(row)
        done = row_finished or ended
        read.append(table.read(table.text(ids, done), done))
    return read


def extract_scores(
    token_ids: Tensor,
    lengths: Tensor,
    table: ScoreTable,
    finished: Tensor | Sequence[bool] | None = None,
) -> tuple[Tensor, Tensor]:
    """Read the score of each judgement from its token ids.

    token_ids [B, L] integer: the judge's own turn, without its prompt. lengths [B] integer: valid
    ids per row.
    finished [B] bool: False where the token limit cut the row; None: every row ended by itself.
    Returns (scores [B] fp32, NaN where not OK; status [B] int32, values of ScoreStatus), on
    token_ids' device.
    Raises ValueError naming the argument that breaks the contract.
    """
    _check_rows(token_ids, lengths)
    num_rows = token_ids.shape[0]
    ended = [True] * num_rows if finished is None else torch.as_tensor(finished).tolist()
    if len(ended) != num_rows:
        raise ValueError(f"finished: {len(ended)} entries, wanted {num_rows}")
    rows = [row[:n] for row, n in zip(token_ids.tolist(), lengths.tolist(), strict=True)]
    read = extract_scores_reference(rows, ended, table)
    device = token_ids.device
    scores = torch.tensor([score for score, _ in read], dtype=torch.float32, device=device)
    status = torch.tensor([int(code) for _, code in read], dtype=torch.int32, device=device)
    return scores, status


def _check_rows(token_ids: Tensor, lengths: Tensor) -> None:
    integers = (torch.int64, torch.int32)
    check_tensor("token_ids", token_ids, ["B", "L"], integers)
    num_rows, width = token_ids.shape
    check_tensor("lengths", lengths, [num_rows], integers)
    if num_rows and not 0 <= int(lengths.min()) <= int(lengths.max()) <= width:
        low, high = int(lengths.min()), int(lengths.max())
        raise ValueError(f"lengths: from {low} to {high}, wanted 0 to {width}")
