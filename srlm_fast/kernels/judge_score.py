"""Scores out of judgements: read from the judge's own tokens, or expected over the score tokens.

extract_scores:  text_b = decode(token_bytes[token_ids[b, :lengths[b]]]);  (score_b, status_b) =
read(text_b)
expected_scores: l = hidden @ head^T;  z = logsumexp_v(l);  a_s = logsumexp_{v in ids(s)}(l)
                 mass = sum_s exp(a_s - z);  expected = sum_s s * softmax(a)_s      (arXiv
                 2503.03064, eq. 1)

The arithmetic is fp32 whatever the dtype of the inputs. A `ScoreTable` carries the bytes of each
token and the reader, so a text is read the same however a tokenizer splits or merges it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from .contracts import check_tensor

ScoreIds = Mapping[int, Iterable[int]] | Sequence[Iterable[int]]

# Rows of the head per step of the log-sum-exp: [B, 8192] fp32 logits instead of [B, V].
VOCAB_CHUNK = 8192


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


def expected_scores_reference(
    hidden: Tensor, head: Tensor, score_ids: Mapping[int, Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """hidden [B, D], head [V, D] -> (expected [B], mass [B]); keeps all logits [B, V]."""
    probs = torch.softmax(hidden.float() @ head.float().T, dim=-1)
    per_score = torch.stack([probs[:, list(ids)].sum(-1) for ids in score_ids.values()], dim=-1)
    values = torch.tensor(list(score_ids), dtype=torch.float32, device=hidden.device)
    mass = per_score.sum(-1)
    return (per_score * values).sum(-1) / mass, mass


def expected_scores(hidden: Tensor, head: Tensor, score_ids: ScoreIds) -> tuple[Tensor, Tensor]:
    """The mean score under the model at the position where the score is written.

    hidden [B, D]: final hidden rows at that position. head [V, D]. score_ids: for each score its
    token ids, as a mapping {score: ids} or a sequence whose index is the score
    (`ScoreTable.score_ids`).
    Returns (expected [B] fp32: mean over the score tokens alone, their probabilities renormalised;
    mass [B] fp32 in 0..1: how much of the whole vocabulary's probability the score tokens hold).
    Raises ValueError naming the argument that breaks the contract. B = 0 gives empty results.
    """
    ids = _check_score_ids(score_ids, hidden, head)
    wide = hidden.float()
    groups = [torch.logsumexp(wide @ head[list(group)].float().T, dim=-1) for group in ids.values()]
    log_weights = torch.stack(groups, dim=-1)  # [B, S]
    values = torch.tensor(list(ids), dtype=torch.float32, device=hidden.device)
    expected = (torch.softmax(log_weights, dim=-1) * values).sum(-1)
    total = torch.full_like(expected, -torch.inf)
    for rows in head.split(VOCAB_CHUNK):
        total = torch.logaddexp(total, torch.logsumexp(wide @ rows.float().T, dim=-1))
    # The two sums round differently, so a mass of one may come out a few ulps above it.
    mass = torch.exp(torch.logsumexp(log_weights, dim=-1) - total).clamp(max=1.0)
    return expected, mass


def _check_score_ids(
    score_ids: ScoreIds, hidden: Tensor, head: Tensor
) -> dict[int, tuple[int, ...]]:
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    check_tensor("hidden", hidden, ["B", "D"], floats)
    check_tensor("head", head, ["V", hidden.shape[1]], floats, hidden.device)
    pairs = score_ids.items() if isinstance(score_ids, Mapping) else enumerate(score_ids)
    ids = {score: _as_ids(score, group) for score, group in pairs}
    flat = [i for group in ids.values() for i in group]
    if not ids or len(set(flat)) != len(flat):
        raise ValueError("score_ids: no score, or one token id under two scores")
    if not all(0 <= i < head.shape[0] for i in flat):
        raise ValueError(
            f"score_ids: ids {min(flat)} to {max(flat)}, wanted 0 to {head.shape[0] - 1}"
        )
    return ids


def _as_ids(score: int, group: Iterable[int] | int) -> tuple[int, ...]:
    """The distinct ids of one score; a single id may stand without a set around it."""
    many = torch.as_tensor(group if isinstance(group, int | Tensor) else sorted(set(group)))
    ids = tuple(sorted(set(many.reshape(-1).tolist())))
    if not ids:
        raise ValueError(f"score_ids: no token id for the score {score}, wanted at least one")
    return ids
