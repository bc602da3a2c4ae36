"""The state of a training on disk: written whole or not at all, and read back bit for bit."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

FORMAT = 2


class CheckpointError(ValueError):
    """The file is not a checkpoint of this training. The message: file, found, wanted."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace `path` atomically: a crash leaves the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)  # on a full disk what is left of it is in the way
        raise


def load_checkpoint(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The state at `path` with tensors on the CPU, or None when there is no such file.

    Raises CheckpointError when the file cannot be read or was written by another training.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = (state["format"], state["fingerprint"])
    except Exception as error:
        raise CheckpointError(
            f"checkpoint: {path}: {type(error).__name__}, wanted one written by this trainer"
        ) from error
    if found != (FORMAT, fingerprint):
        raise CheckpointError(
            f"checkpoint: {path}: of another training, wanted the same data, settings, seed, model"
        )
    return state


def fingerprint_of(*parts: bytes | str) -> str:
    """A hash of all that decides a training's numbers besides the weights it starts from."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
