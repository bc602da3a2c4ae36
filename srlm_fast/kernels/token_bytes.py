"""The bytes that each token of a tokenizer adds to the text, read from its vocabulary and checked
by decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PROBE = "Well, 10 points.\nScore: **4**/5 or Score : 3 é 分数 🙂"


def token_bytes(tokenizer: Any) -> tuple[bytes, ...]:
    """One entry per id, in order; special tokens and unused ids have none.

    Takes a transformers tokenizer with a fast backend or a `tokenizers.Tokenizer`: byte-level BPE,
    SentencePiece with or without byte fallback, WordPiece, word level. Raises ValueError naming
    `tokenizer` for another kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise ValueError(f"tokenizer: {type(tokenizer).__name__} has no fast backend, wanted one")
    spec = json.loads(backend.to_str())
    to_bytes = _converter(spec)
    special = {token["id"] for token in spec["added_tokens"] if token["special"]}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    data = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, token_id in vocabulary.items():
        data[token_id] = b"" if token_id in special else to_bytes(token)
    _check(backend, data, spec)
    return tuple(data)


def end_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that end a turn: the tokenizer's own end-of-text token, if it names one."""
    end = getattr(tokenizer, "eos_token_id", None)
    return frozenset() if end is None else frozenset([end])


def _converter(spec: dict[str, Any]) -> Callable[[str], bytes]:
    """Token string -> bytes, by the decoder that the tokenizer itself uses."""
    decoders = list(_flatten(spec["decoder"]))
    kinds = {decoder["type"] for decoder in decoders}
    if "ByteLevel" in kinds:
        return _from_byte_level
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _from_sentencepiece
    prefix = next((d["prefix"] for d in decoders if d["type"] == "WordPiece"), None)
    if prefix is not None or not kinds:
        return lambda token: _from_words(token, prefix)
    raise ValueError(f"tokenizer: decoder {', '.join(sorted(kinds))} is not known")


def is_lone_byte(token: str) -> bool:
    """Whether a SentencePiece vocabulary writes a single byte so."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def _flatten(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for part in decoder["decoders"]:
            yield from _flatten(part)
    else:
        yield decoder


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: a printable Latin-1 byte is itself, the others follow from
    U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_ALPHABET = byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    # Added tokens are plain text; one with a character outside the alphabet is decoded as it
    # stands.
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()


def _from_sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


def _from_words(token: str, prefix: str | None) -> bytes:
    if prefix and token.startswith(prefix):
        return token[len(prefix) :].encode()
    return b" " + token.encode()


def _check(backend: Any, data: list[bytes], spec: dict[str, Any]) -> None:
    """Decode a probe both ways. White space is left out: WordPiece tidies it, SentencePiece drops a
    first space."""
    ids = backend.encode(_PROBE, add_special_tokens=False).ids
    ours = b"".join(data[i] for i in ids).decode(errors="replace")
    theirs = backend.decode(ids, skip_special_tokens=True)
    if "".join(ours.split()) != "".join(theirs.split()):
        kind = (spec["decoder"] or {}).get("type")
        raise ValueError(f"tokenizer: its tokens decode to {theirs!r}, read as {ours!r} ({kind})")
