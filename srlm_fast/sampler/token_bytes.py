"""Texts of samples, and the bytes of a vocabulary's tokens where stop strings can be matched on
them."""

from __future__ import annotations

import random
from typing import Any

from ..kernels.token_bytes import is_lone_byte
from ..kernels.token_bytes import token_bytes as bytes_of

CHECKS = 64  # random sequences on which the table must agree with the tokenizer
CHECK_TOKENS = 24


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Bytes of every id; special tokens add none. Raises ValueError when the table disagrees with
    the tokenizer in as much as a space.
    """
    try:
        table = list(bytes_of(tokenizer))
    except ValueError as error:
        raise _refusal(str(error)) from None
    table += [b""] * (len(tokenizer) - len(table))
    _check(tokenizer, table)
    return table


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of a sample: no special tokens, nothing tidied."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _check(tokenizer: Any, table: list[bytes]) -> None:
    draw = random.Random(0)
    # Parts of characters are left out: a run of them that is not UTF-8 decodes to nothing certain.
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(table))))
    ids = [i for i, entry in enumerate(table) if _whole(entry) and not is_lone_byte(tokens[i])]
    for _ in range(CHECKS if ids else 0):
        chosen = draw.choices(ids, k=CHECK_TOKENS)
        ours = b"".join(table[i] for i in chosen).decode()
        theirs = decode(tokenizer, chosen)
        # SentencePiece drops the space that opens a text.
        if theirs not in (ours, ours.removeprefix(" ")):
            raise _refusal(f"{theirs!r} against {ours!r}")


def _refusal(why: str) -> ValueError:
    return ValueError(
        f"stop: this tokenizer's tokens have no fixed bytes ({why}); wanted a byte-level or "
        "SentencePiece vocabulary, or use stop_token_ids"
    )


def _whole(entry: bytes) -> bool:
    """Whether these are whole characters."""
    try:
        return bool(entry.decode())
    except UnicodeDecodeError:
        return False
