"""The bytes each token of a vocabulary adds to a text, so that stop strings can be matched on
bytes.

Byte-level BPE (GPT-2, Llama 3, Qwen) writes every byte as one printable letter; SentencePiece-style
vocabularies (Llama 2, Mistral) write a space as U+2581 and lone bytes as <0xAB>. Whatever the kind,
the table is checked against the tokenizer's own decoding before it is used.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

CHECKS = 64  # random sequences on which the table must agree with the tokenizer
CHECK_TOKENS = 24
_LONE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Bytes of every id; special tokens add none. Raises ValueError when the table disagrees with
    the tokenizer.
    """
    size = len(tokenizer)
    special = set(tokenizer.all_special_ids)
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    to_bytes = _byte_level if _is_byte_level(tokenizer) else _sentence_piece
    table = []
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
        if token_id in special or token is None:
            table.append(b"")
        else:
            table.append(added[token_id].encode() if token_id in added else to_bytes(token))
    _check(tokenizer, table)
    return table


def decode(tokenizer: Any, token_ids: list[int]) -> str:
    """The text of a sample: no special tokens, nothing tidied."""
    return tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    return '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _letters() -> dict[str, int]:
    """GPT-2's printable letter of each byte: itself if printable Latin-1, else the next free one
    from U+0100.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_LETTER = _letters()


def _byte_level(token: str) -> bytes:
    if all(letter in _BYTE_OF_LETTER for letter in token):
        return bytes(_BYTE_OF_LETTER[letter] for letter in token)
    return token.encode()


def _sentence_piece(token: str) -> bytes:
    lone = _LONE_BYTE.fullmatch(token)
    return bytes.fromhex(lone[1]) if lone else token.replace("\u2581", " ").encode()


def _check(tokenizer: Any, table: list[bytes]) -> None:
    draw = random.Random(0)
    # Parts of characters are left out: a run of them that is not UTF-8 decodes to nothing certain.
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(table))))
    ids = [
        i for i, entry in enumerate(table) if _whole(entry) and not _LONE_BYTE.fullmatch(tokens[i])
    ]
    for _ in range(CHECKS if ids else 0):
        chosen = draw.choices(ids, k=CHECK_TOKENS)
        ours = b"".join(table[i] for i in chosen).decode()
        theirs = decode(tokenizer, chosen)
        # SentencePiece drops the space that opens a text.
        if theirs not in (ours, ours.removeprefix(" ")):
            raise ValueError(
                f"stop: this tokenizer's tokens have no fixed bytes ({theirs!r} against {ours!r}); "
                "wanted a byte-level or SentencePiece vocabulary, or use stop_token_ids"
            )


def _whole(entry: bytes) -> bool:
    """Whether these are whole characters."""
    try:
        return bool(entry.decode())
    except UnicodeDecodeError:
        return False
